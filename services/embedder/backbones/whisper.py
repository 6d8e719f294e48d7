"""Whisper's encoder, every size: sizes come from the checkpoint's config, weights from its `encoder.*` tensors."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from services.embedder.backbones.checkpoint import Checkpoint, checked
from services.embedder.backbones.frontend import HOP, RATE_HZ
from services.embedder.backbones.logmel import LogMelReference
from services.embedder.backbones.silence import BORDER, GOLDEN, WINDOW, Silence, hear, placement
from services.embedder.backbones.whisper_graph import FRAME, Shape, WhisperGraph
from services.embedder.bundle import FRONT_END
from services.embedder.contexts import Context
from servox.errors import BadInput, BadSetting

PREFIXES = ("model.encoder.", "encoder.")
EXPECTED = {"sampling_rate": RATE_HZ, "hop_length": HOP, "n_fft": 400, "chunk_length": 30}


class WhisperBackbone:
    """One Whisper checkpoint; the decoder, if there is one, is never read.

    Raises:
        BadInput: when the checkpoint is not a Whisper encoder that the graph can express.
    """

    family: ClassVar[str] = "whisper"
    rate_hz = RATE_HZ
    frame_samples = FRAME
    window_samples = 1
    max_duration_ms = WINDOW * 20
    pads = True
    front_end = FRONT_END
    default_context = Context(kind="silence", tokens=32)

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.name = checkpoint.name
        self.config = WhisperConfig(**checkpoint.config)
        self.dims = int(self.config.d_model)
        self.blocks = int(self.config.encoder_layers)
        self._refuse_what_differs()
        self._weights: Mapping[str, Tensor] | None = None
        self._silence: Silence | None = None

    @property
    def sha256(self) -> str:
        """Hash of the weight files."""
        return self.checkpoint.sha256

    def frame_step(self, blocks: int) -> int:
        """The same at every depth."""
        self.check(self.default_context, blocks)
        return self.frame_samples

    def check(self, context: Context, blocks: int) -> None:
        """Every policy, and any depth that the encoder has."""
        if not 0 <= blocks <= self.blocks:
            raise BadSetting(f"--blocks {blocks} is out of range for {self.name}: use 0 to {self.blocks}, or all")
        if context.kind == "fixed" and context.seconds > WINDOW / 50:
            raise BadSetting(f"--context {context} is longer than Whisper's 30 s: use fixed:30 or padded")

    def layers(self, blocks: int) -> tuple[str, ...]:
        """Convolutions, one layer a block, and the final LayerNorm when every block is kept."""
        final = ("final",) if blocks == self.blocks else ()
        return ("conv", *(f"block {k}" for k in range(1, blocks + 1)), *final)

    def graph(self, context: Context, blocks: int) -> WhisperGraph:
        """The module to trace."""
        self.check(context, blocks)
        shape = Shape(
            mels=int(self.config.num_mel_bins),
            dims=self.dims,
            heads=int(self.config.encoder_attention_heads),
            blocks=blocks,
            all_blocks=self.blocks,
        )
        return WhisperGraph(self.weights(), shape=shape, context=context, silence=self.silence(context)).eval()

    def reference(self, context: Context, blocks: int) -> "WhisperReference":
        """The encoder of transformers with the same weights."""
        self.check(context, blocks)
        silence = self.silence(context)
        return WhisperReference(self.config, self.weights(), context=context, blocks=blocks, silence=silence)

    def silence(self, context: Context) -> Silence | None:
        """What the whole padded encoder makes of silence, heard once; None where `context` has no use for it."""
        if context.kind != "cached":
            return None
        if self._silence is None:
            self._silence = hear(self.reference(Context(kind="padded"), self.blocks).window, RATE_HZ)
        return self._silence

    def weights(self) -> Mapping[str, Tensor]:
        """The encoder's tensors in float32, found once and checked."""
        if self._weights is None:
            with torch.device("meta"):
                expected = WhisperEncoder(self.config).state_dict()
            self._weights = checked(self.name, expected, self.checkpoint.tensors(PREFIXES))
        return self._weights

    def _refuse_what_differs(self) -> None:
        settings = self.checkpoint.preprocessor()
        for key, value in EXPECTED.items():
            if settings.get(key, value) != value:
                raise BadInput(f"{self.name} has {key} {settings[key]}: only Whisper's {value} can be exported")
        if self.config.max_source_positions != WINDOW or self.config.activation_function != "gelu":
            raise BadInput(f"{self.name} is not Whisper's own shape: it needs {WINDOW} positions and gelu")


class WhisperReference:
    """Hidden states of one clip by transformers' own layers, the policy spelt out without batches or masks.

    `WhisperEncoder.forward` refuses any input but 30 s, so its submodules are run one after the other; with 30 s of
    input that is bit for bit what `forward` does.

    Args:
        config: of the checkpoint.
        weights: the encoder's tensors.
        context: the policy.
        blocks: depth to stop at.
        silence: what the encoder makes of silence, for the policy that needs it.
    """

    def __init__(
        self,
        config: WhisperConfig,
        weights: Mapping[str, Tensor],
        *,
        context: Context,
        blocks: int,
        silence: Silence | None = None,
    ) -> None:
        config = WhisperConfig(**config.to_dict())
        self.final, config.encoder_layers = blocks == config.encoder_layers, blocks
        config._attn_implementation = "sdpa"  # noqa: SLF001 - the public argument exists only on from_pretrained
        with torch.device("meta"):  # weights are assigned, not copied: the largest encoder is held once
            self.encoder = WhisperEncoder(config).train(mode=False)
        self.encoder.load_state_dict({name: weights[name] for name in self.encoder.state_dict()}, assign=True)
        self.context, self.silence = context, silence
        self.mel = LogMelReference(int(config.num_mel_bins))

    @torch.inference_mode()
    def __call__(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Own frames of every layer [layers, T, d] of one clip's `samples` [n]."""
        layers = self._layers(samples)
        if self.final:
            layers.append(self.encoder.layer_norm(layers[-1]))
        own = -(-len(samples) // FRAME)
        return torch.cat([layer[:, :own] for layer in layers]).numpy()

    @torch.inference_mode()
    def window(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Every token of every layer but the final LayerNorm's [1 + blocks, N, d]."""
        return torch.cat(self._layers(samples)).numpy()

    def _layers(self, samples: NDArray[np.float32]) -> list[Tensor]:
        own = -(-len(samples) // FRAME)
        hidden, bias = self._tokens(torch.from_numpy(self.mel.whole(samples)).T.unsqueeze(0), own)
        layers, silence = [hidden], self.silence if bias is not None else None
        for number, block in enumerate(self.encoder.layers):
            if number and silence is not None:
                places, _ = placement(own, tokens=self.context.tokens, sinks=silence.sinks)
                still = torch.from_numpy(silence.states[number - 1][places]).unsqueeze(0)
                hidden = torch.cat([hidden[:, : own + BORDER], still], dim=1)
            hidden = block(hidden, bias)
            layers.append(hidden)
        return layers

    def _tokens(self, mel: Tensor, own: int) -> tuple[Tensor, Tensor | None]:
        match self.context.kind:
            case "exact":
                return self._at(self._convolve(mel[..., : 2 * own]), torch.arange(own)), None
            case "fixed":
                count = max(own, -(-int(self.context.seconds * 1000) // 20))
                return self._at(self._convolve(mel[..., : 2 * count]), torch.arange(count)), None
            case "silence" if WINDOW - own - BORDER > self.context.tokens:
                return self._compressed(self._convolve(mel), own)
            case "cached" if WINDOW - own - BORDER > 0:
                return self._compressed(self._convolve(mel), own)
            case _:
                return self._at(self._convolve(mel), torch.arange(WINDOW)), None

    def _compressed(self, frames: Tensor, own: int) -> tuple[Tensor, Tensor]:
        """Two border frames, then the policy's tokens: silence as the window holds it, its very end where asked for."""
        places, counts = self._placed(own)
        real = torch.arange(own + BORDER)
        at_end = (places == WINDOW - 1) & (self.context.kind == "cached")
        silent = torch.where(at_end, WINDOW - 1, own + BORDER)
        hidden = self._at(torch.cat([frames[:, real], frames[:, silent]], dim=1), torch.cat([real, places]))
        return hidden, torch.cat([torch.zeros(len(real)), counts.log()]).view(1, 1, 1, -1)

    def _placed(self, own: int) -> tuple[Tensor, Tensor]:
        tokens = self.context.tokens
        if self.silence is not None:
            found, counts = placement(own, tokens=tokens, sinks=self.silence.sinks)
            return torch.from_numpy(found), torch.from_numpy(counts).float()
        segment = (WINDOW - own - BORDER) / tokens
        places = [int(own + BORDER + segment * (j + (j + 1) * GOLDEN % 1)) for j in range(tokens)]
        return torch.tensor(places), torch.full((tokens,), segment)

    def _convolve(self, mel: Tensor) -> Tensor:
        gelu = torch.nn.functional.gelu
        return gelu(self.encoder.conv2(gelu(self.encoder.conv1(mel)))).transpose(1, 2)

    def _at(self, frames: Tensor, places: Tensor) -> Tensor:
        return torch.add(frames, self.encoder.embed_positions(places))
