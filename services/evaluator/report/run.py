"""A finished run as the report reads it: the manifest, and the cells grouped into series.

- A series is what one line of a leaderboard stands for: all cells of one protocol, one bundle and one kind of head.
- The folder may hold cells of several protocols and bundles; `run.json` tells of the last run only, so the facts about
  corpora and bundles are taken from the cells too.
- Nothing here is written or computed; scores are in `figures`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from services.evaluator import results
from services.evaluator.corrections import LADDER
from services.evaluator.results import BundleFacts, Cell, CorpusFacts, Manifest

NONE = "none"  # the first rung of the ladder, and the only one in domain


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The cells of one protocol, bundle and kind of head.

    Attributes:
        cells: by (train, test).
        corpora: keys of all corpora that train or test a cell, in the order of the run.
        corrections: names of all corrections of these cells, in the order of the ladder.
    """

    protocol: str
    bundle: BundleFacts
    head: str
    cells: Mapping[tuple[str, str], Cell]
    corpora: tuple[str, ...]
    corrections: tuple[str, ...]

    @property
    def key(self) -> str:
        """Identity within a report."""
        return f"{self.protocol}/{self.bundle['digest'][:12]}/{self.head}"

    @property
    def backbone(self) -> str:
        """Short name of the encoder: the last part of a hub id or of a folder."""
        return Path(self.bundle["source"]).name or self.bundle["family"]

    @property
    def depth(self) -> str:
        """What was read of the encoder."""
        return f"{self.bundle['context']}, layer {self.bundle['layer']}"

    @property
    def pairs(self) -> list[Cell]:
        """Cells whose corpora differ."""
        return [cell for (train, test), cell in self.cells.items() if train != test]

    @property
    def in_domain(self) -> list[Cell]:
        """Cells within one corpus, in the order of the run."""
        return [self.cells[key, key] for key in self.corpora if (key, key) in self.cells]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a folder holds.

    Attributes:
        names: of every corpus, by key.
    """

    folder: Path
    manifest: Manifest
    series: tuple[Series, ...]
    names: Mapping[str, str]

    @property
    def corpora(self) -> list[CorpusFacts]:
        """Facts of every corpus, those of the manifest first."""
        return list(_facts(self.manifest, [cell for one in self.series for cell in one.cells.values()]).values())


def load(folder: Path) -> Run:
    """Reads a run's folder.

    Raises:
        BadInput: no `run.json` in it, or a result that cannot be read or is of a later schema.
    """
    manifest = results.read_manifest(folder)
    cells = list(results.cells(folder))
    facts = _facts(manifest, cells)
    grouped: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        grouped.setdefault((cell["protocol"], cell["bundle"]["digest"], cell["head"]), []).append(cell)
    ordered = sorted(grouped, key=lambda key: _rank(key, manifest))
    return Run(
        folder=folder,
        manifest=manifest,
        series=tuple(_series(grouped[key], order=list(facts)) for key in ordered),
        names={key: fact["name"] or key for key, fact in facts.items()},
    )


def ladder_order(cells: Iterable[Cell]) -> tuple[str, ...]:
    """Corrections in the order of the ladder; those it does not know come last, by name."""
    rungs = list(LADDER)
    found = {name for cell in cells for name in cell["corrections"]}
    return tuple(name for name in rungs if name in found) + tuple(sorted(found - set(rungs)))


def _rank(key: tuple[str, str, str], manifest: Manifest) -> tuple[bool, bool, int, tuple[str, str, str]]:
    """What the manifest tells of comes first, its heads in its order."""
    protocol, digest, head = key
    heads = manifest["heads"]
    return (
        protocol != manifest["protocol"],
        digest != manifest["bundle"]["digest"],
        heads.index(head) if head in heads else len(heads),
        key,
    )


def _series(cells: list[Cell], *, order: list[str]) -> Series:
    first = cells[0]
    used = {key for cell in cells for key in (cell["train"], cell["test"])}
    return Series(
        protocol=first["protocol"],
        bundle=first["bundle"],
        head=first["head"],
        cells={(cell["train"], cell["test"]): cell for cell in cells},
        corpora=tuple(key for key in order if key in used) + tuple(sorted(used - set(order))),
        corrections=ladder_order(cells),
    )


def _facts(manifest: Manifest, cells: list[Cell]) -> dict[str, CorpusFacts]:
    facts = {fact["key"]: fact for fact in manifest["corpora"]}
    for cell in cells:
        for fact in (cell["train_facts"], cell["test_facts"]):
            facts.setdefault(fact["key"], fact)
    return facts
