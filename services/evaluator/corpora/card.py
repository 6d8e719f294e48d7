"""The shape of a corpus card: what one TOML file of this folder may say.

A card holds facts only; the code that reads paths and tables knows no corpus. Three small notations recur:

- *pattern*: a regular expression for the tail of a path without its extension, matched whole and case-insensitively
  on the NFC-normalised POSIX path. Its named groups are fields. `label` is the raw label itself, `code` a code that
  `codes` turns into one; where both are found they must agree.
- *template*: text with `{field}` or `{field:filter}`; filters are `stem`, `int`, `lower` and `num`. In a table's
  templates a field is a column, and `{Clip name|Clip}` takes the first column that the table has.
- *label map*: raw label → unified label (`servox.emotions`), or `unused` for what no class should hold: a missing
  agreement, a speaking style. `paper` is the paper's own map with its faults (for a corpus outside the paper: its
  habits applied), `sound` the corrected one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as default
from typing import Literal

from pydantic import ConfigDict

from servox.emotions import did_you_mean
from servox.errors import BadCorpus

Protocol = Literal["sound", "ser-evals"]
PROTOCOLS: tuple[Protocol, ...] = ("sound", "ser-evals")
UNUSED = "unused"

# An unknown field is a typing error in a card, and a silent one would lose a fact.
STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Licence:
    """Under which terms the corpus is given, who says so, and who says otherwise."""

    __pydantic_config__ = STRICT
    name: str
    source: str
    use: Literal["any", "non-commercial", "research", "restricted", "unstated"]
    redistributable: bool
    conflicts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """One file of a direct download; `sha256` where it is known."""

    __pydantic_config__ = STRICT
    url: str
    sha256: str = ""
    folder: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Obtain:
    """How to get the corpus; `direct` when anyone may fetch `archives` without signing anything."""

    __pydantic_config__ = STRICT
    direct: bool
    how: str
    archives: tuple[Archive, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Audio:
    """What the originals are; copies in another container are read just the same."""

    __pydantic_config__ = STRICT
    format: str
    rates_hz: tuple[int, ...]
    channels: tuple[int, ...] = (1,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """One layout of paths; `fields` are constants that hold for it."""

    __pydantic_config__ = STRICT
    regex: str
    name: str = ""
    fields: Mapping[str, str] = default(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """An annotation table: which files, how to read them, and how a row finds its clip.

    Attributes:
        files: names or globs of the table's files below the corpus root.
        key: template over a row's columns; equal to `join`, a template over a path's fields, for the row's clip.
        columns: field → template over the row's columns.
        line: for `lines`, the pattern of a line that matters; `each` repeats inside it, one row a match.
        optional: the corpus can be read without it.
    """

    __pydantic_config__ = STRICT
    files: tuple[str, ...]
    format: Literal["delimited", "xlsx", "yaml", "json", "textgrid", "lines", "parquet"]
    key: str
    join: str
    columns: Mapping[str, str]
    constants: Mapping[str, str] = default(default_factory=dict)
    delimiter: str = ","
    encodings: tuple[str, ...] = ("utf-8-sig", "cp1252")
    header: tuple[str, ...] = ()
    line: str = ""
    each: str = ""
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """Clips inside long files: rows of a table, written as `file#id@start-end` with times in seconds.

    Attributes:
        table: number of the table among the card's tables.
        file: template over the row's columns for the stem of the audio file.
        id: template over the row's columns; `channel1`, `channel2` name a channel of the file.
        patterns: names of the patterns whose files are cut; others are whole clips.
        protocols: under which protocols files are cut at all.
    """

    __pydantic_config__ = STRICT
    table: int
    file: str
    id: str
    start: str
    end: str
    patterns: tuple[str, ...]
    protocols: tuple[Protocol, ...] = PROTOCOLS


@dataclass(frozen=True, slots=True, kw_only=True)
class Speakers:
    """Who speaks.

    Attributes:
        id: template over a clip's fields; empty where the corpus does not tell.
        reason: why nothing can be speaker-disjoint, no speakers told or only one; empty where it can.
        group: template for the smallest set of clips that shares a voice where speakers are not known.
        count: speakers that the whole corpus holds; 0 where unknown.
        unknown: ids that mean no one.
        female: ids known to be women; `male`, `child` alike.
        ages: id → age in years.
    """

    __pydantic_config__ = STRICT
    id: str = ""
    reason: str = ""
    group: str = ""
    count: int = 0
    unknown: tuple[str, ...] = ()
    female: tuple[str, ...] = ()
    male: tuple[str, ...] = ()
    child: tuple[str, ...] = ()
    ages: Mapping[str, int] = default(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Raw label → unified label under the two protocols; both maps have the same keys."""

    __pydantic_config__ = STRICT
    paper: Mapping[str, str]
    sound: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """Files that are left out: `regex` is searched for in the path."""

    __pydantic_config__ = STRICT
    regex: str
    reason: str
    protocols: tuple[Protocol, ...] = PROTOCOLS


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A published split: by the field `split` of each clip (`parts`: part → values), or by speakers."""

    __pydantic_config__ = STRICT
    name: str
    official: bool
    source: str
    parts: Mapping[str, tuple[str, ...]] = default(default_factory=dict)
    speakers: Mapping[str, tuple[str, ...]] = default(default_factory=dict)
    leak: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many clips the whole corpus holds, and how many of each raw label where that is known."""

    __pydantic_config__ = STRICT
    clips: int
    labels: Mapping[str, int] = default(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """The corpus in the paper: its cluster (0: in domain only) and its class counts."""

    __pydantic_config__ = STRICT
    cluster: int
    counts: Mapping[str, int]
    remark: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A path as the corpus has it, with its raw label and what else follows from it."""

    __pydantic_config__ = STRICT
    path: str
    raw: str
    speaker: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """Everything known about one corpus."""

    __pydantic_config__ = STRICT
    key: str
    name: str  # short, for tables
    title: str
    language: str
    year: int
    kind: Literal["acted", "elicited", "spontaneous", "mixed"]
    citation: str
    url: str
    folders: tuple[str, ...]
    licence: Licence
    obtain: Obtain
    audio: Audio
    patterns: tuple[Pattern, ...]
    speakers: Speakers
    labels: Labels
    counts: Counts
    examples: tuple[Example, ...]
    codes: Mapping[str, str] = default(default_factory=dict)
    genders: Mapping[str, str] = default(default_factory=dict)
    tables: tuple[Table, ...] = ()
    segments: Segments | None = None
    channel_separator: str = ""
    unique: str = ""
    excluded: tuple[Exclusion, ...] = ()
    splits: tuple[Split, ...] = ()
    paper: Paper | None = None
    faults: tuple[str, ...] = ()

    def map_of(self, protocol: Protocol) -> Mapping[str, str]:
        """The label map that a protocol uses."""
        return self.labels.sound if protocol == "sound" else self.labels.paper

    def canonical(self, raw: str) -> str:
        """The card's own spelling of a raw label.

        Raises:
            BadCorpus: the card has no such label.
        """
        known = self.labels.sound
        if raw in known:
            return raw
        found = [label for label in known if label.casefold() == raw.casefold()]
        if found:
            return found[0]
        raise BadCorpus(
            f"{self.key}: unknown label {raw!r}.{did_you_mean(raw, known)} Known labels: {', '.join(known)}. "
            f"Correct the label, or add it to both label maps of the card {self.key}.toml."
        )

    def unify(self, raw: str, protocol: Protocol) -> str | None:
        """The unified label of a raw one, `None` where the protocol uses no class for it.

        Raises:
            BadCorpus: the card has no such label.
        """
        label = self.map_of(protocol)[self.canonical(raw)]
        return None if label == UNUSED else label

    @property
    def table_holds_label(self) -> bool:
        """Whether a path alone cannot tell the label."""
        in_path = any("(?P<label>" in p.regex or "(?P<code>" in p.regex or "label" in p.fields for p in self.patterns)
        return not in_path
