"""The report in a real browser: what a person sees agrees with the cells, on a desk, on a phone, in the dark."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.evaluator.report import render

AA = 4.5  # WCAG 2.2, contrast of text


@pytest.fixture(scope="module")
def run(build_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_run(tmp_path_factory.mktemp("browser") / "run", paper=True, synthetic=True)


@pytest.fixture(scope="module")
def seen(run: Path, browser_command: Callable[[str], list[str]]) -> dict[str, Any]:
    command = browser_command("report.mjs")
    done = subprocess.run([*command, str(render(run))], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    observed: dict[str, Any] = json.loads(done.stdout)
    return observed


def cell(run: Path, head: str, pair: str) -> dict[str, Any]:
    (path,) = (run / "results" / "sound").glob(f"*/{head}/{pair}.json")
    held: dict[str, Any] = json.loads(path.read_text())
    return held


def pairs(run: Path, head: str) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in (run / "results" / "sound").glob(f"*/{head}/*.json")}


def own(pair: str) -> bool:
    train, test = pair.split("→")
    return train == test


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def test_nothing_fails_and_nothing_is_fetched(run: Path, seen: dict[str, Any]) -> None:
    assert seen["console"] == []
    assert set(seen["requests"]) <= {(run / "report.html").as_uri(), "data:,"}
    assert "whisper-base" in seen["title"]


def test_map_shows_the_cells(run: Path, seen: dict[str, Any]) -> None:
    held = pairs(run, "mlp")
    assert set(seen["first"]["cells"]) == set(held)
    for pair, text in seen["first"]["cells"].items():
        assert number(text) == pytest.approx(held[pair]["corrections"]["none"]["macro_f1"]["mean"], abs=0.00501)
    mean = sum(c["corrections"]["none"]["macro_f1"]["mean"] for pair, c in held.items() if not own(pair)) / 20
    assert number(seen["first"]["mean"]) == pytest.approx(mean, abs=0.00501)


def test_choices_change_the_map(run: Path, seen: dict[str, Any]) -> None:
    held = pairs(run, "logistic")
    assert "UAR, standardise by all" in seen["uar"]["caption"]
    assert "logistic regression" in seen["uar"]["caption"]
    for pair, text in seen["uar"]["cells"].items():
        name = "none" if own(pair) else "standardise-all"
        assert number(text) == pytest.approx(held[pair]["corrections"][name]["uar"]["mean"], abs=0.00501)
    for pair, text in seen["gain"]["cells"].items():
        scores = held[pair]["corrections"]
        if own(pair):
            assert text == "–"
            continue
        gain = scores["standardise-all"]["macro_f1"]["mean"] - scores["none"]["macro_f1"]["mean"]
        assert text[0] in "+−"
        assert number(text) == pytest.approx(gain, abs=0.00511)
    for pair, text in seen["floor"]["cells"].items():
        name = "none" if own(pair) else "standardise-all"
        above = held[pair]["corrections"][name]["macro_f1"]["mean"] - max(held[pair]["floor"].values())
        assert number(text) == pytest.approx(above, abs=0.00511)


def test_a_score_without_floor_offers_none(seen: dict[str, Any]) -> None:
    assert seen["floorAllowed"] is False
    assert "floor" not in seen["ece"]["caption"]
    assert seen["gain"]["scale"].split() == ["−0.5", "+0.5"]
    assert seen["ece"]["scale"].split() == ["0", "0.5"]


def test_a_cell_is_reached_by_keyboard(run: Path, seen: dict[str, Any]) -> None:
    score = cell(run, "mlp", "nemo→ravdess")["corrections"]["none"]["macro_f1"]
    assert seen["selected"] == ["nemo→ravdess"]
    assert seen["stops"] == 1
    assert seen["outline"] != "none"
    for text in (seen["onFocus"], seen["label"], seen["drill"]["words"]):
        assert "nEMO → RAVDESS" in text
        assert f"{score['mean']:.3f}" in text
        assert f"{score['low']:.3f}–{score['high']:.3f}" in text


def test_drill_down_holds_classes_and_confusion(run: Path, seen: dict[str, Any]) -> None:
    held = cell(run, "mlp", "nemo→ravdess")
    scores = held["corrections"]["none"]
    assert [row[:4] for row in seen["drill"]["classes"]] == [
        [row["label"], str(row["clips"]), f"{row['recall']:.3f}", f"{row['f1']:.3f}"] for row in scores["per_class"]
    ]
    for row, label, counts in zip(seen["drill"]["confusion"], held["classes"], scores["confusion"], strict=True):
        assert row[0] == label
        assert [int(share) for share in row[1:]] == pytest.approx([100 * n / sum(counts) for n in counts], abs=0.6)
    for label, clips in held["dropped"].items():
        assert f"{label} ({clips} clips)" in seen["drill"]["dropped"]
    assert "nEMO → URDU" in seen["typed"]


def test_no_page_is_wider_than_its_screen(seen: dict[str, Any]) -> None:
    assert seen["widths"] == {"320": 320, "375": 375, "400": 400, "1280": 1280}


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_can_be_read(seen: dict[str, Any], mode: str) -> None:
    assert seen[mode]["elements"] > 300
    assert seen[mode]["worst"]["contrast"] >= AA, seen[mode]["worst"]
    assert seen[mode]["ramp"] >= AA
    assert (seen[mode]["page"] < 0.1) is (mode == "dark")


def test_main_tables_need_no_script(run: Path, seen: dict[str, Any]) -> None:
    figures = re.findall(r"\d\.\d\d", seen["plain"]["text"])
    assert f"{cell(run, 'mlp', 'urdu→emodb')['corrections']['none']['macro_f1']['mean']:.2f}" in figures
    assert seen["plain"]["tables"] == 8
    assert seen["plain"]["controls"] == 0
