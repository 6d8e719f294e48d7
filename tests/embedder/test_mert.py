"""MERT: random small models in its checkpoint's layout, against HuBERT of transformers with the same weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.small_models import KIN, MERT, MERT_RATE_HZ, mert_body, save_mert
from services.embedder.backbones import open_backbone
from services.embedder.bundle import Bundle
from services.embedder.contexts import Context
from services.embedder.export import export
from services.embedder.runtimes.onnx import OnnxRuntime
from services.embedder.runtimes.openvino import OpenVinoRuntime
from services.embedder.runtimes.torch import TorchRuntime
from servox.errors import BadInput, BadSetting

EXACT = Context(kind="exact")
LENGTHS = (9_600, 60_001, 33_333)


def save(folder: Path, name: str, **changes: object) -> Path:
    save_mert(folder / name, name, **changes)
    return folder / name


def hidden_states(name: str, samples: np.ndarray) -> list[np.ndarray]:
    """HuBERT's own answer for a clip alone; DeepNorm's residuals are scaled by hand, as MERT's code says."""
    model = mert_body(name)
    if MERT[name].get("deepnorm"):
        for layer in model.encoder.layers:
            layer.register_forward_hook(deep_layer)
    values = torch.from_numpy((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7))
    with torch.inference_mode():
        states: list[torch.Tensor] = []
        if name == "mert-deepnorm":
            model.encoder.layer_norm.register_forward_hook(lambda _, __, output: states.append(output))
            for layer in model.encoder.layers:
                layer.register_forward_hook(lambda _, __, output: states.append(output))
            model(values[None])
        else:
            answer = model(values[None], output_hidden_states=True)
            states += answer.hidden_states
            if name == "mert-stable":
                states.append(answer.last_hidden_state)
    return [state[0].numpy() for state in states]


def deep_layer(layer: Any, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    """What a DeepNorm block makes of its input, in place of what HuBERT's made."""
    alpha = (2.0 * KIN["num_hidden_layers"]) ** 0.25
    x = inputs[0]
    x = layer.layer_norm(alpha * x + layer.attention(x)[0])
    y: torch.Tensor = layer.final_layer_norm(alpha * x + layer.feed_forward(x))
    return y


@pytest.mark.parametrize("name", MERT)
def test_every_hidden_state_equals_hubert_in_a_mixed_batch(
    name: str, tmp_path: Path, mixed: Callable[..., Any]
) -> None:
    backbone = open_backbone(str(save(tmp_path, name)))
    assert (backbone.family, backbone.rate_hz, backbone.name) == ("mert", MERT_RATE_HZ, name)
    batch = mixed(*LENGTHS, rate_hz=MERT_RATE_HZ)
    result = TorchRuntime(backbone.graph(EXACT, 2)).run(batch.pcm, batch.lengths, frames=True)
    reference = backbone.reference(EXACT, 2)
    assert result.frames is not None
    for row, clip in enumerate(batch.clips):
        states = hidden_states(name, clip)
        assert len(states) == len(backbone.layers(2))
        np.testing.assert_allclose(reference(clip), np.stack(states), atol=1e-4)
        np.testing.assert_allclose(result.frames[row, : len(states[-1])], states[-1], atol=1e-4)
        for layer, state in enumerate(states):
            np.testing.assert_allclose(result.statistics[row, layer, 0], state.mean(axis=0), atol=1e-4)
            np.testing.assert_allclose(result.statistics[row, layer, 1], state.std(axis=0), atol=1e-4)


def test_deepnorm_is_not_forgotten(tmp_path: Path, mixed: Callable[..., Any]) -> None:
    clip = mixed(20_000, rate_hz=MERT_RATE_HZ).clips[0]
    (tmp_path / "plain").mkdir()
    plain = open_backbone(str(save(tmp_path / "plain", "mert-deepnorm", deepnorm=False)))
    deep = open_backbone(str(save(tmp_path, "mert-deepnorm")))
    ours, theirs = (b.reference(EXACT, 1)(clip) for b in (plain, deep))
    np.testing.assert_array_equal(ours[0], theirs[0])
    assert np.abs(ours[1] - theirs[1]).max() > 0.1


def test_every_engine_equals_hubert_and_company_changes_nothing(
    tmp_path: Path, mixed: Callable[..., Any], same_in_company: Callable[[Bundle], None]
) -> None:
    bundle = export(str(save(tmp_path, "mert-deepnorm")), tmp_path / "bundle", blocks="all")
    same_in_company(bundle)
    assert (bundle.family, bundle.rate_hz, bundle.frame_rate_hz) == ("mert", MERT_RATE_HZ, 75.0)
    assert all(figure.passed for figure in bundle.parity)
    batch = mixed(*LENGTHS, rate_hz=MERT_RATE_HZ)
    states = [hidden_states("mert-deepnorm", clip) for clip in batch.clips]
    for engine in (OnnxRuntime, OpenVinoRuntime):
        result = engine(bundle, threads=1).run(batch.pcm, batch.lengths, frames=True)
        assert result.frames is not None
        for row, expected in enumerate(states):
            assert bundle.frames(int(batch.lengths[row])) == len(expected[-1])
            np.testing.assert_allclose(result.frames[row, : len(expected[-1])], expected[-1], atol=1e-4)
            means = np.stack([state.mean(axis=0) for state in expected])
            np.testing.assert_allclose(result.statistics[row, :, 0], means, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"feature_extractor_cqt": True}, "feature_extractor_cqt True"),
        ({"sample_rate": 16_000}, "sample_rate 16000.*only 24000"),
        ({"do_stable_layer_norm": True}, "deepnorm together with do_stable_layer_norm"),
    ],
)
def test_what_the_graph_cannot_express_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        open_backbone(str(save(tmp_path, "mert-deepnorm", **changes)))


def test_only_the_exact_clip_is_taken(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="--context padded does not fit mert-base"):
        open_backbone(str(save(tmp_path, "mert-base"))).check(Context.parse("padded"), 1)
