"""w2v-BERT 2.0: a Conformer on Kaldi's filter bank, sizes from the checkpoint's config."""

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertConfig, Wav2Vec2BertModel

from services.embedder.backbones.fbank import MELS
from services.embedder.backbones.w2v_bert_graph import FRAME, REACH, STRIDE, ConformerShape, W2vBertGraph
from services.embedder.backbones.wav2vec2 import Kind, Reference, Wav2Vec2Backbone
from services.embedder.contexts import Context
from servox.errors import BadInput

KIND = Kind(config=Wav2Vec2BertConfig, model=Wav2Vec2BertModel, prefix="wav2vec2_bert.")
EXTRACTOR = {"num_mel_bins": MELS, "feature_size": MELS, "stride": STRIDE}


class W2vBertBackbone(Wav2Vec2Backbone):
    """One checkpoint of w2v-BERT 2.0, its adapter and heads never used.

    Raises:
        BadInput: when the checkpoint is not one that the graph can express, or its tensors do not fit its config.
    """

    front_end = ("log_mel",)
    kind = KIND
    plain: ClassVar[dict[str, object]] = {
        "hidden_act": "swish",
        "position_embeddings_type": "relative_key",
        "feature_projection_input_dim": MELS * STRIDE,
        "add_adapter": False,
        "use_intermediate_ffn_before_adapter": False,
    }

    def receptive_field(self) -> tuple[int, int]:
        """Samples that a frame reads, and from one to the next."""
        return REACH, FRAME

    def layers(self, blocks: int) -> tuple[str, ...]:
        """The projected filter bank and one layer a block."""
        return ("features", *(f"block {k}" for k in range(1, blocks + 1)))

    def graph(self, context: Context, blocks: int) -> nn.Module:
        """The module to trace."""
        self.check(context, blocks)
        shape = ConformerShape(
            heads=int(self.config.num_attention_heads),
            blocks=blocks,
            left=int(self.config.left_max_position_embeddings),
            right=int(self.config.right_max_position_embeddings),
            epsilon=float(self.config.layer_norm_eps),
        )
        return W2vBertGraph(self.weights(), shape=shape).eval()

    def reference(self, context: Context, blocks: int) -> Reference:
        """The model of transformers with the same weights."""
        self.check(context, blocks)
        return W2vBertReference(self, blocks)

    def _refuse_what_differs(self) -> None:
        super()._refuse_what_differs()
        for key, value in EXTRACTOR.items():
            found = self.checkpoint.preprocessor().get(key, value)
            if found != value:
                raise BadInput(f"{self.name} has {key} {found!r} in its preprocessor: only {value!r} can be exported")


class W2vBertReference:
    """Hidden states of one clip by transformers' own model and feature extractor, one clip at a time."""

    def __init__(self, backbone: W2vBertBackbone, blocks: int) -> None:
        weights = backbone.weights()
        self.model: Any = backbone.model(blocks)
        self.model.load_state_dict({name: weights[name] for name in self.model.state_dict()})
        self.extract: Any = SeamlessM4TFeatureExtractor()  # type: ignore[no-untyped-call]
        self.states: list[Tensor] = []
        self._listen()

    @torch.inference_mode()
    def __call__(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Own frames of every layer [layers, T, d] of one clip's `samples` [n]."""
        self.states.clear()
        features = self.extract(samples, sampling_rate=self.extract.sampling_rate, return_tensors="pt")
        self.model(**features)
        return torch.cat(self.states)[:, : int(features.attention_mask.sum())].numpy()

    def _listen(self) -> None:
        self.model.feature_projection.register_forward_hook(lambda _, __, output: self.states.append(output[0]))
        for layer in self.model.encoder.layers:
            layer.register_forward_hook(lambda _, __, output: self.states.append(output))
