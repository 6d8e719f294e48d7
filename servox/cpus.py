"""How many processors this process may really use: its affinity, and the quota of its control group (v1 and v2).

A container with a limit of 2 CPUs still sees all 64 of its node; threads beyond the limit only throttle each other
(on an oversubscribed CPU encoders slow down 7 to 13 times).
"""

import math
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath


def usable_cpus(affinity: int, quotas: Iterable[float]) -> int:
    """Whole processors under every limit, at least 1.

    Args:
        affinity: processors that the scheduler may use.
        quotas: limits in processors, of the group and all groups above it; half a processor more is not a processor.
    """
    return max(1, math.floor(min([float(affinity), *quotas]) + 1e-9))


def quota_v2(cpu_max: str) -> float | None:
    """Processors by a `cpu.max` file ("200000 100000", "max 100000"); None where there is no limit."""
    match cpu_max.split():
        case [quota, period] if quota.isdigit() and period.isdigit() and int(period):
            return int(quota) / int(period)
        case _:
            return None


def quota_v1(quota_us: str, period_us: str) -> float | None:
    """Processors by `cpu.cfs_quota_us` and `cpu.cfs_period_us` ("-1": no limit); None where there is no limit."""
    return quota_v2(f"{quota_us.strip()} {period_us.strip()}")


def group_folders(cgroup: str, root: Path) -> list[Path]:
    """Folders that may limit this process, by `/proc/self/cgroup`: its groups, those above, and the root.

    Inside a container the root is the container's own group; outside the named path counts.
    """
    folders: list[Path] = []
    for line in cgroup.splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            base = root
        elif "cpu" in controllers.split(","):
            base = root / "cpu"
        else:
            continue
        relative = PurePosixPath(path.lstrip("/"))
        folders += [base / part for part in (relative, *relative.parents)]
    return list(dict.fromkeys([*folders, root, root / "cpu"]))


def _quota_of(folder: Path) -> float | None:
    v2 = _read(folder / "cpu.max")
    if v2:
        return quota_v2(v2)
    return quota_v1(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def here(*, root: Path = Path("/sys/fs/cgroup"), cgroup: Path = Path("/proc/self/cgroup")) -> int:
    """Processors that this process may use."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = (_quota_of(folder) for folder in group_folders(_read(cgroup), root))
    return usable_cpus(affinity, [quota for quota in quotas if quota])
