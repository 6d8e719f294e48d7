"""CLAP's audio tower, sizes from the checkpoint's config; the text tower and the projections are never read.

CLAP hears every clip in a window of 10 s that its feature extractor fills with repetitions of the clip. That is what it
was trained on and its image has one size, so it is the one policy, `padded`, and every clip costs the same. Statistics
and frames are those of the clip's first pass through the window, as of other families' own frames; for a clip of 10 s
their mean is transformers' `pooler_output`.

Of longer clips the extractor takes 10 s at random. Here they are refused; a request may ask for the first 10 s instead.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import ClapAudioConfig, ClapAudioModel, ClapFeatureExtractor

from services.embedder.backbones.checkpoint import Checkpoint, checked
from services.embedder.backbones.clap_graph import ClapGraph, SwinShape
from services.embedder.backbones.clap_mel import HOP, RATE_HZ, SAMPLES, SECONDS, TRANSFORM, ClapFrontEnd, Padding
from services.embedder.contexts import Context
from servox.errors import BadInput, BadSetting

PREFIXES = ("audio_model.audio_encoder.", "audio_encoder.")
DERIVED = ("relative_position_index", "num_batches_tracked")  # in checkpoints, and no weights
EXTRACTOR: dict[str, object] = {
    "sampling_rate": RATE_HZ,
    "hop_length": HOP,
    "fft_window_size": TRANSFORM,
    "max_length_s": SECONDS,
    "truncation": "rand_trunc",
}
PLAIN: dict[str, object] = {"hidden_act": "gelu", "patch_embed_input_channels": 1, "flatten_patch_embeds": True}
"""What the graph expresses; a checkpoint that differs is refused, never exported as something near."""


class ClapBackbone:
    """One checkpoint of CLAP, whole (`clap`) or its audio tower alone (`clap_audio_model`).

    Raises:
        BadInput: when the checkpoint is not one that the graph can express, or its tensors do not fit its config.
    """

    family: ClassVar[str] = "clap"
    rate_hz = RATE_HZ
    window_samples = 1
    max_duration_ms = SECONDS * 1000
    pads = True
    front_end = ("log_mel",)
    default_context = Context(kind="padded")

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.name = checkpoint.name
        self.config: Any = ClapAudioConfig(**_audio_config(checkpoint.config))
        self.blocks = sum(self.config.depths)
        self._refuse_fusion()
        self.front = self._front_end()
        self._refuse_what_differs()
        whole_shape = self.shape(self.blocks)
        self.dims = int(self.config.patch_embeds_hidden_size) * whole_shape.grid(0)[0] // whole_shape.parts
        self._weights: dict[str, Tensor] | None = None

    @property
    def sha256(self) -> str:
        """Hash of the weight files."""
        return self.checkpoint.sha256

    def frame_step(self, blocks: int) -> int:
        """Samples from one column of the grid to the next, at the stage of the last block."""
        shape = self.shape(blocks)
        return shape.step_samples(shape.stage(blocks))

    def check(self, context: Context, blocks: int) -> None:
        """Only `padded`, and any depth that the encoder has."""
        if context.kind != "padded":
            raise BadSetting(
                f"--context {context} does not fit {self.name}: CLAP hears every clip in {SECONDS} s, which it fills "
                "with the clip repeated; use padded or leave it out"
            )
        if not 0 <= blocks <= self.blocks:
            raise BadSetting(f"--blocks {blocks} is out of range for {self.name}: use 0 to {self.blocks}, or all")

    def layers(self, blocks: int) -> tuple[str, ...]:
        """The patches, one layer a block of all stages, and the final LayerNorm when every block is kept."""
        final = ("final",) if blocks == self.blocks else ()
        return ("patches", *(f"block {k}" for k in range(1, blocks + 1)), *final)

    def shape(self, blocks: int) -> SwinShape:
        """Sizes for a depth."""
        config = self.config
        size, stride = _pair(config.patch_size), _pair(config.patch_stride)
        return SwinShape(
            side=int(config.spec_size),
            parts=int(config.spec_size) // int(config.num_mel_bins),
            stride=stride,
            padding=((size[0] - stride[0]) // 2, (size[1] - stride[1]) // 2),
            window=int(config.window_size),
            depths=tuple(config.depths),
            heads=tuple(config.num_attention_heads),
            blocks=blocks,
            epsilon=float(config.layer_norm_eps),
        )

    def graph(self, context: Context, blocks: int) -> nn.Module:
        """The module to trace."""
        self.check(context, blocks)
        return ClapGraph(self.weights(), shape=self.shape(blocks), front_end=self.front).eval()

    def reference(self, context: Context, blocks: int) -> "ClapReference":
        """The audio tower of transformers with the same weights."""
        self.check(context, blocks)
        return ClapReference(self, blocks)

    def weights(self) -> dict[str, Tensor]:
        """The audio encoder's tensors in float32, read once and checked."""
        if self._weights is None:
            expected = _weights_only(self.model(device="meta").audio_encoder.state_dict())
            self._weights = checked(self.name, expected, _weights_only(self.checkpoint.tensors(PREFIXES)))
        return self._weights

    def model(self, *, device: str = "cpu") -> Any:  # noqa: ANN401 - transformers ships no usable types
        """Transformers' audio tower, its weights not loaded."""
        with torch.device(device):
            return ClapAudioModel(self.config).train(mode=False)

    def _front_end(self) -> ClapFrontEnd:
        settings = self.checkpoint.preprocessor()
        if not settings:
            raise BadInput(
                f"{self.name} has no preprocessor_config.json, and CLAP's front end cannot be guessed: the class's own "
                "defaults belong to models with fusion; fetch the whole checkpoint"
            )
        for key, value in {**EXTRACTOR, "feature_size": int(self.config.num_mel_bins)}.items():
            if settings.get(key, value) != value:
                raise BadInput(f"{self.name} has {key} {settings[key]!r}: only {value!r} can be exported")
        padding = settings.get("padding", "repeatpad")
        if padding not in get_args(Padding):
            raise BadInput(f"{self.name} has padding {padding!r}: only {', '.join(get_args(Padding))} can be exported")
        return ClapFrontEnd(
            mels=int(self.config.num_mel_bins),
            low_hz=float(settings.get("frequency_min", 0.0)),
            high_hz=float(settings.get("frequency_max", 14_000.0)),
            padding=padding,
        )

    def _refuse_fusion(self) -> None:
        if self.config.enable_fusion:
            raise BadInput(
                f"{self.name} has enable_fusion on: it hears three crops of a clip chosen at random, so a clip has no "
                "one embedding; use a checkpoint without fusion, such as laion/larger_clap_music_and_speech"
            )

    def _refuse_what_differs(self) -> None:
        for key, value in PLAIN.items():
            found = getattr(self.config, key)
            if found != value:
                raise BadInput(f"{self.name} has {key} {found!r}, which cannot be exported: only {value!r} can")
        shape, config = self.shape(self.blocks), self.config
        last = shape.grid(len(shape.depths) - 1)
        square = config.num_mel_bins * shape.parts == shape.side and shape.side * shape.parts >= SAMPLES // HOP + 1
        whole = all(side << (len(shape.depths) - 1) == shape.grid(0)[n] for n, side in enumerate(last))
        if not square or not whole or any(side % shape.window for side in last):
            raise BadInput(
                f"{self.name} has spec_size {config.spec_size}, num_mel_bins {config.num_mel_bins}, patch_stride "
                f"{config.patch_stride} and window_size {config.window_size}, whose windows do not tile every stage's "
                "grid: only such can be exported, as CLAP's own 256, 64, 4 and 8"
            )


class ClapReference:
    """Hidden states of one clip by transformers' own model and feature extractor, one clip at a time."""

    def __init__(self, backbone: ClapBackbone, blocks: int) -> None:
        self.shape = backbone.shape(blocks)
        self.encoder: Any = backbone.model().audio_encoder
        self.encoder.load_state_dict(backbone.weights(), strict=False)
        front = backbone.front
        self.extract: Any = ClapFeatureExtractor(
            feature_size=front.mels, frequency_min=front.low_hz, frequency_max=front.high_hz,
            truncation="rand_trunc", padding=front.padding,
        )  # fmt: skip
        self.states: list[Tensor] = []
        self._listen()

    @torch.inference_mode()
    def __call__(self, samples: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Own frames [T, d] of every layer of one clip's `samples` [n]; T is the layer's stage's own."""
        self.states.clear()
        features = self.extract(samples, sampling_rate=RATE_HZ, return_tensors="pt")
        self.encoder(features.input_features)
        states = self.states if self.shape.final else self.states[: self.shape.blocks + 1]
        return [self._columns(state[0], layer)[: self._own(len(samples), layer)] for layer, state in enumerate(states)]

    def _columns(self, tokens: Tensor, layer: int) -> NDArray[np.float32]:
        rows, across = self.shape.grid(self._stage(layer))
        parts = tokens.reshape(rows, across, -1).chunk(self.shape.parts, dim=0)
        return np.concatenate([part.permute(1, 0, 2).flatten(1).numpy() for part in parts])

    def _own(self, samples: int, layer: int) -> int:
        return -(-samples // self.shape.step_samples(self._stage(layer)))

    def _stage(self, layer: int) -> int:
        return self.shape.stage(min(layer, sum(self.shape.depths)))

    def _listen(self) -> None:
        """Hear the modules themselves: the public hidden states are those of whole stages only."""
        blocks = [block for stage in self.encoder.layers for block in stage.blocks]
        self.encoder.patch_embed.register_forward_hook(lambda _, __, output: self.states.append(output))
        for block in blocks:
            block.register_forward_hook(lambda _, __, output: self.states.append(output[0]))
        self.encoder.norm.register_forward_hook(lambda _, __, output: self.states.append(output))


def _audio_config(config: dict[str, Any]) -> dict[str, Any]:
    """The audio tower's part of a whole model's config, or all of an audio tower's own."""
    return (config.get("audio_config") or {}) if config["model_type"] == "clap" else config


def _weights_only(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(DERIVED)}


def _pair(value: int | list[int] | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
