"""Speech of one's own as a training set: a folder or a table of clips, and what is wrong with it before it is used.

- A folder holds a folder for each emotion, and in that one for each speaker (`anger/anna/01.wav`), or the clips
  themselves where speakers are unknown.
- A table (CSV or Parquet) has the columns path, label and, where known, speaker; paths are relative to the table.
- Every clip is decoded as the embedder will decode it, and everything that is wrong is said at once: a fault that
  costs a clip, and one that makes the whole set useless.
- Labels are of the vocabulary of `servox.emotions` unless any label is asked for.
"""

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from servox import audio
from servox.emotions import CLASSES, did_you_mean
from servox.errors import BadCorpus, ServoxError

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".mp4", ".webm", ".avi", ".aiff", ".aif", ".au")
COLUMNS = ("path", "label", "speaker")
SHOWN = 3  # paths of one finding
WORKERS = 4

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A clip as its owner describes it; empty where nothing is said."""

    path: Path
    label: str
    speaker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnClip:
    """A clip that can be learned from; the key is the sha256 of its file."""

    path: Path
    label: str
    speaker: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something wrong.

    Attributes:
        severity: an error stops a training; a warning says what it will be worth.
        what: in words.
        paths: of the clips that it concerns; empty where it concerns the set.
    """

    severity: Severity
    what: str
    paths: tuple[Path, ...] = ()

    def __str__(self) -> str:
        if not self.paths:
            return self.what
        shown = ", ".join(str(path) for path in self.paths[:SHOWN])
        more = f" and {len(self.paths) - SHOWN} more" if len(self.paths) > SHOWN else ""
        return f"{len(self.paths)} × {self.what}: {shown}{more}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What is left of a set, and what was found on the way."""

    clips: tuple[OwnClip, ...]
    findings: tuple[Finding, ...]

    @property
    def usable(self) -> bool:
        """Whether nothing stands against a training."""
        return not any(finding.severity == "error" for finding in self.findings)


def read(source: Path) -> list[Row]:
    """The clips of a folder or a table, in a fixed order.

    Raises:
        BadCorpus: it is not there, holds no clip, or is no table with the columns that are needed.
    """
    if source.is_dir():
        rows = list(_folder(source))
    elif source.suffix.lower() in (".csv", ".parquet"):
        rows = _table(source)
    else:
        raise BadCorpus(f"{source}: give a folder, a .csv or a .parquet file that is there")
    if not rows:
        raise BadCorpus(
            f"{source}: no clips; a folder holds EMOTION/SPEAKER/clip.wav or EMOTION/clip.wav, "
            "a table the columns path, label, speaker"
        )
    return rows


def _folder(root: Path) -> Iterator[Row]:
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if path.suffix.lower() in SUFFIXES and path.is_file() and not any(part.startswith(".") for part in parts):
            label = parts[0] if len(parts) > 1 else ""
            yield Row(path=path, label=label, speaker=parts[1] if len(parts) > 2 else "")


def _table(file: Path) -> list[Row]:
    try:
        records = _parquet(file) if file.suffix.lower() == ".parquet" else _csv(file)
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowInvalid) as error:
        raise BadCorpus(
            f"{file}: cannot be read as a table ({error}); write it again as UTF-8 CSV or Parquet"
        ) from None
    held = set(records[0]) if records else set(COLUMNS)
    if missing := [name for name in ("path", "label") if name not in held]:
        raise BadCorpus(f"{file}: has no column {' and none '.join(missing)} (it has {', '.join(sorted(held))})")
    found = ([str(record.get(name) or "").strip() for name in COLUMNS] for record in records)
    return [Row(path=file.parent / path, label=label, speaker=speaker) for path, label, speaker in found]


def _parquet(file: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = pq.read_table(file).to_pylist()
    return found


def _csv(file: Path) -> list[dict[str, object]]:
    with file.open(newline="", encoding="utf-8-sig") as lines:
        return [dict(record) for record in csv.DictReader(lines)]


def check(
    rows: Sequence[Row],
    *,
    rate_hz: int,
    limits: audio.Limits,
    any_label: bool = False,
    skip_bad: bool = False,
    tick: Callable[[], None] = lambda: None,
) -> Checked:
    """Looks at every clip and at the set as a whole.

    Args:
        rows: of `read`.
        rate_hz: of the bundle that will embed them.
        limits: likewise.
        any_label: accept labels outside the vocabulary.
        skip_bad: clips with a fault are left out with a warning; otherwise they are errors.
        tick: called after each clip.
    """
    severity: Severity = "warning" if skip_bad else "error"
    faults: dict[str, list[Path]] = defaultdict(list)
    good: list[OwnClip] = []
    for clip, fault in _looked_at(rows, rate_hz, limits, any_label=any_label):
        tick()
        if isinstance(clip, OwnClip) and not fault:
            good.append(clip)
        else:
            faults[fault].append(clip.path)
    clips, copies = _without_copies(good)
    found = [Finding(severity=severity, what=what, paths=tuple(paths)) for what, paths in faults.items()]
    return Checked(clips=tuple(clips), findings=(*found, *copies, *_set_findings(clips)))


def _looked_at(
    rows: Sequence[Row], rate_hz: int, limits: audio.Limits, *, any_label: bool
) -> Iterator[tuple[Row | OwnClip, str]]:
    def look(row: Row) -> tuple[Row | OwnClip, str]:
        label, fault = _label(row.label, any_label=any_label)
        if fault:
            return row, fault
        try:
            data = row.path.read_bytes()
            audio.decode(data, rate_hz, limits)
        except OSError as error:
            return row, f"cannot be opened ({error.strerror})"
        except ServoxError as error:
            return row, str(error)
        key = hashlib.sha256(data).hexdigest()
        return OwnClip(path=row.path, label=label, speaker=row.speaker, key=key), ""

    with ThreadPoolExecutor(WORKERS, "servox-check") as pool:
        yield from pool.map(look, rows)


def _label(label: str, *, any_label: bool) -> tuple[str, str]:
    """The label as it will be used, and what is wrong with it."""
    if not label:
        return "", "no label"
    folded = label.casefold()
    if any_label or folded in CLASSES:
        return (label if any_label else folded), ""
    hint = did_you_mean(label, CLASSES)
    return "", f"unknown label {label!r}.{hint} Rename it, or accept any label"


def _without_copies(clips: Iterable[OwnClip]) -> tuple[list[OwnClip], list[Finding]]:
    """One clip of each content: copies could stand on both sides of a split, and copies that disagree teach nothing."""
    groups: dict[str, list[OwnClip]] = defaultdict(list)
    for clip in clips:
        groups[clip.key].append(clip)
    copies, quarrels, kept = list[Path](), list[Path](), list[OwnClip]()
    for group in groups.values():
        if len({(clip.label, clip.speaker) for clip in group}) > 1:
            quarrels += [clip.path for clip in group]
        else:
            kept.append(group[0])
            copies += [clip.path for clip in group[1:]]
    found = []
    if quarrels:
        what = "the same audio under different labels or speakers"
        found.append(Finding(severity="error", what=what, paths=tuple(quarrels)))
    if copies:
        what = "a copy of another clip, left out"
        found.append(Finding(severity="warning", what=what, paths=tuple(copies)))
    return kept, found


def _set_findings(clips: Sequence[OwnClip]) -> list[Finding]:
    """What is wrong with the set as a whole."""
    counts = Counter(clip.label for clip in clips)
    speakers: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        speakers[clip.label].add(clip.speaker)
    found = [_error(f"class {label!r} has one clip; add some or drop it") for label, n in counts.items() if n == 1]
    if len(counts) < 2:
        held = f"one class ({next(iter(counts))!r})" if counts else "no clip"
        found.append(_error(f"{held} is left; a head needs at least two classes"))
    unnamed = tuple(clip.path for clip in clips if not clip.speaker)
    if unnamed:
        what = "no speaker is named; scores are then by clip and flatter, since the head knows the voices"
        found.append(Finding(severity="warning", what=what, paths=unnamed))
    elif len(named := {clip.speaker for clip in clips}) == 1:
        found.append(_error(f"all clips are of one speaker ({named.pop()!r}); a head is scored on speakers unheard"))
    else:
        alone = sorted(label for label in speakers if len(speakers[label]) == 1)
        found += [_warning(f"class {label!r} has one speaker, so it cannot be scored on others") for label in alone]
    return found


def _error(what: str) -> Finding:
    return Finding(severity="error", what=what)


def _warning(what: str) -> Finding:
    return Finding(severity="warning", what=what)
