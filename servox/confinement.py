"""What a process that reads strangers' files may do: little, so that a hostile file harms nobody but itself."""

import mmap
import os
import resource
from contextlib import suppress
from pathlib import Path


def data_bytes() -> int:
    """What `RLIMIT_DATA` counts: private writable memory of this process."""
    statm = os.open("/proc/self/statm", os.O_RDONLY)  # after every clip: ten times as fast as `Path.read_text`
    try:
        return int(os.read(statm, 256).split()[5]) * mmap.PAGESIZE
    finally:
        os.close(statm)


def confine(memory_bytes: int) -> None:
    """Bounds this process for good.

    - `memory_bytes` of data; no file is written and no core left, for both would hold audio.
    - The kernel is told to kill it first.
    - Standard error is closed: decoders complain there of damaged files, tags included.
    """
    with suppress(OSError):  # a sandbox may forbid it; the limits below still hold
        Path("/proc/self/oom_score_adj").write_text("1000")
    limits = ((resource.RLIMIT_DATA, memory_bytes), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0))
    for limit, value in limits:
        resource.setrlimit(limit, (value, value))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


def place(error: Exception) -> str:
    """File and line of an unforeseen error, whose text may hold data and is not told."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "an unknown place"
