"""The same audio as an upload, a file and a stream: the same windows and numbers; and what bad callers get."""
# ruff: noqa: ANN401 -- arrays and gRPC stubs have no types worth naming here

import asyncio
import collections
import contextlib
import io
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import soundfile

from services.prober.asking import Ask
from services.prober.card import Card
from services.prober.dataplane import Dataplane
from services.prober.heads import Head, encode
from services.prober.metrics import ProberMetrics
from services.prober.recognizer import PATIENCE_MS
from services.prober.registry import Registry
from services.prober.settings import Settings
from services.prober.windows import grid
from servox.errors import BadAudio, BadInput, DeadlineExpired, HeadMismatch, ServoxError, TooLarge, Unavailable
from servox.rpc import translated
from servox.telemetry import Metrics
from servox.v1 import common_pb2, prober_pb2, prober_pb2_grpc
from tests.embedder.conftest import tiny_bundle_at
from tests.prober.conftest import BUNDLE, DIMS, Pair, paired, prober_at

S16, F32 = common_pb2.SAMPLE_FORMAT_S16, common_pb2.SAMPLE_FORMAT_F32
Windows = list[prober_pb2.Window]
LABELS = ("anger", "happiness", "sadness")
# Where time is looked at, or could be, between audio and answer.
CLOCKED = ("answers", "embedder", "posterior", "recognizer", "servicer", "sound", "spool", "voice", "windows")
PROBER = Path(__file__).parents[2] / "services" / "prober"


def head_of(bundle: str, dims: int, **changes: Any) -> Head:
    """A logistic head with weights of its own making."""
    random = np.random.default_rng(3)
    weights = {
        "mean": np.zeros(dims, dtype=np.float32),
        "std": np.full(dims, 3, dtype=np.float32),
        "output.weight": random.normal(size=(3, dims)).astype(np.float32),
        "output.bias": np.zeros(3, dtype=np.float32),
    }
    card = Card(
        name="plain",
        version="0" * 16,
        kind="logistic",
        classes=LABELS,
        class_counts=(5, 5, 5),
        bundle=bundle,
        layer=0,
        dims=dims,
        temperature=1.0,
        seed=0,
        settings={},
        out_of_fold=None,
        clip_set="ef" * 32,
        clips=15,
        speakers=3,
        servox="0",
        store="s",
        created="2026-01-01T00:00:00+00:00",
        **changes,
    )
    return Head(card=card, weights=weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """Audio [n, channels] as 16-bit values, so that every lossless way to send it holds the same numbers."""

    values: Any
    rate_hz: int

    def file(self, kind: str) -> bytes:
        data = io.BytesIO()
        soundfile.write(data, self.values, self.rate_hz, format=kind)
        return data.getvalue()

    @property
    def channels(self) -> int:
        return int(self.values.shape[1])

    @property
    def raw(self) -> bytes:
        return bytes(self.values.tobytes())


def wave(seconds: float, rate_hz: int, channels: int = 1) -> Wave:
    random = np.random.default_rng(rate_hz + channels)
    time_s = np.arange(int(seconds * rate_hz))[:, None] / rate_hz
    sound = random.normal(size=(len(time_s), channels)) * (0.02 + 0.1 * np.abs(np.sin(2 * time_s)))
    return Wave(values=np.rint(np.clip(sound, -0.9, 0.9) * 32767).astype("<i2"), rate_hz=rate_hz)


def odd(data: bytes, largest: int) -> Iterable[bytes]:
    """Pieces of all sizes: single bytes at first, then up to `largest`."""
    random, at = np.random.default_rng(len(data)), 0
    while at < len(data):
        size = 1 if at < 40 else int(random.integers(0, largest + 1))
        yield data[at : at + size]
        at += size


def asked(**config: Any) -> prober_pb2.RecognizeConfig:
    return prober_pb2.RecognizeConfig(**{"head": "plain", "window_ms": 1000, "hop_ms": 300, **config})


async def uploaded(prober: Any, audio: common_pb2.Audio, **config: Any) -> prober_pb2.RecognizeResponse:
    with translated("prober"):
        answer: prober_pb2.RecognizeResponse = await prober.Recognize(
            prober_pb2.RecognizeRequest(audio=audio, config=asked(**config))
        )
    return answer


async def streamed(
    prober: Any,
    chunks: Iterable[bytes],
    config: prober_pb2.StreamConfig,
    windows: list[prober_pb2.Window] | None = None,
) -> list[prober_pb2.Window]:
    """Windows of a stream; they are put into `windows` as they come."""

    async def requests() -> AsyncIterator[prober_pb2.RecognizeStreamRequest]:
        yield prober_pb2.RecognizeStreamRequest(config=config)
        for chunk in chunks:
            yield prober_pb2.RecognizeStreamRequest(chunk=chunk)

    windows = [] if windows is None else windows
    chunks = list(chunks)
    for _ in range(5):
        windows.clear()
        try:
            with translated("prober"):
                async for message in prober.RecognizeStream(requests()):
                    windows.append(message.window)
        except Unavailable as error:
            # A write that crosses the refusal makes grpc.aio report an internal error instead.
            if "Internal error from Core" not in str(error):
                raise
        else:
            break
    return windows


def live(sound: Wave, **stream: Any) -> prober_pb2.StreamConfig:
    recognize = stream.pop("recognize", asked())
    return prober_pb2.StreamConfig(
        recognize=recognize, rate_hz=sound.rate_hz, channels=sound.channels, format=S16, **stream
    )


CONTAINER = prober_pb2.StreamConfig(recognize=asked(), container=True)


@asynccontextmanager
async def asked_once(folder: Path) -> AsyncIterator[Any]:
    """The prober below a folder, through a channel that does not try again."""
    options = [("grpc.enable_retries", 0)]
    async with grpc.aio.insecure_channel(f"unix:{folder / 'p.sock'}", options=options) as connection:
        yield prober_pb2_grpc.ProberStub(connection)  # type: ignore[no-untyped-call]


@pytest.fixture
async def plain(pair: Pair, tmp_path: Path) -> Pair:
    """The toy embedder and a prober that has one head, which nothing was trained for."""
    Registry(tmp_path / "heads").save(head_of(BUNDLE, DIMS))
    return pair


# ---- upload equals stream --------------------------------------------------------------------------------------------


@asynccontextmanager
async def real(folder: Path, **flags: Any) -> AsyncIterator[Any]:
    """A prober that asks a real embedder, which decodes and resamples as any; only its encoder is small."""
    from services.embedder import bundle as bundles
    from services.embedder.server import EmbedderServer
    from services.embedder.settings import Settings as EmbedderSettings

    bundle = bundles.load(tiny_bundle_at(folder / "tiny"))
    Registry(folder / "heads").save(head_of(bundle.digest, bundle.dims))
    settings = EmbedderSettings.load(
        {"bundle": bundle.folder, "grpc_socket": folder / "e.sock", "metrics_port": 0, "decode_workers": 1}
    )
    embedder = EmbedderServer(settings, Metrics())
    address = await embedder.start()
    try:
        async with prober_at(folder, embedder=address, **flags) as prober:
            yield prober
    finally:
        await embedder.stop()


async def test_upload_file_and_stream_give_the_same_windows_and_numbers(tmp_path: Path) -> None:
    layouts = [(8_000, 1), (16_000, 2), (22_050, 1), (44_100, 2), (48_000, 1), (48_000, 3)]
    async with real(tmp_path) as prober:
        for rate_hz, channels in layouts:
            sound = wave(2.75, rate_hz, channels)
            upload = await uploaded(prober, common_pb2.Audio(container=sound.file("WAV")))
            wanted = list(upload.windows)
            assert [each.index for each in wanted] == list(range(7))
            assert (wanted[-1].start_ms, wanted[-1].end_ms) == (1750, 2750)
            assert len({each.probabilities[0].probability for each in wanted}) == 7, "windows differ from each other"
            pcm = common_pb2.Pcm(data=sound.raw, rate_hz=rate_hz, channels=channels, format=S16)
            assert list((await uploaded(prober, common_pb2.Audio(container=sound.file("FLAC")))).windows) == wanted
            assert list((await uploaded(prober, common_pb2.Audio(pcm=pcm))).windows) == wanted
            second = rate_hz * channels * 2
            for largest in (177, second // 10 + 1, second):
                assert await streamed(prober, odd(sound.raw, largest), live(sound)) == wanted
            assert await streamed(prober, odd(sound.file("FLAC"), 5001), CONTAINER) == wanted


async def test_a_lossy_file_and_what_we_decode_of_it_give_the_same(tmp_path: Path) -> None:
    data = wave(2.5, 44_100, 2).file("MP3")
    samples, rate_hz = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    config = prober_pb2.StreamConfig(recognize=asked(), rate_hz=rate_hz, channels=2, format=F32)
    async with real(tmp_path) as prober:
        upload = await uploaded(prober, common_pb2.Audio(container=data))
        assert len(upload.windows) == 6
        assert await streamed(prober, odd(samples.astype("<f4").tobytes(), 9999), config) == list(upload.windows)
        assert await streamed(prober, odd(data, 777), CONTAINER) == list(upload.windows)


async def test_speech_is_told_alike_in_uploads_and_streams(data_root: Path, tmp_path: Path) -> None:
    model = data_root / "models" / "silero-vad" / "silero_vad.onnx"
    if not model.is_file():
        pytest.skip(f"no detector at {model}")
    clip = min((data_root / "corpora" / "EmoDB").rglob("*.flac"))
    speech, rate_hz = soundfile.read(clip, dtype="int16", always_2d=True)
    hush = np.random.default_rng(0).integers(-20, 20, (2 * rate_hz, 1)).astype("<i2")
    speech = (speech // 2).astype("<i2")  # the toy embedder hears clipping at full scale
    sound = Wave(values=np.concatenate([hush, speech[: 2 * rate_hz], hush]), rate_hz=rate_hz)
    async with paired(tmp_path, vad=model) as pair:
        Registry(tmp_path / "heads").save(head_of(BUNDLE, DIMS))
        upload = await uploaded(pair.prober, common_pb2.Audio(container=sound.file("WAV")), hop_ms=0)
        reasons = [each.abstention for each in upload.windows]
        quiet = prober_pb2.ABSTENTION_SILENCE
        assert (reasons[0], reasons[1], reasons[-1]) == (quiet, quiet, quiet)
        assert reasons.count(prober_pb2.ABSTENTION_UNSPECIFIED) == 2
        assert upload.windows[0].speech < 0.1
        assert 0.5 < upload.windows[2].speech <= 1
        assert 0.2 < upload.overall.speech < 0.5
        config = live(sound, recognize=asked(hop_ms=0))
        assert await streamed(pair.prober, odd(sound.raw, 4321), config) == list(upload.windows)
        every = await uploaded(pair.prober, common_pb2.Audio(container=sound.file("WAV")), hop_ms=0, every_window=True)
        assert not any(each.abstention for each in every.windows)
        assert [each.speech for each in every.windows] == [each.speech for each in upload.windows]
        for part, reason in ((hush, quiet), (speech, prober_pb2.ABSTENTION_UNSPECIFIED)):
            whole = common_pb2.Audio(container=Wave(values=part, rate_hz=rate_hz).file("WAV"))
            answer = await uploaded(pair.prober, whole, window_ms=0, hop_ms=0)
            assert answer.overall.abstention == reason
            assert answer.overall.HasField("speech")
            assert bool(answer.overall.label) == (not reason)


def hours_of(path: Path, hours: int, rate_hz: int) -> None:
    """Writes a long file that is small: a tone whose level steps up each minute."""
    minute = np.sin(2 * np.pi * 200 * np.arange(60 * rate_hz) / rate_hz)
    with soundfile.SoundFile(path, "w", rate_hz, 1, format="FLAC") as file:
        for number in range(hours * 60):
            file.write((minute * (0.1 + 0.8 * number / (hours * 60))).astype(np.float32))


def held_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def test_a_file_of_hours_is_answered_in_constant_memory(tmp_path: Path) -> None:
    path, chunk_bytes, window_ms = tmp_path / "long.flac", 1 << 18, 10_000
    await asyncio.to_thread(hours_of, path, 2, 8_000)
    file_bytes = path.stat().st_size
    config = prober_pb2.StreamConfig(recognize=asked(window_ms=window_ms, hop_ms=0), container=True)

    async def requests() -> AsyncIterator[prober_pb2.RecognizeStreamRequest]:
        yield prober_pb2.RecognizeStreamRequest(config=config)
        with path.open("rb") as file:
            while chunk := file.read(chunk_bytes):
                yield prober_pb2.RecognizeStreamRequest(chunk=chunk)

    async with paired(tmp_path) as pair:
        Registry(tmp_path / "heads").save(head_of(BUNDLE, DIMS))
        pair.embedder.requests = collections.deque(maxlen=1)
        held, ends = [], []
        async for message in pair.prober.RecognizeStream(requests()):
            ends.append(message.window.end_ms)
            held.append(held_bytes())
    assert ends == list(range(window_ms, 2 * 3_600_000 + 1, window_ms))
    # All of it decoded would be 230 MB; the windows on their way are five.
    assert max(held[50:]) - held[50] < 40 << 20, (held[50], max(held), file_bytes)


# ---- resumed streams -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate_hz", [16_000, 22_050])
async def test_a_resumed_stream_is_the_rest_of_an_unbroken_one(plain: Pair, rate_hz: int) -> None:
    sound = wave(2.75, rate_hz)
    whole = await streamed(plain.prober, [sound.raw], live(sound))
    for next_window in (0, 1, 3, 6, 7):
        start = max(0, next_window - 1) * 300 * rate_hz // 1000
        rest = await streamed(plain.prober, odd(sound.raw[2 * start :], 999), live(sound, next_window=next_window))
        assert rest == whole[next_window:]
        resumed = prober_pb2.StreamConfig(recognize=asked(), container=True, next_window=next_window)
        assert await streamed(plain.prober, odd(sound.file("WAV"), 999), resumed) == whole[next_window:]
    assert await streamed(plain.prober, [], live(sound, next_window=5)) == []


async def test_a_window_that_no_audio_has_is_refused(plain: Pair) -> None:
    for number in (-1, 1 << 50):
        for config in (
            live(wave(1, 16_000), next_window=number),
            prober_pb2.StreamConfig(container=True, next_window=number),
        ):
            with pytest.raises(BadInput, match=f"next_window = {number}"):
                await streamed(plain.prober, [], config)


async def test_windows_of_files_let_live_ones_pass(plain: Pair) -> None:
    sound = wave(2.5, 16_000)
    for config, data, patience_ms in ((live(sound), sound.raw, 0), (CONTAINER, sound.file("WAV"), PATIENCE_MS)):
        plain.embedder.requests.clear()
        await streamed(plain.prober, [data], config)
        assert {request.patience_ms for request in plain.embedder.requests} == {patience_ms}


# ---- bad callers, and faults -----------------------------------------------------------------------------------------


async def test_an_unanswered_part_does_not_hide_the_windows_before_it(plain: Pair) -> None:
    sound = wave(3, 16_000)
    windows: Windows = []
    config = live(sound, recognize=asked(hop_ms=0))
    config.format = F32
    good = (sound.values.astype("<f4") / 32768).astype("<f4").tobytes()
    bad = np.full(10, np.nan, dtype="<f4").tobytes()
    with pytest.raises(BadAudio, match="after sample 48000"):
        await streamed(plain.prober, [good, bad, good], config, windows)
    assert [each.index for each in windows] == [0, 1, 2]


async def test_a_file_that_is_cut_gives_the_windows_before_the_cut(plain: Pair) -> None:
    windows: Windows = []
    data = wave(6, 16_000).file("FLAC")
    config = prober_pb2.StreamConfig(recognize=asked(hop_ms=0), container=True)
    with pytest.raises(BadAudio, match=r"after \d+ ms") as caught:
        await streamed(plain.prober, [data[: len(data) // 2]], config, windows)
    position_ms = int(re.findall(r"after (\d+) ms", str(caught.value))[0])
    assert [each.index for each in windows] == list(range(position_ms // 1000))
    assert windows
    with pytest.raises(BadAudio, match=r"after \d+ ms"):
        await uploaded(plain.prober, common_pb2.Audio(container=data[: len(data) // 2]))


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"container": True, "rate_hz": 8000}, BadInput, "the file tells rate_hz"),
        ({"container": True, "recognize": asked(window_ms=5)}, BadInput, "window_ms = 5"),
        ({"container": True, "recognize": asked()}, BadAudio, "not audio"),
    ],
)
async def test_bad_files_are_refused(plain: Pair, config: Any, error: type[ServoxError], message: str) -> None:
    with pytest.raises(error, match=message):
        await streamed(plain.prober, [b"no audio at all" * 50], prober_pb2.StreamConfig(**config))


async def test_files_over_a_limit_are_refused(tmp_path: Path) -> None:
    async with paired(tmp_path, max_file_bytes=1 << 16, max_file_ms=1000) as pair:
        Registry(tmp_path / "heads").save(head_of(BUNDLE, DIMS))
        with pytest.raises(TooLarge, match="over the limit of 65536 bytes"):
            await streamed(pair.prober, [bytes(1000)] * 70, CONTAINER)
        with pytest.raises(TooLarge, match="over the limit of 1 s"):
            await streamed(pair.prober, [wave(3, 8_000).file("FLAC")], CONTAINER)


@pytest.mark.parametrize("config", [CONTAINER, live(wave(1, 16_000))])
async def test_a_caller_who_sends_nothing_is_sent_away(tmp_path: Path, config: prober_pb2.StreamConfig) -> None:
    async with paired(tmp_path, stream_idle_s=0.3) as pair:
        Registry(tmp_path / "heads").save(head_of(BUNDLE, DIMS))
        call = pair.prober.RecognizeStream()
        await call.write(prober_pb2.RecognizeStreamRequest(config=config))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(call.read(), 10)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "sent nothing for 0.3 s (stream_idle_s)" in (caught.value.details() or "")
        silent = pair.prober.RecognizeStream()
        with pytest.raises(DeadlineExpired), translated("prober"):
            await asyncio.wait_for(silent.read(), 10)


async def test_a_caller_who_reads_nothing_stops_the_intake(tmp_path: Path) -> None:
    settings = Settings.load({"heads": tmp_path / "heads", "embedder": f"unix:{tmp_path / 'e.sock'}"})
    taken = 0

    async def chunks() -> AsyncIterator[Any]:
        nonlocal taken
        for _ in range(10_000):
            taken += 1
            yield np.full(1600, 0.1, dtype=np.float32)

    async with paired(tmp_path) as pair:
        Registry(tmp_path / "heads").save(head_of(BUNDLE, DIMS))
        dataplane = Dataplane(settings, ProberMetrics(Metrics()))
        posterior = await dataplane.posterior(Ask(head="plain"))
        windows = dataplane.stream(chunks(), grid(100, 100, 16_000), posterior)
        async with contextlib.aclosing(windows):
            await anext(windows)
            seen = 0
            while seen < taken:  # until nothing moves any more
                seen = taken
                await asyncio.sleep(0.5)
            assert taken < 4 * settings.windows_in_flight
            assert len(pair.embedder.requests) < 4 * settings.windows_in_flight
            await anext(windows)
        await dataplane.close()


async def test_an_embedder_that_is_away_is_named_and_nobody_hangs(tmp_path: Path) -> None:
    Registry(tmp_path / "heads").save(head_of(BUNDLE, DIMS))
    sound = wave(1.2, 16_000)
    nobody = f"unix:{tmp_path / 'nobody.sock'}"
    async with prober_at(tmp_path, embedder=nobody, embed_timeout_s=0.5), asked_once(tmp_path) as prober:
        ways = (
            streamed(prober, [sound.raw], live(sound)),
            uploaded(prober, common_pb2.Audio(container=sound.file("WAV"))),
            uploaded(prober, common_pb2.Audio(container=sound.file("WAV")), window_ms=0, hop_ms=0),
        )
        for outcome in await asyncio.gather(*ways, return_exceptions=True):
            assert isinstance(outcome, Unavailable)
            assert "embedder at unix:" in str(outcome)


async def test_an_embedder_that_never_answers_is_given_up(tmp_path: Path) -> None:
    async with paired(tmp_path, embed_timeout_s=0.4) as pair, asked_once(tmp_path) as prober:
        Registry(tmp_path / "heads").save(head_of(BUNDLE, DIMS))
        pair.embedder.deaf = True
        sound = wave(1.2, 16_000)
        with pytest.raises(Unavailable, match=r"did not answer within 0\.4 s"):
            await streamed(prober, [sound.raw], live(sound))


async def test_a_stream_rides_through_a_restart_of_the_embedder(plain: Pair) -> None:
    sound = wave(2.75, 16_000)
    wanted = await streamed(plain.prober, [sound.raw], live(sound))
    plain.embedder.failures = 2  # streams that break after they took a window
    assert await streamed(plain.prober, [sound.raw], live(sound)) == wanted
    assert plain.embedder.failures == 0


async def test_a_head_of_another_bundle_is_refused_before_anything_is_heard(plain: Pair) -> None:
    plain.embedder.bundle = "ef" * 32
    with pytest.raises(HeadMismatch, match=f"{BUNDLE}, not of {'ef' * 32}"):
        await streamed(plain.prober, [], live(wave(1, 16_000)))


# ---- out of distribution ---------------------------------------------------------------------------------------------


async def test_what_is_unlike_the_training_set_abstains_and_says_how_far_it_is(pair: Pair, tmp_path: Path) -> None:
    sound = common_pb2.Audio(container=wave(2, 16_000).file("WAV"))
    answers: dict[float | None, prober_pb2.RecognizeResponse] = {}
    for limit in (1e-6, 1e6, None):
        head = head_of(BUNDLE, DIMS, novelty_limit=limit)
        Registry(tmp_path / "heads").save(Head(card=replace(head.card, name=f"h{len(answers)}"), weights=head.weights))
        answers[limit] = await uploaded(pair.prober, sound, head=f"h{len(answers)}", hop_ms=0)
    far, near, unknown = answers.values()
    assert {each.abstention for each in far.windows} == {prober_pb2.ABSTENTION_OUT_OF_DISTRIBUTION}
    assert far.overall.abstention == prober_pb2.ABSTENTION_OUT_OF_DISTRIBUTION
    assert far.overall.label == near.overall.label != ""
    assert far.overall.novelty > 1 > near.overall.novelty > 0
    assert far.windows[0].novelty == pytest.approx(near.windows[0].novelty * 1e12)
    assert not near.overall.abstention
    assert not unknown.overall.HasField("novelty")


def test_only_clocks_that_never_jump_are_read() -> None:
    names = (
        "answers",
        "embedder",
        "posterior",
        "recognizer",
        "servicer",
        "sound",
        "sources",
        "spool",
        "voice",
        "windows",
    )
    modules = [*(PROBER / f"{name}.py" for name in names), *(PROBER.parents[1] / "servox").glob("*.py")]
    calendars = {"doors.py", "keys.py", "quotas.py", "tokens.py"}  # what expires, and days of UTC
    for module in modules:
        if module.name in calendars:
            continue
        assert not re.search(r"\btime\.time\b|datetime\.now\(\)|utcnow", module.read_text()), module.name


def test_a_card_without_a_limit_of_novelty_is_read() -> None:
    weights, card = encode(head_of(BUNDLE, DIMS))
    assert weights
    assert '"novelty_limit": null' in card
