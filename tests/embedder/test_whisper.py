"""The traced module against transformers: random small encoders saved as the hub has them, and the real ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import WhisperFeatureExtractor, WhisperModel

from bench.small_models import save
from services.embedder import parity
from services.embedder.backbones import open_backbone
from services.embedder.backbones.whisper import WhisperBackbone
from services.embedder.contexts import Context
from services.embedder.runtimes import Result
from services.embedder.runtimes.torch import TorchRuntime
from services.embedder.speechlike import speechlike
from servox.errors import BadInput, BadSetting, NotFound

RATE = 16_000
Samples = NDArray[np.float32]
POLICIES = ["padded", "exact", "fixed:1.5", "silence:32", "silence:7", "cached:12"]


@pytest.fixture(scope="module", params=[80, 128])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 mels with the decoder and a language model's head, 128 without the head: their keys differ."""
    return save(tmp_path_factory.mktemp("checkpoints"), f"whisper-{request.param}")


def clips(*seconds: float) -> list[Samples]:
    return [speechlike(n, duration_s=s, rate_hz=RATE) for n, s in enumerate(seconds)]


def batch(samples: list[Samples], *, rest: float) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    lengths = np.array([len(clip) for clip in samples], np.int64)
    pcm = np.full((len(samples), lengths.max() + 123), rest, np.float32)
    for row, clip in zip(pcm, samples, strict=True):
        row[: len(clip)] = clip
    return pcm, lengths


def embed(backbone: WhisperBackbone, policy: str, blocks: int, samples: list[Samples], rest: float = 0.0) -> Result:
    runtime = TorchRuntime(backbone.graph(Context.parse(policy), blocks))
    return runtime.run(*batch(samples, rest=rest), frames=True)


def whisper(folder: Path) -> WhisperBackbone:
    backbone = open_backbone(str(folder))
    assert isinstance(backbone, WhisperBackbone)
    return backbone


def hidden_states(folder: Path, samples: Samples) -> list[Samples]:
    """Every hidden state of transformers' encoder on the clip padded to 30 s, its own frames, by hooks."""
    model = WhisperModel.from_pretrained(folder)
    encoder = model.encoder.train(mode=False)
    mels = encoder.config.num_mel_bins
    extract = WhisperFeatureExtractor(feature_size=mels)  # type: ignore[no-untyped-call]
    states: list[torch.Tensor] = []
    encoder.layers[0].register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    for layer in encoder.layers:
        layer.register_forward_hook(lambda _, __, output: states.append(output))
    with torch.inference_mode():
        features = extract(samples, sampling_rate=RATE, return_tensors="pt").input_features
        states.append(encoder(features).last_hidden_state)
    own = -(-len(samples) // 320)
    return [state[0, :own].numpy() for state in states]


def test_every_hidden_state_equals_transformers_own_forward(checkpoint: Path) -> None:
    backbone = whisper(checkpoint)
    samples = clips(0.6, 2.0, 1.1)
    expected = [hidden_states(checkpoint, clip) for clip in samples]
    assert backbone.layers(3) == ("conv", "block 1", "block 2", "block 3", "final")
    for blocks in (0, 1, 2, 3):
        result = embed(backbone, "padded", blocks, samples)
        assert result.frames is not None
        assert result.statistics.shape == (3, len(backbone.layers(blocks)), 2, 24)
        for row, states in enumerate(expected):
            last = states[len(backbone.layers(blocks)) - 1]
            np.testing.assert_allclose(result.frames[row, : len(last)], last, atol=1e-4)
            for layer in range(len(backbone.layers(blocks))):
                np.testing.assert_allclose(result.statistics[row, layer, 0], states[layer].mean(axis=0), atol=1e-4)
                np.testing.assert_allclose(result.statistics[row, layer, 1], states[layer].std(axis=0), atol=1e-4)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_equals_its_reference_in_a_mixed_batch(checkpoint: Path, policy: str) -> None:
    backbone = whisper(checkpoint)
    samples = clips(0.4, 3.0, 1.49, 1.0001)
    for blocks in (1, 3):
        result = embed(backbone, policy, blocks, samples)
        reference = backbone.reference(Context.parse(policy), blocks)
        for row, clip in enumerate(samples):
            states = reference(clip)
            assert result.frames is not None
            np.testing.assert_allclose(result.frames[row, : states.shape[1]], states[-1], atol=1e-4)
            np.testing.assert_allclose(result.statistics[row, :, 0], states.mean(axis=1), atol=1e-4)
            np.testing.assert_allclose(result.statistics[row, :, 1], states.std(axis=1), atol=1e-4)


def test_the_padded_reference_is_transformers_own_forward(checkpoint: Path) -> None:
    clip = clips(1.3)[0]
    states = whisper(checkpoint).reference(Context.parse("padded"), 3)(clip)
    np.testing.assert_allclose(states, np.stack(hidden_states(checkpoint, clip)), atol=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
def test_neither_neighbours_nor_padding_leak_into_a_clip(checkpoint: Path, policy: str) -> None:
    backbone = whisper(checkpoint)
    short, long = clips(0.7, 2.5)
    alone = embed(backbone, policy, 3, [short]).statistics[0]
    for rest in (0.0, 0.8, -50.0):
        batched = embed(backbone, policy, 3, [long, short], rest).statistics[1]
        np.testing.assert_allclose(batched, alone, atol=1e-4)
    changed = short.copy()
    changed[-1000:] *= -0.5
    assert np.abs(embed(backbone, policy, 3, [changed]).statistics[0] - alone).max() > 1e-3


@pytest.mark.parametrize("policy", ["padded", "exact", "silence:32", "cached:16"])
def test_clips_of_up_to_30_s(checkpoint: Path, policy: str) -> None:
    """Near 30 s fewer frames remain than silence tokens: each then stands for one frame, the plain padding."""
    backbone = whisper(checkpoint)
    long = clips(30.0)[0]
    samples = [long, long[: 320 * 1499 - 7], long[: 320 * 1497], long[: 320 * 1470], long[: 320 * 1466], long[:16_000]]
    runtime = TorchRuntime(backbone.graph(Context.parse(policy), 2))
    pcm, lengths = batch(samples, rest=0.0)
    result = runtime.run(pcm[:, :480_000].copy(), lengths)
    reference = backbone.reference(Context.parse(policy), 2)
    for row, clip in enumerate(samples):
        np.testing.assert_allclose(result.statistics[row, :, 0], reference(clip).mean(axis=1), atol=1e-4)


def test_silence_tokens_come_closer_to_padding_than_nothing_does(checkpoint: Path) -> None:
    backbone = whisper(checkpoint)
    samples = clips(*np.linspace(0.5, 3.0, 8))
    means = {p: embed(backbone, p, 3, samples).statistics[:, -1, 0] for p in ("padded", "exact", "silence:32")}
    errors = {p: np.abs(means[p] - means["padded"]).mean() for p in ("exact", "silence:32")}
    assert errors["silence:32"] < 0.5 * errors["exact"]


@pytest.mark.parametrize(
    ("context", "blocks", "words"),
    [("silence:32", 4, "--blocks 4.*0 to 3"), ("silence:32", -1, "--blocks -1")],
)
def test_a_depth_that_is_not_there_is_refused(checkpoint: Path, context: str, blocks: int, words: str) -> None:
    with pytest.raises(BadSetting, match=words):
        whisper(checkpoint).check(Context.parse(context), blocks)


def test_foreign_checkpoints_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(BadInput, match=r"no config\.json"):
        open_backbone(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(BadInput, match=r"no model\.safetensors"):
        open_backbone(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    with pytest.raises(BadInput, match=r"family 'bert'.*whisper, wav2vec2, .*logmel"):
        open_backbone(str(tmp_path))
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(BadInput, match="not readable JSON"):
        open_backbone(str(tmp_path))


def test_a_front_end_of_another_rate_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    (tmp_path / "preprocessor_config.json").write_text('{"sampling_rate": 8000}')
    with pytest.raises(BadInput, match="sampling_rate 8000"):
        open_backbone(str(tmp_path))


def test_an_unknown_source_is_named() -> None:
    with pytest.raises(NotFound, match="'no/such folder at all'"):
        open_backbone("no/such folder at all")


def test_sharded_checkpoints_are_read_whole(tmp_path: Path, checkpoint: Path) -> None:
    WhisperModel.from_pretrained(checkpoint).save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    clip = clips(0.9)
    whole, sharded = (embed(whisper(folder), "exact", 3, clip).statistics for folder in (checkpoint, tmp_path))
    np.testing.assert_array_equal(whole, sharded)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["whisper_tiny", "whisper_base"])
def test_real_encoders_reach_what_the_silence_tokens_promise(
    request: pytest.FixtureRequest, size: str, data_root: Path
) -> None:
    """Padded equals transformers; silence:32 at half depth has a standardised cosine of 0.9 to it."""
    folder: Path = request.getfixturevalue(size)
    backbone = whisper(folder)
    half = (backbone.blocks + 1) // 2
    speech = parity.gather([], data_root, RATE)
    padded = backbone.reference(Context.parse("padded"), half)
    expected = [padded(clip) for clip in speech.samples]
    figure = parity.hidden(TorchRuntime(backbone.graph(Context.parse("padded"), half)), speech, expected)
    assert figure.passed, figure
    silence = backbone.reference(Context.parse("silence:32"), half)
    ours = [silence(clip) for clip in speech.samples]
    assert parity.hidden(TorchRuntime(backbone.graph(Context.parse("silence:32"), half)), speech, ours).passed
    close = parity.context(ours, expected, parity.HALF_DEPTH_COSINE)
    assert close.passed, close
    exact = backbone.reference(Context.parse("exact"), half)
    assert parity.context([exact(clip) for clip in speech.samples], expected, None).value < close.value - 0.05
