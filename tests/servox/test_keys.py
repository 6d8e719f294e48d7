"""Keys: what a file may hold, who is let in with them, and what a change of the file does."""

import hmac
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servox.errors import BadSetting, Unauthenticated
from servox.keys import Key, Keys, document_of, minted, own, read_keys, read_own
from servox.watched import LOOK_EVERY_S, Watched


def made(**changes: Any) -> tuple[str, Key]:  # noqa: ANN401
    text, name, digest = minted()
    return text, replace(Key(id=name, name="shop", sha256=digest), **changes)


def written(path: Path, *keys: Key) -> Path:
    """As an editor does: another file in its place."""
    other = path.with_suffix(".new")
    other.write_text(document_of(keys))
    other.replace(path)
    return path


@pytest.fixture
def time_passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lets every file be looked at again."""
    ahead = [0.0]
    made_before = Watched.__init__

    def begin(self: Any, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
        made_before(self, *arguments, **{"clock": lambda: ahead[0], **options})

    monkeypatch.setattr(Watched, "__init__", begin)

    def passes() -> None:
        ahead[0] += LOOK_EVERY_S

    return passes


def test_a_key_is_known_by_its_hash_alone(tmp_path: Path) -> None:
    text, key = made(scopes=("embed",), tenant="acme", rate_per_s=3)
    path = written(tmp_path / "keys.json", key)
    secret = text.rsplit("_", 1)[-1] if text.count("_") == 2 else text.split("_", 2)[2]
    assert secret not in path.read_text()
    assert len(text.split("_", 2)[2]) == 43
    held = Keys(path).holder(text)
    assert held == key
    assert held.caller.may("embed")
    assert not held.caller.may("recognize")
    assert (held.caller.tenant, held.allowance.rate_per_s) == ("acme", 3)


@given(st.data())
def test_no_other_text_is_the_key(data: st.DataObject) -> None:
    text, key = made()
    ring = object.__new__(Keys)
    ring._file, ring._clock = type("File", (), {"get": lambda _: {key.id: key}})(), lambda: 0.0
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(codec="utf-8").filter(lambda each: each != text[place]))
    with pytest.raises(Unauthenticated) as caught:
        ring.holder(text[:place] + other + text[place + 1 :])
    assert key.sha256 not in str(caught.value)
    assert text.split("_", 2)[2][:8] not in str(caught.value)


def test_an_unknown_id_is_compared_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared, compare = list[tuple[str, str]](), hmac.compare_digest

    def counted(one: str, other: str) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    _, key = made()
    ring = Keys(written(tmp_path / "keys.json", key))
    for text in (minted()[0], f"sxk_{key.id}_{'x' * 43}", "sxk_", "x" * 10_000):
        with pytest.raises(Unauthenticated):
            ring.holder(text)
    assert [len(one) for pair in compared for one in pair] == [64] * 8


def test_an_expired_and_a_revoked_key_count_no_more(tmp_path: Path) -> None:
    (old, expired), (gone, revoked) = made(expires="2027-01-01"), made(revoked="2026-01-01")
    ring = Keys(written(tmp_path / "keys.json", expired, revoked), clock=lambda: 1798761599.0)
    assert ring.holder(old).id == expired.id, "a second before"
    with pytest.raises(Unauthenticated, match="is revoked"):
        ring.holder(gone)
    with pytest.raises(Unauthenticated, match="is expired"):
        Keys(tmp_path / "keys.json", clock=lambda: 1798761600.0).holder(old)


def test_a_change_of_the_file_needs_no_restart(tmp_path: Path, time_passes: Callable[[], None]) -> None:
    (text, key), (later, added) = made(), made()
    path = written(tmp_path / "keys.json", key)
    ring = Keys(path)
    held = ring.holder(text)
    written(path, replace(key, revoked="2026-01-01"), added)
    ring.check(held)  # looked at a moment ago
    time_passes()
    with pytest.raises(Unauthenticated, match="revoked"):
        ring.check(held)
    assert ring.holder(later).id == added.id
    written(path, added)
    time_passes()
    with pytest.raises(Unauthenticated, match="taken away"):
        ring.check(held)


@pytest.mark.parametrize("breaks", ["text", "gone", "unreadable list"])
def test_a_broken_edit_keeps_what_was_good_and_alarms(
    tmp_path: Path, time_passes: Callable[[], None], caplog: pytest.LogCaptureFixture, breaks: str
) -> None:
    text, key = made()
    path, alarms = written(tmp_path / "keys.json", key), list[bool]()
    ring = Keys(path, alarm=alarms.append)
    if breaks == "gone":
        path.unlink()
    else:
        path.write_text('{"keys": [' if breaks == "text" else '{"keys": [{"id": "x"}]}')
    for _ in range(3):
        time_passes()
        assert ring.holder(text) == key
    assert caplog.text.count("cannot be used") == 1, "once for each change"
    assert alarms == [True]
    written(path, replace(key, revoked="2026-01-01"))
    time_passes()
    with pytest.raises(Unauthenticated):
        ring.holder(text)
    assert alarms == [True, False]


BROKEN: list[tuple[Any, str]] = [
    ([], "no list"),
    ({"keys": {}}, "no list"),
    ({"keys": ["x"]}, "entry 0: it is no object"),
    ({"keys": [{"name": "x", "sha256": "0" * 64}]}, "'id' is missing"),
    ({"keys": [{"id": "a", "name": "x", "sha256": "0" * 64, "scope": "*"}]}, "'scope' is unknown"),
    ({"keys": [{"id": "a", "name": "x", "sha256": "0" * 64, "scopes": ["all"]}]}, "scope 'all' is unknown"),
    ({"keys": [{"id": "a", "name": "x", "sha256": "0" * 64, "scopes": "*"}]}, "scopes = "),
    ({"keys": [{"id": "a", "name": "x", "sha256": "0" * 64, "rate_per_s": -1}]}, "rate_per_s = -1"),
    ({"keys": [{"id": "a", "name": "x", "sha256": "0" * 64, "streams": 1.5}]}, "streams = 1.5"),
    ({"keys": [{"id": "a", "name": "x", "sha256": "0" * 64, "streams": True}]}, "streams = True"),
    ({"keys": [{"id": "a", "name": "x\n", "sha256": "0" * 64}]}, "name 'x"),
    ({"keys": [{"id": "a_b", "name": "x", "sha256": "0" * 64}]}, "damaged"),
    ({"keys": [{"id": "a", "name": "x", "sha256": "0" * 63}]}, "damaged"),
    ({"keys": [{"id": "a", "name": "x", "sha256": "0" * 64, "expires": "soon"}]}, "time 'soon'"),
    ({"keys": [{"id": "a", "name": "x", "sha256": "0" * 64}] * 2}, "twice"),
]


@pytest.mark.parametrize(("document", "says"), BROKEN)
def test_a_file_that_makes_no_sense_says_where(tmp_path: Path, document: Any, says: str) -> None:  # noqa: ANN401
    (path := tmp_path / "keys.json").write_text(json.dumps(document))
    with pytest.raises(BadSetting, match=str(path)) as caught:
        read_keys(path)
    assert says in str(caught.value)


def test_a_file_that_is_not_there_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="servox keys create"):
        Keys(tmp_path / "none.json")


def test_a_file_written_is_a_file_read(tmp_path: Path) -> None:
    keys = [made(name=f"é {number}", scopes=("*",), streams=number)[1] for number in range(3)]
    assert list(read_keys(written(tmp_path / "keys.json", *keys)).values()) == keys
    assert asdict(keys[0])["name"] == "é 0"


def test_ones_own_key_is_checked_before_it_is_sent(tmp_path: Path) -> None:
    text, _ = made()
    (path := tmp_path / "own").write_text(text + "\n")
    path.chmod(0o600)
    assert read_own(path) == text
    for wrong in ("", "short", text + "\r\nx-other: 1", f'"{text}"'):
        with pytest.raises(BadSetting) as caught:
            own(wrong)
        assert text not in str(caught.value)
    with pytest.raises(BadSetting, match="none"):
        read_own(tmp_path / "none")
