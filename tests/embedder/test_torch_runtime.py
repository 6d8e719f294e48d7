"""Fused and lowered attention against the module as it stands, on a random Whisper of the true architecture."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperModel

from services.embedder.backbones import open_backbone
from services.embedder.backbones.logmel import LogMelBackbone
from services.embedder.backbones.whisper_graph import WhisperGraph
from services.embedder.contexts import Context
from services.embedder.runtimes import Result
from services.embedder.runtimes.torch import Attention, TorchRuntime, attend
from servox.errors import BadSetting, Unavailable

FUSED: tuple[Attention, ...] = ("masked", "folded")
Made = Callable[[], torch.nn.Module]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Makes the graph anew: a runtime changes the one that it is given."""
    folder = tmp_path_factory.mktemp("checkpoints") / "whisper-random"
    torch.manual_seed(1)
    config = WhisperConfig(
        d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=128, init_std=0.08,
        decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, vocab_size=64,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip
    WhisperModel(config).save_pretrained(folder)
    backbone = open_backbone(str(folder))
    return lambda: backbone.graph(Context.parse("silence:32"), 2)


@pytest.fixture(scope="module")
def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(0, 0.1, (3, 24_000)).astype(np.float32), np.array([24_000, 9_000, 400], np.int64)


@pytest.fixture(scope="module")
def expected(made: Made, batch: tuple[np.ndarray, np.ndarray]) -> Result:
    return TorchRuntime(made()).run(*batch, frames=True)


@pytest.mark.parametrize("attention", FUSED)
def test_fused_attention_is_the_same_attention(
    made: Made, batch: tuple[np.ndarray, np.ndarray], expected: Result, attention: Attention
) -> None:
    result = TorchRuntime(made(), attention=attention).run(*batch, frames=True)
    np.testing.assert_allclose(result.statistics, expected.statistics, atol=1e-4)
    assert result.frames is not None
    assert expected.frames is not None
    np.testing.assert_allclose(result.frames[0], expected.frames[0], atol=1e-4)


@pytest.mark.parametrize("attention", FUSED)
@pytest.mark.parametrize(("precision", "bound"), [("bf16", 0.05), ("fp16", 0.01)])
def test_lowered_graphs_stay_close_and_differ(
    made: Made,
    batch: tuple[np.ndarray, np.ndarray],
    expected: Result,
    attention: Attention,
    precision: str,
    bound: float,
) -> None:
    graph = made()
    result = TorchRuntime(graph, attention=attention, precision=precision).run(*batch)
    assert result.statistics.dtype == np.float32
    error = np.abs(result.statistics - expected.statistics).max() / expected.statistics.std()
    assert 1e-6 < error < bound
    kinds = {name: parameter.dtype for name, parameter in graph.named_parameters()}
    assert set(kinds.values()) == {torch.bfloat16 if precision == "bf16" else torch.float16}
    assert isinstance(graph, WhisperGraph)
    assert {buffer.dtype for buffer in graph.buffers()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_folded_bias_keeps_twice_the_bits_of_its_numbers(dtype: torch.dtype) -> None:
    """One column of bf16 would round log(46.375) by 0.01, a hundredth of the mass that a silence token carries."""
    torch.manual_seed(0)
    query, key = (torch.zeros(1, 2, 5, 16, dtype=dtype) for _ in range(2))
    value = torch.eye(5, 16, dtype=dtype).expand(1, 2, 5, 16)
    bias = torch.tensor([0.0, 3.8367, 5.123, -1e9, 0.017]).view(1, 1, 1, 5)
    weights = attend(query, key, value, bias, folded=True)[0, 0, 0, :5].float()
    torch.testing.assert_close(weights, bias.flatten().softmax(0), atol=2e-3, rtol=4e-3)
    assert weights[3] == 0


def test_what_does_not_go_together_is_refused(made: Made) -> None:
    with pytest.raises(BadSetting, match="precision 'int8' is unknown to torch"):
        TorchRuntime(made(), precision="int8", attention="masked")
    with pytest.raises(BadSetting, match="bf16 needs attention masked or folded"):
        TorchRuntime(made(), precision="bf16")
    with pytest.raises(BadSetting, match="cpu has no CUDA graphs"):
        TorchRuntime(made(), captures=True)
    with pytest.raises(BadSetting, match="no attention that torch can fuse"):
        TorchRuntime(LogMelBackbone().graph(Context.parse("exact"), 0), attention="masked")


def test_an_absent_device_is_refused(made: Made) -> None:
    if torch.cuda.is_available():
        pytest.skip("torch has CUDA here")
    with pytest.raises(Unavailable, match="torch has no CUDA device here"):
        TorchRuntime(made(), device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("attention", FUSED)
def test_captured_runs_replay_what_eager_runs_give(
    made: Made, batch: tuple[np.ndarray, np.ndarray], expected: Result, attention: Attention
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA here")
    runtime = TorchRuntime(made(), device="cuda", precision="bf16", attention=attention, captures=True)
    pcm, lengths = batch
    for _ in range(3):
        runtime.run(-pcm, lengths)
        statistics = runtime.run(pcm, lengths).statistics
        assert np.abs(statistics - expected.statistics).max() / expected.statistics.std() < 0.05
