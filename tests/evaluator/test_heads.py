from dataclasses import replace

import pytest

from services import synthesis
from services.evaluator import heads
from services.evaluator.dataset import Corpus, load
from services.evaluator.protocols import SER_EVALS, SOUND, Protocol


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("data")
    synthesis.write(folder)
    (found,) = load(folder, protocol=SOUND, wanted=["emodb"]).corpora
    return found


def _plan(corpus: Corpus, protocol: Protocol, seeds: tuple[int, ...]) -> list[heads.Job]:
    splits = {(corpus.key, seed): heads.divide(corpus, protocol, seed) for seed in seeds}
    return heads.plan([corpus], protocol, seeds, splits)


def test_no_speaker_trains_and_is_scored_in_a_fold_of_sound(corpus: Corpus) -> None:
    split = heads.divide(corpus, SOUND, 0)
    assert len(split.folds) == 5
    for fold in split.folds:
        sides = [{corpus.samples[i].clip.speaker for i in side} for side in (fold.train, fold.test)]
        assert not sides[0] & sides[1]


def test_sound_trains_each_fold_and_the_whole_and_ser_evals_the_papers_one_head(corpus: Corpus) -> None:
    sound = _plan(corpus, SOUND, (0, 1))
    assert len(sound) == 2 * 2 * 6
    assert [len(job.clips) for job in sound if job.id.fold == heads.WHOLE] == [108] * 4
    (paper,) = _plan(corpus, SER_EVALS, (34,))
    assert len(paper.clips) == int(0.8 * 108)
    assert len(paper.classes) == 8


def test_only_the_calibrated_head_of_the_first_seed_is_shown_to_those_who_look_for_one(corpus: Corpus) -> None:
    names = {(job.id.seed, job.id.fold): job.name for job in _plan(corpus, SOUND, (0, 1)) if job.id.recipe == "mlp"}
    assert names[0, heads.WHOLE] == "emodb-mlp"
    assert {name for place, name in names.items() if place != (0, heads.WHOLE)} == {"fold.emodb-mlp"}


def test_published_folds_are_used_where_they_keep_speakers_apart(corpus: Corpus) -> None:
    def published(part_of: dict[str, str]) -> Corpus:
        samples = tuple(
            replace(sample, clip=replace(sample.clip, split=part_of[sample.clip.speaker or ""]))
            for sample in corpus.samples
        )
        return replace(corpus, samples=samples)

    speakers = sorted({sample.clip.speaker or "" for sample in corpus.samples})
    apart = published({speaker: "test" if i < 2 else "train" for i, speaker in enumerate(speakers)})
    assert heads.divide(apart, SOUND, 0).rule == "official"
    leaking = replace(
        apart,
        samples=tuple(
            replace(sample, clip=replace(sample.clip, split="test" if i % 2 else "train"))
            for i, sample in enumerate(apart.samples)
        ),
    )
    assert heads.divide(leaking, SOUND, 0).rule == "speakers-shuffled"
