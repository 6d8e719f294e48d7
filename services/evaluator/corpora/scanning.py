"""Reads a corpus folder: one walk, the tables if there are any, every file parsed; nothing is decoded here.

A clip that cannot be used never ends the scan and is never dropped silently: it is in `skipped` with its reason, and
what a person should look at is in `problems`, alike ones together.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from servox.errors import BadCorpus

from .card import Card, Protocol
from .paths import Parsed, excluded_because, is_audio, normalised, parse_path, printable
from .tables import Tables, read_tables
from .templates import fill, fold

Severity = Literal["note", "warning", "error"]
LFS_MARK = b"version https://git-lfs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One utterance of a corpus.

    Attributes:
        path: relative to the corpus root, with `#id@start-end` for a segment; always printable, unlike `file`.
        file: absolute path of the audio file.
        raw, label: as stored, and unified under the scan's protocol.
        speaker, group: as in `Parsed`; both may be `None`.
        split: part of the official split, where there is one.
    """

    corpus: str
    path: str
    file: Path
    raw: str
    label: str
    speaker: str | None
    group: str | None
    gender: str | None
    age: int | None
    sentence: str | None
    split: str | None
    start_ms: int | None
    end_ms: int | None
    channel: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A file that is no clip under this protocol, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something a person should look at; `error` means that clips or the corpus are lost for want of a correction."""

    severity: Severity
    message: str
    paths: tuple[str, ...] = ()

    def __str__(self) -> str:
        more = f" ({len(self.paths)} files, the first: {self.paths[0]!r})" if len(self.paths) > 1 else ""
        return f"{self.message}{more}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What a corpus folder holds."""

    card: Card
    root: Path
    protocol: Protocol
    clips: tuple[Clip, ...]
    skipped: tuple[Skipped, ...]
    problems: tuple[Problem, ...]

    @property
    def failed(self) -> bool:
        """Whether something loses the corpus or a class of it."""
        return any(problem.severity == "error" for problem in self.problems)


def scan(root: Path, card: Card, *, protocol: Protocol = "sound") -> Scan:
    """Every clip of a corpus folder under a protocol.

    Raises:
        BadCorpus: the folder is not there.
    """
    if not root.is_dir():
        raise BadCorpus(f"{card.key}: no folder {root}. Give the corpus root, which holds {card.examples[0].path!r}.")
    paths = list(walk(root))
    try:
        tables = read_tables(card, root, paths)
    except BadCorpus as problem:
        found = (Problem(severity="error", message=str(problem)),)
        return Scan(card=card, root=root, protocol=protocol, clips=(), skipped=(), problems=found)
    reading = _Reading(card=card, root=root, protocol=protocol, tables=tables)
    for path in paths:
        if is_audio(path):
            reading.read(path)
    return reading.result()


def walk(root: Path) -> Iterator[str]:
    """Relative POSIX paths of the files below a folder, shallow and alphabetical first; hidden ones are left out."""
    found: list[tuple[int, str]] = []
    for folder, names, files in os.walk(root, followlinks=False):
        names[:] = [name for name in names if not name.startswith(".") and name != "__MACOSX"]
        here = Path(folder).relative_to(root).as_posix()
        prefix = "" if here == "." else f"{here}/"
        found += [(prefix.count("/"), prefix + name) for name in files if not name.startswith(".")]
    for _, path in sorted(found):
        yield path


class _Reading:
    """One scan under way."""

    def __init__(self, *, card: Card, root: Path, protocol: Protocol, tables: Tables) -> None:
        self._card = card
        self._root = root
        self._protocol: Protocol = protocol
        self._tables = tables
        self._clips: list[Clip] = []
        self._skipped: list[Skipped] = []
        self._wrong: dict[str, list[str]] = defaultdict(list)
        self._kinds: dict[str, tuple[Severity, str]] = {}
        self._first: dict[str, str] = {}

    def read(self, path: str) -> None:
        reason = excluded_because(self._card, path, self._protocol)
        if reason:
            self._skip(path, reason)
            return
        fault = stub_fault(self._root / path)
        if fault:
            self._lose(path, kind=fault, message=f"{self._card.key}: {path!r} {fault}.")
            return
        for member in self._members(path):
            self._read_clip(member, file=path)

    def _members(self, path: str) -> Iterable[str]:
        rule = self._card.segments
        if rule is None or self._protocol not in rule.protocols:
            return (path,)
        try:
            pattern = parse_path(self._card, path, None, protocol=self._protocol).fields["pattern"]
        except BadCorpus:
            # The label may be in the table alone; the segments then carry it.
            pattern = rule.patterns[0]
        if pattern not in rule.patterns:
            return (path,)
        spans = self._tables.spans.get(fold(Path(path).stem), ())
        if not spans:
            self._skip(path, "a long file of which the table lists no segments")
        return [f"{path}#{span.id}@{span.start}-{span.end}" for span in spans]

    def _read_clip(self, path: str, *, file: str) -> None:
        try:
            parsed = parse_path(self._card, path, self._tables, protocol=self._protocol)
        except BadCorpus as problem:
            self._lose(path, kind=_kind(str(problem), path), message=str(problem))
            return
        label = parsed.label
        if label is None:
            self._skip(path, f"label {parsed.raw!r} stands for no class of {self._protocol!r}")
            return
        original = self._second_copy_of(parsed)
        if original:
            self._skip(path, f"a second copy of {original!r}")
            return
        self._clips.append(_clip(parsed, card=self._card, label=label, file=self._root / file))

    def _second_copy_of(self, parsed: Parsed) -> str | None:
        if not self._card.unique:
            return None
        identity = fill(self._card.unique, {**parsed.fields, "path": normalised(parsed.path)})
        if identity is None:
            return None
        first = self._first.setdefault(identity.casefold(), parsed.path)
        return None if first == parsed.path else first

    def _skip(self, path: str, reason: str) -> None:
        self._skipped.append(Skipped(path=printable(path), reason=printable(reason)))

    def _lose(self, path: str, *, kind: str, message: str) -> None:
        severity: Severity = "error" if "unknown label" in message else "warning"
        self._kinds.setdefault(kind, (severity, message))
        self._wrong[kind].append(path)
        self._skip(path, message)

    def result(self) -> Scan:
        problems = [
            Problem(severity=severity, message=printable(message), paths=tuple(map(printable, self._wrong[kind])))
            for kind, (severity, message) in self._kinds.items()
        ]
        problems = [*_missing_tables(self._card, self._tables), *problems, *self._shortfalls()]
        return Scan(
            card=self._card,
            root=self._root,
            protocol=self._protocol,
            clips=tuple(_agreed_genders(self._clips)),
            skipped=tuple(self._skipped),
            problems=tuple(problems),
        )

    def _shortfalls(self) -> Iterator[Problem]:
        card = self._card
        if not self._clips:
            yield Problem(
                severity="error",
                message=f"{card.key}: no usable clip under {self._root} ({len(self._skipped)} files skipped). "
                f"Expected paths such as {card.examples[0].path!r}. {card.obtain.how}",
            )
            return
        found = {card.canonical(raw) for raw in {clip.raw for clip in self._clips}}
        lacking = [
            raw
            for raw, count in card.counts.labels.items()
            if count and raw not in found and card.unify(raw, self._protocol)
        ]
        if lacking:
            yield Problem(
                severity="error",
                message=f"{card.key}: no clip of {', '.join(map(repr, lacking))} under {self._root}; "
                "the copy is half there. Complete it, or leave the corpus out.",
            )
        expected = expected_clips(card, self._protocol)
        if len(self._clips) < expected:
            yield Problem(
                severity="note",
                message=f"{card.key}: {len(self._clips)} of the {expected} clips of the whole corpus; a subset.",
            )


def expected_clips(card: Card, protocol: Protocol) -> int:
    """Clips that the whole corpus gives a protocol, as far as its card knows."""
    unused = sum(count for raw, count in card.counts.labels.items() if card.unify(raw, protocol) is None)
    return card.counts.clips - unused


def stub_fault(file: Path) -> str:
    """Why a file holds no audio at all, told from its size and first bytes; empty where it may."""
    try:
        size = file.stat().st_size
        if size == 0:
            return "is empty (0 bytes); copy or download it again"
        if size < 1024:
            with file.open("rb") as stream:
                if stream.read(len(LFS_MARK)) == LFS_MARK:
                    return "is a git-lfs pointer, not audio; run `git lfs pull` in the corpus"
    except OSError as problem:
        return f"cannot be read ({problem.strerror}); check its permissions"
    return ""


def _kind(message: str, path: str) -> str:
    return message.replace(repr(path), "…") if repr(path) in message else message


def _missing_tables(card: Card, tables: Tables) -> Iterator[Problem]:
    for name in tables.missing:
        yield Problem(
            severity="error" if card.table_holds_label else "note",
            message=f"{card.key}: no table {name!r} below the corpus folder. Put the original table there.",
        )
    for message in tables.unread:
        yield Problem(severity="note", message=message)


def _clip(parsed: Parsed, *, card: Card, label: str, file: Path) -> Clip:
    return Clip(
        corpus=card.key,
        path=printable(parsed.path),
        file=file,
        raw=parsed.raw,
        label=label,
        speaker=parsed.speaker,
        group=parsed.group,
        gender=parsed.gender,
        age=parsed.age,
        sentence=parsed.sentence,
        split=split_part(card, parsed.split),
        start_ms=parsed.start_ms,
        end_ms=parsed.end_ms,
        channel=parsed.channel,
    )


def split_part(card: Card, told: str | None) -> str | None:
    """The part of the official split that a clip's `split` field stands for."""
    for split in card.splits:
        for part, values in split.parts.items():
            if split.official and told is not None and fold(told) in map(fold, values):
                return part
    return None


def _agreed_genders(clips: Sequence[Clip]) -> Iterator[Clip]:
    """Clips with one gender a speaker, the one most of its clips say (ASED has five speakers with one odd file)."""
    said: dict[str | None, Counter[str]] = defaultdict(Counter)
    for clip in clips:
        if clip.gender is not None:
            said[clip.speaker][clip.gender] += 1
    for clip in clips:
        if clip.speaker is None or len(said[clip.speaker]) < 2:
            yield clip
        else:
            yield replace(clip, gender=said[clip.speaker].most_common(1)[0][0])
