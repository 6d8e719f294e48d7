"""Is the exported graph right? Measured against transformers before a bundle may exist, on real speech if possible.

Three figures:

- `hidden`: the graph in float32 by ONNX Runtime, in a batch of mixed lengths, against transformers run clip by clip
  under the same context policy: the largest absolute error over the default layer's frames and over every layer's mean
  and standard deviation, each layer divided by the standard deviation of all its values ("unit scale").
- `precision`: the clips' mean vectors as the bundle's own runtime and precision compute them, against the reference:
  RMS error over clips and dimensions, each dimension divided by its standard deviation between clips ("spread").
- `context`: how close the policy comes to the padded encoder: cosine between the clips' mean vectors under both, after
  each dimension of each is standardised over the clips (the raw cosine flatters: a common offset dominates it).
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.embedder.bundle import Figure, Precision
from services.embedder.contexts import Context
from services.embedder.runtimes import Result, Runtime
from services.embedder.speechlike import speechlike
from servox import audio
from servox.errors import BadAudio, BadSetting, TooLarge

Samples = NDArray[np.float32]
States = Samples | list[Samples]
"""One clip's own frames of every layer: [layers, T, d], or [T, d] each where layers differ in T."""

CLIPS = 16  # a standardised cosine needs about this many
FEW_CLIPS = 8  # enough where no cosine is asked for, and the padded encoder is slow
BATCH = 4
SUFFIXES = {".wav", ".flac", ".ogg", ".mp3", ".m4a"}
LIMITS = audio.Limits(min_duration_ms=300, max_duration_ms=10_000)

HIDDEN_BOUND = 1e-3
PRECISION_BOUNDS: dict[Precision, float] = {"fp32": 1e-3, "bf16": 0.05, "fp16": 0.05, "int8": 0.10}
HALF_DEPTH_COSINE = 0.9
DEEP_COSINE = 0.6  # deeper blocks have seen more of the difference; .77 at the last layer of whisper-base


@dataclass(frozen=True, slots=True, kw_only=True)
class Clips:
    """What parity is measured on; `origin` says what it is in words."""

    samples: tuple[Samples, ...]
    origin: str

    def batches(self) -> Iterator[tuple[slice, NDArray[np.float32], NDArray[np.int64]]]:
        """Batches of mixed lengths, padded with noise: a graph that looks beyond a clip's end must fail here."""
        rng = np.random.default_rng(0)
        for start in range(0, len(self.samples), BATCH):
            part = self.samples[start : start + BATCH]
            lengths = np.array([len(clip) for clip in part], np.int64)
            pcm = rng.normal(0, 0.1, (len(part), int(lengths.max()))).astype(np.float32)
            for row, clip in zip(pcm, part, strict=True):
                row[: len(clip)] = clip
            yield slice(start, start + len(part)), pcm, lengths


def gather(paths: Sequence[Path], data_root: Path | None, rate_hz: int, *, count: int = CLIPS) -> Clips:
    """About `count` clips from `paths` (files or folders), else from `data_root`/corpora, else speech-like signals.

    Raises:
        BadSetting: when `paths` are given and hold too little audio.
    """
    if paths:
        samples = _decode_some([_files(path) for path in paths], rate_hz, count)
        if len(samples) < 2:
            raise BadSetting(f"--clips gave {len(samples)} readable clips: give at least 2, from 0.3 s to 10 s long")
        return Clips(samples=samples, origin=f"{len(samples)} given clips")
    corpora = sorted((data_root / "corpora").iterdir()) if data_root and (data_root / "corpora").is_dir() else []
    samples = _decode_some([_files(folder) for folder in corpora], rate_hz, count)
    if len(samples) >= count // 2:
        return Clips(samples=samples, origin=f"{len(samples)} clips of {', '.join(c.name for c in corpora)}")
    made = tuple(speechlike(seed, duration_s=0.8 + 0.4 * seed, rate_hz=rate_hz) for seed in range(count))
    return Clips(samples=made, origin=f"{len(made)} synthesised signals")


def hidden(runtime: Runtime, clips: Clips, states: Sequence[States]) -> Figure:
    """The `hidden` figure of a float32 runtime against the reference's `states`, [layers, T, d] a clip."""
    scale = np.sqrt(np.mean([[layer.var() for layer in state] for state in states], axis=0))
    worst = 0.0
    for part, result in _run(runtime, clips, frames=True):
        worst = max(worst, *(_worst(result, row, state, scale) for row, state in enumerate(states[part])))
    return Figure(name="hidden", value=worst, bound=HIDDEN_BOUND)


def precision(runtime: Runtime, clips: Clips, states: Sequence[States], kind: Precision) -> Figure:
    """The `precision` figure of the bundle's own runtime."""
    expected = np.stack([state[-1].mean(axis=0) for state in states])
    actual = np.concatenate([result.statistics[:, -1, 0] for _, result in _run(runtime, clips, frames=False)])
    spread = expected.std(axis=0) + 1e-12
    error = float(np.sqrt(np.mean(((actual - expected) / spread) ** 2)))
    return Figure(name="precision", value=error, bound=PRECISION_BOUNDS[kind])


def engine(runtime: Runtime, reference: Runtime, clips: Clips) -> Figure:
    """The `precision` figure of an engine built ahead, against the same bundle run by ONNX Runtime."""
    actual, expected = (
        np.concatenate([result.statistics[:, -1, 0] for _, result in _run(each, clips, frames=False)])
        for each in (runtime, reference)
    )
    error = float(np.sqrt(np.mean(((actual - expected) / (expected.std(axis=0) + 1e-12)) ** 2)))
    return Figure(name=runtime.name, value=error, bound=PRECISION_BOUNDS["fp16"])


def context(states: Sequence[States], padded: Sequence[States], bound: float | None) -> Figure:
    """The `context` figure between the policy's and the padded encoder's reference states."""
    ours, theirs = (_standardised([state[-1].mean(axis=0) for state in each]) for each in (states, padded))
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return Figure(name="context", value=float(np.mean((ours * theirs).sum(axis=1) / norms)), bound=bound, at_most=False)


def context_bound(policy: Context, *, blocks: int, all_blocks: int) -> float | None:
    """What `context` must reach: only silence tokens claim to stand for the padding; others are reported."""
    if not policy.compressed:
        return None
    return HALF_DEPTH_COSINE if 2 * blocks <= all_blocks + 1 else DEEP_COSINE


def _run(runtime: Runtime, clips: Clips, *, frames: bool) -> Iterator[tuple[slice, Result]]:
    for part, pcm, lengths in clips.batches():
        yield part, runtime.run(pcm, lengths, frames=frames)


def _worst(result: Result, row: int, state: States, scale: Samples) -> float:
    pooled = np.stack([[layer.mean(axis=0), layer.std(axis=0)] for layer in state])
    by_layer = np.abs(result.statistics[row] - pooled).max(axis=(1, 2)) / scale
    by_frame = np.inf
    if result.frames is not None:
        by_frame = np.abs(result.frames[row, : len(state[-1])] - state[-1]).max() / scale[-1]
    # A NaN must count as the worst error, not vanish in a comparison.
    return float(np.nan_to_num(np.max([by_frame, *by_layer]), nan=np.inf))


def _standardised(means: list[Samples]) -> Samples:
    matrix = np.stack(means)
    return np.asarray((matrix - matrix.mean(axis=0)) / (matrix.std(axis=0) + 1e-12), np.float32)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)


def _decode_some(groups: Sequence[list[Path]], rate_hz: int, count: int) -> tuple[Samples, ...]:
    """At most `count` clips, taken from the groups in turn, spread evenly over each."""
    groups = [group for group in groups if group]
    share = -(-count // len(groups)) if groups else 0
    spread = [group[(step := max(1, len(group) // share)) // 2 :: step][:share] for group in groups]
    in_turn = [file for files in zip_longest(*spread) for file in files if file is not None]
    found: list[Samples] = []
    for file in in_turn[:count]:
        with suppress(BadAudio, TooLarge):
            found.append(audio.decode(file.read_bytes(), rate_hz, LIMITS).samples)
    return tuple(found)
