"""wav2vec 2.0, HuBERT and WavLM: random small models of their true architecture, saved as the hub has them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import HubertModel, Wav2Vec2FeatureExtractor, Wav2Vec2Model, WavLMModel
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from bench.small_models import WAV2VEC2, save
from services.embedder.backbones import open_backbone
from services.embedder.backbones.wav2vec2_graph import relative_bucket
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

EXACT = Context(kind="exact")
LENGTHS = (6_400, 48_000, 23_871, 16_001)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("kin")
    return lambda name: folder / name if (folder / name).exists() else save(folder, name)


@pytest.fixture(params=WAV2VEC2)
def checkpoint(request: pytest.FixtureRequest, checkpoints: Callable[[str], Path]) -> Path:
    return checkpoints(request.param)


def hidden_states(folder: Path, samples: np.ndarray) -> list[np.ndarray]:
    """transformers' own answer for a clip alone, by its public interface."""
    kinds: dict[str, Any] = {"wav2vec2": Wav2Vec2Model, "hubert": HubertModel, "wavlm": WavLMModel}
    model = kinds[folder.name.partition("-")[0]].from_pretrained(folder).train(mode=False)
    extract = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    values = extract(samples, sampling_rate=16_000, return_tensors="pt").input_values
    with torch.inference_mode():
        answer = model(values, output_hidden_states=True)
    final = [answer.last_hidden_state] if model.config.do_stable_layer_norm else []
    return [state[0].numpy() for state in (*answer.hidden_states, *final)]


def test_every_hidden_state_equals_transformers_in_a_mixed_batch(checkpoint: Path, mixed: Callable[..., Any]) -> None:
    backbone = open_backbone(str(checkpoint))
    batch = mixed(*LENGTHS)
    result = TorchRuntime(backbone.graph(EXACT, 2)).run(batch.pcm, batch.lengths, frames=True)
    assert result.frames is not None
    for row, clip in enumerate(batch.clips):
        states = hidden_states(checkpoint, clip)
        assert len(backbone.layers(2)) == len(states)
        np.testing.assert_allclose(result.frames[row, : len(states[-1])], states[-1], atol=1e-4)
        for layer, state in enumerate(states):
            np.testing.assert_allclose(result.statistics[row, layer, 0], state.mean(axis=0), atol=1e-4)
            np.testing.assert_allclose(result.statistics[row, layer, 1], state.std(axis=0), atol=1e-4)


def test_every_frame_of_every_depth_equals_the_reference(checkpoint: Path, mixed: Callable[..., Any]) -> None:
    backbone = open_backbone(str(checkpoint))
    batch = mixed(*LENGTHS)
    whole = backbone.reference(EXACT, 2)
    for blocks in (0, 1, 2):
        result = TorchRuntime(backbone.graph(EXACT, blocks)).run(batch.pcm, batch.lengths, frames=True)
        reference = backbone.reference(EXACT, blocks)
        assert result.frames is not None
        for row, clip in enumerate(batch.clips):
            states = np.stack(list(reference(clip)))
            assert len(states) == len(backbone.layers(blocks))
            np.testing.assert_allclose(states[: blocks + 1], np.stack(list(whole(clip)))[: blocks + 1], atol=1e-5)
            np.testing.assert_allclose(result.frames[row, : states.shape[1]], states[-1], atol=1e-4)
            np.testing.assert_allclose(result.statistics[row, :, 0], states.mean(axis=1), atol=1e-4)


def test_neither_neighbours_nor_padding_leak_into_a_clip(checkpoint: Path, mixed: Callable[..., Any]) -> None:
    runtime = TorchRuntime(open_backbone(str(checkpoint)).graph(EXACT, 2))
    batch = mixed(40_000, 7_777)
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
def bundles(checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """Whole models, exported once each."""
    made: dict[str, Bundle] = {}
    folder = tmp_path_factory.mktemp("bundles")

    def make(name: str) -> Bundle:
        if name not in made:
            made[name] = export(str(checkpoints(name)), folder / name, blocks="all")
        return made[name]

    return make


FAST = ("wav2vec2-base", "wavlm-large")


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in WAV2VEC2]
)
def test_every_engine_equals_transformers(
    name: str, bundles: Callable[[str], Bundle], checkpoints: Callable[[str], Path], mixed: Callable[..., Any]
) -> None:
    bundle = bundles(name)
    assert load(bundle.folder) == bundle
    assert [figure.name for figure in bundle.parity] == ["hidden", "precision"]
    batch = mixed(*LENGTHS)
    states = [hidden_states(checkpoints(name), clip) for clip in batch.clips]
    for engine in (OnnxRuntime, OpenVinoRuntime):
        runtime = engine(bundle, threads=1)
        result = runtime.run(batch.pcm, batch.lengths, frames=True)
        assert result.frames is not None
        for row, (clip, expected) in enumerate(zip(batch.clips, states, strict=True)):
            own = bundle.frames(len(clip))
            assert own == len(expected[-1])
            np.testing.assert_allclose(result.frames[row, :own], expected[-1], atol=1e-4)
            np.testing.assert_allclose(result.statistics[row, 0, 1], expected[0].std(axis=0), atol=1e-4)
            alone = runtime.run(clip[None], batch.lengths[row : row + 1])
            np.testing.assert_allclose(alone.statistics[0], result.statistics[row], atol=1e-4)
        for width in (400, 480_000):
            one = runtime.run(np.resize(batch.clips[0], (1, width)), np.array([width]))
            assert np.isfinite(one.statistics).all()
        runtime.close()


def test_what_a_bundle_says_of_itself(bundles: Callable[[str], Bundle]) -> None:
    bundle = bundles("wavlm-large")
    assert (bundle.family, bundle.rate_hz, bundle.frame_samples, bundle.window_samples) == ("wavlm", 16_000, 320, 400)
    assert bundle.layer_names == ("conv", "block 1", "block 2", "final")
    assert (str(bundle.context), bundle.min_duration_ms) == ("exact", 25)
    assert [bundle.frames(n) for n in (100, 400, 719, 720, 16_000)] == [1, 1, 1, 2, 49]
    assert json.loads((bundle.folder / "bundle.json").read_text())["schema"] == 2


async def test_a_server_serves_it(
    bundles: Callable[[str], Bundle], checkpoints: Callable[[str], Path], mixed: Callable[..., Any], tmp_path: Path
) -> None:
    bundle = bundles("wav2vec2-base")
    flags = {"bundle": bundle.folder, "grpc_socket": tmp_path / "e.sock", "metrics_port": 0, "streams": 1,
             "min_duration_ms": 1}  # fmt: skip
    server = EmbedderServer(Settings.load(flags), Metrics())
    address = await server.start()
    clip = mixed(24_000).clips[0]
    expected = hidden_states(checkpoints("wav2vec2-base"), clip)
    clips = [Clip(id="whole", audio=pcm(clip, 16_000)), Clip(id="short", audio=pcm(clip[:399], 16_000))]
    async with Client(embedder=address) as client:
        assert (await client.describe()).min_duration_ms == 25
        answers = {answer.id: answer async for answer in client.embed(clips, pooling="frames")}
    await server.stop()
    assert "under the minimum of 25 ms" in str(answers["short"])
    whole = answers["whole"]
    assert isinstance(whole, Embedding)
    np.testing.assert_allclose(whole.array, expected[-1], atol=1e-4)


@pytest.mark.parametrize("context", ["padded", "fixed:5", "silence:32"])
def test_policies_that_add_to_a_clip_are_refused(checkpoints: Callable[[str], Path], context: str) -> None:
    backbone = open_backbone(str(checkpoints("hubert-base")))
    with pytest.raises(BadSetting, match=f"--context {context} does not fit hubert-base.*use exact"):
        backbone.check(Context.parse(context), 1)
    with pytest.raises(BadSetting, match=r"--blocks 3.*0 to 2"):
        backbone.check(EXACT, 3)


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("preprocessor_config.json", {"sampling_rate": 8000}, "sampling_rate 8000: only wav2vec2's 16000"),
        ("config.json", {"hidden_act": "relu"}, "hidden_act 'relu'.*only 'gelu'"),
        ("config.json", {"add_adapter": True}, "add_adapter True"),
        ("config.json", {"num_hidden_layers": 3}, r"lacks the tensor encoder\.layers\.2"),
        ("config.json", {"num_hidden_layers": 1}, r"a tensor encoder\.layers\.1.*does not know"),
        ("config.json", {"intermediate_size": 40}, r"is \[48.*says \[40"),
    ],
)
def test_checkpoints_that_differ_are_refused(
    checkpoints: Callable[[str], Path], tmp_path: Path, file: str, changes: dict[str, Any], words: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoints("wav2vec2-robust"), folder)
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **changes}))
    with pytest.raises(BadInput, match=words):
        open_backbone(str(folder)).graph(EXACT, 0)


def test_a_pickle_is_refused_with_the_way_to_convert_it(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(checkpoints("hubert-base"), folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"old holds its weights as a pickle.*python -c .*save_file"):
        open_backbone(str(folder))


def test_the_weight_norm_is_read_by_its_old_names(
    checkpoints: Callable[[str], Path], tmp_path: Path, mixed: Callable[..., Any]
) -> None:
    folder = tmp_path / "hubert-base"
    shutil.copytree(checkpoints("hubert-base"), folder)
    tensors = load_file(folder / "model.safetensors")
    for number, old in enumerate(("weight_g", "weight_v")):
        new = f"parametrizations.weight.original{number}"
        tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
    assert any(name.endswith("conv.weight_g") for name in tensors)
    save_file(tensors, folder / "model.safetensors")
    batch = mixed(9_000)
    ours, theirs = (
        TorchRuntime(open_backbone(str(path)).graph(EXACT, 1)).run(batch.pcm, batch.lengths).statistics
        for path in (folder, checkpoints("hubert-base"))
    )
    np.testing.assert_array_equal(ours, theirs)


def test_relative_buckets_equal_transformers() -> None:
    distance = torch.arange(-1600, 1601)
    for buckets, max_distance in ((320, 800), (32, 80)):
        attention = WavLMAttention(embed_dim=6, num_heads=1, num_buckets=buckets, max_distance=max_distance)
        expected = attention._relative_positions_bucket(distance)
        assert torch.equal(relative_bucket(distance, buckets=buckets, max_distance=max_distance), expected)


@pytest.mark.parametrize("name", FAST)
def test_company_of_one_width_changes_nothing_to_the_bit(
    name: str, bundles: Callable[[str], Bundle], same_in_company: Callable[[Bundle], None]
) -> None:
    same_in_company(bundles(name))
