import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servox.cpus import group_folders, here, quota_v1, quota_v2, usable_cpus


@pytest.mark.parametrize(
    ("text", "expected"),
    [("200000 100000\n", 2.0), ("max 100000\n", None), ("50000 100000", 0.5), ("", None), ("x y", None), ("1 0", None)],
)
def test_quota_of_version_2(text: str, expected: float | None) -> None:
    assert quota_v2(text) == expected


@pytest.mark.parametrize(
    ("quota", "period", "expected"), [("150000\n", "100000\n", 1.5), ("-1\n", "100000\n", None), ("", "", None)]
)
def test_quota_of_version_1(quota: str, period: str, expected: float | None) -> None:
    assert quota_v1(quota, period) == expected


@pytest.mark.parametrize(("quotas", "expected"), [([], 8), ([2.0], 2), ([1.5], 1), ([0.25], 1), ([4.0, 2.9], 2)])
def test_the_tightest_limit_holds(quotas: list[float], expected: int) -> None:
    assert usable_cpus(8, quotas) == expected


@given(affinity=st.integers(1, 512), quotas=st.lists(st.floats(0.01, 1000)))
def test_there_is_always_one_and_never_more_than_allowed(affinity: int, quotas: list[float]) -> None:
    cpus = usable_cpus(affinity, quotas)
    assert 1 <= cpus <= affinity
    assert cpus == 1 or all(cpus <= quota + 1e-6 for quota in quotas)


def test_a_container_of_version_2_is_read_at_the_root(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "cgroup").write_text("0::/\n")
    assert here(root=tmp_path, cgroup=tmp_path / "cgroup") == 1


def test_a_group_above_limits_what_is_below(tmp_path: Path) -> None:
    inner = tmp_path / "user.slice" / "shell.scope"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("max 100000\n")
    (tmp_path / "user.slice" / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "cgroup").write_text("0::/user.slice/shell.scope\n")
    assert here(root=tmp_path, cgroup=tmp_path / "cgroup") == 1


def test_version_1_is_read_where_its_controller_lies(tmp_path: Path) -> None:
    folder = tmp_path / "cpu" / "docker" / "abc"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text("100000\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cgroup").write_text("12:memory:/docker/abc\n4:cpuacct,cpu:/docker/abc\n")
    assert here(root=tmp_path, cgroup=tmp_path / "cgroup") == 1
    assert folder in group_folders((tmp_path / "cgroup").read_text(), tmp_path)


def test_without_control_groups_the_affinity_holds(tmp_path: Path) -> None:
    assert here(root=tmp_path / "none", cgroup=tmp_path / "none") == len(os.sched_getaffinity(0))
