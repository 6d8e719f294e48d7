from pathlib import Path

import numpy as np
import pytest
import soundfile

from services import synthesis
from services.evaluator.corpora import discover, load_cards, scan


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    synthesis.write(folder)
    return folder


def test_the_folder_is_marked_and_every_clip_parses_by_the_real_cards(root: Path) -> None:
    assert (root / synthesis.MARK).is_file()
    cards = load_cards()
    found = {key: scan(folder, cards[key]) for key, folder in discover(root).items()}
    assert {key: len(each.clips) for key, each in found.items()} == {"emodb": 108, "nemo": 90, "ravdess": 108}
    assert not [each.skipped for each in found.values() if each.skipped]


def test_the_same_seed_speaks_the_same_and_another_does_not(root: Path, tmp_path: Path) -> None:
    synthesis.write(tmp_path / "again")
    synthesis.write(tmp_path / "other", seed=1)
    clip = Path("corpora") / "EmoDB" / "wav" / "03a01Na.wav"
    assert (tmp_path / "again" / clip).read_bytes() == (root / clip).read_bytes()
    assert (tmp_path / "other" / clip).read_bytes() != (root / clip).read_bytes()


def test_clips_are_sound_and_anger_is_louder_than_sadness(root: Path) -> None:
    levels: dict[str, list[float]] = {"W": [], "T": []}
    for path in sorted((root / "corpora" / "EmoDB" / "wav").glob("*.wav")):
        samples, rate_hz = soundfile.read(path)
        assert rate_hz == synthesis.RATE_HZ
        assert 0.3 < len(samples) / rate_hz < 4
        assert 0.05 < np.abs(samples).max() <= 1
        levels.setdefault(path.stem[5], []).append(float(np.sqrt(np.mean(samples**2))))
    assert min(levels["W"]) > max(levels["T"])
