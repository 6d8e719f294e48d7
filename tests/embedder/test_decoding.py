import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.embedder import decode_process, decoding
from services.embedder.decode_worker import Decoded, decode
from services.embedder.decoding import Decoder, guess_s
from servox.audio import Limits, Pcm
from servox.errors import BadAudio, DeadlineExpired, TooLarge, Unavailable

RATE = 16_000


@pytest.mark.parametrize(
    ("kind", "subtype", "tolerance"),
    [("WAV", "PCM_16", 0.01), ("WAV", "FLOAT", 0.01), ("FLAC", "PCM_16", 1e-9), ("MP3", None, 3.0), ("OGG", None, 3.0)],
)
@pytest.mark.parametrize(("rate_hz", "channels"), [(16_000, 1), (44_100, 2)])
def test_the_guess_is_exact_where_a_header_tells_and_sane_elsewhere(
    speech: Callable[..., np.ndarray],
    encoded: Callable[..., bytes],
    kind: str,
    subtype: str | None,
    tolerance: float,
    rate_hz: int,
    channels: int,
) -> None:
    samples = speech(4.0, rate_hz=rate_hz, channels=channels)
    samples += np.random.default_rng(0).normal(0, 0.05, samples.shape).astype(np.float32)
    data = encoded(samples, rate_hz=rate_hz, kind=kind, subtype=subtype)
    guess = guess_s(data, longest_s=30)
    assert 4 / (1 + tolerance) <= guess <= 4 * (1 + tolerance)


def test_the_guess_of_pcm_is_its_length() -> None:
    assert guess_s(Pcm(data=b"\0" * 64_000, rate_hz=8_000, channels=2), longest_s=30) == 2.0
    assert guess_s(Pcm(data=b"\0" * 64_000, rate_hz=8_000, encoding="f32le"), longest_s=30) == 2.0


@given(data=st.one_of(st.binary(max_size=100), st.binary(max_size=60).map(lambda tail: b"fLaC" + tail),
                      st.binary(max_size=60).map(lambda tail: b"RIFFxxxxWAVEfmt " + tail)))  # fmt: skip
def test_no_header_makes_a_clip_free_or_endless(data: bytes) -> None:
    assert 0.1 <= guess_s(data, longest_s=30) <= 30


@given(rate=st.integers(-10, 400_000), channels=st.integers(-3, 100), size=st.integers(0, 1_000))
def test_no_pcm_makes_a_clip_free_or_endless(rate: int, channels: int, size: int) -> None:
    assert 0.1 <= guess_s(Pcm(data=b"\0" * size, rate_hz=rate, channels=channels), longest_s=30) <= 30


def test_bytes_count_whatever_the_header_claims() -> None:
    claims_nothing = b"fLaC" + bytes(40) + bytes(60_000_000)
    assert guess_s(claims_nothing, longest_s=30) > 9


async def test_decoding_cuts_where_it_is_asked_to_and_says_so(
    speech: Callable[..., np.ndarray], encoded: Callable[..., bytes]
) -> None:
    async with pool(workers=2, limits=Limits(max_duration_ms=3_000)) as (decoder, _):
        clip = encoded(speech(2.0))
        whole = await decoder.decode(clip, truncate_ms=0)
        assert (len(whole.samples), whole.duration_ms, whole.truncated) == (2 * RATE, 2_000, False)
        for keep_ms, cut in ((1_999, True), (2_000, False), (2_001, False), (9_000, False)):
            kept = await decoder.decode(clip, truncate_ms=keep_ms)
            assert kept.truncated is cut
            assert kept.duration_ms == min(keep_ms, 2_000)
            np.testing.assert_array_equal(kept.samples, whole.samples[: kept.duration_ms * RATE // 1000])
        with pytest.raises(TooLarge):
            await decoder.decode(encoded(speech(3.5)), truncate_ms=0)
        capped = await decoder.decode(encoded(speech(3.5)), truncate_ms=9_000)
        assert (capped.duration_ms, capped.truncated) == (3_000, True)
        with pytest.raises(BadAudio):
            await decoder.decode(b"no audio", truncate_ms=500)


# ---- processes -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def pool(
    *, workers: int = 1, limits: Limits | None = None, memory_mb: int = 128, timeout_s: float = 20.0
) -> AsyncIterator[tuple[Decoder, list[str]]]:
    """A pool and the reasons for which it replaced workers."""
    reasons: list[str] = []
    decoder = Decoder(
        workers=workers,
        rate_hz=RATE,
        limits=limits or Limits(),
        memory_bytes=memory_mb << 20,
        timeout_s=timeout_s,
        replaced=reasons.append,
    )
    await decoder.start()
    try:
        yield decoder, reasons
    finally:
        await decoder.close()


def _state(pid: int) -> str:
    """R, S, T, Z, or nothing when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


async def _gone(pids: list[int]) -> None:
    async with asyncio.timeout(20):
        while any(_state(pid) not in ("", "Z") for pid in pids):  # noqa: ASYNC110 -- /proc has no event
            await asyncio.sleep(0.01)


async def _held(decoder: Decoder, clip: bytes) -> asyncio.Task[Decoded]:
    """A clip whose worker is stopped while it works on it."""
    before = set(decoder.pids)
    for pid in before:
        os.kill(pid, signal.SIGSTOP)
    task = asyncio.create_task(decoder.decode(clip, truncate_ms=0))
    await asyncio.sleep(0.05)
    return task


async def test_files_and_raw_samples_give_the_same_numbers(
    speech: Callable[..., np.ndarray], encoded: Callable[..., bytes]
) -> None:
    samples = speech(2.0)
    async with pool(workers=2) as (decoder, reasons):
        files = await asyncio.gather(*(decoder.decode(encoded(samples), truncate_ms=0) for _ in range(20)))
        raw = await decoder.decode(Pcm(data=samples.tobytes(), rate_hz=RATE, encoding="f32le"), truncate_ms=0)
    for each in files:
        np.testing.assert_array_equal(each.samples, raw.samples)
    assert reasons == []


async def test_large_files_pass_through_shared_memory_whole(
    speech: Callable[..., np.ndarray], encoded: Callable[..., bytes]
) -> None:
    wide = speech(6.0, rate_hz=96_000, channels=6)
    wide += np.random.default_rng(0).normal(0, 0.1, wide.shape).astype(np.float32)
    data = encoded(wide, rate_hz=96_000)
    assert len(data) > 12 << 20
    async with pool(memory_mb=256) as (decoder, _):
        for _ in range(3):
            clip = await decoder.decode(data, truncate_ms=0)
        small = await decoder.decode(encoded(speech(1.0)), truncate_ms=0)
    np.testing.assert_array_equal(clip.samples, decode(data, RATE, Limits(), 0).samples)
    assert len(small.samples) == RATE


async def test_a_killed_worker_is_replaced_and_its_clip_tried_once_more(
    speech: Callable[..., np.ndarray], encoded: Callable[..., bytes]
) -> None:
    clip = encoded(speech(1.0))
    async with pool() as (decoder, reasons):
        (first,) = decoder.pids
        struck = await _held(decoder, clip)
        waiting = asyncio.create_task(decoder.decode(clip, truncate_ms=0))
        os.kill(first, signal.SIGKILL)
        assert len((await struck).samples) == len((await waiting).samples) == RATE
        assert decoder.pids != [first]
        assert reasons == ["killed"]


async def test_a_clip_whose_workers_are_killed_again_is_given_up_alone(
    speech: Callable[..., np.ndarray], encoded: Callable[..., bytes]
) -> None:
    clip = encoded(speech(1.0))
    async with pool(workers=2) as (decoder, reasons):
        struck = await _held(decoder, clip)
        killed: list[int] = []
        for _ in range(2):
            async with asyncio.timeout(20):
                # until the clip was handed on
                while not (holders := {p.pid for p in decoder._alive if p.asked} - {*killed}):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            (holder,) = holders
            os.kill(holder, signal.SIGKILL)
            killed.append(holder)
        with pytest.raises(Unavailable, match="were killed"):
            await struck
        assert len((await decoder.decode(clip, truncate_ms=0)).samples) == RATE
        assert reasons == ["killed", "killed"]


async def test_a_worker_killed_while_idle_is_replaced_by_the_next_clip(
    speech: Callable[..., np.ndarray], encoded: Callable[..., bytes]
) -> None:
    clip = encoded(speech(1.0))
    async with pool() as (decoder, reasons):
        os.kill(decoder.pids[0], signal.SIGKILL)
        await _gone(decoder.pids)
        assert len((await decoder.decode(clip, truncate_ms=0)).samples) == RATE
        assert reasons == ["killed"]


async def test_workers_that_died_idle_cost_no_clip_its_tries(
    speech: Callable[..., np.ndarray], encoded: Callable[..., bytes]
) -> None:
    clip = encoded(speech(1.0))
    async with pool(workers=3) as (decoder, reasons):
        pids = decoder.pids
        for pid, number in zip(pids, (signal.SIGKILL, signal.SIGSEGV, signal.SIGALRM), strict=True):
            os.kill(pid, number)
        await _gone(pids)
        assert len((await decoder.decode(clip, truncate_ms=0)).samples) == RATE
        assert reasons == ["killed"] * 3


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE])
async def test_a_clip_that_crashes_its_decoder_is_bad_audio(
    speech: Callable[..., np.ndarray], encoded: Callable[..., bytes], number: signal.Signals
) -> None:
    async with pool() as (decoder, reasons):
        (first,) = decoder.pids
        struck = await _held(decoder, encoded(speech(1.0)))
        os.kill(first, number)
        os.kill(first, signal.SIGCONT)
        with pytest.raises(BadAudio, match=number.name):
            await struck
        assert reasons == ["crashed"]


async def test_a_clip_that_takes_too_long_is_bad_audio(
    speech: Callable[..., np.ndarray], encoded: Callable[..., bytes]
) -> None:
    clip = encoded(speech(1.0))
    async with pool(timeout_s=0.5) as (decoder, reasons):
        first = decoder.pids
        with pytest.raises(BadAudio, match=r"more than 0.5 s"):
            await (await _held(decoder, clip))
        decoder._order = replace(decoder._order, timeout_s=20.0)  # the next clip has time
        await _gone(first)
        assert len((await decoder.decode(clip, truncate_ms=0)).samples) == RATE
        assert reasons == ["time"]


async def test_a_clip_that_takes_too_much_memory_is_too_large(encoded: Callable[..., bytes]) -> None:
    bomb = encoded(np.full((30 * 96_000, 8), 0.25, np.float32), rate_hz=96_000, kind="FLAC", subtype="PCM_16")
    assert len(bomb) < 1 << 20, "a small file"
    async with pool(memory_mb=64) as (decoder, reasons):
        with pytest.raises(TooLarge, match="more than 64 MB"):
            await decoder.decode(bomb, truncate_ms=0)
        with pytest.raises(BadAudio, match="not audio"):
            await decoder.decode(b"no audio", truncate_ms=0)
        assert reasons == ["memory"]
    async with pool(memory_mb=600) as (decoder, reasons):
        assert (await decoder.decode(bomb, truncate_ms=0)).duration_ms == 30_000


async def test_a_bug_of_the_decoder_costs_the_clip_and_is_logged(
    speech: Callable[..., np.ndarray], encoded: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    async with pool(limits=Limits(silence_dbfs="loud")) as (decoder, reasons):  # type: ignore[arg-type]  # the bug
        with pytest.raises(BadAudio, match=r"decoder fails on this clip \(TypeError at audio\.py:\d+\)"):
            await decoder.decode(encoded(speech(1.0)), truncate_ms=0)
        assert reasons == []
    assert "the decoder fails" in caplog.text


async def test_a_caller_that_leaves_frees_its_place_at_once_and_its_worker_soon(
    speech: Callable[..., np.ndarray], encoded: Callable[..., bytes]
) -> None:
    clip = encoded(speech(1.0))
    async with pool() as (decoder, reasons):
        first = decoder.pids
        stuck = await _held(decoder, clip)
        waiting = [asyncio.create_task(decoder.decode(clip, truncate_ms=0)) for _ in range(50)]
        await asyncio.sleep(0)
        for task in (stuck, *waiting[:49]):
            task.cancel()
        assert len((await waiting[49]).samples) == RATE
        await _gone(first)
        assert reasons == ["abandoned"]


async def test_a_worker_that_is_done_soon_outlives_the_caller_that_left(
    monkeypatch: pytest.MonkeyPatch, speech: Callable[..., np.ndarray], encoded: Callable[..., bytes]
) -> None:
    monkeypatch.setattr(decoding, "LEAVE_S", 20.0)
    async with pool() as (decoder, reasons):
        first = decoder.pids
        leaving = await _held(decoder, encoded(speech(2.0)))
        leaving.cancel()
        os.kill(first[0], signal.SIGCONT)
        kept = await decoder.decode(encoded(speech(1.0)), truncate_ms=0)
        assert len(kept.samples) == RATE, "not the answer to the clip before"
        assert decoder.pids == first
        assert reasons == []


async def test_a_clip_whose_deadline_passed_is_not_decoded(
    speech: Callable[..., np.ndarray], encoded: Callable[..., bytes]
) -> None:
    clip = encoded(speech(1.0))
    async with pool() as (decoder, _):
        (pid,) = decoder.pids
        busy = await _held(decoder, clip)
        late = asyncio.create_task(decoder.decode(clip, truncate_ms=0, deadline_s=time.monotonic() + 0.01))
        await asyncio.sleep(0.02)
        os.kill(pid, signal.SIGCONT)
        with pytest.raises(DeadlineExpired, match="waited to be decoded"):
            await late
        await busy
        await decoder.decode(clip, truncate_ms=0)


async def test_closing_leaves_no_process_and_tells_who_waits(
    speech: Callable[..., np.ndarray], encoded: Callable[..., bytes]
) -> None:
    clip = encoded(speech(1.0))
    async with pool(workers=2) as (decoder, reasons):
        pids = decoder.pids
        held = [await _held(decoder, clip) for _ in range(3)]
        await decoder.close()
        answers = await asyncio.gather(*held, return_exceptions=True)
        assert [type(answer) for answer in answers] == [Unavailable] * 3
        assert [_state(pid) for pid in pids] == ["", ""]
        assert decoder.pids == []
        with pytest.raises(Unavailable, match="stopping"):
            await decoder.decode(clip, truncate_ms=0)
        assert reasons == []


# A worker gone bad: it says that it is ready, and then something else.
ROGUE = """
import json, socket, sys, time
peer = socket.socket(fileno=json.loads(sys.argv[1])["socket"])
peer.send(b"{}")
{then}
time.sleep(600)
"""
UNASKED = """peer.send(b'{"samples": 5, "duration_ms": 1, "truncated": false, "worn": false}')"""


async def test_workers_that_do_not_start_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_process, "MODULE", "services.embedder.missing")
    decoder = Decoder(workers=1, rate_hz=RATE, limits=Limits())
    with pytest.raises(Unavailable, match="do not start"):
        await decoder.start()
    await decoder.close()


@asynccontextmanager
async def rogue(
    monkeypatch: pytest.MonkeyPatch, folder: Path, then: str
) -> AsyncIterator[tuple[Decoder, decode_process.Process, list[str]]]:
    """A pool whose first worker is a rogue, and those after it are not."""
    (folder / "rogue.py").write_text(ROGUE.replace("{then}", then))
    reasons: list[str] = []
    decoder = Decoder(workers=1, rate_hz=RATE, limits=Limits(), replaced=reasons.append)
    with monkeypatch.context() as patched:
        patched.setattr(decode_process, "MODULE", "rogue")
        patched.setenv("PYTHONPATH", f"{folder}:{os.environ.get('PYTHONPATH', '')}")
        await decoder.start()
    (first,) = decoder._alive
    try:
        yield decoder, first, reasons
    finally:
        await decoder.close()


async def test_a_worker_that_speaks_unasked_is_ended_before_it_gets_a_clip(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, speech: Callable[..., np.ndarray], encoded: Callable[..., bytes]
) -> None:
    async with rogue(monkeypatch, tmp_path, UNASKED) as (decoder, first, reasons):
        async with asyncio.timeout(30):
            while not first._packets:  # noqa: ASYNC110 -- a packet has no event
                await asyncio.sleep(0.01)
        assert len((await decoder.decode(encoded(speech(1.0)), truncate_ms=0)).samples) == RATE
        assert reasons == ["killed"]
        assert _state(first.pid) == ""


@pytest.mark.parametrize("answer", [b"{", b"[]", b'{"worn": false, "samples": 1e30, "duration_ms": 1, "truncated": 0}'])
async def test_an_answer_that_makes_no_sense_ends_its_worker(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    speech: Callable[..., np.ndarray],
    encoded: Callable[..., bytes],
    answer: bytes,
) -> None:
    async with rogue(monkeypatch, tmp_path, f"peer.recv(1 << 15); peer.send({answer!r})") as (decoder, first, reasons):
        clip = encoded(speech(1.0))
        with pytest.raises(BadAudio, match="SIGABRT"):
            await decoder.decode(clip, truncate_ms=0)
        assert len((await decoder.decode(clip, truncate_ms=0)).samples) == RATE
        assert reasons == ["crashed"]
        assert _state(first.pid) == ""


async def test_a_pool_whose_workers_come_back_no_more_says_so(
    monkeypatch: pytest.MonkeyPatch, speech: Callable[..., np.ndarray], encoded: Callable[..., bytes]
) -> None:
    lost: list[str] = []
    monkeypatch.setattr(decoding, "START_PAUSES_S", (0.0, 0.0))
    decoder = Decoder(workers=1, rate_hz=RATE, limits=Limits(), lost=lost.append)
    await decoder.start()
    monkeypatch.setattr(decode_process, "MODULE", "services.embedder.missing")
    struck = await _held(decoder, encoded(speech(1.0)))
    os.kill(decoder.pids[0], signal.SIGKILL)
    async with asyncio.timeout(30):
        while not lost:  # noqa: ASYNC110 -- a list has no event
            await asyncio.sleep(0.02)
    await decoder.close()
    with pytest.raises(Unavailable, match="stopping"):
        await struck
    assert lost == ["no decode worker can be started"]


def test_a_worker_ends_with_its_server_however_that_ends() -> None:
    code = (
        "import asyncio, os, signal\n"
        "from services.embedder.decoding import Decoder\n"
        "from servox.audio import Limits\n"
        "async def main():\n"
        "    decoder = Decoder(workers=2, rate_hz=16000, limits=Limits())\n"
        "    await decoder.start()\n"
        "    print(*decoder.pids, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert ran.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in ran.stdout.split()]
    assert len(pids) == 2
    asyncio.run(_gone(pids))


def test_a_worker_imports_no_device_and_no_framework() -> None:
    code = "import sys, services.embedder.decode_worker; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    assert not {"openvino", "onnxruntime", "torch", "transformers", "pydantic"} & set(loaded)
