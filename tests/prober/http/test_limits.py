"""Limits, deadlines, slow and vanished callers, too many of them, and a server that stops, through a real server."""
# ruff: noqa: ANN401 -- types of a conftest cannot be imported

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from servox.v1 import embedder_pb2

BODY = 100_000  # bytes that a body may have here
POST = "POST /v1/recognize?head=toy{query} HTTP/1.1\r\nHost: x\r\nContent-Type: audio/wav\r\n{more}\r\n"


def request(more: str, query: str = "") -> bytes:
    return POST.format(more=more, query=query).encode()


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


def problem_of(answer: bytes) -> Any:
    return json.loads(answer.partition(b"\r\n\r\n")[2])


async def held(face: Any, seconds: float = 60.0) -> None:
    """From here on the embedder takes its time."""

    async def slow(self: Any, request: Any, context: Any) -> embedder_pb2.EmbedResponse:
        face.waiting.set()
        try:
            await asyncio.sleep(seconds)
        finally:
            face.left.set()
        return self._embedded(request)  # type: ignore[no-any-return]

    face.slow(slow)


@pytest.mark.parametrize("query", ["", "&window_ms=500"])
async def test_a_body_that_promises_too_much_is_refused_before_it_is_read(opened: Any, query: str) -> None:
    async with opened(max_file_bytes=BODY) as face:
        answer = await face.raw(request(f"Content-Length: {10 * BODY}\r\nConnection: close\r\n", query))
        assert status_of(answer) == 413
        problem = problem_of(answer)
        assert (problem["kind"], problem["status"]) == ("TooLarge", 413)
        assert str(10 * BODY) in problem["detail"]


async def test_no_refusal_by_headers_waits_for_the_body(opened: Any) -> None:
    async with opened() as face:
        for more, query, status in (
            ("Content-Length: 9\r\nAccept: image/png\r\n", "", 406),
            ("Content-Length: 9\r\nContent-Encoding: br\r\n", "", 415),
            ("Content-Length: 9\r\n", "&window_ms=x", 400),
            ("Content-Length: 9\r\n", "&window_ms=1", 422),
            ("Content-Length: 9\r\nX-Request-Timeout-Ms: 0\r\n", "", 400),
            ("Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n", "&hop_ms=1", 422),
        ):
            answer = await face.raw(request(f"{more}Connection: close\r\n", query))
            assert status_of(answer) == status
        unknown = request("Content-Length: 9\r\nConnection: close\r\n").replace(b"head=toy", b"head=nobody")
        assert status_of(await face.raw(unknown)) == 404
        other = request("Transfer-Encoding: chunked\r\nConnection: close\r\n").replace(b"head=toy", b"head=other")
        assert status_of(await face.raw(other)) == 409


async def test_a_body_in_chunks_is_counted(opened: Any) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 50_000
            yield b"x" * 50_000

    async with opened(max_file_bytes=BODY, http_idle_s=2) as face:
        answer = await face.recognize(endless())  # this client looks at the answer once it cannot send any more
        assert answer.status_code == 413
        assert answer.json()["kind"] == "TooLarge"
        form = {"content-type": "multipart/form-data; boundary=b"}
        assert (await face.recognize(b"--b\r\n\r\n" + b"x" * 2 * BODY, headers=form)).status_code == 413


async def test_a_form_may_be_longer_than_its_file(opened: Any) -> None:
    async with opened(max_file_bytes=1 << 16) as face:
        clip = face.samples(1.02).tobytes()
        assert len(clip) < 1 << 16 < len(clip) + 400
        form = b"--b\r\nContent-Type: audio/pcm\r\n\r\n" + clip + b"\r\n--b--\r\n" + b" " * 300
        answer = await face.recognize(form, headers={"content-type": "multipart/form-data; boundary=b"})
        assert answer.status_code == 422  # not a file, but not too long


async def test_a_caller_that_stops_in_the_middle_of_the_body_is_told_so(opened: Any) -> None:
    async with opened(http_idle_s=0.2) as face:
        answer = await face.raw(request("Content-Length: 500\r\n") + b"RIFF")
        assert status_of(answer) == 408
        assert "after 4 bytes" in problem_of(answer)["detail"]


@pytest.mark.parametrize("begun", [b"", b"GET /livez HTTP/1.1\r\nHos"])
async def test_a_caller_that_never_finishes_its_headers_is_cut_off(opened: Any, begun: bytes) -> None:
    async with opened(http_idle_s=0.2) as face:
        reader, writer = await asyncio.open_unix_connection(str(face.socket))
        writer.write(begun)
        async with asyncio.timeout(20):
            assert await _ends(reader.read(1))
        writer.close()


async def test_a_connection_may_rest_between_requests_but_not_within_one(opened: Any) -> None:
    async with opened(http_idle_s=0.2) as face:
        reader, writer = await asyncio.open_unix_connection(str(face.socket))
        for _ in range(2):
            writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
            assert status_of(head) == 200
            await reader.readexactly(int(re.findall(rb"content-length: (\d+)", head)[0]))
            await asyncio.sleep(0.5)
        writer.write(b"GET /livez HTTP/1.1\r\nHos")
        async with asyncio.timeout(20):
            assert await _ends(reader.read(1))
        writer.close()


async def test_a_caller_that_goes_on_sending_what_was_refused_is_cut_off(opened: Any) -> None:
    async with opened(http_idle_s=0.3) as face:
        reader, writer = await asyncio.open_unix_connection(str(face.socket))
        writer.write(request("Transfer-Encoding: chunked\r\n", "&window_ms=x"))
        assert status_of(await reader.readuntil(b"\r\n\r\n")) == 400
        async with asyncio.timeout(30):
            assert await _ends(_sends_on(writer))


async def _sends_on(writer: asyncio.StreamWriter) -> bytes:
    while True:
        writer.write(b"5\r\nhello\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


async def _ends(talk: Coroutine[Any, Any, bytes]) -> bool:
    """Whether the other side closes."""
    try:
        return not await talk
    except (ConnectionResetError, BrokenPipeError):
        return True


async def test_a_caller_that_stops_reading_is_cut_off(opened: Any) -> None:
    async with opened(http_idle_s=3, max_windows=5000) as face:
        clip = face.wav(60)
        path = request(f"Content-Length: {len(clip)}\r\nAccept: application/x-ndjson\r\n", "&window_ms=100&hop_ms=20")
        reader, writer = await asyncio.open_unix_connection(str(face.socket), limit=1024)
        writer.write(path + clip)
        labels = {"route": "/v1/recognize", "method": "POST", "status": "499"}
        await face.counted("servox_prober_http_requests_total", **labels)
        assert face.count("servox_prober_http_under_way", kind="request") == 0
        writer.close()
        _ = reader


async def test_a_deadline_is_kept_and_the_work_is_dropped(opened: Any) -> None:
    async with opened() as face:
        await held(face)
        started = time.monotonic()
        answer = await face.recognize(face.wav(1), headers={"x-request-timeout-ms": "2500"})
        assert time.monotonic() - started < 30
        assert (answer.status_code, answer.json()["kind"]) == (504, "DeadlineExpired")
        await asyncio.wait_for(face.left.wait(), 30)


async def test_the_servers_own_limit_of_time_holds_for_all(opened: Any) -> None:
    async with opened(http_timeout_s=0.2) as face:
        await held(face)
        answer = await face.recognize(face.wav(1), headers={"x-request-timeout-ms": "86400000"})
        assert answer.status_code == 504


async def test_a_caller_who_leaves_takes_the_work_along(opened: Any) -> None:
    async with opened() as face:
        await held(face)
        clip = face.wav(1)
        reader, writer = await asyncio.open_unix_connection(str(face.socket))
        writer.write(request(f"Content-Length: {len(clip)}\r\n") + clip)
        await asyncio.wait_for(face.waiting.wait(), 30)
        writer.transport.abort()
        await asyncio.wait_for(face.left.wait(), 30)
        labels = {"route": "/v1/recognize", "method": "POST", "status": "499"}
        await face.counted("servox_prober_http_requests_total", **labels)
        assert face.count("servox_prober_requests_total", method="Recognize", outcome="cancelled") == 1
        _ = reader


async def test_a_caller_who_leaves_in_the_middle_of_the_body_leaves_nothing(opened: Any, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    async with opened(scratch=scratch) as face:
        _, writer = await asyncio.open_unix_connection(str(face.socket))
        writer.write(request("Content-Length: 9000000\r\n", "&window_ms=500") + b"x" * 6_000_000)
        await writer.drain()
        writer.transport.abort()
        labels = {"route": "/v1/recognize", "method": "POST", "status": "499"}
        await face.counted("servox_prober_http_requests_total", **labels)
        assert list(scratch.iterdir()) == []


async def test_a_scratch_folder_that_is_not_there_is_507(opened: Any, tmp_path: Path) -> None:
    async with opened(scratch=tmp_path / "none") as face:
        answer = await face.recognize(face.wav(80), window_ms=4000)
        assert (answer.status_code, answer.json()["kind"]) == (507, "StorageFull")
        assert str(tmp_path) not in answer.text


async def test_broken_requests_break_nothing(opened: Any, caplog: pytest.LogCaptureFixture) -> None:
    random = Random(3)
    async with opened() as face:
        whole = request(f"Content-Length: {len(face.wav(0.1))}\r\nAccept: */*\r\n", "&window_ms=100") + face.wav(0.1)
        for _ in range(120):
            broken = bytearray(whole)
            for _ in range(random.choice((1, 2, 8))):
                at = random.randrange(200)
                broken[at : at + random.randrange(8)] = random.randbytes(random.randrange(8))
            _, writer = await asyncio.open_unix_connection(str(face.socket))
            writer.write(broken)
            await asyncio.sleep(0)
            writer.close()
        assert (await face.recognize(face.wav(1))).status_code == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
async def test_audio_that_is_too_long_is_413(opened: Any, accept: str) -> None:
    async with opened(max_duration_ms=1000, max_file_ms=1000) as face:
        answer = await face.recognize(face.wav(2), window_ms=500, headers={"accept": accept})
        assert (answer.status_code, answer.json()["kind"]) == (413, "TooLarge")


async def test_an_embedder_that_stays_silent_is_503(opened: Any) -> None:
    async with opened(embed_timeout_s=0.3) as face:
        await held(face)
        answer = await face.recognize(face.wav(1))
        assert (answer.status_code, answer.json()["kind"]) == (503, "Unavailable")
        assert answer.headers["retry-after"] == "1"


async def test_more_than_may_be_under_way_is_429(opened: Any) -> None:
    async with opened(max_requests=1) as face:
        await held(face)
        first = asyncio.create_task(face.recognize(face.wav(1)))
        await asyncio.wait_for(face.waiting.wait(), 30)
        second = await face.recognize(face.wav(1))
        assert (second.status_code, second.json()["kind"], second.json()["retryable"]) == (429, "Overloaded", True)
        assert second.headers["retry-after"] == "1"
        assert second.json()["retry_after_ms"] == 1000
        assert (await face.http.get("/v1/heads")).status_code == 200
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await asyncio.wait_for(face.left.wait(), 30)


async def test_an_embedder_that_is_full_is_429_with_its_own_time(opened: Any) -> None:
    from servox.errors import Overloaded

    async def full(self: Any, request: Any, context: Any) -> None:
        raise Overloaded("480 s of audio are in flight, the limit: try again", retry_after_s=0.05)

    async with opened() as face:
        face.slow(full)
        answer = await face.recognize(face.wav(1))
        assert (answer.status_code, answer.json()["retry_after_ms"]) == (429, 50)
        assert answer.headers["retry-after"] == "1"


async def test_what_was_admitted_is_finished_when_the_server_stops(opened: Any) -> None:
    stopped = asyncio.Event()

    async def slow(self: Any, request: Any, context: Any) -> embedder_pb2.EmbedResponse:
        face.waiting.set()
        await stopped.wait()
        return self._embedded(request)  # type: ignore[no-any-return]

    async with opened(drain_wait_s=0.3, drain_grace_s=30) as face:
        face.slow(slow)
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(face.socket))) as keeper:
            assert (await keeper.get("http://x/readyz")).status_code == 200
            answering = asyncio.create_task(face.recognize(face.wav(1)))
            await asyncio.wait_for(face.waiting.wait(), 30)
            stopping = asyncio.create_task(face.server.stop())
            while face.server._server.ready:  # noqa: ASYNC110 -- it tells nobody
                await asyncio.sleep(0.01)
            ready = await keeper.get("http://x/readyz")
            assert (ready.status_code, ready.json()["kind"], ready.headers["retry-after"]) == (503, "Unavailable", "1")
            assert (await keeper.get("http://x/livez")).status_code == 200
            await asyncio.sleep(0.3)  # it is no longer admitted
            stopped.set()
        assert (await answering).status_code == 200
        await stopping
        with pytest.raises(httpx.ConnectError):
            await face.recognize(face.wav(1))


async def test_a_long_answer_that_outlasts_the_grace_is_cut_off(opened: Any) -> None:
    async with opened(drain_grace_s=0.2) as face:
        await held(face)
        answering = asyncio.create_task(face.recognize(face.wav(1)))
        await asyncio.wait_for(face.waiting.wait(), 30)
        async with asyncio.timeout(30):
            await face.server.stop()
        with pytest.raises(httpx.HTTPError):
            await answering
