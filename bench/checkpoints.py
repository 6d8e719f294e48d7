"""Checkpoints of a true architecture with random weights, for what does not depend on the weights' values."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

LARGE_V3: dict[str, Any] = {
    "model_type": "whisper",
    "d_model": 1280,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "num_mel_bins": 128,
    "max_source_positions": 1500,
    "activation_function": "gelu",
}


def random_whisper(config: Mapping[str, Any], *, device: str = "cpu") -> dict[str, Tensor]:
    """The encoder's tensors in float32 by their transformers name, without `model.encoder.`.

    Matrices are of standard deviation 0.02, as transformers initialises them; device `meta` gives shapes alone.
    """
    made: dict[str, Tensor] = {}
    for name, shape in _shapes(config):
        if name.endswith("norm.weight"):
            made[name] = torch.ones(shape, device=device)
        else:
            made[name] = torch.empty(shape, device=device).normal_(0.0, 0.02)
    return made


def saved_whisper(folder: Path, config: Mapping[str, Any], *, seed: int = 0) -> Path:
    """A checkpoint of random float16 weights in the hub's layout, the encoder alone."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    tensors = {f"model.encoder.{name}": tensor.half() for name, tensor in random_whisper(config).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {"feature_size": config["num_mel_bins"], "sampling_rate": 16_000}
    for name, content in (("config.json", dict(config)), ("preprocessor_config.json", settings)):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def _shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    dims, wide = config["d_model"], config["encoder_ffn_dim"]
    yield from _layer("conv1", (dims, config["num_mel_bins"], 3))
    yield from _layer("conv2", (dims, dims, 3))
    yield "embed_positions.weight", (config["max_source_positions"], dims)
    for k in range(config["encoder_layers"]):
        block = f"layers.{k}."
        yield f"{block}self_attn.k_proj.weight", (dims, dims)
        for name in ("q_proj", "v_proj", "out_proj"):
            yield from _layer(f"{block}self_attn.{name}", (dims, dims))
        yield from _layer(f"{block}fc1", (wide, dims))
        yield from _layer(f"{block}fc2", (dims, wide))
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            yield from _layer(f"{block}{name}", (dims,))
    yield from _layer("layer_norm", (dims,))


def _layer(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]
