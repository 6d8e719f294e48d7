import shutil
from pathlib import Path

import pytest

from services import synthesis
from services.evaluator.dataset import Corpus, load
from services.evaluator.protocols import SER_EVALS, SOUND
from servox.emotions import PAPER_CLASSES
from servox.errors import BadCorpus


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    synthesis.write(folder)
    return folder


def _corpus(root: Path, key: str) -> Corpus:
    (corpus,) = load(root, protocol=SOUND, wanted=[key]).corpora
    return corpus


def test_a_clip_is_named_by_the_digest_of_its_bytes(root: Path, tmp_path: Path) -> None:
    moved = tmp_path / "corpora" / "EmoDB"
    shutil.copytree(root / "corpora" / "EmoDB", moved)
    here, there = _corpus(root, "emodb"), _corpus(tmp_path, "emodb")
    assert {sample.key for sample in here.samples} == {sample.key for sample in there.samples}
    assert here.facts()["digest"] == there.facts()["digest"]


def test_a_byte_for_byte_copy_is_left_out_under_sound_and_said(root: Path, tmp_path: Path) -> None:
    wav = tmp_path / "corpora" / "EmoDB" / "wav"
    shutil.copytree(root / "corpora" / "EmoDB" / "wav", wav)
    shutil.copy(wav / "03a01Na.wav", wav / "03a01Nb.wav")
    dataset = load(tmp_path, protocol=SOUND)
    assert len(dataset.corpora[0].samples) == 108
    assert dataset.corpora[0].skipped == 1
    assert "byte for byte" in " ".join(dataset.warnings)
    assert len(load(tmp_path, protocol=SER_EVALS).corpora[0].samples) == 109


def test_classes_are_the_corpuss_own_under_sound_and_the_papers_eight_under_ser_evals(root: Path) -> None:
    corpus = _corpus(root, "emodb")
    assert corpus.classes(SOUND) == ["happiness", "sadness", "fear", "anger", "neutral", "boredom"]
    assert corpus.classes(SER_EVALS) == list(PAPER_CLASSES)


def test_bad_clips_are_counted_as_skipped(root: Path) -> None:
    corpus = _corpus(root, "ravdess")
    left = corpus.without({corpus.samples[0].key})
    assert (len(left.samples), left.skipped) == (107, 1)


def test_a_corpus_without_speakers_is_refused_by_sound_with_the_reason(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "corpora", tmp_path / "corpora")
    folder = tmp_path / "corpora" / "MESD" / "Mexican Emotional Speech Database (MESD)"
    folder.mkdir(parents=True)
    source = next((root / "corpora" / "EmoDB" / "wav").glob("*.wav"))
    for emotion in ("Anger", "Disgust", "Fear", "Happiness", "Neutral", "Sadness"):
        shutil.copy(source, folder / f"{emotion}_F_A_tarde.wav")
    dataset = load(tmp_path, protocol=SOUND)
    assert "speaker" in dataset.refused["mesd"]
    assert "mesd" not in [corpus.key for corpus in dataset.corpora]


@pytest.mark.parametrize(("wanted", "said"), [("emodbb", "no such key"), ("urdu", "not below")])
def test_what_is_wanted_and_not_there_is_named(root: Path, wanted: str, said: str) -> None:
    with pytest.raises(BadCorpus, match=said):
        load(root, protocol=SOUND, wanted=[wanted])


def test_nothing_to_run_on_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "corpora" / "EmoDB").mkdir(parents=True)
    with pytest.raises(BadCorpus, match="servox corpora check"):
        load(tmp_path, protocol=SOUND)
