"""A run's folder with figures like those of a real one, drawn from a seed; nothing of it was ever measured."""

import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.evaluator import results
from services.evaluator.corrections import LADDER
from services.evaluator.results import BundleFacts, Cell, ClassRow, CorpusFacts, Correction, Figure, Floor, Manifest

SEEDS = [0, 1, 2]
CLASSES: dict[str, dict[str, int]] = {
    "emodb": {
        "happiness": 71, "sadness": 62, "disgust": 46, "fear": 69, "anger": 127, "neutral": 79, "boredom": 81,
    },
    "nemo": {"happiness": 749, "sadness": 769, "fear": 736, "surprise": 669, "anger": 749, "neutral": 809},
    "ravdess": {
        "happiness": 192, "sadness": 192, "disgust": 192, "fear": 192, "surprise": 192, "anger": 192, "neutral": 96,
        "calm": 192,
    },
    "turev": {"happiness": 357, "sadness": 493, "anger": 485, "neutral": 400},
    "urdu": {"happiness": 100, "sadness": 100, "anger": 100, "neutral": 100},
}  # fmt: skip
NAMES = {"emodb": "EmoDB", "nemo": "nEMO", "ravdess": "RAVDESS", "turev": "TurEV-DB", "urdu": "URDU"}
LANGUAGES = {"emodb": "German", "nemo": "Polish", "ravdess": "English", "turev": "Turkish", "urdu": "Urdu"}
LICENCES = {
    "emodb": "CC0-1.0",
    "nemo": "CC-BY-NC-SA-4.0",
    "ravdess": "CC-BY-NC-SA-4.0",
    "turev": "CC-BY-4.0",
    "urdu": "",
}
SPEAKERS = {"emodb": 10, "nemo": 9, "ravdess": 24, "turev": 6, "urdu": 38}
SKILL = {"emodb": 0.91, "nemo": 0.62, "ravdess": 0.73, "turev": 0.55, "urdu": 0.60}
GAIN = {"minus-train-prior": 0.0, "oracle-prior": 0.01, "em-prior": -0.07, "mean-probability": 0.08,
        "standardise-16": 0.13, "standardise-64": 0.145, "standardise-all": 0.15}  # fmt: skip
BUNDLE = BundleFacts(
    digest="7c" * 32, source="openai/whisper-base", family="whisper", context="silence:32", blocks=3,
    precision="fp32", layer=3, runtime="openvino",
)  # fmt: skip
PAPER_BUNDLE = {**BUNDLE, "digest": "1f" * 32, "context": "padded", "blocks": 6, "layer": 6}
VERSIONS = {"servox": "0.1.0", "python": "3.11.7", "numpy": "2.3.1", "torch": "2.13.0"}


def build(
    out: Path, *, synthetic: bool = False, paper: bool = False, heads: tuple[str, ...] = ("mlp", "logistic")
) -> Path:
    """Writes `run.json` and all cells below `out`.

    Args:
        synthetic: marks the run as a smoke run.
        paper: adds cells of the paper's protocol, in domain only.
        heads: kinds of heads of the `sound` protocol.
    """
    for head in heads:
        for train in CLASSES:
            for test in CLASSES:
                _write(out, _cell(train, test, head=head, protocol="sound", bundle=BUNDLE))
    for key in ("emodb", "urdu") if paper else ():
        bundle = BundleFacts(**PAPER_BUNDLE)  # type: ignore[typeddict-item]  # a changed copy
        _write(out, _cell(key, key, head="frame-mlp", protocol="ser-evals", bundle=bundle))
    results.write(out / "run.json", manifest(synthetic=synthetic, heads=heads))
    return out


def manifest(*, synthetic: bool = False, heads: tuple[str, ...] = ("mlp", "logistic")) -> Manifest:
    """The manifest of the sample."""
    return Manifest(
        schema=results.SCHEMA,
        protocol="sound",
        created="2026-03-01T14:05:09+00:00",
        seconds=492.4,
        bundle=BUNDLE,
        parity={"max_abs_error": 0.00031, "standardised_cosine": 0.9643, "clips": 24.0},
        corpora=[facts(key) for key in CLASSES],
        refused={
            "turev → thorsten": "turev → thorsten: not a pair of the paper",
            "thorsten": "one speaker: folds by speaker need at least 2; run it under ser-evals",
        },
        warnings=[
            "emodb: wav/03a01Fa.wav: 0.004 s of audio, at least 0.05 s is needed; skipped",
            "ravdess: Actor_08/03-01-02-02-01-01-08.wav: not audio that can be decoded <truncated>; skipped",
        ],
        heads=list(heads),
        seeds=SEEDS,
        versions=VERSIONS,
        synthetic=synthetic,
    )


def facts(key: str) -> CorpusFacts:
    """Facts of a corpus of the sample."""
    clips = sum(CLASSES[key].values())
    return CorpusFacts(
        key=key, name=NAMES[key], language=LANGUAGES[key], licence=LICENCES[key], clips=clips,
        skipped=1 if key in {"emodb", "ravdess"} else 0, speakers=SPEAKERS[key], hours=round(clips * 3.1 / 3600, 3),
        digest=f"{zlib.crc32(key.encode()):08x}" * 8,
    )  # fmt: skip


def _write(out: Path, cell: Cell) -> None:
    results.write(
        results.cell_path(
            out, protocol=cell["protocol"], bundle=cell["bundle"]["digest"], head=cell["head"], train=cell["train"],
            test=cell["test"],
        ),
        cell,
    )  # fmt: skip


def _cell(train: str, test: str, *, head: str, protocol: str, bundle: BundleFacts) -> Cell:
    shared = [label for label in CLASSES[test] if label in CLASSES[train]]
    counts = np.asarray([CLASSES[test][label] for label in shared])
    draw = np.random.default_rng(zlib.crc32(f"{train}{test}{head}".encode()))
    skill = SKILL[test] if train == test else 0.02 + 0.45 * SKILL[test] * SKILL[train] + draw.normal(0, 0.06)
    names = ["none"] if train == test else list(LADDER)
    used = {name: skill + GAIN.get(name, 0.0) * draw.uniform(0.6, 1.4) for name in names}
    return Cell(
        schema=results.SCHEMA, protocol=protocol, head=head, train=train, test=test, classes=shared,
        dropped={label: n for label, n in CLASSES[test].items() if label not in CLASSES[train]},
        corrections={name: _corrected(name, value, shared, counts, draw) for name, value in used.items()},
        floor=_floor(counts, "f1"), floor_uar=_floor(counts, "uar"),
        train_facts=facts(train), test_facts=facts(test), bundle=bundle, heads=["ab" * 32], seeds=SEEDS,
        interval="95 %, 2000 resamples of whole speakers, widened for few speakers",
        split="5 folds, no speaker on both sides" if train == test else "all clips of each corpus",
        versions=VERSIONS,
    )  # fmt: skip


def _corrected(
    name: str, skill: float, labels: list[str], counts: NDArray[np.int_], draw: np.random.Generator
) -> Correction:
    k = len(labels)
    confused = draw.dirichlet(np.full(k, 0.7), size=k)
    rates = np.clip(skill, 0, 0.99) * np.eye(k) + (1 - np.clip(skill, 0, 0.99)) * confused
    table = rates * counts[:, None]
    hits, answered = np.diag(table), table.sum(axis=0)
    f1 = 2 * hits / (counts + answered)
    recall = hits / counts
    return Correction(
        macro_f1=_figure(float(f1.mean()), 0.045, draw),
        uar=_figure(float(recall.mean()), 0.045, draw),
        accuracy=_figure(float(hits.sum() / counts.sum()), 0.04, draw),
        ece=_figure(0.04 + 0.2 * float(draw.random()), 0.02, draw),
        per_class=[
            ClassRow(label=label, clips=int(counts[i]), f1=float(f1[i]), recall=float(recall[i]))
            for i, label in enumerate(labels)
        ],
        confusion=[[float(value) for value in row] for row in table],
        target_clips=LADDER[name].target_clips,
        target_labels=LADDER[name].target_labels,
    )


def _figure(mean: float, half: float, draw: np.random.Generator) -> Figure:
    low, high = mean - half * draw.uniform(0.7, 1.6), mean + half * draw.uniform(0.7, 1.4)
    return Figure(mean=mean, low=max(0.0, low), high=min(1.0, high), per_seed=[mean - 0.01, mean, mean + 0.01])


def _floor(counts: NDArray[np.int_], kind: str) -> Floor:
    share = counts / counts.sum()
    k = len(counts)
    if kind == "uar":
        return Floor(majority=1 / k, uniform=1 / k, prior_matched=1 / k)
    top = float(share.max())
    uniform = float((2 * share / k / (share + 1 / k)).mean())
    return Floor(majority=2 * top / (1 + top) / k, uniform=uniform, prior_matched=1 / k)
