"""The engines: each takes one waveform at 16 kHz to the mean [d] of its encoder's frames over the clip.

Every call includes the engine's own front end. A peer is set up as its own guide has it; where it must be given less
than 30 s ("trimmed"), that is what its interface allows, and no weight is changed.
"""

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FRAME = 320
MEL_FRAMES = 3_000

Samples = NDArray[np.float32]
Embed = Callable[[Samples], Samples]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What an engine is opened with.

    Args:
        path: of its model.
        padded: whether to the whole window, else the clip only.
        precision: fp32, bf16 or int8.
        mels: bands of the front end.
        threads: for one clip.
    """

    path: Path
    padded: bool
    precision: str
    mels: int
    threads: int


def open_engine(package: str, setup: Setup) -> Embed:
    """The engine, loaded: one clip at a time on `threads` threads."""
    openers: dict[str, Callable[[Setup], Embed]] = {
        "transformers": _transformers,
        "torch": _torch_trimmed,
        "ctranslate2": _ctranslate2,
        "onnxruntime": _onnxruntime,
        "servox": _servox,
    }
    return openers[package](setup)


def own_frames(samples: int) -> int:
    """Frames of a clip of `samples`."""
    return math.ceil(samples / FRAME)


def _transformers(setup: Setup) -> Embed:
    """`WhisperModel` as its documentation has it: the feature extractor pads to 30 s, attention is torch's SDPA."""
    import torch
    from transformers import WhisperFeatureExtractor, WhisperModel

    torch.set_num_threads(setup.threads)
    extractor = WhisperFeatureExtractor.from_pretrained(setup.path)
    encoder = WhisperModel.from_pretrained(setup.path, dtype=torch.float32).get_encoder().eval()

    def embed(clip: Samples) -> Samples:
        with torch.inference_mode():
            features = extractor(clip, sampling_rate=16_000, return_tensors="pt").input_features
            hidden = encoder(features).last_hidden_state
            return np.asarray(hidden[0, : own_frames(len(clip))].mean(dim=0).numpy())

    return embed


def _torch_trimmed(setup: Setup) -> Embed:
    """The modules of transformers in bf16, given the clip's frames only: its encoder refuses any input but 30 s."""
    import torch
    from torch.nn.functional import gelu
    from transformers import WhisperModel

    torch.set_num_threads(setup.threads)
    extract = _mel(setup.mels)
    encoder = WhisperModel.from_pretrained(setup.path, dtype=torch.bfloat16).get_encoder().eval()

    def embed(clip: Samples) -> Samples:
        frames = own_frames(len(clip))
        with torch.inference_mode():
            features = torch.from_numpy(_fitted(extract(clip), 2 * frames)[None]).bfloat16()
            hidden = gelu(encoder.conv2(gelu(encoder.conv1(features)))).transpose(1, 2)
            hidden = hidden + encoder.embed_positions.weight[:frames]
            for block in encoder.layers:
                hidden = block(hidden, None)
            return np.asarray(encoder.layer_norm(hidden)[0].float().mean(dim=0).numpy())

    return embed


def _ctranslate2(setup: Setup) -> Embed:
    """faster-whisper's way: its extractor on the clip, its padding of the features to 30 s, CTranslate2's encoder."""
    library: Any = importlib.import_module("ctranslate2")
    extract = _mel(setup.mels)
    kinds = {"fp32": "float32", "int8": "int8"}
    model = library.models.Whisper(
        str(setup.path), device="cpu", compute_type=kinds[setup.precision], inter_threads=1, intra_threads=setup.threads
    )

    def embed(clip: Samples) -> Samples:
        frames = own_frames(len(clip))
        features = _fitted(extract(clip), MEL_FRAMES if setup.padded else 2 * frames)[None]
        hidden = np.asarray(model.encode(library.StorageView.from_array(np.ascontiguousarray(features))))
        return np.asarray(hidden[0, :frames].mean(axis=0))

    return embed


def _onnxruntime(setup: Setup) -> Embed:
    """A plain session on the exported graph, front end inside."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setup.threads
    session = onnxruntime.InferenceSession(setup.path / "encoder.onnx", options, providers=["CPUExecutionProvider"])

    def embed(clip: Samples) -> Samples:
        given = {"pcm": clip[None], "lengths": np.array([len(clip)])}
        return np.asarray(session.run(["statistics"], given)[0][0, -1, 0])

    return embed


def _servox(setup: Setup) -> Embed:
    """What a server runs: the bundle's runtime, clips padded to the server's step."""
    from services.embedder import runtimes
    from services.embedder.bundle import load
    from services.embedder.settings import Settings

    bundle = load(setup.path)
    runtime = runtimes.choose(bundle, "cpu", threads=setup.threads)
    step = Settings.model_fields["pad_step_ms"].default * bundle.rate_hz // 1000

    def embed(clip: Samples) -> Samples:
        pcm = np.zeros((1, min(bundle.max_samples, math.ceil(len(clip) / step) * step)), np.float32)
        pcm[0, : len(clip)] = clip
        result = runtime.run(pcm, np.array([len(clip)]))
        return np.asarray(result.statistics[0, bundle.layer_index(bundle.default_layer), 0])

    return embed


def _mel(mels: int) -> Callable[[Samples], Samples]:
    """faster-whisper's feature extractor: numpy, and it does not pad."""
    module: Any = importlib.import_module("faster_whisper.feature_extractor")
    extractor = module.FeatureExtractor(feature_size=mels)
    return lambda clip: np.asarray(extractor(clip), np.float32)


def _fitted(features: Samples, frames: int) -> Samples:
    """Cut or padded with zeros at the end, as faster-whisper's `pad_or_trim`."""
    return np.pad(features[:, :frames], ((0, 0), (0, max(0, frames - features.shape[1]))))
