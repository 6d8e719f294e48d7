"""How many threads a container may use: oversubscribed, inference slows several times."""

import math
import os
from pathlib import Path

CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
CGROUP_V1 = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def usable_cpus() -> int:
    """CPUs that this process may use: its affinity, cut by the cgroup's quota, at least 1."""
    limit = quota_cpus(_quota())
    allowed = len(os.sched_getaffinity(0))
    return allowed if limit is None else max(1, min(allowed, limit))


def quota_cpus(quota: str) -> int | None:
    """CPUs of a quota written as in cgroup v2's `cpu.max` ("150000 100000", "max 100000"); None when unlimited.

    A fraction is rounded down (but not to 0): the thread too many would be throttled in the middle of a batch.
    """
    parts = quota.split()
    if len(parts) != 2 or not all(part.isdigit() for part in parts) or int(parts[1]) == 0:
        return None
    return max(1, math.floor(int(parts[0]) / int(parts[1])))


def _quota() -> str:
    if CGROUP_V2.is_file():
        return CGROUP_V2.read_text(encoding="ascii")
    if all(path.is_file() for path in CGROUP_V1):
        return " ".join(path.read_text(encoding="ascii").strip() for path in CGROUP_V1)
    return ""
