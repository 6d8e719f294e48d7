"""Servers as processes of their own: started, frozen while another is measured, weighed, and ended whatever happens.

- All that a server starts inherits a mark in its environment; by it every descendant is found, even one that became a
  daemon, and nothing else is ever ended.
- A guard process ends them when the bench itself is killed: its standard input closes.
- A frozen server (SIGSTOP) takes no CPU from the one that is measured, keeps its memory, and goes on at once.
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

MARK = "SERVOX_BENCH_MARK"
STOP_S = 10.0
PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def marked(mark: str) -> list[int]:
    """Every process that carries `mark` and still runs, this one excepted."""
    sign, found = f"{MARK}={mark}".encode(), []
    for folder in PROC.iterdir():
        # A process may end while it is read; one of another user cannot be read, and is none of ours.
        with suppress(OSError):
            if folder.name.isdigit() and int(folder.name) != os.getpid():
                variables = (folder / "environ").read_bytes().split(b"\0")
                if any(variable.startswith(sign) for variable in variables):
                    found.append(int(folder.name))
    return found


def end(mark: str, *, grace_s: float = STOP_S) -> None:
    """Ends every process that carries `mark`: SIGTERM, a while, SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGCONT):  # a frozen one takes the first when it gets the second
        send(marked(mark), number)
    if not _gone(mark, within_s=grace_s):
        send(marked(mark), signal.SIGKILL)
        _gone(mark, within_s=STOP_S)


def _gone(mark: str, *, within_s: float) -> bool:
    """Whether all ended in time."""
    until_s = time.monotonic() + within_s
    while marked(mark):
        if time.monotonic() > until_s:
            return False
        time.sleep(0.05)
    return True


def send(pids: Sequence[int], number: signal.Signals) -> None:
    """A signal to each that still runs."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def held_bytes(pid: int, *kinds: str) -> int:
    """Memory of a process, a page that n processes share counting 1/n; 0 when it is gone.

    Args:
        pid: of the process.
        kinds: lines of `smaps_rollup` to add up; all memory if none are named.
    """
    with suppress(OSError):
        lines = (PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
        sizes = {name: int(size.split()[0]) * 1024 for name, size in (line.split(":") for line in lines)}
        return sum(sizes[kind] for kind in kinds or ("Pss",))
    return 0


def used_cpu_s(pid: int) -> float:
    """CPU seconds of a process; 0 when it is gone."""
    with suppress(OSError):
        # After the name, which may hold anything in its brackets: field 14 is user time, 15 is system time.
        fields = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    return 0.0


@contextmanager
def guarded(*, grace_s: float = STOP_S) -> Iterator[str]:
    """A mark for everything that is started inside; all of it ends with the block, or with this process."""
    mark = uuid.uuid4().hex
    guard = subprocess.Popen(
        [sys.executable, "-m", "bench.peers.processes", mark], stdin=subprocess.PIPE, start_new_session=True
    )
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield mark
    finally:
        signal.signal(signal.SIGTERM, before)
        end(mark, grace_s=grace_s)
        if guard.stdin:
            guard.stdin.close()
        guard.wait(2 * STOP_S)


class Running:
    """One server.

    Args:
        name: for its log and its mark.
        command: and its arguments.
        environment: added to this process's own.
        mark: of the bench's run.
        log: file for what it prints.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, environment: Mapping[str, str], mark: str, log: Path
    ) -> None:
        self.name = name
        self.log = log
        self._mark = f"{mark}/{name}/"
        self._peak_bytes = 0
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **environment, MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._tree: list[int] = []

    @property
    def alive(self) -> bool:
        """Whether its first process still runs."""
        return self._process.poll() is None

    def settle(self) -> None:
        """Notes which processes it consists of now."""
        self._tree = marked(self._mark)

    def freeze(self) -> None:
        """Stops it where it stands."""
        self.settle()
        send(self._tree, signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets it go on."""
        send(self._tree, signal.SIGCONT)

    def weigh(self) -> int:
        """Bytes that it holds now, pages shared by n processes counting 1/n each; remembered for `peak_bytes`."""
        self.settle()  # servers replace their workers
        held = sum(held_bytes(pid) for pid in self._tree)
        self._peak_bytes = max(self._peak_bytes, held)
        return held

    def own_bytes(self) -> int:
        """Bytes that it allocated; the pages of files are left out, whose share depends on who else maps them."""
        self.settle()
        return sum(held_bytes(pid, "Pss_Anon", "Pss_Shmem") for pid in self._tree)

    @property
    def peak_bytes(self) -> int:
        """The most that `weigh` saw."""
        return self._peak_bytes

    def cpu_s(self) -> float:
        """CPU seconds of its processes so far."""
        return sum(used_cpu_s(pid) for pid in self._tree)

    def stop(self, *, grace_s: float = STOP_S) -> None:
        """Ends it, if need be by force."""
        end(self._mark, grace_s=grace_s)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)

    def last_words(self) -> str:
        """The last line that says something in its log."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it printed nothing"


def _guard(mark: str) -> None:
    """Waits for the bench to be gone, then ends what it left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin.read()
    time.sleep(0.1)
    end(mark, grace_s=3.0)


if __name__ == "__main__":
    _guard(sys.argv[1])
