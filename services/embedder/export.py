"""From a checkpoint to a bundle: trace, quantise if asked, measure parity, and only then give the folder its name.

Everything is written into a hidden folder beside the target and renamed at the end: a bundle is there whole or not at
all, and one that failed its parity never exists.
"""

import datetime as dt
import importlib.metadata
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from services.embedder import parity, runtimes
from services.embedder.backbones import Backbone, Hidden, open_backbone, tracing
from services.embedder.bundle import GRAPH, Bundle, Figure, Precision, file_sha256
from services.embedder.contexts import Context
from services.embedder.halve import halve
from services.embedder.leftovers import OLD, hidden, sweep
from services.embedder.quantise import quantise_weights
from services.embedder.runtimes import Runtime, tensorrt
from services.embedder.runtimes.onnx import OnnxRuntime
from servox.errors import BadSetting, BundleError, StorageFull, Unavailable

PACKAGES = ("servox", "torch", "transformers", "onnx", "onnxscript", "onnxruntime", "openvino")

LOWER: dict[Precision, Callable[[Path], None]] = {"int8": quantise_weights, "fp16": halve}
"""What rewrites the float32 graph; a bf16 bundle keeps it."""
BUILT = ("auto", tensorrt.NAME)

Progress = Callable[[str, float], None]
"""Called with the step's name and how much of the whole is done, 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What to export, resolved and checked."""

    backbone: Backbone
    context: Context
    blocks: int
    precision: Precision


def export(
    source: str,
    out: Path | str,
    *,
    context: str | None = None,
    blocks: int | str | None = None,
    precision: str = "fp32",
    engine: str = "auto",
    clips: Sequence[Path] = (),
    data_root: Path | None = None,
    replace_existing: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Export `source` into the folder `out`.

    Args:
        source: hub id, checkpoint folder, or `logmel`.
        out: folder of the bundle; it must be absent or empty unless `replace_existing`.
        context: policy; None takes the family's own (`silence:32` for Whisper).
        blocks: depth; None takes half of the encoder's blocks, "all" every block.
        precision: fp32, bf16, fp16 (for GPUs) or int8.
        engine: tensorrt builds engines ahead for this machine's GPU; auto builds none.
        clips: files or folders to measure parity on.
        data_root: folder with `corpora/` to take clips from when `clips` is empty.
        replace_existing: put the new bundle in place of an old one.
        progress: told of each step.

    Raises:
        BadSetting: when an argument cannot be used.
        BadInput, NotFound: when the source cannot.
        BundleError: when parity is out of bound; nothing is left behind.
        Unavailable: when this machine cannot execute the precision, or has not what the engine needs.
        StorageFull: when the disk is full.
    """
    out = Path(out)
    check_target(out, replace_existing=replace_existing)
    _check_engine(engine, precision)
    tell = progress or (lambda _step, _done: None)
    tell("read the checkpoint", 0.0)
    recipe = resolve(open_backbone(source), context=context, blocks=blocks, precision=precision)
    with disk_errors(out), beside(out) as folder:
        tell("trace the graph", 0.05)
        trace(recipe, folder / GRAPH)
        tell("gather clips", 0.5)
        count = parity.CLIPS if _has_context_figure(recipe) else parity.FEW_CLIPS
        speech = parity.gather(clips, data_root, recipe.backbone.rate_hz, count=count)
        bundle = _measured(recipe, folder, speech, tell)
        bundle = _with_engines(bundle, speech, engine, tell)
        bundle.write_manifest()
        tell("done", 1.0)
        return replace(bundle, folder=publish(folder, out))


def resolve(backbone: Backbone, *, context: str | None, blocks: int | str | None, precision: str) -> Recipe:
    """Defaults filled in and checked against the backbone.

    Raises:
        BadSetting: naming the flag, the value and what is allowed.
    """
    policy = Context.parse(context) if context is not None else backbone.default_context
    depth = _depth(blocks, backbone)
    if precision not in get_args(Precision):
        raise BadSetting(f"--precision {precision!r} is unknown: use {', '.join(get_args(Precision))}")
    if backbone.blocks == 0 and precision != "fp32":
        raise BadSetting(f"--precision {precision} does not fit {backbone.name}, which has no encoder: use fp32")
    backbone.check(policy, depth)
    return Recipe(backbone=backbone, context=policy, blocks=depth, precision=precision)  # type: ignore[arg-type]


def trace(recipe: Recipe, path: Path) -> None:
    """Write the recipe's graph as float32 ONNX."""
    tracing.trace(recipe.backbone, recipe.context, recipe.blocks, path)


def _measured(recipe: Recipe, folder: Path, clips: parity.Clips, tell: Progress) -> Bundle:
    """The bundle with its parity figures, its graph in its final precision.

    Raises:
        BundleError: when a figure is out of its bound.
    """
    bundle = describe(recipe, folder)
    states = list(_states(recipe, recipe.context, clips, lambda done: tell("run transformers", 0.5 + 0.15 * done)))
    tell("run the graph", 0.65)
    figures = [parity.hidden(_fp32(bundle), clips, states)]
    _refuse(figures, bundle)
    if lower := LOWER.get(recipe.precision):
        lower(folder / GRAPH)
    bundle = describe(recipe, folder)
    runtime = _measuring(bundle)
    figures.append(parity.precision(runtime, clips, states, recipe.precision))
    runtime.close()
    origin = f"{clips.origin}, float16 on {runtime.device}" if recipe.precision == "fp16" else clips.origin
    figures += _context_figures(recipe, clips, states, lambda done: tell("run the padded encoder", 0.75 + 0.25 * done))
    _refuse(figures, bundle)
    return replace(bundle, parity=tuple(figures), parity_clips=origin)


def _measuring(bundle: Bundle) -> Runtime:
    """What will serve the bundle; for float16 a GPU if there is one, else a CPU, which rounds the weights alike."""
    if bundle.precision == "fp16":
        with suppress(Unavailable):
            return runtimes.choose(bundle, "cuda")
    return runtimes.choose(bundle)


def _check_engine(engine: str, precision: str) -> None:
    """Refuse an engine that cannot be built here, before any work.

    Raises:
        BadSetting: the engine is unknown or does not run the precision.
        Unavailable: what it needs is not here.
    """
    if engine not in BUILT:
        raise BadSetting(f"--engine {engine!r} is not one that is built ahead: use {', '.join(BUILT)}")
    if engine == tensorrt.NAME and precision != "fp16":
        raise BadSetting(f"--engine tensorrt does not run --precision {precision}: use --precision fp16")
    if engine == tensorrt.NAME:
        tensorrt.probe()


def _with_engines(bundle: Bundle, clips: parity.Clips, engine: str, tell: Progress) -> Bundle:
    """The bundle with the engines asked for, which must keep the precision's bound themselves.

    Raises:
        BundleError: when they do not, or cannot be built.
    """
    if engine != tensorrt.NAME:
        return bundle
    tell("build engines", 1.0)
    bundle = tensorrt.build(bundle)
    reference, runtime = runtimes.choose(bundle, engine="onnx"), tensorrt.TensorRtRuntime(bundle)
    figure = parity.engine(runtime, reference, clips)
    for each in (reference, runtime):
        each.close()
    _refuse([figure], bundle)
    return replace(bundle, parity=(*bundle.parity, figure))


def _fp32(bundle: Bundle) -> OnnxRuntime:
    return OnnxRuntime(replace(bundle, precision="fp32"))


def _context_figures(
    recipe: Recipe, clips: parity.Clips, states: Sequence[Hidden], done: Callable[[float], None]
) -> list[Figure]:
    if not _has_context_figure(recipe):
        return []
    bound = parity.context_bound(recipe.context, blocks=recipe.blocks, all_blocks=recipe.backbone.blocks)
    padded = [[hidden[-1].copy()] for hidden in _states(recipe, Context(kind="padded"), clips, done)]
    return [parity.context(states, padded, bound)]


def _has_context_figure(recipe: Recipe) -> bool:
    """Whether there is a padded encoder to be close to, and this is not it."""
    return recipe.backbone.pads and recipe.context.kind != "padded"


def _states(recipe: Recipe, context: Context, clips: parity.Clips, done: Callable[[float], None]) -> Iterator[Hidden]:
    reference = recipe.backbone.reference(context, recipe.blocks)
    for number, clip in enumerate(clips.samples):
        done(number / len(clips.samples))
        yield reference(clip)


def _refuse(figures: Sequence[Figure], bundle: Bundle) -> None:
    for figure in figures:
        if not figure.passed:
            side = "at most" if figure.at_most else "at least"
            raise BundleError(
                f"export of {bundle.source} ({bundle.context}, {bundle.blocks} blocks, {bundle.precision}) is refused: "
                f"parity figure {figure.name} is {figure.value:.3g} and must be {side} {figure.bound:g}; "
                "check the checkpoint, or choose another --context or --precision"
            )


def describe(recipe: Recipe, folder: Path) -> Bundle:
    """The bundle that the files in `folder` are, without parity."""
    backbone = recipe.backbone
    names = backbone.layers(recipe.blocks)
    return Bundle(
        folder=folder,
        family=backbone.family,
        source=backbone.name,
        source_sha256=backbone.sha256,
        context=recipe.context,
        blocks=recipe.blocks,
        source_blocks=backbone.blocks,
        precision=recipe.precision,
        rate_hz=backbone.rate_hz,
        frame_samples=backbone.frame_step(recipe.blocks),
        window_samples=backbone.window_samples,
        dims=backbone.dims,
        layers=tuple(range(len(names))),
        layer_names=names,
        default_layer=len(names) - 1,
        max_duration_ms=backbone.max_duration_ms,
        files={path.name: file_sha256(path) for path in sorted(folder.glob(f"{GRAPH}*"))},
        exporter=_versions(),
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )


def _versions() -> dict[str, str]:
    """Versions of what took part; an engine that is not installed took none."""
    installed = {dist.name for dist in importlib.metadata.distributions()}
    return {name: importlib.metadata.version(name) for name in PACKAGES if name in installed}


def _depth(blocks: int | str | None, backbone: Backbone) -> int:
    if blocks is None:
        return (backbone.blocks + 1) // 2
    if blocks == "all":
        return backbone.blocks
    if isinstance(blocks, str) and not (blocks.isascii() and blocks.isdigit()):
        raise BadSetting(f"--blocks {blocks!r} is not a depth: use 0 to {backbone.blocks}, or all")
    return int(blocks)


def check_target(out: Path, *, replace_existing: bool) -> None:
    """Refuse a folder that cannot become a bundle's.

    Raises:
        BadSetting: it is a file, or not empty.
    """
    if out.exists() and not out.is_dir():
        raise BadSetting(f"--out {out} is a file: give a folder")
    if out.is_dir() and any(out.iterdir()) and not replace_existing:
        raise BadSetting(f"--out {out} is not empty: give another folder, or --replace")


def publish(folder: Path, out: Path) -> Path:
    """Rename `folder` to `out`; an old bundle there goes away only once the new one is whole."""
    if out.is_dir():
        with hidden(out, OLD) as old:
            out.rename(old / out.name)
            folder.rename(out)
            shutil.rmtree(old)
    else:
        folder.rename(out)
    return out


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """A hidden folder on the same disk as `out`, gone afterwards unless it was renamed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    sweep(out)
    with hidden(out) as folder:
        folder.chmod(0o755)  # mkdtemp's 0700 would keep a server under another user out
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """What the operating system says of a write, as an error that says what to do.

    Raises:
        StorageFull: in place of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise StorageFull(
            f"cannot write the bundle at {out} ({os.strerror(error.errno or 0)}): free space or choose another --out"
        ) from error
