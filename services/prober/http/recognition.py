"""`POST /v1/recognize`: a file or raw samples in, emotions out, at once or one window a line as they come.

- All that the headers and the query say is judged before the body is read; a long body also waits for the embedder to
  say that it is there and fits the head.
- A short body stays in memory and is recognised as gRPC would. A long one, and any that is answered in lines, goes to
  an unnamed file and is read from there, in constant memory.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from services.prober import messages
from services.prober.answers import Recognition, Tally, Window
from services.prober.asking import Ask
from services.prober.dataplane import Dataplane
from services.prober.metrics import ProberMetrics
from services.prober.posterior import Posterior
from services.prober.settings import Settings
from services.prober.spool import Spool
from services.prober.windows import grid
from servox.errors import BadInput, TooLarge
from servox.v1 import common_pb2

from .bodies import Intake, check_length, taken
from .encoding import dumps, to_json
from .leaving import unless_gone
from .media import JSON, LINES, Sent, sent, wanted
from .queries import ASKED, Query

PARAMETERS = ("head", "window_ms", "hop_ms", "every_window", *ASKED)
ASKED_FIRST_BYTES = 1 << 20  # longer bodies are worth asking the embedder before they are read
ENVELOPE_BYTES = 64 << 10  # of a message around its audio
_ANY_RATE_HZ = 16_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What headers and query ask for, checked.

    Attributes:
        sent: how the audio is packed.
        lines: whether windows are answered as they come.
        ask: which head answers, and how.
        window_ms: 0 for the whole clip.
        hop_ms: 0 for the window's length.
        every_window: answer windows without speech as well.
    """

    sent: Sent
    lines: bool
    ask: Ask
    window_ms: int
    hop_ms: int
    every_window: bool

    @classmethod
    def read(cls, headers: Headers, query: QueryParams) -> "Asked":
        """What a request asks for.

        Raises:
            Refusal: 400, 406, 415.
            BadInput: lengths out of range, an impossible prior.
        """
        lines, packed = wanted(headers, (JSON, LINES)) == LINES, sent(headers)
        given = Query(query, PARAMETERS)
        asked = cls(
            sent=packed,
            lines=lines,
            ask=given.ask(),
            window_ms=given.integer("window_ms"),
            hop_ms=given.integer("hop_ms"),
            every_window=given.flag("every_window"),
        )
        if asked.window_ms:
            grid(asked.window_ms, asked.hop_ms, _ANY_RATE_HZ)
        elif asked.hop_ms:
            raise BadInput(f"hop_ms = {asked.hop_ms}: without window_ms; give both, or neither for the whole clip")
        return asked

    @property
    def by_file(self) -> bool:
        """Whether the audio is read from a file whatever its length."""
        return self.lines and self.window_ms > 0 and self.sent.pcm is None


class Recognitions:
    """The route.

    Args:
        dataplane: does the work.
        settings: limits.
        metrics: counts calls.
    """

    def __init__(self, dataplane: Dataplane, settings: Settings, metrics: ProberMetrics) -> None:
        self._dataplane, self._settings, self._metrics = dataplane, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        request = Request(scope)
        asked = Asked.read(request.headers, request.query_params)
        intake = Intake(max_bytes=self._limit(asked), idle_s=self._settings.http_idle_s, scratch=self._settings.scratch)
        length = check_length(request.headers, intake.max_bytes)
        posterior = await self._dataplane.posterior(asked.ask)
        if length is None or length > ASKED_FIRST_BYTES:
            await check_fit(self._dataplane, posterior)
        async with taken(receive, intake, asked.sent.boundary, to_file=asked.by_file) as body:
            await self._answer(asked, posterior, body, (scope, receive, send))

    def _limit(self, asked: Asked) -> int:
        """Whole clips and raw samples go to the embedder in one message; windows of a file do not."""
        message = self._settings.max_message_bytes - ENVELOPE_BYTES
        whole = not asked.window_ms or asked.sent.pcm is not None
        return min(message, self._settings.max_file_bytes) if whole else self._settings.max_file_bytes

    async def _answer(self, asked: Asked, posterior: Posterior, body: Spool, asgi: tuple[Scope, Receive, Send]) -> None:
        scope, receive, send = asgi
        path = body.path
        if asked.by_file and path:
            answers = self._lines(asked, posterior, path)
            async with aclosing(answers):
                await unless_gone(receive, _write_lines(answers, send))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        recognition = await unless_gone(receive, self._recognized(asked, posterior, body))
        shown = to_json(messages.recognition_to_proto(recognition, posterior))
        await _response(shown, lines=asked.lines)(scope, receive, send)

    async def _recognized(self, asked: Asked, posterior: Posterior, body: Spool) -> Recognition:
        with self._metrics.call("Recognize"):
            if body.path is not None and asked.window_ms and asked.sent.pcm is None:
                return await self._gathered(asked, posterior, body.path)
            return await self._dataplane.recognize(
                audio_of(asked.sent, await body.data()),
                posterior,
                window_ms=asked.window_ms,
                hop_ms=asked.hop_ms,
                every_window=asked.every_window,
            )

    async def _gathered(self, asked: Asked, posterior: Posterior, path: Path) -> Recognition:
        """All windows of a long file, up to as many as one answer may have."""
        tally, windows, made_by = Tally(), list[Window](), common_pb2.Bundle()
        answers = self._windows(asked, posterior, path)
        async with aclosing(answers):
            async for window, bundle in answers:
                tally.add(window)
                windows.append(window)
                made_by = bundle
                if len(windows) > self._settings.max_windows:
                    raise TooLarge(
                        f"the file has more than {self._settings.max_windows} windows: take a longer hop_ms, or ask "
                        f"for {LINES}, which answers any number"
                    )
        timings = common_pb2.Timings()
        return Recognition(
            overall=tally.overall(), windows=windows, bundle=made_by, prior=posterior.prior, timings=timings
        )

    def _windows(
        self, asked: Asked, posterior: Posterior, path: Path
    ) -> AsyncGenerator[tuple[Window, common_pb2.Bundle]]:
        return self._dataplane.file(path, asked.window_ms, asked.hop_ms, posterior, every_window=asked.every_window)

    async def _lines(self, asked: Asked, posterior: Posterior, path: Path) -> AsyncGenerator[bytes]:
        tally, made_by = Tally(), common_pb2.Bundle()
        classes = posterior.head.card.classes
        answers = self._windows(asked, posterior, path)
        with self._metrics.call("Recognize"):
            async with aclosing(answers):
                async for window, bundle in answers:
                    tally.add(window)
                    made_by = bundle
                    yield dumps({"window": to_json(messages.window_to_proto(window, classes))}) + b"\n"
        last = messages.window_answered(tally.overall(), posterior, made_by)
        shown = {"overall": to_json(last.window), **to_json(last)}
        del shown["window"]
        yield dumps(shown) + b"\n"


async def check_fit(dataplane: Dataplane, posterior: Posterior) -> None:
    """Asks the embedder whether it is there and serves the head's bundle.

    Raises:
        Unavailable: it does not answer.
        HeadMismatch: it serves another bundle.
    """
    posterior.head.check_bundle((await dataplane.describe()).bundle.digest)


def audio_of(packed: Sent, data: bytes) -> common_pb2.Audio:
    """A body as a message."""
    if packed.pcm is None:
        return common_pb2.Audio(container=data)
    pcm = common_pb2.Pcm()
    pcm.CopyFrom(packed.pcm)
    pcm.data = data
    return common_pb2.Audio(pcm=pcm)


def _response(shown: dict[str, Any], *, lines: bool) -> Response:
    if not lines:
        return Response(dumps(shown), media_type=JSON)
    said = [*({"window": window} for window in shown.pop("windows")), shown]
    return Response(b"".join(dumps(line) + b"\n" for line in said), media_type=LINES)


async def _write_lines(lines: AsyncGenerator[bytes], send: Send) -> None:
    """Writes lines as they come; the answer begins with the first one, so that an error before it has its status."""
    begun = False
    async for line in lines:
        if not begun:
            headers = [(b"content-type", LINES.encode()), (b"x-accel-buffering", b"no")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            begun = True
        await send({"type": "http.response.body", "body": line, "more_body": True})
