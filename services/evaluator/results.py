"""What a finished cell holds: one JSON file, its path its identity.

    <out>/results/<protocol>/<bundle digest, 12 digits>/<head kind>/<train>→<test>.json

- In domain `train` and `test` are the same corpus, and every clip was scored by a head that never heard its speaker
  (`sound`) or its file (`ser-evals`).
- A cell is written whole or not at all. A run that is started again computes only the cells that are not there.
- Every figure carries its interval (95 %) or says why it has none.
"""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from servox.arrays import storing
from servox.errors import BadInput

SCHEMA = 1


class Figure(TypedDict):
    """One score over all seeds."""

    mean: float  # over the seeds
    low: float | None  # 95 % interval, clustered by speaker; None where it cannot be had
    high: float | None
    per_seed: list[float]


class ClassRow(TypedDict):
    """One class of a cell."""

    label: str
    clips: int  # in the test set
    f1: float | None  # None: neither said nor answered
    recall: float | None  # None: no clip of it


class Correction(TypedDict):
    """Scores after one correction of the ladder."""

    macro_f1: Figure
    uar: Figure
    accuracy: Figure
    ece: Figure
    per_class: list[ClassRow]
    confusion: list[list[float]]  # rows: truth, columns: answer, mean count over the seeds, in the order of `classes`
    target_clips: int  # of the target corpus, used by the correction (0: none, -1: all)
    target_labels: bool  # whether their labels were used


class Floor(TypedDict):
    """What answers without listening would score."""

    majority: float
    uniform: float
    prior_matched: float


class CorpusFacts(TypedDict):
    """What was known of a corpus when it was scored."""

    key: str
    name: str
    language: str
    licence: str
    clips: int  # that were embedded
    skipped: int  # bad clips, left out and reported
    speakers: int | None  # None: the corpus does not say
    hours: float
    digest: str  # of the clip set


class BundleFacts(TypedDict):
    """Which encoder made the embeddings."""

    digest: str
    source: str
    family: str
    context: str
    blocks: int
    precision: str
    layer: int
    runtime: str


class Scored(TypedDict):
    """What scoring gives; the rest of a cell says what was scored."""

    classes: list[str]  # that both corpora have; in domain: all of the corpus
    dropped: dict[str, int]  # clips of the test corpus left out, by label, because the training corpus lacks the class
    corrections: dict[str, Correction]  # by name; in domain only `none`
    floor: Floor  # macro-F1
    floor_uar: Floor
    interval: str  # how intervals were made, or why there are none
    split: str  # how train and test were kept apart


class Cell(Scored):
    """One train corpus scored on one test corpus with one kind of head."""

    schema: int
    protocol: str  # sound, ser-evals
    head: str  # mlp, logistic, frame-mlp
    train: str
    test: str
    train_facts: CorpusFacts
    test_facts: CorpusFacts
    bundle: BundleFacts
    heads: list[str]  # name:version of the heads that answered; a version is a digest of what it was trained from
    seeds: list[int]
    versions: dict[str, str]  # servox and what computes


class Manifest(TypedDict):
    """`run.json` beside `results/`: what was run, and what was left out."""

    schema: int
    protocol: str
    created: str  # ISO 8601, UTC
    seconds: float
    bundle: BundleFacts
    parity: dict[str, float]
    corpora: list[CorpusFacts]
    refused: dict[str, str]  # corpus or pair → why
    warnings: list[str]  # bad clips and other things that were skipped
    heads: list[str]
    seeds: list[int]
    versions: dict[str, str]
    synthetic: bool  # true: a smoke run on generated speech, worth nothing as evidence


def cell_path(out: Path, *, protocol: str, bundle: str, head: str, train: str, test: str) -> Path:
    """Where a cell lies."""
    return out / "results" / protocol / bundle[:12] / head / f"{train}→{test}.json"


def write(path: Path, document: Cell | Manifest) -> None:
    """Writes a document whole or not at all.

    Raises:
        StorageFull: the disk refused.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with storing(str(path)):
        hidden.write_text(json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True) + "\n")
        hidden.replace(path)


def read_cell(path: Path) -> Cell:
    """The cell at `path`.

    Raises:
        BadInput: it is no cell, or of a later schema.
    """
    cell: Cell = _read(path)
    return cell


def read_manifest(out: Path) -> Manifest:
    """The manifest of a run.

    Raises:
        BadInput: there is none in this folder, or it is of a later schema.
    """
    manifest: Manifest = _read(out / "run.json")
    return manifest


def cells(out: Path) -> Iterator[Cell]:
    """Every cell below a run's folder, in the order of their paths."""
    for path in sorted((out / "results").glob("*/*/*/*.json")):
        yield read_cell(path)


def _read(path: Path):  # type: ignore[no-untyped-def]  # noqa: ANN202 -- the caller names the schema
    try:
        document = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise BadInput(f"result {path}: {error}; give the folder of a run, or run it again") from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise BadInput(f"result {path}: not of schema {SCHEMA}; run it again with this version")
    return document
