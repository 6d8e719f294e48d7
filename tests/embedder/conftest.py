"""A bundle small enough to run in microseconds on the real runtimes, and audio to send to it."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
from onnx import TensorProto, helper, numpy_helper

from services.embedder.bundle import GRAPH, Bundle
from services.embedder.contexts import Context
from services.embedder.runtimes.openvino import OpenVinoRuntime
from services.embedder.speechlike import speechlike

RATE, FRAME, DIMS = 16_000, 160, 4
WEIGHTS = np.random.default_rng(7).normal(size=(DIMS, 1, FRAME)).astype(np.float32)


def _graph() -> onnx.ModelProto:
    """Layer 0 is a convolution over frames of 10 ms, layer 1 twice that plus one."""
    constants: dict[str, np.ndarray] = {
        "weights": WEIGHTS,
        "pads": np.array([0, 0, 0, FRAME - 1], np.int64),
        "channel": np.array([1], np.int64),
        "dims": np.array([1], np.int64),
        "last": np.array([2], np.int64),
        "zero": np.array(0, np.int64),
        "one": np.array(1, np.int64),
        "two": np.array([2.0], np.float32),
        "plus": np.array([1.0], np.float32),
        "frame": np.array(FRAME, np.int64),
        "rest": np.array(FRAME - 1, np.int64),
        "axis2": np.array(2, np.int64),
    }
    nodes = [
        helper.make_node("Pad", ["pcm", "pads"], ["padded"]),
        helper.make_node("Unsqueeze", ["padded", "channel"], ["mono"]),
        helper.make_node("Conv", ["mono", "weights"], ["x0"], kernel_shape=[FRAME], strides=[FRAME]),
        helper.make_node("Mul", ["x0", "two"], ["doubled"]),
        helper.make_node("Add", ["doubled", "plus"], ["x1"]),
        helper.make_node("Shape", ["x0"], ["shape"]),
        helper.make_node("Gather", ["shape", "axis2"], ["count"]),
        helper.make_node("Range", ["zero", "count", "one"], ["index"]),
        helper.make_node("Add", ["lengths", "rest"], ["rounded"]),
        helper.make_node("Div", ["rounded", "frame"], ["own"]),
        helper.make_node("Unsqueeze", ["own", "dims"], ["own_column"]),
        helper.make_node("Less", ["index", "own_column"], ["valid"]),
        helper.make_node("Cast", ["valid"], ["mask2"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask2", "channel"], ["mask"]),
        helper.make_node("ReduceSum", ["mask", "last"], ["n"], keepdims=1),
    ]
    for layer in ("0", "1"):
        nodes += [
            helper.make_node("Mul", [f"x{layer}", "mask"], [f"kept{layer}"]),
            helper.make_node("ReduceSum", [f"kept{layer}", "last"], [f"sum{layer}"], keepdims=1),
            helper.make_node("Div", [f"sum{layer}", "n"], [f"mean{layer}"]),
            helper.make_node("Sub", [f"x{layer}", f"mean{layer}"], [f"centred{layer}"]),
            helper.make_node("Mul", [f"centred{layer}", f"centred{layer}"], [f"square{layer}"]),
            helper.make_node("Mul", [f"square{layer}", "mask"], [f"square_kept{layer}"]),
            helper.make_node("ReduceSum", [f"square_kept{layer}", "last"], [f"square_sum{layer}"], keepdims=1),
            helper.make_node("Div", [f"square_sum{layer}", "n"], [f"variance{layer}"]),
            helper.make_node("Sqrt", [f"variance{layer}"], [f"std{layer}"]),
            helper.make_node("Concat", [f"mean{layer}", f"std{layer}"], [f"pair{layer}"], axis=2),
            helper.make_node("Transpose", [f"pair{layer}"], [f"turned{layer}"], perm=[0, 2, 1]),
            helper.make_node("Unsqueeze", [f"turned{layer}", "channel"], [f"row{layer}"]),
        ]
    nodes += [
        helper.make_node("Concat", ["row0", "row1"], ["statistics"], axis=1),
        helper.make_node("Transpose", ["x1"], ["frames"], perm=[0, 2, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("pcm", TensorProto.FLOAT, ["batch", "samples"]),
            helper.make_tensor_value_info("lengths", TensorProto.INT64, ["batch"]),
        ],
        [
            helper.make_tensor_value_info("statistics", TensorProto.FLOAT, ["batch", 2, 2, DIMS]),
            helper.make_tensor_value_info("frames", TensorProto.FLOAT, ["batch", "time", DIMS]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def expected_statistics(samples: np.ndarray) -> np.ndarray:
    """The graph's statistics [2, 2, DIMS] of one clip, in numpy."""
    frames = -(-len(samples) // FRAME)
    padded = np.zeros(frames * FRAME, np.float64)
    padded[: len(samples)] = samples
    first = padded.reshape(frames, FRAME) @ WEIGHTS[:, 0].T.astype(np.float64)
    layers = np.stack([first, 2 * first + 1])
    return np.stack([layers.mean(axis=1), layers.std(axis=1)], axis=1)


@pytest.fixture(scope="session")
def reference() -> Callable[[np.ndarray], np.ndarray]:
    return expected_statistics


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a bundle whose encoder is one convolution."""
    return tiny_bundle_at(tmp_path_factory.mktemp("bundle") / "tiny")


def tiny_bundle_at(folder: Path) -> Path:
    """Makes that bundle, for other services' tests too."""
    folder.mkdir()
    graph = _graph()
    onnx.checker.check_model(graph, full_check=True)
    content = graph.SerializeToString()
    (folder / GRAPH).write_bytes(content)
    bundle = Bundle(
        folder=folder,
        family="tiny",
        source="tiny",
        source_sha256="0" * 64,
        context=Context(kind="exact"),
        blocks=1,
        source_blocks=1,
        precision="fp32",
        rate_hz=RATE,
        frame_samples=FRAME,
        dims=DIMS,
        layers=(0, 1),
        layer_names=("conv", "block 1"),
        default_layer=1,
        max_duration_ms=30_000,
        files={GRAPH: hashlib.sha256(content).hexdigest()},
    )
    bundle.write_manifest()
    return folder


@pytest.fixture(scope="session")
def speech() -> Callable[..., np.ndarray]:
    """Makes a tone [samples] or [samples, channels], different for every seed."""

    def make(seconds: float = 1.0, *, rate_hz: int = RATE, channels: int = 1, seed: int = 0) -> np.ndarray:
        time_s = np.arange(int(seconds * rate_hz)) / rate_hz
        tone = 0.3 * np.sin(2 * np.pi * (150 + 10 * seed) * time_s).astype(np.float32)
        return tone if channels == 1 else np.repeat(tone[:, None], channels, axis=1)

    return make


@pytest.fixture(scope="session")
def encoded() -> Callable[..., bytes]:
    """Writes samples as a file in memory."""

    def write(samples: np.ndarray, *, rate_hz: int = RATE, kind: str = "WAV", subtype: str | None = "FLOAT") -> bytes:
        file = io.BytesIO()
        soundfile.write(file, samples, rate_hz, format=kind, subtype=subtype)
        return file.getvalue()

    return write


@dataclass(frozen=True, slots=True)
class Mixed:
    """Speech-like clips of several lengths, and one batch of them: `pcm` [B, samples] with noise after each end."""

    clips: list[np.ndarray]
    pcm: np.ndarray
    lengths: np.ndarray


@pytest.fixture(scope="session")
def mixed() -> Callable[..., Mixed]:
    """Makes clips of the given lengths in samples."""

    def make(*samples: int, rate_hz: int = RATE, noise: float = 0.1) -> Mixed:
        made = [speechlike(n, duration_s=2.0 + s / rate_hz, rate_hz=rate_hz)[-s:] for n, s in enumerate(samples)]
        pcm = np.random.default_rng(0).normal(0, noise, (len(made), max(samples) + 123)).astype(np.float32)
        for row, clip in zip(pcm, made, strict=True):
            row[: len(clip)] = clip
        return Mixed(made, pcm, np.array(samples, np.int64))

    return make


@pytest.fixture(scope="session")
def same_in_company(mixed: Callable[..., Mixed]) -> Callable[[Bundle], None]:
    """Fails unless OpenVINO gives a clip the same numbers, to the bit, alone and beside one of the same width."""

    def check(bundle: Bundle) -> None:
        second = bundle.rate_hz
        for threads in (1, 2):
            runtime = OpenVinoRuntime(bundle, threads=threads)
            for samples in (second // 2, 3 * second, 4 * second + 1):
                batch = mixed(samples, samples - 37, rate_hz=bundle.rate_hz)
                together = runtime.run(batch.pcm, batch.lengths, frames=True)
                for row in range(2):
                    alone = runtime.run(batch.pcm[row : row + 1], batch.lengths[row : row + 1], frames=True)
                    np.testing.assert_array_equal(alone.statistics[0], together.statistics[row])
                    assert alone.frames is not None
                    assert together.frames is not None
                    np.testing.assert_array_equal(alone.frames[0], together.frames[row])
            runtime.close()

    return check
