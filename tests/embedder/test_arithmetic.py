"""The closed forms against torch's own counter, on the graphs that are exported."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    HubertConfig,
    PretrainedConfig,
    PreTrainedModel,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from services.embedder.arithmetic import WHISPER_BORDER, WHISPER_WINDOW, block_flops, context_frames, encoder_of
from services.embedder.backbones import silence, whisper_graph
from services.embedder.backbones.silence import Silence
from services.embedder.backbones.w2v_bert_graph import ConformerShape, W2vBertGraph
from services.embedder.backbones.wav2vec2_graph import Shape, Wav2Vec2Graph
from services.embedder.backbones.whisper_graph import WhisperGraph
from services.embedder.contexts import Context
from servox.errors import BadSetting

WHISPER = WhisperConfig(
    num_mel_bins=80, d_model=24, encoder_layers=3, encoder_attention_heads=3, encoder_ffn_dim=40, decoder_layers=1,
    decoder_attention_heads=2, decoder_ffn_dim=32, vocab_size=64,
    pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0,
)  # fmt: skip
WAVEFORM: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48, "vocab_size": 32,
    "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
EXACT = Context(kind="exact")


def counted(module: nn.Module, *inputs: Tensor, without: str = "") -> int:
    """Operations of one run, less those of the part named `without`."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        module(*inputs)
    counts = counter.get_flop_counts()
    left_out = counts.get(f"{type(module).__name__}.{without}", {})
    return int(sum(counts["Global"].values()) - sum(left_out.values()))


def whisper_weights() -> dict[str, Tensor]:
    return dict(WhisperEncoder(WHISPER).state_dict())


@pytest.mark.parametrize("policy", ["padded", "exact", "fixed:1.5", "silence:8", "cached:16"])
@pytest.mark.parametrize("blocks", [0, 1, 2, 3])
def test_whisper_costs_what_its_graph_does(policy: str, blocks: int) -> None:
    context = Context.parse(policy)
    shape = whisper_graph.Shape(mels=80, dims=24, heads=3, blocks=blocks, all_blocks=3)
    silence = Silence(states=np.zeros((3, 1500, 24), np.float32), sinks=()) if context.kind == "cached" else None
    graph = WhisperGraph(whisper_weights(), shape=shape, context=context, silence=silence).eval()
    frames = 61
    pcm = torch.randn(1, frames * 320)
    actual = counted(graph, pcm, torch.tensor([pcm.shape[1]]), without="mel")
    assert actual == encoder_of("whisper", WHISPER.to_dict()).flops(frames, context=context, blocks=blocks)


def test_whispers_yardstick_is_transformers_own_forward() -> None:
    encoder = WhisperEncoder(WHISPER)
    encoder.config._attn_implementation = "eager"  # the counter does not know the fused one of CPUs
    actual = counted(encoder.train(mode=False), torch.randn(1, 80, 3000))
    assert actual == encoder_of("whisper", WHISPER.to_dict()).yardstick(100)


@pytest.mark.parametrize(
    ("family", "config", "model"),
    [
        ("wav2vec2", Wav2Vec2Config(**WAVEFORM), Wav2Vec2Model),
        ("wavlm", WavLMConfig(**WAVEFORM, num_buckets=32, max_bucket_distance=80), WavLMModel),
    ],
)
@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_waveform_encoders_cost_what_their_graph_does(
    family: str, config: PretrainedConfig, model: type[PreTrainedModel], blocks: int
) -> None:
    shape = Shape(
        strides=tuple(config.conv_stride), heads=3, blocks=blocks, all_blocks=2, normalise=True, group_norm=True,
        pre_norm=False, epsilon=1e-5, buckets=getattr(config, "num_buckets", 0), max_distance=80, max_frames=2000,
    )  # fmt: skip
    graph = Wav2Vec2Graph(dict(model(config).state_dict()), shape=shape).eval()
    frames = 53
    pcm = torch.randn(1, 400 + 320 * (frames - 1))
    actual = counted(graph, pcm, torch.tensor([pcm.shape[1]]))
    assert actual == encoder_of(family, config.to_dict()).flops(frames, context=EXACT, blocks=blocks)


@pytest.mark.parametrize("blocks", [0, 2])
def test_w2v_bert_costs_what_its_graph_does(blocks: int) -> None:
    config = Wav2Vec2BertConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48,
        feature_projection_input_dim=160, conv_depthwise_kernel_size=5, left_max_position_embeddings=8,
        right_max_position_embeddings=3,
    )  # fmt: skip
    shape = ConformerShape(heads=3, blocks=blocks, left=8, right=3, epsilon=1e-5)
    graph = W2vBertGraph(dict(Wav2Vec2BertModel(config).state_dict()), shape=shape).eval()
    frames = 40
    pcm = torch.randn(1, 560 + 320 * (frames - 1))
    actual = counted(graph, pcm, torch.tensor([pcm.shape[1]]), without="mel")
    assert actual == encoder_of("wav2vec2-bert", config.to_dict()).flops(frames, context=EXACT, blocks=blocks)


def test_hubert_and_mert_are_counted_as_wav2vec() -> None:
    config = HubertConfig(**WAVEFORM).to_dict()
    assert encoder_of("hubert", config) == encoder_of("mert", config) == encoder_of("wav2vec2", config)


def test_a_family_without_a_closed_form_and_a_policy_that_a_family_lacks_are_refused() -> None:
    with pytest.raises(BadSetting, match="'logmel' encoder has no closed form"):
        encoder_of("logmel", {})
    with pytest.raises(BadSetting, match="silence:8"):
        encoder_of("wav2vec2", Wav2Vec2Config(**WAVEFORM).to_dict()).flops(
            9, context=Context.parse("silence:8"), blocks=1
        )


def test_the_constants_are_the_graphs() -> None:
    assert (WHISPER_WINDOW, WHISPER_BORDER) == (silence.WINDOW, silence.BORDER)


@given(own=st.integers(1, 1400), tokens=st.integers(1, 64), blocks=st.integers(0, 3))
def test_more_context_and_more_depth_never_cost_less(own: int, tokens: int, blocks: int) -> None:
    encoder = encoder_of("whisper", WHISPER.to_dict())
    silence = Context(kind="silence", tokens=tokens)
    costs = [encoder.flops(own, context=each, blocks=blocks) for each in (EXACT, silence)]
    assert costs[0] < costs[1]
    assert encoder.flops(own, context=silence, blocks=blocks + 1) > costs[1]


@given(rows=st.integers(1, 500), more=st.integers(0, 500))
def test_a_block_of_fewer_rows_is_cheaper_than_a_whole_one(rows: int, more: int) -> None:
    assert block_flops(8, 32, rows=rows, tokens=rows + more) <= block_flops(8, 32, rows=rows + more, tokens=rows + more)


@given(own=st.integers(1, 1500), seconds=st.floats(0.1, 30))
def test_a_fixed_context_never_cuts_a_clip(own: int, seconds: float) -> None:
    computed, tokens = context_frames(Context(kind="fixed", seconds=seconds), own)
    assert computed == tokens >= own
