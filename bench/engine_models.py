"""What each engine loads, made once from one checkpoint and kept in the cache: bundles, CTranslate2 and int8 models."""

import contextlib
import hashlib
import importlib
import importlib.metadata
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from bench.engine_work import Sizes
from services.embedder.bundle import Precision, load

ROOT = Path(__file__).resolve().parent.parent
EMBEDDER = ROOT / "services" / "embedder"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One row of the bench.

    Args:
        name: of the row.
        package: that runs it.
        context: what follows a clip: padded, exact or silence:K.
        part: one in so many blocks is run: 1 for all, 2 for the first half.
        precision: fp32, bf16 or int8.
        equals: an engine whose features these must equal; its F1 is then theirs.
    """

    name: str
    package: str
    context: str
    part: int
    precision: str
    equals: str | None = None


def _rows() -> tuple[Engine, ...]:
    def row(name: str, package: str, context: str, precision: str, *, part: int = 1, equals: str = "") -> Engine:
        return Engine(
            name=name, package=package, context=context, part=part, precision=precision, equals=equals or None
        )

    return (
        row("transformers", "transformers", "padded", "fp32"),
        row("torch bf16, trimmed", "torch", "exact", "bf16"),
        row("CTranslate2 fp32", "ctranslate2", "padded", "fp32"),
        row("CTranslate2 int8", "ctranslate2", "padded", "int8"),
        row("CTranslate2 fp32, trimmed", "ctranslate2", "exact", "fp32"),
        row("CTranslate2 int8, trimmed", "ctranslate2", "exact", "int8"),
        row("CTranslate2 fp32, trimmed, half", "ctranslate2", "exact", "fp32", part=2),
        row("CTranslate2 int8, trimmed, half", "ctranslate2", "exact", "int8", part=2),
        row("ONNX Runtime fp32", "onnxruntime", "padded", "fp32", equals="transformers"),
        row("ONNX Runtime int8", "onnxruntime", "padded", "int8"),
        row("Servox fp32, padded, full", "servox", "padded", "fp32", equals="transformers"),
        row("Servox bf16, exact, full", "servox", "exact", "bf16"),
        row("Servox int8, exact, full", "servox", "exact", "int8"),
        row("Servox fp32", "servox", "silence:32", "fp32", part=2),
        row("Servox bf16", "servox", "silence:32", "bf16", part=2),
        row("Servox int8", "servox", "silence:32", "int8", part=2),
        row("Servox int8, a third", "servox", "silence:32", "int8", part=3),
    )


ENGINES = _rows()


class Models:
    """Models in a cache folder, made on first use."""

    def __init__(self, checkpoint: Path, cache: Path, *, data: Path) -> None:
        self.checkpoint, self._data = checkpoint, data
        self.sha256 = _sha256(checkpoint / WEIGHTS)
        self._cache = cache / "models"
        self._cache.mkdir(parents=True, exist_ok=True)

    def config(self) -> dict[str, int]:
        """The checkpoint's."""
        content: dict[str, int] = json.loads((self.checkpoint / "config.json").read_text())
        return content

    def sizes(self) -> Sizes:
        """Of the encoder."""
        config = self.config()
        return Sizes(
            mels=config["num_mel_bins"],
            dims=config["d_model"],
            inner=config["encoder_ffn_dim"],
            blocks=config["encoder_layers"],
        )

    def blocks(self, engine: Engine) -> int:
        """That an engine runs."""
        every = self.sizes().blocks
        return -(-every // engine.part)

    def identity(self, engine: Engine) -> str:
        """What an engine's features depend on besides context and depth."""
        if engine.package == "servox":
            runtime = _sha256(EMBEDDER / "runtimes" / "openvino.py")
            return f"{load(self.path(engine)).digest[:12]}-{runtime[:12]}"
        packages = {"transformers": ("transformers", "torch"), "torch": ("transformers", "torch")}
        versions = packages.get(engine.package, (engine.package,))
        return "-".join(f"{name}-{importlib.metadata.version(name)}" for name in versions)

    def path(self, engine: Engine) -> Path:
        """What the engine loads."""
        if engine.package in {"transformers", "torch"}:
            return self.checkpoint
        if engine.package == "ctranslate2":
            version = importlib.metadata.version("ctranslate2")
            return self._made(f"ct2-{version}-{self.blocks(engine)}", lambda out: self._ctranslate2(engine, out))
        if engine.package == "onnxruntime" and engine.precision == "int8":
            return self._made(f"onnx-int8-{_sources()}", lambda out: self._onnx_int8(engine, out))
        name = f"bundle-{engine.context.replace(':', '')}-{self.blocks(engine)}-{_sources()}"
        plain = self._made(name, lambda out: self._bundle(engine, out))
        if engine.package == "onnxruntime" or engine.precision == "fp32":
            return plain
        made_by = _sources("quantise.py") if engine.precision == "int8" else ""
        return self._made(f"{name}-{engine.precision}{made_by}", lambda out: _variant(plain, engine.precision, out))

    def _made(self, name: str, make: Callable[[Path], None]) -> Path:
        path = self._cache / f"{self.sha256[:12]}-{name}"
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=self._cache) as folder:
                out = Path(folder) / "made"
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    make(out)
                out.rename(path)
        return path

    def _bundle(self, engine: Engine, out: Path) -> None:
        from services.embedder.export import export

        export(str(self.checkpoint), out, context=engine.context, blocks=self.blocks(engine), data_root=self._data)

    def _ctranslate2(self, engine: Engine, out: Path) -> None:
        converters = importlib.import_module("ctranslate2.converters")
        with tempfile.TemporaryDirectory(dir=self._cache) as folder:
            self._cut(Path(folder), self.blocks(engine))
            converters.TransformersConverter(folder).convert(str(out))

    def _cut(self, folder: Path, blocks: int) -> None:
        """A checkpoint of the first `blocks` of the encoder; the decoder, which nobody runs, has one random block."""
        from safetensors.torch import load_file, save_file

        config = {**self.config(), "encoder_layers": blocks, "num_hidden_layers": blocks, "decoder_layers": 1}
        (folder / "config.json").write_text(json.dumps(config))
        shutil.copyfile(self.checkpoint / "preprocessor_config.json", folder / "preprocessor_config.json")
        kept = {
            name: tensor.float().contiguous()
            for name, tensor in load_file(self.checkpoint / WEIGHTS).items()
            if ".decoder." not in name and _block(name) < blocks
        }
        save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})

    def _onnx_int8(self, engine: Engine, out: Path) -> None:
        """Dynamic int8 per channel of every matrix product but the front end's, as ONNX Runtime's guide has it."""
        import onnx
        from onnxruntime.quantization import quantize_dynamic

        plain = Engine(
            name=engine.name, package="onnxruntime", context=engine.context, part=engine.part, precision="fp32"
        )
        source = self.path(plain)
        shutil.copytree(source, out)
        graph = onnx.load(source / "encoder.onnx").graph
        front_end = [node.name for node in graph.node if any("mel." in name for name in node.input)]
        quantize_dynamic(
            source / "encoder.onnx",
            out / "encoder.onnx",
            per_channel=True,
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=front_end,
        )


def _block(name: str) -> int:
    parts = name.split(".layers.")
    return int(parts[1].split(".")[0]) if len(parts) > 1 else -1


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _variant(plain: Path, precision: str, out: Path) -> None:
    from services.embedder.precisions import variant

    variant(load(plain), cast("Precision", precision), out).write_manifest()


def _sources(*more: str) -> str:
    """Of the code that a graph is made by: another code, another export."""
    names = ["contexts.py", *more]
    names += [f"backbones/{name}.py" for name in ("whisper_graph", "frontend", "layers", "pooling")]
    return hashlib.sha256(b"".join((EMBEDDER / name).read_bytes() for name in names)).hexdigest()[:12]
