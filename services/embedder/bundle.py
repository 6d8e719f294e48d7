"""The exported artefact: `encoder.onnx` from waveform to embedding, and `bundle.json` that says what it is.

A bundle's digest is the hash of its identity: what it was made from, context policy, depth, precision, layers, and the
hashes of its files. Parity figures, exporter versions and the date are recorded beside it but are not part of it.
Heads are bound to a digest. Reading a bundle needs neither torch nor onnx.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

from services.embedder.contexts import Context
from servox.errors import BadSetting, BundleError

SCHEMAS = (1, 2, 3)  # 2 adds window_samples, 3 the policy cached:K; a bundle has the oldest that can hold it
MANIFEST = "bundle.json"
GRAPH = "encoder.onnx"
OUTPUTS = ("statistics", "frames")
FRONT_END = ("log_mel", "silence_level")  # tensors of the graph between its front end and its encoder
CHUNK_BYTES = 1 << 20
EXPORT_AGAIN = "export it again with `servox export`"

Precision = Literal["fp32", "bf16", "fp16", "int8"]
CPU_PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")  # fp16 gains nothing without a GPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured parity figure and the bound it must keep.

    `at_most` says on which side of the bound; a figure without one is only reported.
    """

    name: str
    value: float
    bound: float | None
    at_most: bool = True

    @property
    def passed(self) -> bool:
        """Whether the value keeps its bound; a NaN never does."""
        if self.bound is None:
            return True
        return self.value <= self.bound if self.at_most else self.value >= self.bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Batches that one engine takes: up to `rows` clips, from `least` to `most` samples wide."""

    rows: int
    least: int
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Engines built ahead for one kind of device, and what they fit.

    Args:
        tensorrt: version of TensorRT.
        gpu: name of the GPU.
        capability: its compute capability.
        driver: version of the driver, for the record.
        onnxruntime: version that built them, for the record.
        shapes: one for each engine, in the order of their files.
        files: sha256 of every file, by its path in the bundle's folder.
    """

    tensorrt: str
    gpu: str
    capability: str
    driver: str
    onnxruntime: str
    shapes: tuple[Shape, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_manifest(cls, content: Mapping[str, Any]) -> Self:
        """The engines that `content` describes."""
        shapes = tuple(Shape(**{name: int(value) for name, value in shape.items()}) for shape in content["shapes"])
        files = {str(name): str(sha256) for name, sha256 in content["files"].items()}
        facts = {name: str(value) for name, value in content.items() if name not in {"shapes", "files"}}
        return cls(shapes=shapes, files=files, **facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What a bundle is and where it lies.

    Args:
        folder: where its files are.
        family: of the backbone, e.g. `whisper`.
        source: hub id or name of the checkpoint.
        source_sha256: hash of the checkpoint's weights.
        context: what follows a clip.
        blocks: depth kept, of `source_blocks`.
        precision: in which the runtime executes: a bf16 bundle holds float32 weights and runs in bf16; an fp16 bundle
            is for GPUs, and holds the weights of its matrix products in float16.
        rate_hz: of the input.
        frame_samples: from the start of one frame to the start of the next.
        window_samples: that a frame needs: a clip has (samples - window_samples) // frame_samples + 1 frames. 1 where
            the encoder pads the last frame itself: ceil(samples / frame_samples).
        dims: size of a vector.
        layers: numbers of the exported layers: 0 convolutions and positions, k the output of block k and, when every
            block is kept, blocks + 1 the final LayerNorm.
        layer_names: their names, in the same order.
        default_layer: the layer whose frames the graph returns.
        max_duration_ms: longest clip.
        files: sha256 of every file.
        parity: figures measured at export.
        parity_clips: what they were measured on.
        exporter: versions of what made the bundle.
        created: date and time in ISO 8601.
        engines: built ahead for a device, by name; what they compute is what the identity says.
    """

    folder: Path
    family: str
    source: str
    source_sha256: str
    context: Context
    blocks: int
    source_blocks: int
    precision: Precision
    rate_hz: int
    frame_samples: int
    dims: int
    layers: tuple[int, ...]
    layer_names: tuple[str, ...]
    default_layer: int
    max_duration_ms: int
    files: Mapping[str, str]
    window_samples: int = 1
    parity: tuple[Figure, ...] = ()
    parity_clips: str = ""
    exporter: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    engines: Mapping[str, Engine] = field(default_factory=dict)

    @property
    def graph(self) -> Path:
        """The ONNX file."""
        return self.folder / GRAPH

    @property
    def max_samples(self) -> int:
        """Widest input."""
        return self.max_duration_ms * self.rate_hz // 1000

    @property
    def frame_rate_hz(self) -> float:
        """Frames a second."""
        return self.rate_hz / self.frame_samples

    @property
    def min_duration_ms(self) -> int:
        """Shortest clip that fills one frame's window."""
        return -(-self.window_samples * 1000 // self.rate_hz)

    @property
    def digest(self) -> str:
        """Hash of the identity, 64 hex digits."""
        text = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def frames(self, samples: int) -> int:
        """Frames of a clip of `samples`, at least one: what a clip lacks of its first window counts as silence."""
        return max(1, (samples - self.window_samples) // self.frame_samples + 1)

    def layer_index(self, layer: int) -> int:
        """Place of `layer` in the statistics.

        Raises:
            BadSetting: when the bundle does not hold it.
        """
        if layer not in self.layers:
            held = f"{self.layers[0]} to {self.layers[-1]}"
            raise BadSetting(f"layer {layer} is not in this bundle of {self.source}, which holds {held}")
        return self.layers.index(layer)

    def identity(self) -> dict[str, Any]:
        """The fields that the digest covers."""
        window = {} if self.window_samples == 1 else {"window_samples": self.window_samples}
        return {
            "schema": 3 if self.context.kind == "cached" else 2 if window else 1,
            "family": self.family,
            "source_sha256": self.source_sha256,
            "context": str(self.context),
            "blocks": self.blocks,
            "precision": self.precision,
            "rate_hz": self.rate_hz,
            "frame_samples": self.frame_samples,
            "dims": self.dims,
            "layers": list(self.layers),
            "default_layer": self.default_layer,
            "max_duration_ms": self.max_duration_ms,
            "files": dict(self.files),
            **window,
        }

    def manifest(self) -> dict[str, Any]:
        """What `bundle.json` holds."""
        return {
            **self.identity(),
            "digest": self.digest,
            "source": self.source,
            "source_blocks": self.source_blocks,
            "layer_names": list(self.layer_names),
            "frame_rate_hz": self.frame_rate_hz,
            "parity": [{"name": f.name, "value": f.value, "bound": f.bound, "at_most": f.at_most} for f in self.parity],
            "parity_clips": self.parity_clips,
            "exporter": dict(self.exporter),
            "created": self.created,
            **({"engines": {name: asdict(engine) for name, engine in self.engines.items()}} if self.engines else {}),
        }

    def write_manifest(self) -> None:
        """Write `bundle.json` into the folder."""
        text = json.dumps(self.manifest(), indent=2, ensure_ascii=False)
        (self.folder / MANIFEST).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_manifest(cls, content: Mapping[str, Any], folder: Path) -> Self:
        """The bundle that `content` describes.

        Raises:
            KeyError, TypeError, ValueError, BadSetting: when a field is missing or is not what it should be.
        """
        if content["precision"] not in get_args(Precision):
            raise ValueError(f"precision {content['precision']!r}")
        layers = tuple(int(layer) for layer in content["layers"])
        names = tuple(str(name) for name in content["layer_names"])
        if not layers or len(layers) != len(names) or content["default_layer"] not in layers:
            raise ValueError("layers")
        return cls(
            folder=folder,
            family=str(content["family"]),
            source=str(content["source"]),
            source_sha256=str(content["source_sha256"]),
            context=Context.parse(content["context"]),
            blocks=int(content["blocks"]),
            source_blocks=int(content["source_blocks"]),
            precision=content["precision"],
            rate_hz=int(content["rate_hz"]),
            frame_samples=int(content["frame_samples"]),
            dims=int(content["dims"]),
            layers=layers,
            layer_names=names,
            default_layer=int(content["default_layer"]),
            max_duration_ms=int(content["max_duration_ms"]),
            window_samples=int(content.get("window_samples", 1)),
            files={str(name): str(sha256) for name, sha256 in content["files"].items()},
            parity=tuple(Figure(**figure) for figure in content["parity"]),
            parity_clips=str(content["parity_clips"]),
            exporter={str(name): str(version) for name, version in content["exporter"].items()},
            created=str(content["created"]),
            engines={str(name): Engine.from_manifest(made) for name, made in content.get("engines", {}).items()},
        )


def load(folder: Path | str) -> Bundle:
    """The bundle in `folder`, every file checked against its hash.

    Raises:
        BundleError: missing, incomplete, changed, unreadable, or written by a newer version.
    """
    folder = Path(folder)
    content = _manifest(folder)
    try:
        bundle = Bundle.from_manifest(content, folder)
    except (AttributeError, BadSetting, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{MANIFEST} of bundle {folder} is corrupt at {error}: {EXPORT_AGAIN}") from error
    if GRAPH not in bundle.files:
        raise BundleError(f"{MANIFEST} of bundle {folder} names no {GRAPH}: {EXPORT_AGAIN}")
    for name, expected in bundle.files.items():
        _verify(folder, name, expected)
    if content.get("digest") != bundle.digest:
        raise BundleError(
            f"{MANIFEST} of bundle {folder} was changed after export (its digest differs): {EXPORT_AGAIN}"
        )
    return bundle


def _manifest(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise BundleError(f"there is no bundle at {folder}: make one with `servox export SOURCE --out {folder}`")
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}; give a folder made by `servox export`")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{MANIFEST} of bundle {folder} is not readable JSON: {EXPORT_AGAIN}") from error
    if not isinstance(content, dict) or not isinstance(content.get("schema"), int):
        raise BundleError(f"{MANIFEST} of bundle {folder} has no schema number: {EXPORT_AGAIN}")
    if content["schema"] not in SCHEMAS:
        raise BundleError(
            f"bundle {folder} has schema {content['schema']} and this Servox reads schemas up to {SCHEMAS[-1]}: "
            f"use the matching version of Servox, or {EXPORT_AGAIN}"
        )
    return content


def _verify(folder: Path, name: str, expected: str) -> None:
    path = folder / name
    if Path(name).name != name:
        raise BundleError(f"{MANIFEST} of bundle {folder} names {name!r}, which lies outside it: {EXPORT_AGAIN}")
    if not path.is_file():
        raise BundleError(f"bundle {folder} lacks its file {name}: copy the whole folder again, or {EXPORT_AGAIN}")
    actual = file_sha256(path)
    if actual != expected:
        raise BundleError(
            f"{name} of bundle {folder} is damaged: its sha256 is {actual[:12]}…, not {expected[:12]}…; "
            f"copy it again, or {EXPORT_AGAIN}"
        )


def file_sha256(path: Path) -> str:
    """Hash of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
