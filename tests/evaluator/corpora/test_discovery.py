from pathlib import Path

import pytest

from services.evaluator.corpora import discover, load_cards
from services.evaluator.corpora.discovery import recognise
from servox.errors import BadCorpus


@pytest.mark.parametrize(
    ("folder", "key"),
    [
        ("EmoDB", "emodb"),
        ("emo-db", "emodb"),
        ("RAVDESS", "ravdess"),
        ("TurEV-DB", "turev-db"),
        ("TurEV-DB-master", "turev-db"),
        ("nEMO", "nemo"),
        ("nEMO-main", "nemo"),
        ("URDU", "urdu"),
        ("URDU-Dataset-master", "urdu"),
        ("OréauFR_02", "oreau"),
        ("Ore\u0301auFR_02", "oreau"),
        ("CREMA D", "crema-d"),
        ("thorsten-emotional_v02", "thorsten"),
        ("CaFE_48k", "cafe"),
        ("MELD.Raw", "meld"),
    ],
)
def test_folders_are_recognised_by_their_usual_names(tmp_path: Path, folder: str, key: str) -> None:
    card = recognise(tmp_path / folder)
    assert card
    assert card.key == key


@pytest.mark.parametrize("folder", ["models", "emo", "cafeteria", "", "EmoDB results", "downloads", ".emodb.unpacking"])
def test_other_folders_are_not(tmp_path: Path, folder: str) -> None:
    assert recognise(Path(folder)) is None


def test_every_key_and_hint_leads_to_its_own_card() -> None:
    for card in load_cards().values():
        for name in (card.key, card.name, *card.folders):
            found = recognise(Path(name.replace("/", " ")))
            assert found
            assert found.key == card.key


def test_discovery_looks_in_corpora_or_in_the_folder_itself(tmp_path: Path) -> None:
    (tmp_path / "EmoDB").mkdir()
    assert discover(tmp_path) == {"emodb": tmp_path / "EmoDB"}
    (tmp_path / "corpora" / "nEMO").mkdir(parents=True)
    (tmp_path / "corpora" / "notes").mkdir()
    assert discover(tmp_path) == {"nemo": tmp_path / "corpora" / "nEMO"}


def test_one_corpus_twice_and_an_absent_folder_are_errors(tmp_path: Path) -> None:
    (tmp_path / "EmoDB").mkdir()
    (tmp_path / "emodb-v1").mkdir()
    with pytest.raises(BadCorpus, match="are both the corpus 'emodb'"):
        discover(tmp_path)
    with pytest.raises(BadCorpus, match="SERVOX_DATA"):
        discover(tmp_path / "none")


def test_the_real_copies_are_found(data_root: Path) -> None:
    assert {"emodb", "ravdess", "urdu", "nemo", "turev-db"} <= set(discover(data_root))
