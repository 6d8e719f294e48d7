"""Scores one cell: a corpus on itself by folds, or one corpus's head on another with the ladder of corrections."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from servox.calibration import fit_scaling
from servox.errors import Refused
from servox.priors import softmax
from servox.standardisation import target_statistics
from servox.v1 import common_pb2

from . import corrections, figures, floors, results
from .dataset import Corpus
from .heads import WHOLE, HeadId
from .predictions import Predictor
from .protocols import Protocol
from .scoring import Macro
from .splits import Splits

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """What every cell of a run shares."""

    protocol: Protocol
    predictor: Predictor
    heads: Mapping[HeadId, common_pb2.Head]
    splits: Mapping[tuple[str, int], Splits]
    seeds: Sequence[int]
    bundle: results.BundleFacts
    versions: dict[str, str]

    @property
    def macro(self) -> Macro:
        """Which classes the macro scores average over."""
        return "appearing" if self.protocol.paper_only else "truth"

    def heads_of(self, train: Corpus, test: Corpus, recipe: str) -> list[HeadId]:
        """The heads whose answers a cell is made of.

        Raises:
            Refused: one of them could not be trained.
        """
        whole = WHOLE if self.protocol.needs_speakers else 0
        wanted = [
            HeadId(corpus=train.key, recipe=recipe, seed=seed, fold=fold)
            for seed in self.seeds
            for fold in (range(len(self.splits[train.key, seed].folds)) if train.key == test.key else [whole])
        ]
        missing = [head for head in wanted if head not in self.heads]
        if missing:
            raise Refused(
                f"{train.key} → {test.key} ({recipe}): {len(missing)} of {len(wanted)} heads were not trained"
            )
        return wanted

    async def score(self, train: Corpus, test: Corpus, recipe: str) -> results.Cell:
        """The cell of one pair and one kind of head.

        Raises:
            Refused: the corpora share too few classes, or a head is missing.
        """
        head_ids = self.heads_of(train, test, recipe)
        make = self._in_domain if train.key == test.key else self._across
        scored = await make(train, test, recipe)
        return {
            **scored,
            "schema": results.SCHEMA,
            "protocol": self.protocol.name,
            "head": recipe,
            "train": train.key,
            "test": test.key,
            "train_facts": train.facts(),
            "test_facts": test.facts(),
            "bundle": self.bundle,
            "heads": [f"{self.heads[head].name}:{self.heads[head].version}" for head in head_ids],
            "seeds": list(self.seeds),
            "versions": self.versions,
        }

    async def _in_domain(self, corpus: Corpus, _: Corpus, recipe: str) -> results.Scored:
        classes, clips = corpus.classes(self.protocol), corpus.labelled
        probabilities = np.full((len(self.seeds), len(clips), len(classes)), np.nan)
        for row, seed in enumerate(self.seeds):
            probabilities[row] = await self._out_of_fold(corpus, recipe, seed)
        kept = np.flatnonzero(~np.isnan(probabilities[..., 0]).all(axis=0))
        return self._document(
            corpus,
            kept,
            {"none": probabilities[:, kept]},
            classes=classes,
            dropped=Counter(clips[i].label for i in sorted(set(range(len(clips))) - set(kept))),
            split=_in_domain_split(self.splits[corpus.key, self.seeds[0]]),
        )

    async def _out_of_fold(self, corpus: Corpus, recipe: str, seed: int) -> Array:
        """Probabilities `[n, K]` by the heads that did not hear the clip, NaN for clips in no test part."""
        clips, classes = corpus.labelled, corpus.classes(self.protocol)
        logits = np.full((len(clips), len(classes)), np.nan)
        folds = self.splits[corpus.key, seed].folds
        for number, fold in enumerate(folds):
            head = self.heads[HeadId(corpus=corpus.key, recipe=recipe, seed=seed, fold=number)]
            answer = await self.predictor.logits(head, [clips[i] for i in fold.test])
            logits[fold.test] = answer.logits[0]
        if not self.protocol.needs_speakers:
            return _softmax_rows(logits)
        index = {label: i for i, label in enumerate(classes)}
        truth = np.asarray([index[clip.label] for clip in clips])
        scaled = logits.copy()
        for fold in folds:
            # The temperature of a fold comes from the other folds' speakers, so its calibration is out of fold as well.
            others = np.setdiff1d(np.flatnonzero(~np.isnan(logits[:, 0])), fold.test)
            scaling = fit_scaling(logits[others], truth[others], biased=False)
            scaled[fold.test] = scaling.apply(logits[fold.test])
        return _softmax_rows(scaled)

    async def _across(self, train: Corpus, test: Corpus, recipe: str) -> results.Scored:
        head_classes = train.classes(self.protocol)
        support = self._support(train, test)
        labels = [sample.clip.label for sample in test.samples]
        restriction = corrections.restrict(labels, support)
        ladder = await self._ladder(train, test, recipe, restriction.kept, [head_classes.index(c) for c in support])
        return self._document(
            test,
            restriction.kept,
            ladder,
            classes=support,
            dropped=Counter(restriction.dropped),
            split="trained on the whole of one corpus, scored on the whole of another"
            if self.protocol.needs_speakers
            else "trained on 80 % of one corpus by utterance, scored on the whole of another",
        )

    def _support(self, train: Corpus, test: Corpus) -> list[str]:
        if self.protocol.paper_only:
            return [label for label in train.classes(self.protocol) if label != corrections.OTHER]
        held = {sample.clip.label for sample in test.samples}
        return list(corrections.shared_support(train.classes(self.protocol), sorted(held)))

    async def _ladder(
        self, train: Corpus, test: Corpus, recipe: str, kept: NDArray[np.intp], support: Sequence[int]
    ) -> dict[str, Array]:
        """Probabilities `[repeats, kept, support]` of each correction."""
        draws = self._draws(test)
        statistics = self._statistics(test, draws)
        rows: dict[str, list[Array]] = {}
        whole = WHOLE if self.protocol.needs_speakers else 0
        for seed in self.seeds:
            head = self.heads[HeadId(corpus=train.key, recipe=recipe, seed=seed, fold=whole)]
            answer = await self.predictor.logits(head, test.labelled, statistics=statistics)
            logits = answer.calibrated if self.protocol.needs_speakers else answer.logits
            for rung in corrections.ladder(self.protocol.name):
                for variant, drawn in _variants(rung, draws):
                    adjusted = corrections.apply(
                        rung.name,
                        logits[variant][kept],
                        protocol=self.protocol.name,
                        support=support,
                        train_counts=_counts(train, answer.classes),
                        target_counts=_counts(test, answer.classes),
                    )
                    posterior = softmax(adjusted)[:, support]
                    posterior[np.isin(kept, drawn)] = np.nan
                    rows.setdefault(rung.name, []).append(posterior)
        return {name: np.stack(each) for name, each in rows.items()}

    def _draws(self, test: Corpus) -> dict[str, list[NDArray[np.intp]]]:
        """Calibration clips of each standardising rung that the target is large enough for; empty: all of them."""
        found: dict[str, list[NDArray[np.intp]]] = {}
        for rung in corrections.ladder(self.protocol.name):
            if rung.standardises and rung.target_clips < 0:
                found[rung.name] = [np.empty(0, dtype=np.intp)]
            elif rung.standardises and len(test.samples) >= 2 * rung.target_clips:
                found[rung.name] = corrections.calibration_draws(len(test.samples), size=rung.target_clips)
        return found

    def _statistics(self, test: Corpus, draws: Mapping[str, list[NDArray[np.intp]]]) -> list[tuple[Array, Array]]:
        if not draws:
            return []
        embeddings = self.predictor.embeddings(test.labelled)
        return [
            target_statistics(embeddings, drawn if drawn.size else None) for each in draws.values() for drawn in each
        ]

    def _document(
        self,
        test: Corpus,
        kept: NDArray[np.intp],
        probabilities: Mapping[str, Array],
        *,
        classes: Sequence[str],
        dropped: Counter[str],
        split: str,
    ) -> results.Scored:
        samples = [test.samples[i] for i in kept]
        labels = [sample.clip.label for sample in samples]
        speakers = [sample.clip.speaker or "" for sample in samples]
        ladder, said = {}, ""
        for name, rows in probabilities.items():
            ladder[name], about = figures.report(
                name, rows, labels=labels, speakers=speakers, classes=classes, seeds=len(self.seeds), macro=self.macro
            )
            said = said or about
        counts = [labels.count(label) for label in classes]
        floor = floors.floors(counts, answerable=np.ones(len(classes), dtype=bool))
        return {
            "classes": list(classes),
            "dropped": dict(sorted(dropped.items())),
            "corrections": ladder,
            "floor": _floor(floor, "macro_f1"),
            "floor_uar": _floor(floor, "uar"),
            "interval": said,
            "split": split,
        }


def _variants(
    rung: corrections.Correction, draws: Mapping[str, list[NDArray[np.intp]]]
) -> list[tuple[int, NDArray[np.intp]]]:
    """Which variant of the logits a rung reads, with the clips that are then not scored."""
    if not rung.standardises:
        return [(0, np.empty(0, dtype=np.intp))]
    first = 1
    for name, each in draws.items():
        if name == rung.name:
            return [(first + i, drawn) for i, drawn in enumerate(each)]
        first += len(each)
    return []


def _counts(corpus: Corpus, classes: Sequence[str]) -> list[int]:
    counted = Counter(sample.clip.label for sample in corpus.samples)
    return [counted[label] for label in classes]


def _softmax_rows(logits: Array) -> Array:
    known = ~np.isnan(logits).any(axis=1)
    probabilities = np.full_like(logits, np.nan)
    probabilities[known] = softmax(logits[known])
    return probabilities


def _floor(floor: floors.Floors, score: str) -> results.Floor:
    return results.Floor(
        majority=getattr(floor.majority, score),
        uniform=getattr(floor.uniform, score),
        prior_matched=getattr(floor.matched, score),
    )


def _in_domain_split(splits: Splits) -> str:
    said = {
        "random-by-utterance": "80 % of the clips train, 20 % are scored, at random: speakers are on both sides",
        "official": "the corpus's published folds, which keep speakers apart",
    }
    return said.get(splits.rule, f"{len(splits.folds)} speaker-disjoint folds ({splits.rule})")
