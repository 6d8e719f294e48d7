"""`servox keys`: what it prints, what it keeps, what a server makes of it."""

import json
import stat
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from services.keys_command import keys_app, moment_of, rate_of, span_of
from servox import key_file
from servox.errors import BadSetting, NotFound, Unauthenticated
from servox.keys import Key, Keys, moment_s, read_keys

Run = Callable[..., Result]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def run(path: Path) -> Run:
    def call(*arguments: str) -> Result:
        return CliRunner().invoke(keys_app, [*arguments, "--file", str(path)], catch_exceptions=False)

    return call


def test_a_key_is_shown_once_and_kept_nowhere(run: Run, path: Path) -> None:
    made = run(
        "create", "--name", "shop", "--scopes", "recognize", "--tenant", "acme", "--rate", "10/s", "--streams", "2"
    )
    text = made.stdout.strip()
    assert text.startswith("sxk_")
    assert text not in made.stderr
    assert text.split("_", 2)[2] not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    held = Keys(path).holder(text)
    assert (held.name, held.tenant, held.scopes, held.rate_per_s, held.streams) == (
        "shop",
        "acme",
        ("recognize",),
        10,
        2,
    )
    assert [*path.parent.iterdir()] == [path], "nothing is left beside it"


def test_a_list_shows_rights_and_no_secret(run: Run, path: Path) -> None:
    text = json.loads(run("create", "--name", "shop", "--expires", "30d", "--json").stdout)["key"]
    shown = run("list", "--json").stdout
    last = json.loads(shown.splitlines()[-1])["keys"]
    assert [key["name"] for key in last] == ["shop"]
    assert "sha256" not in last[0]
    assert text not in shown
    assert text.split("_")[1] in shown
    assert moment_s(last[0]["expires"]) > datetime.now(UTC).timestamp() + 29 * 86_400


def test_a_revoked_key_counts_no_more(run: Run, path: Path) -> None:
    text = run("create", "--name", "shop").stdout.strip()
    run("revoke", text.split("_")[1])
    with pytest.raises(Unauthenticated, match="revoked"):
        Keys(path).holder(text)
    before = path.read_text()
    with pytest.raises(NotFound, match="there is no key 'nobody'"):
        run("revoke", text.split("_")[1], "nobody")
    assert path.read_text() == before


def test_a_rotated_key_overlaps_with_the_one_before(run: Run, path: Path) -> None:
    old = run("create", "--name", "shop", "--scopes", "embed").stdout.strip()
    new = run("rotate", old.split("_")[1], "--overlap", "1h").stdout.strip()
    now_s = datetime.now(UTC).timestamp()
    both, later = Keys(path, clock=lambda: now_s), Keys(path, clock=lambda: now_s + 3700)
    assert both.holder(old).scopes == both.holder(new).scopes == ("embed",)
    assert later.holder(new).name == "shop"
    with pytest.raises(Unauthenticated, match="expired"):
        later.holder(old)
    run("revoke", old.split("_")[1])
    with pytest.raises(BadSetting, match="is revoked"):
        run("rotate", old.split("_")[1])


def test_rotating_never_makes_a_key_live_longer(path: Path) -> None:
    ends = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
    _, key = key_file.create(path, Key(id="", name="x", sha256="", expires=ends))
    key_file.rotate(path, key.id, overlap=timedelta(days=1))
    assert read_keys(path)[key.id].expires == ends


def test_changes_at_the_same_time_lose_nothing(path: Path) -> None:
    def make() -> None:
        for _ in range(5):
            key_file.create(path, Key(id="", name="x", sha256=""))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_keys(path)) == 20


def test_a_file_that_is_broken_is_left_as_it_is(path: Path) -> None:
    path.write_text("{")
    with pytest.raises(BadSetting, match="no JSON"):
        key_file.create(path, Key(id="", name="x", sha256=""))
    assert path.read_text() == "{"
    with pytest.raises(BadSetting, match="folder"):
        key_file.create(path.parent / "none" / "keys.json", Key(id="", name="x", sha256=""))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--scopes", "recognise"), "'recognise' is unknown"),
        (("--rate", "fast"), "10/s"),
        (("--expires", "2020-01-01"), "is over already"),
        (("--expires", "soon"), "write it as"),
    ],
)
def test_rights_that_make_no_sense_make_no_key(run: Run, path: Path, arguments: tuple[str, ...], says: str) -> None:
    with pytest.raises(BadSetting, match=says):
        run("create", "--name", "x", *arguments)
    assert not path.exists()


def test_times_and_rates_are_read_as_written() -> None:
    assert [span_of(text).total_seconds() for text in ("0s", "15m", "24h", "30d")] == [0, 900, 86_400, 2_592_000]
    assert (rate_of("10/s"), rate_of("0.5")) == (10, 0.5)
    assert moment_of("") == ""
    assert moment_of("2999-01-01") == "2999-01-01T00:00:00+00:00"
