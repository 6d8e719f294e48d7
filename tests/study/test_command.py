"""`servox study context` on generated speech and a random Whisper: from corpora to tables, twice."""

import csv
import json
import shutil
import wave
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel
from typer.testing import CliRunner

from services import cli
from services.study import study
from services.study.cells import Ints
from services.study.curve import Key
from services.study.embedding import source_of
from services.synthesis import MANNERS, RATE_HZ, speak
from servox.errors import BadSetting

SPEAKERS, LETTERS = ("03", "08", "09", "10"), {"N": "neutral", "W": "anger", "T": "sadness"}
ARGUMENTS = [
    "--policies",
    "exact,silence:4",
    "--depths",
    "1,2",
    "--layers",
    "1,3",
    "--seeds",
    "2",
    "--workers",
    "1",
    "--transfer",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whisper") / "small"
    torch.manual_seed(3)
    config = WhisperConfig(
        num_mel_bins=80, d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, vocab_size=64, init_std=0.1,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip
    WhisperModel(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)  # type: ignore[no-untyped-call]
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corner of EmoDB: four speakers, three emotions, two texts."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    folder = root / "corpora" / "EmoDB" / "wav"
    folder.mkdir(parents=True)
    for number, speaker in enumerate(SPEAKERS):
        for letter, emotion in LETTERS.items():
            for text in ("a01", "b01"):
                samples = speak(MANNERS[emotion], pitch_hz=110 + 25 * number, tract=1.0, rng=rng)
                with wave.open(str(folder / f"{speaker}{text}{letter}a.wav"), "wb") as file:
                    file.setparams((1, 2, RATE_HZ, 0, "NONE", ""))
                    file.writeframes((samples * 32767).astype("<i2").tobytes())
    return root


@pytest.fixture(scope="module")
def finished(checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    out = tmp_path_factory.mktemp("study") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SERVOX_HOME", str(out.parent / "home"))
        return out, _run(checkpoint, data, out)


def _run(checkpoint: Path, data: Path, out: Path, *more: str) -> dict[str, object]:
    arguments = ["study", "context", "--source", str(checkpoint), "--data", str(data), "--out", str(out)]
    arguments += [*(more or ARGUMENTS), "--json"]
    done = CliRunner().invoke(cli.build(arguments), arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    summary: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return summary


def _rows(out: Path) -> list[dict[str, str]]:
    with (out / "curve.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_policy_and_depth_is_a_row_with_cost_score_interval_and_difference(
    finished: tuple[Path, dict[str, object]],
) -> None:
    rows = _rows(finished[0])
    places = [(row["corpus"], row["policy"], row["blocks"], row["layers"]) for row in rows]
    deep = [("1", "1"), ("2", "1"), ("2", "3")]  # there are not three layers up to block 1
    assert places == [("emodb", policy, *each) for policy in ("exact", "silence:4") for each in deep]
    for row in rows:
        assert 0 < float(row["relative_flops"]) < 0.2
        assert float(row["macro_f1_low"]) <= float(row["macro_f1"]) <= float(row["macro_f1_high"])
        assert float(row["transfer_f1"]) >= 0
    deepest = next(row for row in rows if (row["policy"], row["blocks"], row["layers"]) == ("exact", "2", "1"))
    assert float(deepest["difference"]) == 0  # the first policy at full depth is what all are compared with
    assert float(deepest["transfer_loss"]) == 0  # and serves its own heads
    costs = {(row["policy"], row["blocks"]): float(row["relative_flops"]) for row in rows}
    assert costs["exact", "1"] < costs["exact", "2"] < costs["silence:4", "2"]


def test_the_tables_the_picture_and_the_command_are_written(finished: tuple[Path, dict[str, object]]) -> None:
    out, summary = finished
    assert (out / "curve.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    table = (out / "curve.md").read_text(encoding="utf-8").splitlines()
    assert table[0].startswith("| policy | blocks | layers | cost | macro-F1 | difference | transfer |")
    assert len(table) == 2 + 6
    assert str(summary["command"]).startswith("servox export ")
    kept = json.loads((out / "study.json").read_text(encoding="utf-8"))
    assert (kept["policy"], kept["blocks"]) == (summary["policy"], summary["blocks"])
    assert sum(kept["nested"]["picked"].values()) == 2 * 4  # two seeds of four folds


def test_a_second_run_computes_only_what_is_gone(
    finished: tuple[Path, dict[str, object]], checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, summary = finished
    monkeypatch.setenv("SERVOX_HOME", str(out.parent / "home"))
    gone = out / "cells" / "emodb" / "silence-4" / "1.npz"
    before = _rows(out)
    gone.unlink()
    (out / "cells" / "emodb" / "exact" / "1.npz").write_bytes(b"cut short")
    computed: list[Key] = []
    genuine = study._compute

    def compute(task: study._Task) -> Mapping[str, Ints]:
        computed.append(task.key)
        return genuine(task)

    monkeypatch.setattr(study, "_compute", compute)
    again = _run(checkpoint, data, out)
    assert {(key.policy, key.blocks) for key in computed} == {("silence:4", 1), ("exact", 1)}
    assert gone.is_file()
    assert _rows(out) == before
    assert again["command"] == summary["command"]


def test_a_bundle_names_its_checkpoint_unless_that_was_a_folder(
    finished: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    assert source_of("openai/whisper-base") == "openai/whisper-base"
    bundle = finished[0] / "bundles" / "exact"
    with pytest.raises(BadSetting, match="made from a folder named 'small'; give that folder"):
        source_of(str(bundle))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--policies", "exact,exact"], "one is there twice"),
        (["--policies", "quiet"], "is not a policy"),
        (["--policies", "exact", "--depths", "3"], "has 2 blocks"),
        (["--policies", "exact", "--depths", "two"], "give numbers of blocks"),
        (["--policies", "exact", "--layers", "0"], "from 1 to 3"),
    ],
)
def test_what_cannot_be_studied_is_refused_before_any_work(
    more: list[str], said: str, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadSetting, match=said):
        _run(checkpoint, data, tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()


def test_a_bundle_of_something_else_in_the_folder_is_not_used(
    finished: tuple[Path, dict[str, object]], checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    from servox.errors import BundleError

    shutil.copytree(finished[0] / "bundles" / "exact", tmp_path / "out" / "bundles" / "silence-4")
    with pytest.raises(BundleError, match="holds a bundle of exact"):
        _run(checkpoint, data, tmp_path / "out", "--policies", "silence:4")
