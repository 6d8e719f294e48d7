"""Small models of every family's true architecture with random weights, saved as the hub has them.

Every weight is far from its initial value, since a normalisation that is the identity would hide a missing one, and
attention is far from uniform, since a wrong mask would not show.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    ClapAudioConfig,
    ClapAudioModel,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    HubertConfig,
    HubertForCTC,
    HubertModel,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertForCTC,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForPreTraining,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperModel,
)

MERT_RATE_HZ = 24_000
MOVED = ("norm", "bias", "gru", "rel_attn", "distance")

KIN: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48, "vocab_size": 32,
    "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "initializer_range": 0.2,
}  # fmt: skip
LARGE: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
GATED: dict[str, Any] = {"num_buckets": 32, "max_bucket_distance": 80}
# A model's config and class, what differs from KIN, and whether waveforms are normalised.
WAV2VEC2: dict[str, tuple[Any, Any, dict[str, Any], bool]] = {
    "wav2vec2-base": (Wav2Vec2Config, Wav2Vec2ForPreTraining, {}, True),
    "wav2vec2-robust": (Wav2Vec2Config, Wav2Vec2Model, LARGE, True),
    "hubert-base": (HubertConfig, HubertModel, {"feat_proj_layer_norm": False}, True),
    "hubert-large": (HubertConfig, HubertForCTC, LARGE, True),
    "wavlm-base": (WavLMConfig, WavLMModel, GATED, False),
    "wavlm-large": (WavLMConfig, WavLMModel, {**LARGE, **GATED}, True),
}
MERT_OWN: dict[str, Any] = {
    "model_type": "mert_model", "architectures": ["MERTModel"], "sample_rate": MERT_RATE_HZ, "deepnorm": False,
    "auto_map": {"AutoConfig": "configuration_MERT.MERTConfig", "AutoModel": "modeling_MERT.MERTModel"},
    "attention_relax": -1.0, "feature_extractor_cqt": False, "feature_extractor_cqt_bins": 84,
}  # fmt: skip
MERT: dict[str, dict[str, Any]] = {
    "mert-base": {},
    "mert-stable": {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "attention_relax": 32.0},
    "mert-deepnorm": {"deepnorm": True, "feat_extract_norm": "layer", "attention_relax": 32.0},
}
CONFORMER: dict[str, Any] = {
    "vocab_size": 32, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48,
    "left_max_position_embeddings": 20, "right_max_position_embeddings": 4, "conv_depthwise_kernel_size": 9,
    "initializer_range": 0.2, "output_hidden_size": 24,
}  # fmt: skip
CLAP_AUDIO: dict[str, Any] = {
    "patch_embeds_hidden_size": 8, "depths": [2, 1, 1, 2], "num_attention_heads": [1, 2, 2, 4], "hidden_size": 64,
    "projection_dim": 16,
}  # fmt: skip
CLAP_TEXT: dict[str, Any] = {
    "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 16,
}  # fmt: skip
WHISPER: dict[str, Any] = {
    "d_model": 24, "encoder_layers": 3, "encoder_attention_heads": 3, "encoder_ffn_dim": 48,
    "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "vocab_size": 64, "init_std": 0.15,
    "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0,
}  # fmt: skip


def save_wav2vec2(folder: Path, name: str) -> None:
    """wav2vec 2.0, HuBERT or WavLM with whatever heads its class has."""
    config, kind, changes, normalise = WAV2VEC2[name]
    torch.manual_seed(len(name))
    model = kind(config(**{**KIN, **changes}))
    _move(model)
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=normalise).save_pretrained(folder)  # type: ignore[no-untyped-call]


def mert_body(name: str) -> HubertModel:
    """The HuBERT that a MERT is underneath, in transformers' own code."""
    torch.manual_seed(len(name))
    changes = {key: value for key, value in MERT[name].items() if key not in MERT_OWN}
    model = HubertModel(HubertConfig(**KIN, **changes))
    _move(model)
    model.train(mode=False)
    return model


def save_mert(folder: Path, name: str, **changes: object) -> None:
    """MERT: a config of its own, HuBERT's names, the weight norm's old ones, no prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    model = mert_body(name)
    config = {**model.config.to_dict(), **MERT_OWN, **MERT[name], **changes}
    (folder / "config.json").write_text(json.dumps(config))
    tensors: dict[str, Tensor] = model.state_dict()
    for number, old in enumerate(("weight_g", "weight_v")):
        new = f"parametrizations.weight.original{number}"
        tensors = {key.replace(new, old): tensor.contiguous() for key, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors")
    extract = Wav2Vec2FeatureExtractor(sampling_rate=MERT_RATE_HZ, do_normalize=True)  # type: ignore[no-untyped-call]
    extract.save_pretrained(folder)


def save_w2v_bert(folder: Path, _: str) -> None:
    """w2v-BERT 2.0 with a head for speech recognition."""
    torch.manual_seed(2)
    model = Wav2Vec2BertForCTC(Wav2Vec2BertConfig(**CONFORMER))
    _move(model)
    model.save_pretrained(folder)
    SeamlessM4TFeatureExtractor().save_pretrained(folder)  # type: ignore[no-untyped-call]


def save_clap(folder: Path, name: str) -> None:
    """CLAP whole, or its audio tower alone; running statistics in the range that decibels have."""
    torch.manual_seed(3)
    model: Any
    if name == "clap":
        model = ClapModel(ClapConfig(text_config=CLAP_TEXT, audio_config=CLAP_AUDIO, projection_dim=16))
        encoder = model.audio_model.audio_encoder
    else:
        model = ClapAudioModel(ClapAudioConfig(**CLAP_AUDIO))
        encoder = model.audio_encoder
    _move(encoder)
    with torch.no_grad():
        for key, tensor in encoder.named_parameters():
            if tensor.ndim == 2 and "norm" not in key:
                tensor.normal_(0.0, tensor.shape[1] ** -0.5)
        encoder.batch_norm.running_mean.uniform_(-40.0, -15.0)
        encoder.batch_norm.running_var.uniform_(150.0, 400.0)
    model.save_pretrained(folder)
    ClapFeatureExtractor(truncation="rand_trunc", frequency_min=50).save_pretrained(folder)


def save_whisper(folder: Path, name: str) -> None:
    """80 bands with the decoder and a language model's head, 128 without the head: their keys differ."""
    mels = int(name.removeprefix("whisper-"))
    torch.manual_seed(mels)
    kind: Any = WhisperForConditionalGeneration if mels == 80 else WhisperModel
    kind(WhisperConfig(num_mel_bins=mels, **WHISPER)).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=mels).save_pretrained(folder)  # type: ignore[no-untyped-call]


def save(folder: Path, name: str) -> Path:
    """The checkpoint `name` of `SMALL_MODELS` in a folder of that name below `folder`."""
    SMALL_MODELS[name](folder / name, name)
    return folder / name


def _move(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            if any(part in key for part in MOVED):
                tensor.add_(torch.randn_like(tensor) * 0.5)


SMALL_MODELS: dict[str, Callable[[Path, str], None]] = {
    "whisper-80": save_whisper,
    "whisper-128": save_whisper,
    **dict.fromkeys(WAV2VEC2, save_wav2vec2),
    **dict.fromkeys(MERT, save_mert),
    "w2v-bert": save_w2v_bert,
    "clap": save_clap,
    "clap-audio": save_clap,
}
