"""Which fits are trained together, and that it makes no difference to any of them."""

import dataclasses
import threading
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.prober.heads import Head
from services.prober.metrics import ProberMetrics
from services.prober.progress import Event, Failed, Trained
from services.prober.registry import Registry
from services.prober.specs import Spec, settings_of
from services.prober.stacks import Part, stacked
from services.prober.trainer import Workshop, train
from services.prober.vectors import Vectors
from servox.errors import NotFound
from servox.telemetry import Metrics
from tests.prober.conftest import BUNDLE, LABELS, LAYER, Corpus


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Shaped:
    """Stands in for a part: all that dealing asks of one."""

    alike: tuple[object, ...]
    stackable: bool
    source: str = ""


@given(
    shapes=st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=80),
    threads=st.integers(1, 8),
    at_once=st.integers(1, 20),
)
def test_every_part_is_in_one_stack_of_its_shape(shapes: list[tuple[int, bool]], threads: int, at_once: int) -> None:
    parts = [cast("Part", Shaped(alike=(shape,), stackable=stackable)) for shape, stackable in shapes]
    stacks = stacked(parts, threads=threads, at_once=at_once)
    assert sorted(map(id, parts)) == sorted(id(part) for stack in stacks for part in stack)
    for stack in stacks:
        assert 1 <= len(stack) <= at_once
        assert len({part.alike for part in stack}) == 1
        assert len(stack) == 1 or all(part.stackable for part in stack)


def test_seeds_of_the_same_clips_are_side_by_side() -> None:
    parts = [cast("Part", Shaped(alike=(), stackable=True, source=f"{n % 5}")) for n in range(20)]
    stacks = stacked(parts, threads=2, at_once=8)
    assert [part.source for stack in stacks for part in stack] == [f"{n // 4}" for n in range(20)]
    assert all(len({part.source for part in stack}) * 4 == len(stack) for stack in stacks), "none is torn apart"


def test_a_hundred_heads_keep_two_threads_equally_busy() -> None:
    parts = [cast("Part", Shaped(alike=(), stackable=True)) for _ in range(100)]
    sizes = [len(stack) for stack in stacked(parts, threads=2, at_once=16)]
    assert len(sizes) % 2 == 0
    assert max(sizes) - min(sizes) <= 1


SMALL = {"hidden": 16, "epochs": 10, "components": 8, "batch": 16}


def spec(url: str, *, settings: dict[str, float] | None = None, **changes: object) -> Spec:
    plain = Spec(
        name="toy",
        kind="mlp",
        bundle=BUNDLE,
        layer=LAYER,
        clip_set_url=url,
        classes=(),
        seed=0,
        calibrate=False,
        settings=settings_of("mlp", {**SMALL, **(settings or {})}),
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def trained(corpus: Corpus, specs: list[Spec], folder: Path, *, threads: int = 2) -> dict[int, Head | Failed]:
    found: dict[int, Head | Failed] = {}

    def report(event: Event) -> None:
        if isinstance(event, Trained):
            found[event.index] = event.head
        elif isinstance(event, Failed):
            found[event.index] = event

    workshop = Workshop(
        registry=Registry(folder),
        vectors=Vectors(1 << 20),
        threads=threads,
        scratch=None,
        metrics=ProberMetrics(Metrics()),
    )
    train(workshop, corpus.store, specs, report=report, stop=threading.Event())
    return found


def head_of(found: dict[int, Head | Failed], index: int) -> Head:
    head = found[index]
    assert isinstance(head, Head)
    return head


def test_a_head_is_the_same_in_a_crowd_and_alone(corpus: Corpus, tmp_path: Path) -> None:
    """Other clips, seeds, settings and numbers of classes beside it; calibrated: its folds are in stacks too."""
    whole, some = corpus.subset(), corpus.subset(speakers=("s0", "s1", "s2", "s4"))
    crowd = [
        spec(whole, calibrate=True),
        spec(whole, seed=1, settings={"learning_rate": 0.002}),
        spec(some, settings={"class_weights": 1.0}),
        spec(some, settings={"epochs": 7, "dropout": 0.0}),
        spec(corpus.subset(labels=LABELS[:2]), calibrate=True, settings={"logit_adjustment": 1.0}),
        spec(whole, settings={"patience": 2}),
    ]
    together = trained(corpus, crowd, tmp_path / "crowd")
    for number, one in enumerate(crowd):
        alone = trained(corpus, [one], tmp_path / f"alone{number}", threads=1)
        assert head_of(together, number).digest == head_of(alone, 0).digest


def test_a_head_that_cannot_be_fitted_fails_alone(corpus: Corpus, tmp_path: Path) -> None:
    specs = [spec(corpus.subset()), spec(corpus.subset(), bundle="cd" * 32), spec(corpus.subset(), seed=3)]
    found = trained(corpus, specs, tmp_path)
    assert isinstance(found[1], Failed)
    assert isinstance(found[1].error, NotFound)
    assert head_of(found, 0).card.seed == 0
    assert head_of(found, 2).card.seed == 3


def test_weights_learned_in_a_subspace_read_whole_embeddings(corpus: Corpus, tmp_path: Path) -> None:
    url = corpus.subset()
    found = trained(corpus, [spec(url), spec(url, settings={"components": 24})], tmp_path)
    truth = np.array([LABELS.index(clip.label) for clip in corpus.clips])
    for index, rank in ((0, 8), (1, 16)):
        head = head_of(found, index)
        assert head.weights["hidden.weight"].shape == (16, corpus.dims)
        assert np.linalg.matrix_rank(head.weights["hidden.weight"], tol=1e-4) == rank
        assert (head.logits(corpus.vectors()).argmax(axis=1) == truth).mean() > 0.6


def test_the_card_says_when_training_stopped_and_how_far_is_far(corpus: Corpus, tmp_path: Path) -> None:
    url = corpus.subset()
    stopping = {"patience": 2, "epochs": 60, "validation": 0.3}
    specs = [
        spec(url, calibrate=True, settings=stopping),
        spec(url),
        spec(url, calibrate=True),
    ]
    biased = settings_of("logistic", {"calibration_bias": 1})
    specs[2] = dataclasses.replace(specs[2], kind="logistic", settings=biased)
    found = trained(corpus, specs, tmp_path)
    early, plain, logistic = (head_of(found, index).card for index in range(3))
    assert early.epoch is not None
    assert 1 <= early.epoch < 60
    assert (plain.epoch, logistic.epoch) == (10, None)
    assert early.novelty_limit is not None
    assert 1 < early.novelty_limit < 4, "clips of speakers unheard lie a little further out than the training's mean 1"
    assert plain.novelty_limit is None, "nobody was held out"
    assert (early.calibration, plain.calibration) == ("temperature", "none")
    assert logistic.calibration == "bias-corrected temperature"
    assert len(logistic.bias) == 3
    assert logistic.out_of_fold is not None
    assert logistic.out_of_fold.brier_after is not None


@pytest.mark.parametrize("calibrate", [True, False])
def test_one_speaker_cannot_stop_early(corpus: Corpus, tmp_path: Path, calibrate: bool) -> None:
    url = corpus.subset(speakers=("s1", "s2") if calibrate else ("s1",))
    found = trained(corpus, [spec(url, calibrate=calibrate, settings={"patience": 2})], tmp_path)
    assert isinstance(found[0], Failed)
    assert "patience = 0" in str(found[0].error)


def test_a_mix_is_exported_as_plain_weights_over_all_layers(corpus: Corpus, tmp_path: Path) -> None:
    """The first two of the three layers of the corpus say nothing; hosting reads all three and knows of no mix."""
    settings = {"layers": 3, "mix": 1, "components": 24, "learning_rate": 0.02, "epochs": 30}
    found = trained(corpus, [spec(corpus.subset(), settings=settings, calibrate=True)], tmp_path)
    head = head_of(found, 0)
    assert head.card.layers == (0, 1, 2)
    into = head.weights["hidden.weight"]
    assert into.shape == (16, 3 * corpus.dims)
    noise, nothing, said = np.split(into, 3, axis=1)
    share = said / noise
    np.testing.assert_allclose(share, np.full_like(share, share[0, 0]), rtol=1e-3)
    assert share[0, 0] > 2
    np.testing.assert_allclose(nothing / noise, (nothing / noise)[0, 0], rtol=1e-3)
    assert head.card.out_of_fold is not None
    assert head.card.out_of_fold.macro_f1 > 0.5
