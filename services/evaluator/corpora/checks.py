"""Checks a corpus copy: every file decoded, counts set beside those of the card.

Decoding is done here and not in the scan: a benchmark run decodes each clip once anyway, where it embeds it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf

from .card import Card, Protocol
from .paths import printable
from .scanning import Problem, Scan, expected_clips, scan

MIN_DURATION_S = 0.05
# A copy that loses more than this share of its clips is not the corpus any more.
MAX_LOST_SHARE = 0.1
_SNDFILE = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".sph"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A scan, and what decoding and counting added to it.

    Attributes:
        problems: those of the scan and those found by decoding.
        decoded: files that were decoded.
        classes: unified label → (found, expected); expected is 0 where the card does not know.
        speakers: speaker → clips; clips without speaker are under `None`.
    """

    scan: Scan
    problems: tuple[Problem, ...]
    decoded: int
    classes: Mapping[str, tuple[int, int]]
    speakers: Mapping[str | None, int]

    @property
    def failed(self) -> bool:
        """Whether something loses the corpus or a class of it."""
        return any(problem.severity == "error" for problem in self.problems)


def check(
    root: Path,
    card: Card,
    *,
    protocol: Protocol = "sound",
    decode: bool = True,
    progress: Callable[[Iterable[str], int], Iterable[str]] | None = None,
) -> Check:
    """Scan a corpus folder, decode its files, and compare with the card.

    Args:
        root: the corpus folder.
        card: the corpus card.
        protocol: whose label map and exclusions apply.
        decode: whether files are decoded at all.
        progress: wraps the stream of faults, given their number, to show how far the decoding is.

    Raises:
        BadCorpus: the folder is not there.
    """
    found = scan(root, card, protocol=protocol)
    files = sorted({clip.file for clip in found.clips}) if decode else []
    problems = [*found.problems, *_decode_all(card, root, files, progress)]
    return Check(
        scan=found,
        problems=tuple(problems),
        decoded=len(files),
        classes=_classes(found),
        speakers=Counter(clip.speaker for clip in found.clips),
    )


def audio_fault(file: Path) -> str:
    """Why a file cannot be used as a clip; empty where it can.

    Formats of libsndfile are decoded whole; others are opened with PyAV where that is installed.
    """
    try:
        if file.suffix.lower() in _SNDFILE:
            return _sndfile_fault(file)
        return _container_fault(file)
    except (OSError, RuntimeError, ValueError) as problem:
        return f"cannot be decoded ({problem})"


def _sndfile_fault(file: Path) -> str:
    peak, frames = 0.0, 0
    with sf.SoundFile(str(file)) as sound:
        promised, rate_hz = sound.frames, sound.samplerate
        for block in sound.blocks(blocksize=1 << 18, dtype="float32", always_2d=True):
            if not np.isfinite(block).all():
                return "holds values that are not finite"
            peak = max(peak, float(np.abs(block).max(initial=0.0)))
            frames += len(block)
    if frames == 0:
        return "holds no samples"
    if frames < promised:
        return f"is truncated: {frames} of {promised} samples"
    if frames < MIN_DURATION_S * rate_hz:
        return f"lasts {frames / rate_hz:.3f} s; at least {MIN_DURATION_S} s are needed"
    return "is silent throughout" if peak == 0.0 else ""


def _container_fault(file: Path) -> str:
    try:
        import av
    except ImportError:
        return ""
    with av.open(str(file)) as container:
        if not container.streams.audio:
            return "has no audio stream"
        for frame in container.decode(audio=0):
            if frame.samples:
                return ""
    return "holds no samples"


def _decode_all(
    card: Card,
    root: Path,
    files: list[Path],
    progress: Callable[[Iterable[str], int], Iterable[str]] | None,
) -> list[Problem]:
    with ThreadPoolExecutor() as pool:
        faults: Iterable[str] = pool.map(audio_fault, files)
        if progress is not None:
            faults = progress(faults, len(files))
        bad = [
            (printable(file.relative_to(root).as_posix()), fault)
            for file, fault in zip(files, faults, strict=True)
            if fault
        ]
    problems = [
        Problem(severity="warning", message=f"{card.key}: {path!r} {fault}; it will be skipped.", paths=(path,))
        for path, fault in bad
    ]
    if files and len(bad) > MAX_LOST_SHARE * len(files):
        message = f"{card.key}: {len(bad)} of {len(files)} files cannot be used. Download the corpus again."
        problems.append(Problem(severity="error", message=message, paths=tuple(path for path, _ in bad)))
    return problems


def _classes(found: Scan) -> dict[str, tuple[int, int]]:
    expected: Counter[str] = Counter()
    for raw, count in found.card.counts.labels.items():
        label = found.card.unify(raw, found.protocol)
        if label is not None:
            expected[label] += count
    have = Counter(clip.label for clip in found.clips)
    return {label: (have[label], expected[label]) for label in sorted({*have, *expected})}


def shortfall(found: Scan) -> str:
    """How many clips of the whole corpus are there, in words."""
    expected = expected_clips(found.card, found.protocol)
    return f"{len(found.clips)} clips" + (f" of {expected}" if expected else "")
