"""`servox heads evaluate`: scores on corpora that a head never heard, with a small encoder and generated speech."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss
from typer.testing import CliRunner

from services import synthesis
from services.cli import build
from services.embedder import bundle as bundles
from services.evaluator.dataset import load
from services.evaluator.protocols import SOUND
from services.judging import judge, scores_of
from services.prober.heads import Head, shapes
from services.prober.promotion import Promotions
from services.prober.registry import Registry
from servox.arrays import LabelledClip, clip_set_digest, write_clip_set
from servox.errors import BadInput, HeadMismatch, NotFound, Refused
from tests.embedder.conftest import tiny_bundle_at
from tests.prober.test_registry import A, head

CLASSES = ("anger", "fear", "happiness", "neutral", "sadness")


def clips_of(labels: list[str], speakers: int) -> list[LabelledClip]:
    return [
        LabelledClip(key=f"{row:064x}", label=label, speaker=f"s{row % speakers}") for row, label in enumerate(labels)
    ]


def test_scores_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(3)
    labels = [str(each) for each in random.choice(["anger", "sadness", "disgust"], size=90)]
    logits = random.normal(size=(90, len(CLASSES)))
    found = scores_of("toy", clips_of(labels, 6), logits, CLASSES)
    kept = [row for row, label in enumerate(labels) if label != "disgust"]
    shared = ["anger", "sadness"]
    columns = logits[kept][:, [CLASSES.index(label) for label in shared]]
    probabilities = np.exp(columns) / np.exp(columns).sum(axis=1, keepdims=True)
    truth, answers = [labels[row] for row in kept], [shared[each] for each in probabilities.argmax(axis=1)]
    assert found.classes == ("anger", "sadness")
    assert (found.clips, found.speakers) == (len(kept), 6)
    assert found.macro_f1 == pytest.approx(f1_score(truth, answers, average="macro"))
    assert found.uar == pytest.approx(balanced_accuracy_score(truth, answers))
    assert found.accuracy == pytest.approx(accuracy_score(truth, answers))
    assert found.nll == pytest.approx(log_loss(truth, probabilities, labels=shared))
    assert found.floor == pytest.approx(0.5)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.macro_f1 <= found.high
    assert "over 6 speakers" in found.interval


def test_one_speaker_gives_no_interval() -> None:
    labels = ["anger", "sadness"] * 5
    found = scores_of("toy", clips_of(labels, 1), np.random.default_rng(0).normal(size=(10, 5)), CLASSES)
    assert (found.low, found.high) == (None, None)
    assert "undefined" in found.interval


def test_a_corpus_that_shares_one_class_is_refused() -> None:
    with pytest.raises(Refused, match="share 1 classes"):
        scores_of("toy", clips_of(["anger", "disgust"] * 5, 2), np.zeros((10, 5)), CLASSES)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    synthesis.write(root)
    return root


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle_at(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture
def home(tmp_path: Path, data: Path, bundle: Path) -> Path:
    """A registry with a head of EmoDB's clips, and a store with its clip set."""
    learned = load(data, protocol=SOUND, wanted=["emodb"]).corpora[0].labelled
    store = tmp_path / "store"
    write_clip_set(f"{store}/sets", learned)
    held = bundles.load(bundle)
    made = head(
        classes=CLASSES,
        class_counts=(18,) * 5,
        bundle=held.digest,
        layer=held.default_layer,
        dims=held.dims,
        clip_set=clip_set_digest(learned),
        store=str(store),
    )
    random = np.random.default_rng(0)
    weights = {n: random.normal(scale=0.1, size=s).astype(np.float32) for n, s in shapes(made.card).items()}
    weights["std"] = np.ones(held.dims, dtype=np.float32)
    Registry(tmp_path / "heads").save(Head(card=made.card, weights=weights))
    return tmp_path


async def test_what_trained_the_head_is_left_out_and_the_rest_is_stored(home: Path, data: Path, bundle: Path) -> None:
    where = {"data": data, "bundle": bundle, "store": str(home / "store"), "heads": home / "heads"}
    evaluation, stored = await judge(f"toy:{A}", **where)  # type: ignore[arg-type]  # of a mapping
    assert [each.key for each in evaluation.corpora] == ["nemo", "ravdess"]
    assert evaluation.left_out == {"emodb": "108 of its 108 clips trained the head"}
    assert {each.key: (each.clips, each.speakers, len(each.classes)) for each in evaluation.corpora} == {
        "nemo": (90, 6, 5),
        "ravdess": (90, 6, 5),
    }
    promotions = Promotions(Registry(home / "heads"))
    assert promotions.evaluation(promotions.entry(f"toy:{A}")) == evaluation
    assert "evaluation.mean_margin" in {result.rule for result in stored.gate}
    again, _ = await judge(f"toy:{A}", **where)  # type: ignore[arg-type]  # of a mapping
    assert again.corpora == evaluation.corpora
    assert [event.action for event in promotions.history("toy")] == ["evaluated", "evaluated"]


async def test_a_head_whose_clip_set_is_gone(
    home: Path, data: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = Registry(home / "heads")
    made = registry.get("toy")
    there = {"store": "memory://nowhere", "version": "b" * 16}
    card = dataclasses.replace(made.card, **there)  # type: ignore[arg-type]  # by name
    registry.save(Head(card=card, weights=made.weights))
    where = {"data": data, "bundle": bundle, "store": str(home / "store"), "heads": home / "heads"}
    evaluation, _ = await judge(f"toy:{'b' * 16}", corpora=["emodb", "nemo"], **where)  # type: ignore[arg-type]
    assert evaluation.left_out == {"emodb": "108 of its 108 clips trained the head"}, "the whole set is known by digest"
    assert "counts as heard only if" in " ".join(capsys.readouterr().err.split())


async def test_what_cannot_be_evaluated(home: Path, data: Path, bundle: Path, tmp_path: Path) -> None:
    where = {"data": data, "bundle": bundle, "store": str(home / "store"), "heads": home / "heads"}
    with pytest.raises(NotFound):
        await judge("nobody:latest", **where)  # type: ignore[arg-type]  # of a mapping
    registry = Registry(home / "heads")
    made = registry.get("toy")
    card = dataclasses.replace(made.card, version="c" * 16, bundle="00" * 32)
    registry.save(Head(card=card, weights=made.weights))
    with pytest.raises(HeadMismatch, match="name the one that it reads"):
        await judge(f"toy:{'c' * 16}", **where)  # type: ignore[arg-type]  # of a mapping


def test_the_command_prints_scores_and_the_gate(
    home: Path, data: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVOX_HOME", str(home))
    arguments = ["heads", "evaluate", "toy:latest", "--data", str(data), "--bundle", str(bundle), "--corpora", "nemo"]
    done = CliRunner().invoke(build(arguments), [*arguments, "--json"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "nemo" in done.stdout
    assert "evaluation.min_corpora" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["head"] == f"toy:{A}"
    bare = ["heads", "evaluate", "toy", *arguments[3:]]
    refused = CliRunner().invoke(build(bare), bare)
    assert isinstance(refused.exception, BadInput)
    assert "evaluate a version" in str(refused.exception)
