"""`GET /v1/heads` and `GET /v1/heads/{name}`."""

import json

from starlette.requests import Request
from starlette.responses import Response

from services.prober import messages
from services.prober.dataplane import Dataplane
from services.prober.metrics import ProberMetrics

from .encoding import dumps, to_json
from .media import JSON, wanted
from .queries import Query


class Heads:
    """The routes.

    Args:
        dataplane: does the work.
        metrics: counts calls.
    """

    def __init__(self, dataplane: Dataplane, metrics: ProberMetrics) -> None:
        self._dataplane, self._metrics = dataplane, metrics

    async def listed(self, request: Request) -> Response:
        """Heads by the beginning of their names."""
        wanted(request.headers, (JSON,))
        prefix = Query(request.query_params, ("prefix",)).text("prefix", "")
        with self._metrics.call("ListHeads"):
            entries = await self._dataplane.heads(prefix)
        shown = [to_json(messages.summary_to_proto(entry)) for entry in entries]
        return Response(dumps({"heads": shown}), media_type=JSON)

    async def one(self, request: Request) -> Response:
        """One head and its card."""
        wanted(request.headers, (JSON,))
        Query(request.query_params, ())
        with self._metrics.call("GetHead"):
            entry = await self._dataplane.entry(request.path_params["name"])
        shown = {"summary": to_json(messages.summary_to_proto(entry)), "card": json.loads(entry.card.to_json())}
        return Response(dumps(shown), media_type=JSON)
