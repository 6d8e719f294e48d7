"""`servox train` on speech of one's own: a bundle of log-mel features, so that nothing is downloaded."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import typer
from typer.testing import CliRunner, Result

from services.prober.card import card_from_json
from services.prober.training_command import settings_from, table_of
from services.synthesis import MANNERS, speak
from services.training import _name_of, train
from servox.arrays import EmbeddingStore
from servox.errors import BadCorpus, BadSetting

RATE = 16_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from services.embedder.export import export

    folder = tmp_path_factory.mktemp("bundles") / "logmel"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter
        export("logmel", folder)
    return folder


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """Three emotions by four voices, three clips of each."""
    random = np.random.default_rng(0)
    root = tmp_path / "My Voices"
    for label in ("anger", "sadness", "neutral"):
        for voice in range(4):
            for number in range(3):
                path = root / label / f"s{voice}" / f"{number}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                samples = speak(MANNERS[label], pitch_hz=110 + 30 * voice, tract=1 + voice / 20, rng=random)
                soundfile.write(path, samples[:RATE], RATE)
    return root


def servox_train(home: Path, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Result:
    monkeypatch.setenv("SERVOX_HOME", str(home))
    app = typer.Typer()
    app.command()(train)
    return CliRunner().invoke(app, [*map(str, arguments), "--json"], env={"COLUMNS": "200"})


def test_a_folder_becomes_a_head_and_nothing_is_embedded_twice(
    speech: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    first = servox_train(home, monkeypatch, speech, "--bundle", bundle, "--set", "hidden=32", "--set", "epochs=20")
    assert first.exit_code == 0, first.output
    answer = json.loads(first.stdout.splitlines()[-1])
    card = answer["card"]
    assert (card["name"], card["classes"], card["clips"], card["speakers"]) == (
        "my-voices",
        ["anger", "neutral", "sadness"],
        36,
        4,
    )
    assert card["out_of_fold"]["grouped_by"] == "speaker"
    assert card["out_of_fold"]["macro_f1"] > 0.6, "the synthetic manners are far apart"
    assert not answer["reused"]
    assert "macro-F1" in first.stdout

    parts = set(home.rglob("part-*.parquet"))
    again = servox_train(home, monkeypatch, speech, "--bundle", bundle, "--set", "hidden=32", "--set", "epochs=20")
    assert json.loads(again.stdout.splitlines()[-1]) == {**answer, "reused": True}
    assert set(home.rglob("part-*.parquet")) == parts

    soundfile.write(speech / "anger" / "s0" / "new.wav", np.random.default_rng(1).normal(scale=0.1, size=RATE), RATE)
    more = servox_train(home, monkeypatch, speech, "--bundle", bundle, "--kind", "logistic", "--name", "other")
    assert json.loads(more.stdout.splitlines()[-1])["card"]["clips"] == 37
    fresh = set(home.rglob("part-*.parquet")) - parts
    assert len(fresh) == 2, "one part of embeddings and one of durations"
    digest = card["bundle"]
    assert len(EmbeddingStore(str(home / "store")).keys(bundle=digest, pooling="duration")) == 37


def test_what_is_wrong_is_said_before_anything_is_embedded(
    speech: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (speech / "anger" / "s0" / "0.wav").write_bytes(b"")
    (speech / "sadness").rename(speech / "sadnes")
    done = servox_train(tmp_path / "home", monkeypatch, speech, "--bundle", bundle)
    assert isinstance(done.exception, BadCorpus)
    assert "did you mean 'sadness'" in done.stderr.lower()
    assert "0.wav" in done.stderr
    assert not list((tmp_path / "home").rglob("*.parquet"))
    checked = servox_train(tmp_path / "home", monkeypatch, speech, "--bundle", bundle, "--check")
    assert checked.exit_code == 1
    mended = servox_train(tmp_path / "home", monkeypatch, speech, "--bundle", bundle, "--skip-bad", "--check")
    assert mended.exit_code == 0
    assert "23 of 36 clips" in mended.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kind", "forest"], "mlp or logistic"),
        (["--set", "hidden"], "NAME=NUMBER"),
        (["--set", "hiden=3"], "did you mean 'hidden'"),
        (["--layer", "7"], "layer 7"),
        (["--name", "Grüße"], "lower-case"),
    ],
)
def test_a_wrong_option_is_told_at_once(
    speech: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    done = servox_train(tmp_path / "home", monkeypatch, speech, "--bundle", bundle, *arguments)
    assert isinstance(done.exception, BadSetting)
    assert words in str(done.exception)


def test_names_come_from_the_source() -> None:
    assert _name_of(Path("My Voices (2).csv")) == "my-voices--2"
    assert _name_of(Path("Ü")) == "own"


def test_settings_are_numbers() -> None:
    assert settings_from("logistic", ["c=0.5"]) == {"c": 0.5}


def test_a_card_of_schema_1_is_shown() -> None:
    facts = {
        "schema": 1, "name": "old", "version": "0" * 16, "kind": "logistic", "classes": ["anger", "fear"],
        "class_counts": [3, 4], "bundle": "ab" * 32, "layer": 3, "dims": 8, "temperature": 1.5, "seed": 0,
        "settings": {}, "out_of_fold": None, "clip_set": "", "clips": 7, "speakers": 0, "servox": "0", "store": "",
        "created": "",
    }  # fmt: skip
    table = table_of(card_from_json(json.dumps(facts)))
    assert table.row_count == 5
