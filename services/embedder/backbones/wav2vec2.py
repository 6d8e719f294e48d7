"""wav2vec 2.0, HuBERT and WavLM: one body in three variants, sizes and variant from the checkpoint's config."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    HubertConfig,
    HubertModel,
    PretrainedConfig,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

from services.embedder.backbones.checkpoint import Checkpoint, checked
from services.embedder.backbones.wav2vec2_graph import Shape, Wav2Vec2Graph
from services.embedder.contexts import Context
from servox.errors import BadInput, BadSetting

WEIGHT_NORM = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
Reference = Callable[[NDArray[np.float32]], NDArray[np.float32]]
PARTS = ("feature_extractor.", "feature_projection.", "encoder.")
PLAIN: dict[str, object] = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "conv_pos_batch_norm": False,
    "add_adapter": False,
    "adapter_attn_dim": None,
}
"""What the graph expresses; a checkpoint that differs is refused, never exported as something near."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What transformers calls a family."""

    config: Callable[..., PretrainedConfig]
    model: Callable[[Any], nn.Module]
    prefix: str


KINDS = {
    "wav2vec2": Kind(config=Wav2Vec2Config, model=Wav2Vec2Model, prefix="wav2vec2."),
    "hubert": Kind(config=HubertConfig, model=HubertModel, prefix="hubert."),
    "wavlm": Kind(config=WavLMConfig, model=WavLMModel, prefix="wavlm."),
}


class Wav2Vec2Backbone:
    """One checkpoint of the three families; heads, quantisers and decoders are never used.

    Raises:
        BadInput: when the checkpoint is not one that the graph can express, or its tensors do not fit its config.
    """

    max_duration_ms = 30_000
    pads = False
    front_end: tuple[str, ...] = ()
    default_context = Context(kind="exact")
    own_rate_hz: ClassVar[int] = 16_000
    plain: ClassVar[dict[str, object]] = PLAIN

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.name = checkpoint.name
        self.family = str(checkpoint.config["model_type"])
        self.config: Any = self.configured()
        self.rate_hz = self.own_rate_hz
        self.dims = int(self.config.hidden_size)
        self.blocks = int(self.config.num_hidden_layers)
        self.window_samples, self.frame_samples = self.receptive_field()
        self._refuse_what_differs()
        self._weights: dict[str, Tensor] | None = None

    @property
    def kind(self) -> Kind:
        """Whose code the checkpoint is measured against."""
        return KINDS[self.family]

    @property
    def sha256(self) -> str:
        """Hash of the weight files."""
        return self.checkpoint.sha256

    @property
    def normalise(self) -> bool:
        """Whether waveforms are normalised: what the feature extractor says, else its class's own default."""
        return bool(self.checkpoint.preprocessor().get("do_normalize", True))

    def configured(self) -> PretrainedConfig:
        """The config in transformers' terms."""
        return self.kind.config(**self.checkpoint.config)

    def receptive_field(self) -> tuple[int, int]:
        """Samples that one frame reads, and samples from one to the next."""
        window, step = 1, 1
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            window, step = window + (kernel - 1) * step, step * stride
        return window, step

    def frame_step(self, blocks: int) -> int:
        """The same at every depth."""
        self.check(self.default_context, blocks)
        return self.frame_samples

    def check(self, context: Context, blocks: int) -> None:
        """Only `exact`, and any depth that the encoder has."""
        if context.kind != "exact":
            raise BadSetting(
                f"--context {context} does not fit {self.name}: {self.family} was trained on clips of their own "
                "length, and whatever follows one would be heard as sound; use exact or leave it out"
            )
        if not 0 <= blocks <= self.blocks:
            raise BadSetting(f"--blocks {blocks} is out of range for {self.name}: use 0 to {self.blocks}, or all")

    def layers(self, blocks: int) -> tuple[str, ...]:
        """What the first block reads, one layer a block, and the final LayerNorm of a whole pre-norm model."""
        final = ("final",) if self.shape(blocks).final else ()
        return ("conv", *(f"block {k}" for k in range(1, blocks + 1)), *final)

    def shape(self, blocks: int) -> Shape:
        """Sizes and variant for a depth."""
        config = self.config
        return Shape(
            strides=tuple(config.conv_stride),
            heads=int(config.num_attention_heads),
            blocks=blocks,
            all_blocks=self.blocks,
            normalise=self.normalise,
            group_norm=config.feat_extract_norm == "group",
            pre_norm=bool(config.do_stable_layer_norm),
            epsilon=float(config.layer_norm_eps),
            buckets=int(getattr(config, "num_buckets", 0)),
            max_distance=int(getattr(config, "max_bucket_distance", 0)),
            max_frames=self.max_duration_ms * self.rate_hz // 1000 // self.frame_samples + 1,
        )

    def graph(self, context: Context, blocks: int) -> nn.Module:
        """The module to trace."""
        self.check(context, blocks)
        return Wav2Vec2Graph(self.weights(), shape=self.shape(blocks)).eval()

    def reference(self, context: Context, blocks: int) -> Reference:
        """The model of transformers with the same weights."""
        self.check(context, blocks)
        return Wav2Vec2Reference(self, self.weights(), blocks=blocks)

    def weights(self) -> dict[str, Tensor]:
        """The encoder's tensors in float32 by their present transformers names, read once and checked."""
        if self._weights is None:
            found = self.checkpoint.tensors((self.kind.prefix, ""))
            self._weights = checked(self.name, self.model(self.blocks, device="meta").state_dict(), _renamed(found))
        return self._weights

    def model(self, blocks: int, *, device: str = "cpu") -> nn.Module:
        """Transformers' model of a depth, its weights not loaded."""
        config = type(self.config)(**self.config.to_dict())
        config.num_hidden_layers = blocks
        config.mask_time_prob = config.mask_feature_prob = 0.0  # the mask's embedding is of no use here
        config._attn_implementation = "eager"  # noqa: SLF001 - the public argument exists only on from_pretrained
        with torch.device(device):
            return self.kind.model(config).train(mode=False)

    def _refuse_what_differs(self) -> None:
        rate_hz = self.checkpoint.preprocessor().get("sampling_rate", self.rate_hz)
        if rate_hz != self.rate_hz:
            raise BadInput(f"{self.name} has sampling_rate {rate_hz}: only {self.family}'s {self.rate_hz} is known")
        for key, value in self.plain.items():
            found = getattr(self.config, key, value)
            if found != value:
                raise BadInput(f"{self.name} has {key} {found!r}, which cannot be exported: only {value!r} can")


class Wav2Vec2Reference:
    """Hidden states of one clip by transformers' own model and feature extractor, one clip at a time.

    Args:
        backbone: of the checkpoint.
        weights: its tensors.
        blocks: depth to stop at.
    """

    def __init__(self, backbone: Wav2Vec2Backbone, weights: Mapping[str, Tensor], *, blocks: int) -> None:
        self.shape = backbone.shape(blocks)
        self.model: Any = backbone.model(blocks)
        self.model.load_state_dict({name: weights[name] for name in self.model.state_dict()})
        self.extract: Any = Wav2Vec2FeatureExtractor(  # type: ignore[no-untyped-call]
            sampling_rate=backbone.rate_hz, do_normalize=backbone.normalise
        )
        self.states: list[Tensor] = []
        self._listen()

    @torch.inference_mode()
    def __call__(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Frames of every layer [layers, T, d] of one clip's `samples` [n]."""
        self.states.clear()
        values = self.extract(samples, sampling_rate=self.extract.sampling_rate, return_tensors="pt").input_values
        last = self.model(values).last_hidden_state
        layers = [*self.states, last] if self.shape.final else self.states
        return torch.cat(layers).numpy()

    def _listen(self) -> None:
        """Hear the modules themselves: `hidden_states` says nothing of a model cut before its first block.

        What the first block reads is what a post-norm model's LayerNorm gives, or what a pre-norm one's would read if
        no block stood before it.
        """
        encoder = self.model.encoder
        if not self.shape.pre_norm:
            encoder.layer_norm.register_forward_hook(lambda _, __, output: self.states.append(output))
        else:
            first = encoder.layers[0] if self.shape.blocks else encoder.layer_norm
            first.register_forward_pre_hook(lambda _, inputs: self.states.append(inputs[0]))
        for layer in encoder.layers:
            layer.register_forward_hook(lambda _, __, output: self.states.append(_only(output)))


def _only(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _renamed(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors, the weight norm's by the names that torch gives it today."""
    renamed = {}
    for name, tensor in found.items():
        stem, _, last = name.rpartition(".")
        if name.startswith(PARTS):
            renamed[f"{stem}.{WEIGHT_NORM.get(last, last)}"] = tensor
    return renamed
