"""What the documentation shows works: Python runs, commands and flags exist, links resolve, tables follow the code.

Blocks of one page run in their order in one process, against the three services with generated speech and the log-mel
bundle; `localhost:5005x` of a page becomes the service's socket here, `localhost:8080` the port of its HTTP.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from services import synthesis

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")])
BIN = Path(sys.executable).parent
RUNS = "<!-- runs -->"
FENCE = re.compile(r"^(?P<mark><!-- runs -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
SERVICES = {"50051": "embedder", "50052": "prober", "50053": "evaluator"}
TIMEOUT_S = 240
# What the Python of a page must print, so that an example which only survives does not pass.
PRINTED = {
    "README.md": ("clip.wav (1, 80)",),
    "docs/api.md": (
        "logmel exact layers [0], d = 80",
        "not-audio.wav BadAudio the 16 bytes are not audio",
        "(1, 2, 80)",
        "my-head:",
        "RUN_STATE_SUCCEEDED",
    ),
    "docs/client.md": ("overall ", "on logmel, ", "index,start_ms,end_ms,label", "windows, mean confidence", "live 4 "),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block: its language, its text, whether it is marked to be run."""

    kind: str
    text: str
    runs: bool


def blocks_of(page: Path) -> list[Block]:
    found = FENCE.finditer(page.read_text())
    return [Block(kind=match["kind"], text=match["text"], runs=bool(match["mark"])) for match in found]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def commands_of(block: Block) -> list[str]:
    """The shell lines of a block, continuation lines joined; with prompts only the lines after one count."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if any(line.startswith("$ ") for line in lines):
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [line for line in lines if line.strip() and not line.startswith("#")]


def servox_calls(line: str) -> Iterator[list[str]]:
    """The arguments of each `servox` call of a shell line."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    words: list[str] = []
    for token in [*lexer, ";"]:
        if not set(token) <= set("|&;<>()"):
            words.append(token)
            continue
        while words and re.match(r"\w+=", words[0]):
            words.pop(0)
        if words[:1] == ["servox"]:
            yield words[1:]
        words = []


def environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SERVOX_")}
    shown = {"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return kept | shown | {"SERVOX_HOME": str(home / ".servox"), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


@cache
def help_of(*command: str) -> str:
    done = subprocess.run(
        [str(BIN / "servox"), *command, "--help"],
        env=environment(Path(tempfile.gettempdir())),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"servox {' '.join(command)} --help: {done.stderr[-2000:]}"
    return done.stdout


def subcommands(text: str) -> set[str]:
    _, _, listed = text.partition("Commands")
    return set(re.findall(r"^│ ([\w-]+)", listed, re.MULTILINE))


def resolved(call: list[str]) -> tuple[str, ...]:
    """The sub-command that a call names, as far as the command line knows it."""
    path: tuple[str, ...] = ()
    for token in call:
        if token.startswith("-") or token not in subcommands(help_of(*path)):
            break
        path = (*path, token)
    return path


CALLS = sorted(
    {
        tuple(call)
        for page in PAGES
        for block in blocks_of(page)
        if block.kind in ("console", "bash", "sh", "")
        for line in commands_of(block)
        if "servox" in line
        for call in servox_calls(line)
        if call
    }
)


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_commands_exist_with_their_flags(call: tuple[str, ...]) -> None:
    command = resolved(list(call))
    assert command, f"`servox {' '.join(call)}`: there is no such command"
    known = set(re.findall(r"--[a-z][a-z-]*", help_of(*command)))
    used = {token.split("=")[0] for token in call if token.startswith("--")}
    assert used <= known | {"--help"}, f"`servox {' '.join(command)}` has no {sorted(used - known)}"


def anchor(heading: str) -> str:
    """A heading as GitHub names it."""
    plain = re.sub(r"[`*_]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def anchors_of(page: Path) -> set[str]:
    prose = FENCE.sub("", page.read_text())
    return {anchor(heading) for heading in re.findall(r"^#+ (.+)$", prose, re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    prose = re.sub(r"<!--.*?-->", "", FENCE.sub("", page.read_text()), flags=re.DOTALL)
    for match in LINK.finditer(prose):
        target = match["target"]
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, fragment = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{name_of(page)} links to {target}, which is not there"
        if fragment and place.suffix == ".md":
            assert fragment in anchors_of(place), f"{name_of(page)} links to {target}: no such heading"


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = (folder / "README.md").read_text()
    for page in folder.glob("[0-9]*.md"):
        assert f"]({page.name})" in listed, f"docs/decisions/README.md does not list {page.name}"
        title = page.read_text().splitlines()[0]
        assert re.fullmatch(rf"# {page.name[:4]}: .+", title), f"{page.name} begins with {title!r}"


def test_every_service_and_table_has_its_place() -> None:
    text = "".join(page.read_text() for page in PAGES)
    for table in ("settings", "metrics"):
        for service in SERVICES.values():
            assert f"<!-- table: {table}-{service} -->" in text
    for table in ("errors", "corpora", "corrections", "protocols", "heads", "settings-common"):
        assert f"<!-- table: {table} -->" in text


def test_tables_follow_the_code() -> None:
    done = subprocess.run(
        [sys.executable, "docs/tables.py", "--check"],
        cwd=ROOT,
        env=environment(ROOT),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{done.stderr}run `python docs/tables.py`"


def test_every_extra_is_explained() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    page = (ROOT / "docs" / "operations.md").read_text()
    for extra in set(extras) - {"serving", "audio", "store"}:  # parts of the others
        assert f"| `{extra}` |" in page, f"docs/operations.md does not say what the extra {extra!r} brings"


def test_messages_of_the_troubles_table_exist() -> None:
    sources = "".join(file.read_text() for top in ("servox", "services") for file in (ROOT / top).rglob("*.py"))
    joined = re.sub(r'"\n\s*f?"', "", sources)
    _, _, table = (ROOT / "docs" / "operations.md").read_text().partition("## When something is wrong")
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    assert rows
    for row in rows:
        for message in re.findall(r"`([^`]+)`", row.split(" | ")[0]):
            assert message in joined, f"docs/operations.md: no message holds {message!r} any more"


@pytest.fixture(scope="module")
def house() -> Iterator[Path]:
    """A folder with generated speech, a log-mel bundle and the three services on sockets below `.servox/sockets`."""
    # Socket paths are short, so pytest's own long folder names will not do.
    folder = Path(tempfile.mkdtemp(prefix="docs-"))
    try:
        synthesis.write(folder / "data")
        clips = sorted((folder / "data/corpora/EmoDB/wav").glob("*.wav"))
        shutil.copy(clips[0], folder / "clip.wav")
        shutil.copy(clips[1], folder / "other.wav")
        (folder / "not-audio.wav").write_text("these are words\n")
        shell(["servox", "export", "logmel", "--out", "bundle"], folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def http_port(hold_port: Callable[[], int]) -> int:
    return hold_port()


@pytest.fixture(scope="module")
def sockets(house: Path, http_port: int) -> Iterator[Path]:
    command = ["servox", "serve", "all", "--bundle", "bundle", "--sockets", "s", "--http-port", str(http_port)]
    log = house / "services.log"
    with log.open("w") as sink, subprocess.Popen(command, cwd=house, env=environment(house), stderr=sink) as process:
        try:
            wait_for_services(process, log)
            yield house / "s"
        finally:
            process.terminate()


def wait_for_services(process: "subprocess.Popen[bytes]", log: Path) -> None:
    give_up_s = time.monotonic() + 120
    while "evaluator serves on" not in log.read_text():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < give_up_s, log.read_text()[-3000:]
        time.sleep(0.2)


def shell(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


WITH_PYTHON = [page for page in PAGES if any(block.kind == "python" for block in blocks_of(page))]
WITH_RUNS = [(page, block) for page in PAGES for block in blocks_of(page) if block.kind == "console" and block.runs]


FIRST = {"docs/client.md": "docs/api.md"}  # which page trains the head that another one recognises with


@pytest.fixture(scope="module")
def ran(house: Path, sockets: Path, http_port: int) -> Callable[[Path], str]:
    """Runs the Python of a page, once, and of the page that must come before it; what it printed."""
    printed: dict[Path, str] = {}

    def run(page: Path) -> str:
        if before := FIRST.get(name_of(page)):
            run(ROOT / before)
        if page not in printed:
            script = "\n\n".join(block.text for block in blocks_of(page) if block.kind == "python")
            for port, service in SERVICES.items():
                script = script.replace(f"localhost:{port}", f"unix:{sockets / service}.sock")
            script = script.replace("localhost:8080", f"localhost:{http_port}")
            printed[page] = shell([sys.executable, "-W", "error", "-c", script], house)
        return printed[page]

    return run


@pytest.mark.slow  # starts the services or exports a bundle
@pytest.mark.xdist_group("docs")
@pytest.mark.parametrize("page", [page for page in WITH_PYTHON if page.name != "corpora.md"], ids=name_of)
def test_python_of_a_page_runs(page: Path, ran: Callable[[Path], str]) -> None:
    out = ran(page)
    assert [line for line in PRINTED[name_of(page)] if line not in out] == [], out


@pytest.mark.slow  # starts the services or exports a bundle
@pytest.mark.xdist_group("docs")
@pytest.mark.parametrize(
    ("page", "block"), WITH_RUNS, ids=[f"{name_of(page)}-{n}" for n, (page, _) in enumerate(WITH_RUNS)]
)
def test_console_blocks_that_run_say_what_they_show(page: Path, block: Block, house: Path) -> None:
    shown = [line for line in block.text.splitlines() if not line.startswith("$ ")]
    printed = "".join(shell(["bash", "-c", f"set -o pipefail; {line}"], house) for line in commands_of(block))
    assert [line.rstrip() for line in printed.splitlines()] == [line.rstrip() for line in shown]


@pytest.mark.slow  # starts the services or exports a bundle
@pytest.mark.xdist_group("docs")
def test_a_card_is_one_file(house: Path) -> None:
    page = ROOT / "docs" / "corpora.md"
    (card,) = [block.text for block in blocks_of(page) if block.kind == "toml"]
    (house / "murmurs.toml").write_text(card)
    speech = (house / "clip.wav").read_bytes()
    for speaker in ("s1", "s2", "s3"):
        for number, label in enumerate(("joy", "rage", "flat")):
            clip = house / "Murmurs" / speaker / f"{label}_{number:02}.wav"
            clip.parent.mkdir(parents=True, exist_ok=True)
            clip.write_bytes(speech)
    script = "\n".join(block.text for block in blocks_of(page) if block.kind == "python")
    out = shell([sys.executable, "-W", "error", "-c", script], house)
    assert "s2/rage_17.wav rage anger s2" in out
    assert "9 clips" in out
    assert "a subset" in out
