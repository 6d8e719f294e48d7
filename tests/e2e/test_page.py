"""The prober's page in a real browser with a fake microphone: files, a recording, wrong input, by keyboard."""

import csv
import io
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
import wave
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from services import synthesis

AA = 4.5  # WCAG 2.2, contrast of text
SERVOX = Path(sys.executable).parent / "servox"
CLASSES = 6  # of the generated EmoDB
pytestmark = pytest.mark.xdist_group("benchmark")


def _environment(home: Path) -> dict[str, str]:
    return {**os.environ, "SERVOX_HOME": str(home), "OMP_NUM_THREADS": "1"}


def _servox(home: Path, *arguments: object) -> str:
    command = [str(SERVOX), *map(str, arguments)]
    done = subprocess.run(command, env=_environment(home), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _ready(address: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert process.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(f"{address}/readyz", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail("not ready after a minute")


POLICY = """purposes = ["research"]
notice = "A machine guesses emotions from your voice."
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Addresses of two probers on the same heads and embedder; the second wants a key. A recording, and a key."""

    address: str
    locked: str
    speech: Path
    key: str


@pytest.fixture(scope="module")
def served(
    browser_command: Callable[[str], list[str]],
    tmp_path_factory: pytest.TempPathFactory,
    hold_port: Callable[[], int],
) -> Iterator[Served]:
    """Probers with two heads on generated speech, and an embedder behind them."""
    home = tmp_path_factory.mktemp("page")
    synthesis.write(home / "data")
    _servox(home, "export", "logmel", "--out", home / "logmel", "--clips", home / "data")
    run = ("--data", home / "data", "--bundle", home / "logmel", "--corpora", "emodb", "--seeds", 1)
    _servox(home, "evaluate", "run", *run)
    (home / "policy.toml").write_text(POLICY)
    key = _servox(home, "keys", "create", "--name", "page", "--file", home / "keys.json").strip()
    embedder, *ports = (hold_port() for _ in range(3))
    prober = ("prober", "--embedder", f"127.0.0.1:{embedder}", "--grpc-port", 0, "--metrics-port", 0)
    services = (
        ("embedder", "--bundle", home / "logmel", "--grpc-port", embedder, "--metrics-port", 0),
        (*prober, "--http-port", ports[0]),
        (*prober, "--http-port", ports[1], "--keys", home / "keys.json", "--policy", home / "policy.toml"),
    )
    with ExitStack() as stack:
        for arguments in services:
            command = [str(SERVOX), "serve", *map(str, arguments)]
            process = stack.enter_context(subprocess.Popen(command, env=_environment(home)))
            stack.callback(process.terminate)
        addresses = [f"http://127.0.0.1:{port}" for port in ports]
        for address in addresses:
            _ready(address, process)
        yield Served(address=addresses[0], locked=addresses[1], speech=_recording(home), key=key)


def _recording(home: Path) -> Path:
    path = home / "recording.wav"
    with wave.open(str(path), "wb") as joined:
        for n, clip in enumerate(sorted((home / "data" / "corpora" / "EmoDB" / "wav").glob("03*.wav"))[:6]):
            with wave.open(str(clip), "rb") as part:
                if not n:
                    joined.setparams(part.getparams())
                joined.writeframes(part.readframes(part.getnframes()))
        joined.writeframes(bytes(2 * 16_000 * 2))  # two seconds without sound
    return path


@pytest.fixture(scope="module")
def seen(served: Served, browser_command: Callable[[str], list[str]]) -> dict[str, Any]:
    return _browsed(browser_command("page.mjs"), served.address, served.speech)


@pytest.fixture(scope="module")
def seen_locked(served: Served, browser_command: Callable[[str], list[str]]) -> dict[str, Any]:
    return _browsed(browser_command("page_key.mjs"), served.locked, served.speech, served.key)


def _browsed(command: list[str], *arguments: object) -> dict[str, Any]:
    shots = [folder] if (folder := os.environ.get("SERVOX_SHOTS")) else []
    whole = [*command, *map(str, arguments), *shots]
    done = subprocess.run(whole, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    observed: dict[str, Any] = json.loads(done.stdout)
    return observed


def test_it_offers_the_heads_that_are_there(seen: dict[str, Any]) -> None:
    assert seen["title"] == "Servox: emotion in speech"
    assert len(seen["heads"]) == 2
    assert all("emodb" in head for head in seen["heads"])
    assert f"{CLASSES} emotions" in seen["facts"]
    assert re.search(r"Answered by emodb-\w+ [0-9a-f]{16}, a candidate\.$", seen["used"])


def test_a_file_becomes_a_timeline_and_an_overall_answer(seen: dict[str, Any]) -> None:
    file = seen["file"]
    count = int(re.match(r"(\d+) windows", file["status"]).group(1))  # type: ignore[union-attr]
    assert count == len(file["rows"]) > 5
    assert file["now"].startswith("Overall: ")
    assert file["lanes"] == CLASSES
    assert file["drawn"] >= CLASSES
    shares = [float(cell) for cell in file["rows"][0][3:]]
    assert sum(shares) == pytest.approx(1, abs=0.01)
    assert seen["player"] > 5


def test_windows_without_sound_are_shown_as_such(seen: dict[str, Any]) -> None:
    silent = [row for row in seen["file"]["rows"] if row[2] == "no speech"]
    assert silent
    assert all(set(row[3:]) == {"–"} for row in silent)


def test_what_is_downloaded_is_what_is_shown(seen: dict[str, Any]) -> None:
    held = json.loads(seen["json"]["text"])
    rows = list(csv.DictReader(io.StringIO(seen["csv"]["text"])))
    assert seen["json"]["name"] == "servox.json"
    assert seen["csv"]["name"] == "servox.csv"
    assert len(held["windows"]) == len(rows) == len(seen["file"]["rows"])
    for window, row in zip(held["windows"], rows, strict=True):
        assert int(row["start_ms"]) == window["start_ms"]
        if window["probabilities"]:
            label, value = max(window["probabilities"].items(), key=lambda pair: pair[1])
            assert label == window["label"] == row["label"]
            assert float(row[label]) == value
    assert held["used"]["bundle"]["digest"]
    assert held["settings"]["window_ms"] == 1000


def test_priors_change_the_answer(seen: dict[str, Any]) -> None:
    assert seen["shares"] == CLASSES
    answered = [row for row in seen["explicit"]["rows"] if row[3] != "–"]
    assert answered
    assert all(row[3] == "1.000" for row in answered), "all of the prior was given to the first class"
    assert seen["dropped"]["rows"], "a file that is dropped is heard as well"


def test_a_recording_goes_on_until_the_button_is_pressed_again(seen: dict[str, Any]) -> None:
    assert seen["recording"]["label"] == "Stop"
    assert "Recording" in seen["recording"]["status"]
    assert seen["pressed"] == "false"
    assert len(seen["live"]["rows"]) >= 4


def test_presses_open_one_microphone_and_none_stays_on(seen: dict[str, Any]) -> None:
    # How many were asked for until then, and how many are on.
    assert seen["opened"]["twice"] == [1, 0], "two presses while it is asked for"
    assert seen["opened"]["file"] == [2, 0], "a file that is chosen while it is asked for"
    assert seen["opened"]["key"] == [3, 0], "a stream that cannot be opened"
    assert seen["opened"]["worklet"] == [4, 0], "a page that cannot record"
    assert "key" in seen["badKey"]


def test_wrong_input_gets_the_servers_or_the_pages_reason(seen: dict[str, Any]) -> None:
    assert "share above 0" in seen["noShare"]
    assert "step is longer" in seen["longHop"]
    assert "audio" in seen["noAudio"]


def test_it_works_by_keyboard(seen: dict[str, Any]) -> None:
    assert {"head", "window", "hop", "prior", "every", "record"} <= set(seen["stops"])
    assert seen["outline"] not in ("none", "")
    assert all(seen["named"]), "every control has a name for a screen reader"


def test_it_asks_only_its_own_server_and_nothing_fails(seen: dict[str, Any], served: Served) -> None:
    own = (served.address, served.address.replace("http", "ws"), "blob:")
    assert [address for address in seen["requests"] if not address.startswith(own)] == []
    assert [line for line in seen["console"] if "422" not in line and "400" not in line and "415" not in line] == []


def test_it_reads_well_on_a_phone_and_in_the_dark(seen: dict[str, Any]) -> None:
    for width, needed in seen["widths"].items():
        assert needed <= int(width), f"scrolls sideways at {width}"
    for theme in ("light", "dark"):
        assert seen[theme]["worst"]["contrast"] >= AA, seen[theme]["worst"]
    assert seen["light"]["page"] > 0.9
    assert seen["dark"]["page"] < 0.05


def test_a_closed_door_asks_for_a_key(seen_locked: dict[str, Any]) -> None:
    assert seen_locked["asked"], "the field of the key unfolds by itself"
    assert "Unauthenticated" in seen_locked["without"] or "key" in seen_locked["without"].lower()
    assert "key" in seen_locked["wrong"].lower()


def test_a_key_opens_both_ways_and_the_notice_is_shown(seen_locked: dict[str, Any]) -> None:
    for way in ("file", "live"):
        assert seen_locked[way]["windows"] >= 3
        assert seen_locked[way]["notice"] == "A machine guesses emotions from your voice."
        assert "calibration of call-centre: still collecting" in seen_locked[way]["used"]


def test_a_forbidden_purpose_is_said_both_ways(seen_locked: dict[str, Any]) -> None:
    assert "workplace" in seen_locked["forbidden"]
    assert "workplace" in seen_locked["forbiddenLive"]


def test_the_key_is_in_no_address_and_is_kept_nowhere(served: Served, seen_locked: dict[str, Any]) -> None:
    secret = served.key.split("_", 2)[2]
    assert len(secret) == 43
    assert not [address for address in seen_locked["requests"] if secret in address]
    assert secret not in seen_locked["stored"]
