"""Servers as processes: found by their mark, frozen, weighed, and gone afterwards, whatever they started."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.peers.processes import Running, guarded, marked

# It starts a child in a session of its own, as a daemon would be, and ignores SIGTERM.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print("ready", flush=True)
while True:
    sum(range(1000))
"""


def until(true: object, *, within_s: float = 20.0) -> None:
    assert callable(true)
    until_s = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < until_s, "it did not happen"
        time.sleep(0.02)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def start(mark: str, folder: Path, name: str = "stubborn") -> Running:
    log = folder / f"{name}.log"
    running = Running(name, [sys.executable, "-c", STUBBORN], environment={}, mark=mark, log=log)
    until(lambda: "ready" in log.read_text() and len(marked(f"{mark}/{name}/")) == 2)
    running.settle()
    return running


def test_everything_ends_with_the_block(tmp_path: Path) -> None:
    with guarded(grace_s=0.5) as mark:
        running = start(mark, tmp_path)
        other = start(mark, tmp_path, "other")
        assert running.alive
        running.stop(grace_s=0.5)
        assert not marked(f"{mark}/stubborn/")
        assert len(marked(f"{mark}/other/")) == 2
        assert other.alive
    assert not marked(mark)
    assert not other.alive


def test_a_frozen_server_takes_no_cpu_and_goes_on(tmp_path: Path) -> None:
    with guarded(grace_s=0.5) as mark:
        running = start(mark, tmp_path)
        assert running.weigh() > 1 << 20
        assert running.peak_bytes >= running.weigh() // 2
        running.freeze()
        until(lambda: {state(pid) for pid in marked(f"{mark}/stubborn/")} == {"T"})
        used_s = running.cpu_s()
        time.sleep(0.2)
        assert running.cpu_s() == pytest.approx(used_s, abs=0.02)
        running.thaw()
        until(lambda: running.cpu_s() > used_s + 0.05)
        running.freeze()  # what is frozen must end as well
    assert not running.alive


def test_a_bench_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    body = (
        "import sys, time; from pathlib import Path; from bench.peers.processes import Running, guarded\n"
        "with guarded() as mark:\n"
        f"    one = Running('one', [sys.executable, '-c', 'import time; time.sleep(60)'], environment={{}}, mark=mark,"
        f" log=Path({str(tmp_path / 'log')!r}))\n"
        "    one.settle(); one.freeze(); print(mark, flush=True); time.sleep(60)\n"
    )
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", body], stdout=subprocess.PIPE, text=True, cwd=root) as bench:
        assert bench.stdout is not None
        mark = bench.stdout.readline().strip()
        until(lambda: marked(mark))
        os.kill(bench.pid, signal.SIGKILL)
    until(lambda: not marked(mark))


def test_the_last_words_are_the_last_line(tmp_path: Path) -> None:
    with guarded() as mark:
        command = [sys.executable, "-c", "print('first'); print('why it ended'); print()"]
        running = Running("short", command, environment={}, mark=mark, log=tmp_path / "short.log")
        until(lambda: not running.alive)
        assert running.last_words() == "why it ended"
