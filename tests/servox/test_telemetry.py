import json
import logging
import os
import socket
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import Counter

from servox.errors import Unavailable
from servox.telemetry import JsonFormatter, Metrics


def _line(message: str, *arguments: object, extra: dict[str, object] | None = None, error: Any = None) -> Any:  # noqa: ANN401
    logger = logging.getLogger("servox.test")
    record = logger.makeRecord(logger.name, logging.WARNING, "f.py", 1, message, arguments, error, extra=extra)
    line = JsonFormatter("embedder").format(record)
    assert "\n" not in line
    return json.loads(line)


def test_a_record_is_one_line_of_json_with_its_extras() -> None:
    line = _line("%d clips\nfailed", 3, extra={"why": "störung", "path": object, "seconds": 1.5})
    assert line["message"] == "3 clips\nfailed"
    assert (line["level"], line["service"], line["logger"]) == ("warning", "embedder", "servox.test")
    assert line["why"] == "störung"
    assert line["seconds"] == 1.5
    assert line["path"] == str(object)
    assert line["time"].endswith("+00:00")
    assert set(line) == {"time", "level", "service", "logger", "message", "why", "path", "seconds"}


def test_an_exception_brings_its_trace() -> None:
    try:
        os.environ["GONE"]
    except KeyError:
        line = _line("failed", error=sys.exc_info())
    assert "KeyError: 'GONE'" in line["trace"]


def test_a_process_logs_json_at_its_level_and_above() -> None:
    code = textwrap.dedent("""
        import logging
        from servox.telemetry import configure_logging
        configure_logging("prober", "warning")
        logging.getLogger("a").info("quiet")
        logging.getLogger("b").error("loud", extra={"head": "x"})
    """)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == ""
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [(line["message"], line["service"], line["head"]) for line in lines] == [("loud", "prober", "x")]


def test_metrics_are_served_until_they_are_stopped(hold_port: Callable[[], int]) -> None:
    metrics, port = Metrics(), hold_port()
    Counter("servox_sample", "A sample.", registry=metrics.registry).inc(3)
    metrics.start("127.0.0.1", port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        assert "servox_sample_total 3.0" in answer.read().decode()
    metrics.stop()
    metrics.stop()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30)


def test_port_0_serves_nothing() -> None:
    metrics = Metrics()
    metrics.start("127.0.0.1", 0)
    metrics.stop()


def test_a_taken_port_is_said_so() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Unavailable, match=f"127.0.0.1:{port}"):
            Metrics().start("127.0.0.1", port)


def test_services_in_one_process_keep_their_metrics_apart() -> None:
    first, second = Metrics(), Metrics()
    for metrics in (first, second):
        Counter("servox_sample", "A sample.", registry=metrics.registry)
    assert first.registry is not second.registry
