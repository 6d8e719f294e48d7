from pathlib import Path

import numpy as np
import pytest
import soundfile

from services.embedder import parity
from services.embedder.contexts import Context
from services.embedder.runtimes import Result
from services.embedder.speechlike import speechlike
from servox.errors import BadSetting

RATE = 16_000
LAYERS, DIMS = 3, 8
SCALES = np.array([1.0, 5.0, 100.0], np.float32).reshape(3, 1, 1)


def states_of(clip: np.ndarray) -> np.ndarray:
    """Stand-in for a reference: any fixed function of the clip's samples."""
    frames = -(-len(clip) // 320)
    padded = np.pad(clip, (0, frames * 320 - len(clip))).reshape(frames, 40, DIMS)
    return (np.stack([padded.mean(1), padded.std(1), padded.max(1)]) * SCALES).astype(np.float32)


class Faulty:
    """A runtime equal to `states_of`, off by `error` of a layer's scale in one layer."""

    name, device = "faulty", "cpu"

    def __init__(self, *, error: float = 0.0, layer: int = 0, leak: bool = False) -> None:
        self.error, self.layer, self.leak = error, layer, leak

    def run(self, pcm: np.ndarray, lengths: np.ndarray, *, frames: bool = False) -> Result:
        clips = [row if self.leak else row[:n] for row, n in zip(pcm, lengths, strict=True)]
        states = [states_of(clip) for clip in clips]
        pooled = np.stack([np.stack([s.mean(1), s.std(1)], axis=1) for s in states])
        pooled[:, self.layer] += self.error
        wide = max(s.shape[1] for s in states)
        last = np.stack([np.pad(s[-1], ((0, wide - s.shape[1]), (0, 0)), constant_values=np.nan) for s in states])
        return Result(statistics=pooled, frames=last if frames else None)

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def speech() -> parity.Clips:
    return parity.gather([], None, RATE)


def test_without_speech_signals_are_made_and_said_to_be(speech: parity.Clips) -> None:
    assert len(speech.samples) == parity.CLIPS
    assert "synthesised" in speech.origin
    assert len({len(clip) for clip in speech.samples}) == parity.CLIPS
    assert all(0.01 < np.abs(clip).max() < 1 for clip in speech.samples)


def test_the_right_graph_passes(speech: parity.Clips) -> None:
    states = [states_of(clip) for clip in speech.samples]
    assert parity.hidden(Faulty(), speech, states).value < 1e-6
    assert parity.precision(Faulty(), speech, states, "fp32").value < 1e-6


@pytest.mark.parametrize("layer", range(LAYERS))
def test_an_error_in_any_layer_is_seen_in_that_layers_scale(speech: parity.Clips, layer: int) -> None:
    states = [states_of(clip) for clip in speech.samples]
    spread = float(np.sqrt(np.mean([s[layer].var() for s in states])))
    figure = parity.hidden(Faulty(error=0.01 * spread, layer=layer), speech, states)
    assert figure.value == pytest.approx(0.01, rel=0.01)
    assert not figure.passed


def test_a_graph_that_reads_past_a_clips_end_fails(speech: parity.Clips) -> None:
    states = [states_of(clip) for clip in speech.samples]
    assert not parity.hidden(Faulty(leak=True), speech, states).passed


def test_a_graph_that_returns_nan_fails(speech: parity.Clips) -> None:
    states = [states_of(clip) for clip in speech.samples]
    assert not parity.hidden(Faulty(error=float("nan")), speech, states).passed
    assert not parity.precision(Faulty(error=float("nan"), layer=2), speech, states, "int8").passed


def test_precision_is_relative_to_the_spread_between_clips(speech: parity.Clips) -> None:
    states = [states_of(clip) for clip in speech.samples]
    means = np.stack([s[-1].mean(0) for s in states])
    error = 0.04
    expected = float(np.sqrt(np.mean((error / means.std(0)) ** 2)))
    figure = parity.precision(Faulty(error=error, layer=2), speech, states, "bf16")
    assert figure.value == pytest.approx(expected, rel=1e-4)


def test_the_context_figure_ignores_offset_and_scale_but_not_noise(speech: parity.Clips) -> None:
    rng = np.random.default_rng(0)
    states = [states_of(clip) for clip in speech.samples]
    moved = [s * 3 + 100 for s in states]
    assert parity.context(states, moved, 0.9).value == pytest.approx(1.0, abs=1e-4)
    noise = [rng.normal(size=s.shape).astype(np.float32) for s in states]
    assert abs(parity.context(states, noise, 0.9).value) < 0.5


@pytest.mark.parametrize(
    ("policy", "blocks", "bound"),
    [
        ("silence:32", 3, parity.HALF_DEPTH_COSINE),
        ("silence:32", 6, parity.DEEP_COSINE),
        ("exact", 3, None),
        ("fixed:5", 3, None),
        ("padded", 6, None),
    ],
)
def test_only_silence_tokens_are_held_to_the_padded_encoder(policy: str, blocks: int, bound: float | None) -> None:
    assert parity.context_bound(Context.parse(policy), blocks=blocks, all_blocks=6) == bound


def write(path: Path, seed: int, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, speechlike(seed, duration_s=seconds, rate_hz=RATE), RATE)


def test_given_clips_are_used_and_bad_ones_passed_over(tmp_path: Path) -> None:
    for n in range(3):
        write(tmp_path / f"{n}.wav", n, 1.0)
    (tmp_path / "broken.wav").write_bytes(b"nothing")
    clips = parity.gather([tmp_path], None, RATE)
    assert len(clips.samples) == 3
    assert clips.origin == "3 given clips"


def test_too_few_given_clips_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "one.wav", 1, 1.0)
    with pytest.raises(BadSetting, match="--clips gave 1 readable"):
        parity.gather([tmp_path], None, RATE)


def test_corpora_share_the_clips_evenly(tmp_path: Path) -> None:
    seconds = {"a": 0.5, "b": 0.6, "c": 0.7}
    for corpus, length in seconds.items():
        for n in range(20):
            write(tmp_path / "corpora" / corpus / f"{n:02}.wav", n, length)
    clips = parity.gather([], tmp_path, RATE)
    assert clips.origin == "16 clips of a, b, c"
    lengths = [len(clip) / RATE for clip in clips.samples]
    assert [lengths.count(length) for length in seconds.values()] == [6, 5, 5]
    assert len({clip.tobytes() for clip in clips.samples}) == parity.CLIPS
    assert len(parity.gather([], tmp_path, RATE, count=8).samples) == 8


def test_speechlike_signals_are_reproducible_and_differ() -> None:
    one, again, other = (speechlike(seed, duration_s=1.0, rate_hz=RATE) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.01
    assert one.dtype == np.float32
    assert len(one) == RATE
