import ctypes
import os
import platform
import subprocess
import sys
import threading

import pytest

from services.embedder.slices import _ATTRIBUTES, DEFAULT_NS, SHORT_NS, SYSTEM_CALLS, set_slice

pytestmark = pytest.mark.skipif(platform.machine() not in SYSTEM_CALLS, reason="no number of the system call here")


def _slice_ns() -> int:
    """What the kernel says of the calling thread."""
    held = ctypes.create_string_buffer(_ATTRIBUTES.size)
    assert ctypes.CDLL(None).syscall(SYSTEM_CALLS[platform.machine()] + 1, 0, held, _ATTRIBUTES.size, 0) == 0
    return int(_ATTRIBUTES.unpack(held.raw)[5])


def test_a_thread_gets_its_slice_and_its_threads_inherit_it() -> None:
    seen: dict[str, tuple[bool, int, int]] = {}

    def note(name: str, slice_ns: int | None) -> None:
        done = set_slice(slice_ns) if slice_ns is not None else True
        seen[name] = (done, _slice_ns(), os.getpriority(os.PRIO_PROCESS, 0))

    def parent() -> None:
        note("short", SHORT_NS)
        for name, slice_ns in (("heir", None), ("reset", DEFAULT_NS)):
            child = threading.Thread(target=note, args=(name, slice_ns))
            child.start()
            child.join()

    def grandparent() -> None:  # another test of this process may have left its thread, and so this one, a short slice
        note("own", DEFAULT_NS)
        thread = threading.Thread(target=parent)
        thread.start()
        thread.join()
        note("kept", None)

    nice = os.getpriority(os.PRIO_PROCESS, 0)
    thread = threading.Thread(target=grandparent)
    thread.start()
    thread.join()
    if not seen["short"][0] or seen["short"][1] != SHORT_NS:
        pytest.skip("this kernel has no slices of threads: Linux 6.12 or later has")
    own_ns = seen["own"][1]
    assert own_ns > SHORT_NS
    short, own = (True, SHORT_NS, nice), (True, own_ns, nice)
    assert seen == {"own": own, "short": short, "heir": short, "reset": own, "kept": own}


def test_the_niceness_of_the_process_stays() -> None:
    script = (
        "import os; os.nice(7); from services.embedder.slices import set_slice; set_slice(100_000); "
        "print(os.getpriority(os.PRIO_PROCESS, 0))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 7


def test_a_slice_that_the_kernel_does_not_take_changes_nothing() -> None:
    before_ns = _slice_ns()
    set_slice(1)
    assert _slice_ns() in (before_ns, SHORT_NS)
    set_slice(DEFAULT_NS)
