"""Audio to emotions through a real prober and a toy embedder: whole clips, windows, streams, priors."""
# ruff: noqa: ANN401 -- arrays and gRPC stubs have no types worth naming here

import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import soundfile

from services.prober.heads import Floats
from services.prober.registry import Registry
from servox.errors import BadAudio, BadInput, HeadMismatch, NotFound, TooLarge
from servox.priors import adjust, class_prior, softmax
from servox.rpc import translated
from servox.v1 import common_pb2, prober_pb2

RATE = 16_000


def noise(seconds: float, *, rate_hz: int = RATE) -> Floats:
    random = np.random.default_rng(11)
    samples = random.normal(size=int(seconds * rate_hz)) * np.linspace(0.01, 0.1, int(seconds * rate_hz))
    return np.clip(samples, -0.9, 0.9).astype(np.float32)


def wav(samples: Floats) -> common_pb2.Audio:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV", subtype="FLOAT")
    return common_pb2.Audio(container=file.getvalue())


def pcm(samples: Floats) -> common_pb2.Audio:
    return common_pb2.Audio(
        pcm=common_pb2.Pcm(data=samples.tobytes(), rate_hz=RATE, format=common_pb2.SAMPLE_FORMAT_F32)
    )


@pytest.fixture
async def ready(pair: Any, corpus: Any) -> Any:
    """A pair with one head of each kind."""
    specs = [
        corpus.spec(calibrate=True),
        corpus.spec(name="lr", kind=prober_pb2.HEAD_KIND_LOGISTIC),
        corpus.spec(name="frames", kind=prober_pb2.HEAD_KIND_FRAME_MLP),
    ]
    async for _ in pair.prober.Train(prober_pb2.TrainRequest(store_url=corpus.store, heads=specs)):
        pass
    return pair


async def recognised(pair: Any, sound: common_pb2.Audio, **config: Any) -> prober_pb2.RecognizeResponse:
    settings = prober_pb2.RecognizeConfig(**{"head": "toy", **config})
    with translated("prober"):
        answer: prober_pb2.RecognizeResponse = await pair.prober.Recognize(
            prober_pb2.RecognizeRequest(audio=sound, config=settings)
        )
    return answer


def probabilities(window: prober_pb2.Window) -> Any:
    return np.array([each.probability for each in window.probabilities])


async def test_a_whole_clip(ready: Any, tmp_path: Path) -> None:
    answer = await recognised(ready, wav(noise(2)))
    assert (answer.overall.start_ms, answer.overall.end_ms) == (0, 2000)
    assert list(answer.windows) == [answer.overall]
    assert [each.label for each in answer.overall.probabilities] == ["anger", "happiness", "sadness"]
    assert probabilities(answer.overall).sum() == pytest.approx(1)
    assert answer.overall.confidence == probabilities(answer.overall).max()
    assert answer.bundle.source == "toy"
    assert answer.timings.inference_us == 7
    assert answer.timings.total_us > 0
    head = Registry(tmp_path / "heads").get("toy")
    assert (answer.head.version, answer.head.digest) == (head.card.version, head.digest)
    spectrum = np.abs(np.fft.rfft(noise(2), n=46))[None].astype(np.float32)
    wanted = softmax(head.logits(spectrum)[0] / head.card.temperature)
    np.testing.assert_allclose(probabilities(answer.overall), wanted, atol=1e-5)
    assert dict(answer.prior.probabilities) == pytest.approx(dict.fromkeys(("anger", "happiness", "sadness"), 1 / 3))


async def test_it_asks_for_what_the_head_reads(ready: Any, corpus: Any) -> None:
    from servox.v1 import embedder_pb2

    await recognised(ready, wav(noise(1)))
    await recognised(ready, wav(noise(1)), head="frames")
    pooled, frames = ready.embedder.requests[-2:]
    assert (pooled.pooling, list(pooled.layers)) == (embedder_pb2.POOLING_MEAN, [corpus.layer])
    assert (frames.pooling, list(frames.layers)) == (embedder_pb2.POOLING_FRAMES, [])


async def test_a_head_on_several_layers_asks_for_them_and_reads_them_in_order(
    pair: Any, corpus: Any, tmp_path: Path
) -> None:
    spec = corpus.spec(name="wide", kind=prober_pb2.HEAD_KIND_LOGISTIC, settings={"layers": 2})
    async for _ in pair.prober.Train(prober_pb2.TrainRequest(store_url=corpus.store, heads=[spec])):
        pass
    answer = await recognised(pair, wav(noise(2)), head="wide")
    assert list(pair.embedder.requests[-1].layers) == [1, 2]
    spectrum = np.abs(np.fft.rfft(noise(2), n=46)).astype(np.float32)
    head = Registry(tmp_path / "heads").get("wide")
    wanted = softmax(head.logits(np.concatenate([2 * spectrum, 3 * spectrum])[None])[0] / head.card.temperature)
    np.testing.assert_allclose(probabilities(answer.overall), wanted, atol=1e-5)


async def test_windows_and_their_mean(ready: Any) -> None:
    answer = await recognised(ready, wav(noise(2.6)), window_ms=1000, hop_ms=500)
    spans = [(window.start_ms, window.end_ms) for window in answer.windows]
    assert spans == [(0, 1000), (500, 1500), (1000, 2000), (1500, 2500), (1600, 2600)]
    mean = np.mean([probabilities(window) for window in answer.windows], axis=0)
    np.testing.assert_allclose(probabilities(answer.overall), mean, atol=1e-6)
    assert (answer.overall.start_ms, answer.overall.end_ms) == (0, 2600)
    alone = await recognised(ready, pcm(noise(2.6)[8000:24000]))
    np.testing.assert_allclose(probabilities(answer.windows[1]), probabilities(alone.overall), atol=1e-5)


@pytest.mark.parametrize("size", [3, 777, 64_000])
async def test_a_stream_gives_the_windows_of_the_clip(ready: Any, size: int) -> None:
    samples = noise(2.6 if size > 3 else 0.4)
    window_ms, hop_ms = (400, 150) if size > 3 else (150, 40)
    whole = await recognised(ready, pcm(samples), window_ms=window_ms, hop_ms=hop_ms)
    recognise = prober_pb2.RecognizeConfig(head="toy", window_ms=window_ms, hop_ms=hop_ms)
    config = prober_pb2.StreamConfig(recognize=recognise, rate_hz=RATE, format=common_pb2.SAMPLE_FORMAT_F32)
    data = samples.tobytes()

    async def requests() -> AsyncIterator[prober_pb2.RecognizeStreamRequest]:
        yield prober_pb2.RecognizeStreamRequest(config=config)
        for start in range(0, len(data), size):
            yield prober_pb2.RecognizeStreamRequest(chunk=data[start : start + size])

    streamed = [message async for message in ready.prober.RecognizeStream(requests())]
    assert [message.window for message in streamed] == list(whole.windows)
    assert all(message.head == whole.head and message.bundle == whole.bundle for message in streamed)


async def test_a_stream_answers_while_it_is_open(ready: Any) -> None:
    call = ready.prober.RecognizeStream()
    recognise = prober_pb2.RecognizeConfig(head="toy", window_ms=200)
    config = prober_pb2.StreamConfig(recognize=recognise, rate_hz=RATE, channels=2, format=common_pb2.SAMPLE_FORMAT_S16)
    await call.write(prober_pb2.RecognizeStreamRequest(config=config))
    stereo = np.repeat((noise(0.7) * 32767).astype("<i2")[:, None], 2, axis=1).tobytes()
    await call.write(prober_pb2.RecognizeStreamRequest(chunk=stereo))
    first = await call.read()
    assert (first.window.start_ms, first.window.end_ms) == (0, 200)
    await call.done_writing()
    rest = []
    while (message := await call.read()) != grpc.aio.EOF:
        rest.append(message.window.start_ms)
    assert rest == [200, 400, 500]


async def test_silent_windows_abstain(ready: Any) -> None:
    samples = np.concatenate([noise(1), np.zeros(RATE, dtype=np.float32), noise(1)])
    answer = await recognised(ready, wav(samples), window_ms=1000)
    assert [(window.index, window.start_ms) for window in answer.windows] == [(0, 0), (1, 1000), (2, 2000)]
    silent = answer.windows[1]
    assert silent.abstention == prober_pb2.ABSTENTION_SILENCE
    assert (silent.label, silent.confidence, len(silent.probabilities)) == ("", 0.0, 0)
    assert not silent.HasField("speech")
    mean = (probabilities(answer.windows[0]) + probabilities(answer.windows[2])) / 2
    np.testing.assert_allclose(probabilities(answer.overall), mean, atol=1e-6)
    assert (answer.overall.abstention, answer.overall.end_ms) == (prober_pb2.ABSTENTION_UNSPECIFIED, 3000)


@pytest.mark.parametrize("options", [{}, {"window_ms": 500}])
async def test_silence_and_a_moment_abstain_as_a_whole(ready: Any, options: dict[str, Any]) -> None:
    cases = {0.5: prober_pb2.ABSTENTION_SILENCE, 0.05: prober_pb2.ABSTENTION_TOO_SHORT}
    for seconds, reason in cases.items():
        samples = np.zeros(int(seconds * RATE), dtype=np.float32) if seconds == 0.5 else noise(seconds)
        answer = await recognised(ready, wav(samples), **options)
        assert answer.overall.abstention == answer.windows[0].abstention == reason
        assert (answer.overall.end_ms, answer.overall.label) == (seconds * 1000, "")
        assert answer.bundle.digest
    asked = await recognised(ready, wav(noise(0.05)), every_window=True, **options)
    assert asked.overall.label
    assert asked.overall.abstention == prober_pb2.ABSTENTION_UNSPECIFIED


async def test_priors(ready: Any, corpus: Any, tmp_path: Path) -> None:
    few = [clip for clip in corpus.clips if clip.label != "anger" or clip.speaker == "s0"]
    from servox.arrays import write_clip_set

    skewed = corpus.spec(name="skewed", clip_set_url=write_clip_set(corpus.sets, few))
    async for _ in ready.prober.Train(prober_pb2.TrainRequest(store_url=corpus.store, heads=[skewed])):
        pass
    card = Registry(tmp_path / "heads").get("skewed").card
    assert card.class_counts == (4, 24, 24)
    sound = wav(noise(1))
    trained = await recognised(ready, sound, head="skewed")
    assert dict(trained.prior.probabilities)["anger"] == pytest.approx(4 / 52)
    explicit = {"anger": 0.6, "happiness": 0.3, "sadness": 0.1}
    kind = prober_pb2.Prior.KIND_EXPLICIT
    for prior, target in (
        (prober_pb2.Prior(kind=prober_pb2.Prior.KIND_UNIFORM), [1 / 3] * 3),
        (prober_pb2.Prior(kind=kind, probabilities=explicit), [0.6, 0.3, 0.1]),
    ):
        answer = await recognised(ready, sound, head="skewed", prior=prior)
        assert dict(answer.prior.probabilities) == pytest.approx(dict(zip(card.classes, target, strict=True)))
        train = class_prior(card.class_counts, smoothing=0)
        wanted = softmax(adjust(np.log(probabilities(trained.overall)), train=train, target=target))
        np.testing.assert_allclose(probabilities(answer.overall), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"anger": 0.5, "happiness": 0.3, "sadness": 0.1}, "sums to 0.9"),
        ({"anger": 1.5, "happiness": -0.3, "sadness": -0.2}, "give probabilities from 0 to 1"),
        ({"anger": 0.5, "joy": 0.5}, r"unknown classes \['joy'\], missing classes \['happiness', 'sadness'\]"),
    ],
)
async def test_bad_priors_are_refused(ready: Any, values: dict[str, float], message: str) -> None:
    prior = prober_pb2.Prior(kind=prober_pb2.Prior.KIND_EXPLICIT, probabilities=values)
    with pytest.raises(BadInput, match=message):
        await recognised(ready, wav(noise(1)), prior=prior)
    with pytest.raises(BadInput, match="not KIND_EXPLICIT"):
        await recognised(ready, wav(noise(1)), prior=prober_pb2.Prior(probabilities=values))


async def test_another_bundle_is_refused(ready: Any, corpus: Any) -> None:
    ready.embedder.bundle = "ef" * 32
    for options in ({}, {"window_ms": 500}):
        with pytest.raises(HeadMismatch, match=f"{corpus.bundle}, not of {'ef' * 32}"):
            await recognised(ready, wav(noise(1)), **options)


async def test_bad_audio_is_refused(ready: Any) -> None:
    for options in ({}, {"window_ms": 500}):
        with pytest.raises(BadAudio, match="not audio that can be decoded"):
            await recognised(ready, common_pb2.Audio(container=b"no audio at all" * 20), **options)
    loud = noise(2)
    loud[20_000] = 1.0
    with pytest.raises(BadAudio, match="hears clipping"):
        await recognised(ready, wav(loud), window_ms=500)
    with pytest.raises(BadAudio, match="format 0 is unknown"):
        await recognised(ready, common_pb2.Audio(pcm=common_pb2.Pcm(data=b"12", rate_hz=RATE)), window_ms=500)


async def test_bad_configurations_are_refused(ready: Any) -> None:
    with pytest.raises(NotFound, match="did you mean toy"):
        await recognised(ready, wav(noise(1)), head="toi")
    with pytest.raises(BadInput, match="window_ms = 50"):
        await recognised(ready, wav(noise(1)), window_ms=50)
    with pytest.raises(BadInput, match="hop_ms = 500 without window_ms"):
        await recognised(ready, wav(noise(1)), hop_ms=500)
    with pytest.raises(TooLarge, match="over the limit of 50"):
        await recognised(ready, wav(noise(3)), window_ms=100, hop_ms=20)


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], "began without a config"),
        ([{"chunk": b"1234"}], "began without a config"),
        ([{"config": {"rate_hz": 10}}], "rate_hz = 10"),
        ([{"config": {"rate_hz": RATE, "channels": 99}}], "channels = 99"),
        ([{"config": {"rate_hz": RATE, "format": 2, "recognize": {"head": "toy"}}}], "window_ms = 0"),
        ([{"config": {"rate_hz": RATE, "recognize": {"head": "toy", "window_ms": 500}}}], "sample format 0"),
        (["good", {"chunk": b"123"}], "inside a sample"),
        (["good", "good"], "second config"),
        (["good", {"chunk": np.array([np.nan], dtype="<f4").tobytes()}], "not finite"),
    ],
)
async def test_bad_streams_are_refused(ready: Any, messages: list[Any], error: str) -> None:
    good = {"config": {"rate_hz": RATE, "format": 2, "recognize": {"head": "toy", "window_ms": 500}}}

    async def requests() -> AsyncIterator[prober_pb2.RecognizeStreamRequest]:
        for message in messages:
            yield prober_pb2.RecognizeStreamRequest(**(good if message == "good" else message))

    with pytest.raises(BadInput, match=error), translated("prober"):
        async for _ in ready.prober.RecognizeStream(requests()):
            pass
