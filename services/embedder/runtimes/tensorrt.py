"""TensorRT through ONNX Runtime: engines built ahead by the export, loaded as they are, never built at run time.

- One engine for each length bucket, with a profile of its own (least, usual and largest shape). The file that ONNX
  Runtime loads holds the engine and not the graph (an "EP context" model), so there is nothing to rebuild from.
- An engine fits one version of TensorRT and one kind of GPU. The manifest says which, beside the bundle's identity and
  not in it: what a bundle computes is the same whichever engine runs it, and two builds of one engine differ in bytes.
  Where they do not fit, a server refuses to start and says what differs. Drivers may differ: engines outlive them.
"""

import ctypes
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from services.embedder.bundle import Bundle, Engine, Shape, file_sha256
from services.embedder.runtimes import Lengths, Pcm, Result, check_batch, gpu
from services.embedder.runtimes.onnx import UNREADABLE, session_of
from servox.errors import BundleError, Unavailable

NAME = "tensorrt"
PROVIDER = "TensorrtExecutionProvider"
LIBRARIES = ("libnvinfer.so.11", "libnvinfer.so.10")
BUCKETS_S = (1, 2, 4, 8, 16, 30)  # fewer than the server's: each costs the weights once more, on disk and on the GPU
BATCH_S = 256  # seconds of audio in the largest batch of a bucket
MOST_ROWS = 64
MATCHED = ("tensorrt", "gpu", "capability")
EXPORT = "export again on this machine with --precision fp16 --engine tensorrt"


def probe() -> Engine:
    """What an engine built here would fit, with no files yet.

    Raises:
        Unavailable: when TensorRT, ONNX Runtime's provider for it, or a GPU is absent; which of them is said.
    """
    if PROVIDER not in onnxruntime.get_available_providers():
        raise Unavailable(
            f"ONNX Runtime has no {PROVIDER} here: install servox[gpu] and TensorRT, or leave --engine tensorrt out"
        )
    version = _library_version()
    found = gpu.find()
    return Engine(
        tensorrt=version,
        gpu=found.name,
        capability=found.capability,
        driver=found.driver,
        onnxruntime=onnxruntime.__version__,
    )


def shapes(bundle: Bundle) -> tuple[Shape, ...]:
    """The profile of each bucket: from one shortest clip to a batch of the bucket's longest.

    Buckets abut: every width up to the bundle's longest clip lies in exactly one.
    """
    bounds = [seconds * bundle.rate_hz for seconds in BUCKETS_S if seconds * bundle.rate_hz < bundle.max_samples]
    made, least = [], max(1, bundle.window_samples)
    for widest in (*bounds, bundle.max_samples):
        rows = max(1, min(MOST_ROWS, math.floor(BATCH_S * bundle.rate_hz / widest)))
        made.append(Shape(rows=rows, least=least, most=widest))
        least = widest + 1
    return tuple(made)


def options(shape: Shape, file: Path | None = None) -> dict[str, str]:
    """Settings of the provider for one bucket; with `file`, the engine is built and written there."""
    usual = max(1, shape.rows // 2)
    settings = {
        "trt_fp16_enable": "1",
        "trt_layer_norm_fp32_fallback": "1",
        "trt_profile_min_shapes": f"pcm:1x{shape.least},lengths:1",
        "trt_profile_opt_shapes": f"pcm:{usual}x{shape.most},lengths:{usual}",
        "trt_profile_max_shapes": f"pcm:{shape.rows}x{shape.most},lengths:{shape.rows}",
    }
    if file is not None:
        settings |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(file.parent),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(file.parent),
            "trt_dump_ep_context_model": "1",
            "trt_ep_context_file_path": str(file),
            "trt_ep_context_embed_mode": "1",
        }
    return settings


def build(bundle: Bundle) -> Bundle:
    """The bundle with an engine for every bucket in its folder.

    Raises:
        Unavailable: when TensorRT or a GPU is absent.
        BundleError: when TensorRT does not take the whole graph.
    """
    engine, folder = probe(), bundle.folder / NAME
    folder.mkdir()
    for number, shape in enumerate(shapes(bundle)):
        file = folder / f"{number}.onnx"
        session_of(bundle, [(PROVIDER, options(shape, file))])
        if not file.is_file():
            raise BundleError(
                f"TensorRT does not take the whole graph of {bundle.source}: serve it with engine onnx, "
                "or export without --engine tensorrt"
            )
    files = {f"{NAME}/{path.name}": file_sha256(path) for path in sorted(folder.glob("*.onnx"))}
    return replace(bundle, engines={NAME: replace(engine, shapes=shapes(bundle), files=files)})


def differences(built: Engine, here: Engine) -> list[str]:
    """What keeps an engine from running here, in words."""
    pairs = ((name, getattr(built, name), getattr(here, name)) for name in MATCHED)
    return [f"{name} {there} there, {ours} here" for name, there, ours in pairs if there != ours]


class TensorRtRuntime:
    """A bundle's engines, one session for each bucket.

    Raises:
        Unavailable: when TensorRT or a GPU is absent, or they are not those that the engines were built for.
        BundleError: when the bundle has no engines, or a file of theirs is damaged.
    """

    name = NAME
    device = "cuda"

    def __init__(self, bundle: Bundle) -> None:
        engine = bundle.engines.get(NAME)
        if engine is None:
            raise BundleError(f"bundle {bundle.folder} has no TensorRT engines: {EXPORT}")
        if found := differences(engine, probe()):
            raise Unavailable(f"the TensorRT engines of {bundle.folder} do not fit ({'; '.join(found)}): {EXPORT}")
        check_files(bundle.folder, engine)
        self._bundle, self._shapes = bundle, engine.shapes
        try:
            self._sessions = [
                session_of(bundle, [(PROVIDER, options(shape))], file=bundle.folder / name)
                for shape, name in zip(engine.shapes, sorted(engine.files, key=_number), strict=True)
            ]
        except UNREADABLE as error:
            raise BundleError(f"TensorRT cannot load the engines of {bundle.folder}: {EXPORT}") from error
        if any(session.get_providers()[0] != PROVIDER for session in self._sessions):
            raise Unavailable(f"{PROVIDER} did not start, although it is installed: check the driver and TensorRT")

    def run(self, pcm: Pcm, lengths: Lengths, *, frames: bool = False) -> Result:
        """Embed a batch, in parts where it has more rows than the bucket's profile."""
        if not self._sessions:
            raise Unavailable("this runtime is closed: choose a new one")
        pcm = check_batch(pcm, lengths, self._bundle.max_samples)
        number = bucket_of(pcm.shape[1], self._shapes)
        shape, names = self._shapes[number], ["statistics", "frames"] if frames else ["statistics"]
        if pcm.shape[1] < shape.least:
            pcm = np.pad(pcm, ((0, 0), (0, shape.least - pcm.shape[1])))
        parts = []
        for first in range(0, len(lengths), shape.rows):
            part = slice(first, first + shape.rows)
            parts.append(self._sessions[number].run(names, {"pcm": pcm[part], "lengths": lengths[part]}))
        outputs = [np.concatenate(column) for column in zip(*parts, strict=True)]
        return Result(statistics=outputs[0], frames=outputs[1] if frames else None)

    def close(self) -> None:
        """Free the engines."""
        self._sessions = []


def bucket_of(width: int, buckets: Sequence[Shape]) -> int:
    """Which profile a batch of this width belongs to."""
    return next(number for number, shape in enumerate(buckets) if width <= shape.most)


def check_files(folder: Path, engine: Engine) -> None:
    """Every file of the engines against its hash.

    Raises:
        BundleError: one is missing or was changed.
    """
    for name, expected in engine.files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            raise BundleError(f"bundle {folder} lacks its file {name}: copy the whole folder again, or {EXPORT}")
        if file_sha256(path) != expected:
            raise BundleError(f"{name} of bundle {folder} is damaged: copy it again, or {EXPORT}")


def _number(name: str) -> int:
    return int(Path(name).stem)


def _library_version() -> str:
    """TensorRT's version by its own library: the packages that bring it differ, the library does not."""
    if importlib.util.find_spec("tensorrt_libs"):
        importlib.import_module("tensorrt_libs")  # loads the library from where the package put it
    for name in LIBRARIES:
        try:
            library: Any = ctypes.CDLL(name)
        except OSError:
            continue
        number = int(library.getInferLibVersion())
        return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"
    raise Unavailable(f"TensorRT is not installed ({' and '.join(LIBRARIES)} are missing): install it, or leave it out")
