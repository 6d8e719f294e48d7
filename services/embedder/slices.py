"""How soon a thread of ours runs once it has something to do, while the encoder keeps every processor busy.

Linux lets a running thread finish its time slice before one that wakes gets the processor: some milliseconds for each
hop between socket, event loop and decoder. A thread with a shorter slice goes first, and gets no more of the processor
in all (EEVDF; `sched_setattr` takes a slice from Linux 6.12 on). It needs no privilege. Where the kernel cannot,
nothing changes: answers and refusals come a few milliseconds later.

Python has one lock for all threads (the GIL), and lets its holder keep it for 5 ms while another waits. A thread that
computes in an engine without a queue of its own needs it for moments between two batches; waiting for the event loop
there leaves a processor idle.
"""

import ctypes
import os
import platform
import struct
import sys

SHORT_NS = 100_000  # the shortest that the kernel takes
DEFAULT_NS = 0
HANDOVER_S = 20e-6  # how long a thread of Python may make another wait for the lock: `sys.setswitchinterval`
SYSTEM_CALLS = {"x86_64": 314, "aarch64": 274}  # sched_setattr
_ATTRIBUTES = struct.Struct("@IIQiIQQQ")  # size, policy, flags, nice, priority, runtime, deadline, period


def set_slice(slice_ns: int) -> bool:
    """Gives the calling thread, and the threads and processes that it will start, a time slice; whether it has it now.

    Args:
        slice_ns: 100,000 or more; 0 for the system's own.
    """
    number = SYSTEM_CALLS.get(platform.machine())
    if sys.platform != "linux" or number is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, nice, 0, slice_ns, 0, 0)
    return bool(ctypes.CDLL(None).syscall(number, 0, attributes, 0) == 0)
