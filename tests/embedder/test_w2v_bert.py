"""w2v-BERT 2.0: random small models of its true architecture, saved as the hub has them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertModel

from bench.small_models import save
from services.embedder.backbones import open_backbone
from services.embedder.backbones.fbank import Fbank
from services.embedder.bundle import Bundle
from services.embedder.contexts import Context
from services.embedder.export import export
from services.embedder.runtimes.onnx import OnnxRuntime
from services.embedder.runtimes.openvino import OpenVinoRuntime
from services.embedder.runtimes.torch import TorchRuntime
from servox.errors import BadInput, BadSetting

EXACT = Context(kind="exact")
LENGTHS = (6_400, 48_000, 23_871, 16_001)  # both even and odd numbers of windows


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("checkpoints"), "w2v-bert")


def hidden_states(folder: Path, samples: np.ndarray) -> list[np.ndarray]:
    """transformers' own answer for a clip alone, by its public interface: the frames that its mask keeps."""
    model: Any = Wav2Vec2BertModel.from_pretrained(folder)
    model.train(mode=False)
    extract = SeamlessM4TFeatureExtractor.from_pretrained(folder)
    features = extract(samples, sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        answer = model(**features, output_hidden_states=True)
    own = int(features.attention_mask.sum())
    return [state[0, :own].numpy() for state in answer.hidden_states]


def test_the_filter_bank_equals_the_feature_extractor(mixed: Callable[..., Any]) -> None:
    batch = mixed(*LENGTHS)
    bands, windows = Fbank()(torch.from_numpy(batch.pcm), torch.from_numpy(batch.lengths))
    extract = SeamlessM4TFeatureExtractor()  # type: ignore[no-untyped-call]
    for row, clip in enumerate(batch.clips):
        features = extract(clip, sampling_rate=16_000, return_tensors="np", pad_to_multiple_of=None).input_features[0]
        own = int(windows[row])
        assert own == (len(clip) - 400) // 160 + 1
        ours = bands[row, : own // 2 * 2].reshape(-1, 160).numpy()
        error = np.abs(ours - features)  # float64 there, float32 here: only bands 60 dB below others are off
        assert np.sqrt(np.mean(error**2)) < 2e-5
        assert error.max() < 1e-3
        assert not bands[row, own:].any()


def test_every_hidden_state_equals_transformers_in_a_mixed_batch(checkpoint: Path, mixed: Callable[..., Any]) -> None:
    backbone = open_backbone(str(checkpoint))
    batch = mixed(*LENGTHS)
    assert backbone.layers(2) == ("features", "block 1", "block 2")
    for blocks in (0, 1, 2):
        result = TorchRuntime(backbone.graph(EXACT, blocks)).run(batch.pcm, batch.lengths, frames=True)
        reference = backbone.reference(EXACT, blocks)
        assert result.frames is not None
        for row, clip in enumerate(batch.clips):
            states = hidden_states(checkpoint, clip)[: blocks + 1]
            np.testing.assert_allclose(reference(clip), np.stack(states), atol=1e-5)
            np.testing.assert_allclose(result.frames[row, : len(states[-1])], states[-1], atol=1e-4)
            for layer, state in enumerate(states):
                np.testing.assert_allclose(result.statistics[row, layer, 0], state.mean(axis=0), atol=1e-4)
                np.testing.assert_allclose(result.statistics[row, layer, 1], state.std(axis=0), atol=1e-4)


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


def test_every_engine_equals_transformers_and_company_changes_nothing(
    checkpoint: Path, tmp_path: Path, mixed: Callable[..., Any], same_in_company: Callable[[Bundle], None]
) -> None:
    bundle = export(str(checkpoint), tmp_path / "bundle", blocks="all")
    same_in_company(bundle)
    assert (bundle.family, bundle.window_samples, bundle.min_duration_ms) == ("wav2vec2-bert", 560, 35)
    assert [figure.name for figure in bundle.parity] == ["hidden", "precision"]
    batch = mixed(*LENGTHS)
    states = [hidden_states(checkpoint, clip) for clip in batch.clips]
    for engine in (OnnxRuntime, OpenVinoRuntime):
        runtime = engine(bundle, threads=1)
        result = runtime.run(batch.pcm, batch.lengths, frames=True)
        assert result.frames is not None
        for row, expected in enumerate(states):
            own = bundle.frames(int(batch.lengths[row]))
            assert own == len(expected[-1])
            np.testing.assert_allclose(result.frames[row, :own], expected[-1], atol=1e-4)
            means = np.stack([state.mean(axis=0) for state in expected])
            np.testing.assert_allclose(result.statistics[row, :, 0], means, atol=1e-4)
        for width in (560, 480_000):
            one = runtime.run(np.resize(batch.clips[0], (1, width)), np.array([width]))
            assert np.isfinite(one.statistics).all()


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("preprocessor_config.json", {"sampling_rate": 8000}, "sampling_rate 8000"),
        ("preprocessor_config.json", {"num_mel_bins": 128}, "num_mel_bins 128 in its preprocessor"),
        ("config.json", {"position_embeddings_type": "rotary"}, "position_embeddings_type 'rotary'"),
        ("config.json", {"num_hidden_layers": 3}, r"lacks the tensor encoder\.layers\.2"),
    ],
)
def test_checkpoints_that_differ_are_refused(
    checkpoint: Path, tmp_path: Path, file: str, changes: dict[str, Any], words: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint, folder)
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **changes}))
    with pytest.raises(BadInput, match=words):
        open_backbone(str(folder)).graph(EXACT, 0)


def test_only_the_exact_clip_is_taken(checkpoint: Path) -> None:
    with pytest.raises(BadSetting, match="--context silence:8 does not fit w2v-bert"):
        open_backbone(str(checkpoint)).check(Context.parse("silence:8"), 1)
