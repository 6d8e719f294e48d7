"""CLAP: random small models of its true architecture, whole and audio tower alone, saved as the hub has them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
import torch
from safetensors.torch import load_file, save_file
from transformers import ClapAudioModel, ClapFeatureExtractor, ClapModel

from bench.small_models import save
from services.embedder.backbones import open_backbone
from services.embedder.backbones.clap_graph import neighbours, relative_bias
from services.embedder.backbones.clap_mel import ClapFrontEnd, ClapMel
from services.embedder.bundle import Bundle, load
from services.embedder.contexts import Context
from services.embedder.export import export
from services.embedder.runtimes.onnx import OnnxRuntime
from services.embedder.runtimes.openvino import OpenVinoRuntime
from services.embedder.runtimes.torch import TorchRuntime
from services.embedder.server import EmbedderServer
from services.embedder.settings import Settings
from servox.client import Client, Clip, Embedding, pcm
from servox.errors import BadInput, BadSetting
from servox.telemetry import Metrics

PADDED = Context(kind="padded")
RATE = 48_000
LENGTHS = (19_200, 144_001, 77_777, 480_000)
ENDS = (0, 2, 3, 4, 6)  # the patches and the last block of each stage
STEPS = (1_875,) * 3 + (3_750, 7_500) + (15_000,) * 3  # of every layer


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("clap")
    return lambda name: folder / name if (folder / name).exists() else save(folder, name)


@pytest.fixture(params=["clap", "clap-audio"])
def checkpoint(request: pytest.FixtureRequest, checkpoints: Callable[[str], Path]) -> Path:
    return checkpoints(request.param)


def columns(states: torch.Tensor) -> np.ndarray:
    """A grid [d, rows, columns] as frames: four parts of the 10 s lie below each other."""
    return np.concatenate([part.permute(2, 1, 0).flatten(1).numpy() for part in states.chunk(4, dim=1)])


class Transformers:
    """transformers' own answer for a clip alone, by its public interface."""

    def __init__(self, folder: Path) -> None:
        whole = json.loads((folder / "config.json").read_text())["model_type"] == "clap"
        self.model: Any = (
            ClapModel.from_pretrained(folder).audio_model if whole else ClapAudioModel.from_pretrained(folder)
        )
        self.model.train(mode=False)
        self.extract = ClapFeatureExtractor.from_pretrained(folder)

    @torch.inference_mode()
    def __call__(self, samples: np.ndarray) -> tuple[dict[int, np.ndarray], np.ndarray]:
        """Frames of the layers that it shows (patches, ends of stages, final) by our numbers, and its pooled answer."""
        features = self.extract(samples, sampling_rate=RATE, return_tensors="pt").input_features
        answer = self.model(features, output_hidden_states=True, output_hidden_states_before_downsampling=True)
        states = {layer: columns(state[0]) for layer, state in zip(ENDS, answer.hidden_states, strict=True)}
        # [d, 2 rows, 32]: transformers has put the parts in the order of time itself.
        states[7] = answer.last_hidden_state[0].permute(2, 1, 0).flatten(1).numpy()
        own = {layer: -(-len(samples) // STEPS[layer]) for layer in states}
        return {layer: state[: own[layer]] for layer, state in states.items()}, answer.pooler_output[0].numpy()


def test_the_front_end_equals_the_feature_extractor(checkpoint: Path, mixed: Callable[..., Any]) -> None:
    """Also for speech that was recorded at 16 kHz, whose upper bands lie at the floor."""
    weights = {f"batch_norm.{name}": torch.zeros(64) for name in ("bias", "running_mean")}
    weights |= {f"batch_norm.{name}": torch.ones(64) for name in ("weight", "running_var")}
    batch = mixed(*LENGTHS, rate_hz=RATE)
    narrow = soxr.resample(mixed(32_000).clips[0], 16_000, RATE)
    row = np.pad(narrow, (0, batch.pcm.shape[1] - len(narrow)), constant_values=0.3)
    lengths = np.append(batch.lengths, len(narrow))
    mel = ClapMel(weights, front_end=ClapFrontEnd(mels=64, low_hz=50, high_hz=14_000, padding="repeatpad"), width=1001)
    ours = mel(torch.from_numpy(np.vstack([batch.pcm, row[None]])), torch.from_numpy(lengths)).numpy()
    extract = ClapFeatureExtractor.from_pretrained(checkpoint)
    for row, clip in zip(ours, [*batch.clips, narrow], strict=True):
        theirs = extract(clip, sampling_rate=RATE, return_tensors="np").input_features[0, 0]
        np.testing.assert_allclose(row, theirs, atol=2e-2)  # decibels
        assert np.sqrt(np.mean((row - theirs) ** 2)) < 5e-4


def test_every_hidden_state_equals_transformers_in_a_mixed_batch(checkpoint: Path, mixed: Callable[..., Any]) -> None:
    backbone = open_backbone(str(checkpoint))
    batch = mixed(*LENGTHS, rate_hz=RATE)
    result = TorchRuntime(backbone.graph(PADDED, 6)).run(batch.pcm[:, :480_000], batch.lengths, frames=True)
    transformers, reference = Transformers(checkpoint), backbone.reference(PADDED, 6)
    assert result.frames is not None
    for row, clip in enumerate(batch.clips):
        states, pooled = transformers(clip)
        ours = reference(clip)
        assert len(ours) == len(backbone.layers(6)) == result.statistics.shape[1]
        np.testing.assert_allclose(result.frames[row, : len(states[7])], states[7], atol=1e-4)
        for layer, state in enumerate(ours):
            if layer in states:
                np.testing.assert_allclose(state, states[layer], atol=1e-5)
            np.testing.assert_allclose(result.statistics[row, layer, 0], state.mean(axis=0), atol=1e-4)
            np.testing.assert_allclose(result.statistics[row, layer, 1], state.std(axis=0), atol=1e-4)
    # Of a clip of 10 s every frame is its own: the mean over time and both rows is transformers' pooled answer.
    np.testing.assert_allclose(result.statistics[3, 7, 0].reshape(2, -1).mean(axis=0), pooled, atol=1e-4)


@pytest.mark.parametrize("blocks", range(6))
def test_every_depth_equals_the_whole_model_up_to_there(
    checkpoints: Callable[[str], Path], mixed: Callable[..., Any], blocks: int
) -> None:
    backbone = open_backbone(str(checkpoints("clap-audio")))
    batch = mixed(30_000, 90_001, rate_hz=RATE)
    assert backbone.frame_step(blocks) == STEPS[blocks]
    result = TorchRuntime(backbone.graph(PADDED, blocks)).run(batch.pcm, batch.lengths, frames=True)
    whole, reference = backbone.reference(PADDED, 6), backbone.reference(PADDED, blocks)
    assert result.frames is not None
    for row, clip in enumerate(batch.clips):
        states = reference(clip)
        assert len(states) == len(backbone.layers(blocks)) == blocks + 1
        for ours, theirs in zip(states, whole(clip), strict=False):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_allclose(result.frames[row, : len(states[-1])], states[-1], atol=1e-4)
        means = np.stack([state.mean(axis=0) for state in states])
        np.testing.assert_allclose(result.statistics[row, :, 0], means, atol=1e-4)


def test_neither_neighbours_nor_padding_leak_into_a_clip(
    checkpoints: Callable[[str], Path], mixed: Callable[..., Any]
) -> None:
    runtime = TorchRuntime(open_backbone(str(checkpoints("clap"))).graph(PADDED, 3))
    batch = mixed(120_000, 23_456, rate_hz=RATE)
    short = batch.clips[1]
    alone = runtime.run(short[None], batch.lengths[1:]).statistics[0]
    for rest in (0.0, 0.9, -50.0):
        pcm = batch.pcm.copy()
        pcm[1, len(short) :] = rest
        np.testing.assert_allclose(runtime.run(pcm, batch.lengths).statistics[1], alone, atol=1e-4)
    changed = short.copy()
    changed[-1000:] *= -0.5
    assert np.abs(runtime.run(changed[None], batch.lengths[1:]).statistics[0] - alone).max() > 1e-3


@pytest.fixture(scope="module")
def bundle(checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(str(checkpoints("clap")), tmp_path_factory.mktemp("bundles") / "clap", blocks="all")


@pytest.mark.parametrize("engine", [OnnxRuntime, OpenVinoRuntime])
def test_every_engine_equals_transformers(
    engine: Callable[..., Any], bundle: Bundle, checkpoints: Callable[[str], Path], mixed: Callable[..., Any]
) -> None:
    assert load(bundle.folder) == bundle
    assert all(figure.passed for figure in bundle.parity)
    batch = mixed(*LENGTHS, rate_hz=RATE)
    transformers = Transformers(checkpoints("clap"))
    runtime = engine(bundle, threads=1)
    result = runtime.run(batch.pcm, batch.lengths, frames=True)
    assert result.frames is not None
    for row, clip in enumerate(batch.clips):
        states, _ = transformers(clip)
        own = bundle.frames(len(clip))
        assert own == len(states[7])
        np.testing.assert_allclose(result.frames[row, :own], states[7], atol=1e-4)
        for layer, state in states.items():
            np.testing.assert_allclose(result.statistics[row, layer, 0], state.mean(axis=0), atol=1e-4)
        alone = runtime.run(clip[None], batch.lengths[row : row + 1])
        np.testing.assert_allclose(alone.statistics[0], result.statistics[row], atol=1e-4)
    for width in (1, 500, 480_000):
        one = runtime.run(np.resize(batch.clips[0], (1, width)), np.array([width]))
        assert np.isfinite(one.statistics).all()
    runtime.close()


def test_what_a_bundle_says_of_itself(bundle: Bundle) -> None:
    assert (bundle.family, bundle.rate_hz, bundle.dims) == ("clap", RATE, 128)
    assert (str(bundle.context), bundle.max_duration_ms, bundle.frame_samples) == ("padded", 10_000, 15_000)
    assert bundle.layer_names == ("patches", *(f"block {k}" for k in range(1, 7)), "final")
    assert [bundle.frames(n) for n in (1, 15_000, 15_001, 480_000)] == [1, 1, 2, 32]


async def test_a_server_serves_it_and_refuses_or_cuts_what_is_longer(
    bundle: Bundle, checkpoints: Callable[[str], Path], mixed: Callable[..., Any], tmp_path: Path
) -> None:
    flags = {"bundle": bundle.folder, "grpc_socket": tmp_path / "e.sock", "metrics_port": 0, "streams": 1}
    server = EmbedderServer(Settings.load(flags), Metrics())
    address = await server.start()
    long = mixed(500_000, rate_hz=RATE).clips[0]
    expected, _ = Transformers(checkpoints("clap"))(long[:480_000])
    clips = [Clip(id="long", audio=pcm(long, RATE)), Clip(id="short", audio=pcm(long[:480_000], RATE))]
    async with Client(embedder=address) as client:
        assert (await client.describe()).max_duration_ms == 10_000
        refused = {answer.id: answer async for answer in client.embed(clips, pooling="frames")}
        cut = [answer async for answer in client.embed(clips[:1], pooling="frames", truncate_ms=30_000)]
    await server.stop()
    assert "over the limit of 10 s" in str(refused["long"])
    for answer in (refused["short"], cut[0]):
        assert isinstance(answer, Embedding)
        np.testing.assert_allclose(answer.array, expected[7], atol=1e-4)


@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
def test_what_follows_a_clip_is_what_the_extractor_says(
    checkpoints: Callable[[str], Path], tmp_path: Path, mixed: Callable[..., Any], padding: str
) -> None:
    folder = copied(checkpoints("clap-audio"), tmp_path, "preprocessor_config.json", padding=padding)
    batch = mixed(60_001, 14_400, rate_hz=RATE)
    result = TorchRuntime(open_backbone(str(folder)).graph(PADDED, 2)).run(batch.pcm, batch.lengths)
    transformers = Transformers(folder)
    for row, clip in enumerate(batch.clips):
        states, _ = transformers(clip)
        np.testing.assert_allclose(result.statistics[row, 2, 0], states[2].mean(axis=0), atol=1e-4)


def copied(checkpoint: Path, tmp_path: Path, file: str, **changes: object) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint, folder)
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **changes}))
    return folder


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("preprocessor_config.json", {"sampling_rate": 44_100}, "sampling_rate 44100: only 48000"),
        ("preprocessor_config.json", {"truncation": "fusion"}, "truncation 'fusion': only 'rand_trunc'"),
        ("preprocessor_config.json", {"padding": "loop"}, "padding 'loop': only repeatpad, repeat, pad"),
        ("preprocessor_config.json", {"max_length_s": 7}, "max_length_s 7"),
        ("preprocessor_config.json", {"feature_size": 128}, "feature_size 128: only 64"),
        ("config.json", {"enable_fusion": True}, "enable_fusion on.*larger_clap_music_and_speech"),
        ("config.json", {"hidden_act": "relu"}, "hidden_act 'relu'"),
        ("config.json", {"window_size": 7}, "window_size 7, whose windows do not tile"),
        ("config.json", {"spec_size": 192}, "spec_size 192"),
        ("config.json", {"depths": [2, 1, 2, 2]}, r"lacks the tensor layers\.2\.blocks\.1"),
        ("config.json", {"depths": [1, 1, 1, 2]}, r"a tensor layers\.0\.blocks\.1.*does not know"),
        ("config.json", {"patch_embeds_hidden_size": 16}, r"is \[8.*says \[16"),
    ],
)
def test_checkpoints_that_differ_are_refused(
    checkpoints: Callable[[str], Path], tmp_path: Path, file: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadInput, match=words):
        open_backbone(str(copied(checkpoints("clap-audio"), tmp_path, file, **changes))).graph(PADDED, 0)


def test_a_front_end_is_never_guessed(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoints("clap"), folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(BadInput, match=r"no preprocessor_config\.json"):
        open_backbone(str(folder))


def test_what_older_checkpoints_hold_beside_weights_is_passed_over(
    checkpoints: Callable[[str], Path], tmp_path: Path, mixed: Callable[..., Any]
) -> None:
    """transformers saved the index of relative positions as a tensor, and once did not."""
    folder = tmp_path / "copy"
    shutil.copytree(checkpoints("clap"), folder)
    tensors = load_file(folder / "model.safetensors")
    without = {name: t for name, t in tensors.items() if not name.endswith(("position_index", "batches_tracked"))}
    assert len(without) == len(tensors) - 7
    save_file(without, folder / "model.safetensors")
    batch = mixed(20_000, rate_hz=RATE)
    ours, theirs = (
        TorchRuntime(open_backbone(str(path)).graph(PADDED, 1)).run(batch.pcm, batch.lengths).statistics
        for path in (folder, checkpoints("clap"))
    )
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("context", ["exact", "fixed:5", "silence:32"])
def test_clap_has_one_policy(checkpoints: Callable[[str], Path], context: str) -> None:
    backbone = open_backbone(str(checkpoints("clap")))
    with pytest.raises(BadSetting, match=f"--context {context} does not fit clap: .*use padded"):
        backbone.check(Context.parse(context), 1)
    with pytest.raises(BadSetting, match=r"--blocks 7.*0 to 6"):
        backbone.check(PADDED, 7)


def test_shifted_windows_equal_transformers(checkpoints: Callable[[str], Path]) -> None:
    layer = Transformers(checkpoints("clap-audio")).model.audio_encoder.layers[0].blocks[1]
    mask = layer.get_attn_mask(64, 64, dtype=torch.float32, device="cpu")
    assert torch.equal(neighbours((64, 64), 8, 4), mask)
    attention = layer.attention.self
    table = attention.relative_position_bias_table.detach()
    bias = table[attention.relative_position_index.view(-1)].view(64, 64, -1).permute(2, 0, 1)
    assert torch.equal(relative_bias(table, 8), bias)


def test_company_of_one_width_changes_nothing_to_the_bit(
    bundle: Bundle, same_in_company: Callable[[Bundle], None]
) -> None:
    same_in_company(bundle)
