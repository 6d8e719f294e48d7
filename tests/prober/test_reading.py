"""Files read in another process: the same samples, and nothing that happens there harms us."""

import io
import os
import signal
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile

from services.prober import reading
from services.prober.reading import ReadingPool, RemoteReader
from servox.blocks import Reader, open_audio
from servox.errors import BadAudio, BadInput, TooLarge, Unavailable

LONGEST_MS = 600_000


@pytest.fixture
def pool() -> Iterator[ReadingPool]:
    made = ReadingPool(spare=2, timeout_s=20)
    yield made
    made.close()


def sound(seconds: float = 2.0, *, rate_hz: int = 16_000, channels: int = 1, kind: str = "WAV") -> bytes:
    random = np.random.default_rng(5)
    held = io.BytesIO()
    soundfile.write(held, random.uniform(-0.5, 0.5, (int(seconds * rate_hz), channels)), rate_hz, format=kind)
    return held.getvalue()


def everything(reader: Reader | RemoteReader) -> np.ndarray:
    blocks = []
    with reader:
        while (block := reader.read()) is not None:
            blocks.append(block)
    return np.concatenate(blocks)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize(("rate_hz", "channels"), [(16_000, 1), (44_100, 2)])
def test_samples_are_those_of_a_reader_here(pool: ReadingPool, kind: str, rate_hz: int, channels: int) -> None:
    data = sound(rate_hz=rate_hz, channels=channels, kind=kind)
    ours, theirs = pool.open(data, max_duration_ms=LONGEST_MS), open_audio(data, max_duration_ms=LONGEST_MS)
    facts = [(each.rate_hz, each.channels, each.promised_ms) for each in (ours, theirs)]
    assert facts[0] == facts[1]
    np.testing.assert_array_equal(everything(ours), everything(theirs))
    assert ours.position_ms == theirs.position_ms > 0
    assert ours.spent_s > 0


def test_a_process_reads_one_file_after_another(pool: ReadingPool, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(sound())
    everything(pool.open(path, max_duration_ms=LONGEST_MS))
    (pid,) = pool.idle
    for data in (sound(kind="FLAC"), sound(0.5)):
        everything(pool.open(data, max_duration_ms=LONGEST_MS))
    assert pool.idle == [pid]


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"", BadAudio, "empty"),
        (b"words, no sound" * 100, BadAudio, "audio"),
        (sound()[:20_000], BadAudio, "truncated"),
        (sound(3.0), TooLarge, "limit"),
    ],
    ids=["empty", "text", "cut", "long"],
)
def test_bad_files_are_told_as_here_and_the_process_goes_on(
    pool: ReadingPool, data: bytes, error: type[BadInput], words: str
) -> None:
    limit_ms = 2_500
    with pytest.raises(error, match=words) as here:
        everything(open_audio(data, max_duration_ms=limit_ms))
    with pytest.raises(error, match=words) as there:
        everything(pool.open(data, max_duration_ms=limit_ms))
    assert str(there.value) == str(here.value)
    assert len(pool.idle) == 1
    assert len(everything(pool.open(sound(), max_duration_ms=limit_ms))) == 32_000
    assert len(pool.idle) == 1


def test_a_file_that_is_not_there_is_named(pool: ReadingPool, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"gone\.wav: No such file"):
        pool.open(tmp_path / "gone.wav", max_duration_ms=LONGEST_MS)


def _pid(reader: RemoteReader) -> int:
    return reader._process.pid


@pytest.mark.parametrize(
    ("number", "error", "words"),
    [(signal.SIGSEGV, BadAudio, "crash"), (signal.SIGKILL, Unavailable, "killed")],
    ids=["crash", "kill"],
)
def test_a_process_that_dies_costs_its_own_file(
    pool: ReadingPool, number: signal.Signals, error: type[Exception], words: str
) -> None:
    other = pool.open(sound(30.0), max_duration_ms=LONGEST_MS)
    hit = pool.open(sound(60.0), max_duration_ms=LONGEST_MS)
    assert hit.read() is not None
    os.kill(_pid(hit), number)
    with pytest.raises(error, match=words):
        everything(hit)
    assert hit.read() is None, "a reader that failed has no more to give"
    assert len(everything(other)) == 30 * 16_000
    assert len(everything(pool.open(sound(), max_duration_ms=LONGEST_MS))) == 32_000


def test_one_that_stands_still_is_ended(pool: ReadingPool) -> None:
    everything(pool.open(sound(), max_duration_ms=LONGEST_MS))  # so that it has started
    reader = pool.open(sound(60.0), max_duration_ms=LONGEST_MS)
    pool.timeout_s = 0.3
    pid = _pid(reader)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(BadAudio, match=r"more than 0\.3 s"):
        everything(reader)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_memory_is_bounded() -> None:
    wide = sound(1.0, rate_hz=48_000, channels=64)  # its blocks take 16 times what is allowed
    with closing(ReadingPool(spare=1, memory_bytes=1 << 20)) as small:
        with pytest.raises(TooLarge, match="1 MB of memory"):
            everything(small.open(wide, max_duration_ms=LONGEST_MS))
        assert small.idle == []


def test_a_file_that_is_left_ends_its_process() -> None:
    pool = ReadingPool(spare=1, timeout_s=20)
    for _ in range(3):
        with pool.open(sound(60.0), max_duration_ms=LONGEST_MS) as reader:
            assert reader.read() is not None
            pid = _pid(reader)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert pool.idle == []
    pool.close()


def test_old_processes_give_way(pool: ReadingPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "FILES_EACH", 2)
    everything(pool.open(sound(0.2), max_duration_ms=LONGEST_MS))
    first = pool.idle
    everything(pool.open(sound(0.2), max_duration_ms=LONGEST_MS))
    assert first
    assert pool.idle == []


def descriptors() -> set[str]:
    """What is open; others may be closed meanwhile, as connections of earlier tests are."""
    found = set[str]()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 -- names only
        with suppress(FileNotFoundError):
            found.add(f"{name} {Path('/proc/self/fd', name).readlink()}")
    return found


def test_closing_ends_the_idle_ones_and_leaves_no_descriptors() -> None:
    before = descriptors()
    pool = ReadingPool(spare=2)
    everything(pool.open(sound(), max_duration_ms=LONGEST_MS))
    (pid,) = pool.idle
    pool.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert descriptors() <= before
