"""JSON logs and the /metrics endpoint; traces are in `servox.tracing`.

- One line of JSON a record: time, level, service, message, the trace that it belongs to, and what the caller passed as
  `extra`.
- Audio is personal data: no record and no label ever holds samples, embeddings or transcripts.
- Each service owns one registry, so that three services in one process keep their metrics apart.
"""

import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from servox.errors import Unavailable
from servox.tracing import trace_ids

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON; values that JSON does not know become their text."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= trace_ids()
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def configure_logging(service: str, level: str) -> None:
    """Sends every record of `level` and above to standard error as JSON; called once, where a process starts."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class Metrics:
    """A registry and, once started, the HTTP endpoint that shows it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._server: Any = None

    def start(self, host: str, port: int) -> None:
        """Serves `/metrics` from a thread; port 0 means no endpoint.

        Raises:
            Unavailable: the address is taken.
        """
        if port == 0:
            return
        try:
            self._server, _ = start_http_server(port, addr=host, registry=self.registry)
        except OSError as error:
            raise Unavailable(f"cannot serve /metrics on {host}:{port}: {error.strerror}") from None

    def stop(self) -> None:
        """Closes the endpoint, if there is one."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class DoorMetrics:
    """Who was let in, the same for every service."""

    def __init__(self, metrics: Metrics) -> None:
        self._callers = Counter(
            "servox_callers",
            "Calls that had to say who makes them, by what they showed (none, key, token, certificate) and what came "
            "of it: admitted, or the class of the error.",
            ["shown", "outcome"],
            registry=metrics.registry,
        )
        self._stale = Gauge(
            "servox_credentials_stale",
            "1 while the last good content of a source (keys, jwks, certificates) counts as it cannot be read now.",
            ["source"],
            registry=metrics.registry,
        )

    def counted(self, shown: str, outcome: str) -> None:
        """One call."""
        self._callers.labels(shown, outcome).inc()

    def stale(self, source: str) -> Callable[[bool], None]:
        """An alarm for one source."""
        shown = self._stale.labels(source)
        return lambda stale: shown.set(float(stale))
