"""Histories: whole lines, torn lines, processes that are killed between two writes, and many writers."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.prober.gate import Result
from services.prober.ledger import Action, Event, Ledger, before
from services.prober.promotion import Promotions
from services.prober.registry import Registry
from servox.errors import Refused, StorageFull
from tests.prober.test_registry import A, B, head

C = "c" * 16


def event(version: str, action: Action = "promoted", **changes: str) -> Event:
    gate = (Result(rule="out_of_fold.margin", passed=True, found="macro-F1 – “well”"),)
    return Event(time_unix_ms=1, action=action, version=version, gate=gate, **changes)


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "toy")
    assert ledger.events() == []
    with ledger.locked():
        ledger.append(event(A, reason="first\nof two lines", actor="ana"))
        ledger.append(event(B, replaced=A))
    assert ledger.events() == [event(A, reason="first\nof two lines", actor="ana"), event(B, replaced=A)]


@pytest.mark.parametrize("torn", [b'{"time_unix_ms": 1, "act', b'{"', b"\xff\xfe"])
def test_a_torn_last_line_is_left_out_and_cut_off(tmp_path: Path, torn: bytes) -> None:
    ledger = Ledger(tmp_path)
    ledger.append(event(A))
    with (tmp_path / "history.jsonl").open("ab") as file:
        file.write(torn)
    assert ledger.events() == [event(A)]
    ledger.append(event(B))
    assert ledger.events() == [event(A), event(B)]
    assert (tmp_path / "history.jsonl").read_bytes().count(b"\n") == 2


def test_a_torn_first_line_is_cut_off(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_bytes(b"{" * 10_000)
    ledger = Ledger(tmp_path)
    assert ledger.events() == []
    ledger.append(event(A))
    assert ledger.events() == [event(A)]


def test_a_line_that_cannot_be_read_costs_that_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(tmp_path)
    ledger.append(event(A))
    with (tmp_path / "history.jsonl").open("ab") as file:
        file.write(b'not JSON\n[]\n{"action": "sung", "version": "x", "time_unix_ms": 1}\n')
    ledger.append(event(B))
    assert ledger.events() == [event(A), event(B)]
    assert "cannot be read" in caplog.text


def test_a_later_version_may_say_more(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.append(event(A))
    document = json.loads((tmp_path / "history.jsonl").read_text())
    (tmp_path / "history.jsonl").write_text(json.dumps({**document, "weather": "fine"}) + "\n")
    assert ledger.events() == [event(A)]


def test_only_one_is_inside_the_lock(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with Ledger(tmp_path).locked():
                inside += 1
                most = max(most, inside)
                Ledger(tmp_path).append(event(A))
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert len(Ledger(tmp_path).events()) == 80


KILLED = """
    import os, signal, sys, pathlib
    sys.path.insert(0, sys.argv[1])
    import test_registry as t
    from services.prober import ledger, promotion
    from servox.callers import Caller, calling

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def promote(point):
        registry, append = t.Registry(pathlib.Path(sys.argv[2]) / point), ledger.Ledger.append
        if point == "after the intention":
            registry.put_in_production = die
        elif point == "after the pointer":
            ledger.Ledger.append = die
        elif point == "after the line":
            ledger.Ledger.append = lambda self, event: (append(self, event), die())
        with calling(Caller(name="ana")):
            promotion.Promotions(registry).promote(sys.argv[3], reason="better")

    for point in sys.argv[4:]:
        if not (child := os.fork()):
            promote(point)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
POINTS = ("after the intention", "after the pointer", "after the line")


def test_a_process_that_is_killed_leaves_the_truth(tmp_path: Path) -> None:
    for point in POINTS:
        registry = Registry(tmp_path / point)
        for version in (A, B):
            registry.save(head(version=version))
        Promotions(registry).promote(f"toy:{A}")
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(Path(__file__).parent), str(tmp_path), f"toy:{B}"]
    done = subprocess.run([*command, *POINTS], capture_output=True, text=True, check=False)
    assert done.stdout.split() == [str(-signal.SIGKILL)] * 3, done.stderr
    for point in POINTS:
        registry, moved = Registry(tmp_path / point), point != "after the intention"
        assert registry.production("toy") == (B if moved else A), "the pointer is the truth"
        events = Promotions(registry).history("toy")
        assert [each.version for each in events] == ([A, B] if moved else [A])
        if moved:
            assert (events[-1].actor, events[-1].reason, events[-1].replaced) == ("ana", "better", A)
        labels = [
            yaml.read_text().count("production") for yaml in sorted((tmp_path / point).glob("models/toy/*/*.yaml"))
        ]
        assert labels == ([0, 1] if moved else [1, 0])
        assert not (tmp_path / point / "promotion" / "toy" / "intent.json").exists()
        assert Promotions(registry).promote(f"toy:{B}").entry.production, "the lock went with its holder"


def test_a_pointer_that_another_hand_moved_is_written_down(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    for version in (A, B):
        registry.save(head(version=version))
    (tmp_path / "models/toy/production").write_text(A)  # as versions before the history left it
    promotions = Promotions(registry)
    promotions.promote(f"toy:{B}")
    assert [(each.action, each.version) for each in promotions.history("toy")] == [("found", A), ("promoted", B)]
    assert promotions.rollback("toy").card.version == A


def test_a_full_disk_is_said_so_and_the_pointer_stays(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.save(head())
    script = f"""
        import resource, signal, sys, pathlib
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_registry as t
        from services.prober.promotion import Promotions
        from servox.errors import Refused, StorageFull
        registry = t.Registry(pathlib.Path({str(tmp_path)!r}))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
        try:
            Promotions(registry).promote("toy:{A}")
        except StorageFull as error:
            print(error)
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert "cannot write the history of toy" in done.stdout, done.stderr
    assert registry.production("toy") == ""
    assert Promotions(registry).history("toy") == []


def test_a_registry_that_may_not_be_written_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(tmp_path)
    for version in (A, B):
        registry.save(head(version=version))
    promotions = Promotions(registry)
    promotions.promote(f"toy:{A}")

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(Refused, match="may not be written here"):
        promotions.promote(f"toy:{B}")
    assert [each.version for each in promotions.history("toy")] == [A]


def test_a_short_write_is_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, write = Ledger(tmp_path), os.write
    ledger.append(event(A))
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:10]))
    with pytest.raises(StorageFull):
        ledger.append(event(B))
    monkeypatch.undo()
    assert ledger.events() == [event(A)]
    ledger.append(event(B))
    assert ledger.events() == [event(A), event(B)]


@given(st.lists(st.sampled_from([A, B, C]), max_size=12))
def test_rollbacks_walk_back_through_what_was_promoted(promoted: list[str]) -> None:
    events = [event(version) for version in promoted]
    stack = before(events)
    assert stack == [version for n, version in enumerate(promoted) if n == 0 or promoted[n - 1] != version]
    while len(stack) > 1:
        events.append(event(stack[-2], "rolled_back", replaced=stack[-1]))
        assert before(events) == stack[:-1], "each rollback takes one away"
        stack = stack[:-1]
