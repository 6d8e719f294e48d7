"""What the comparison decides by itself: its plan, the settings it takes, what it prints as JSON."""

import json
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

from bench.load import Burst, Outcome, Shot
from bench.peers.catalogue import TRIED, best
from bench.server_report import finite
from bench.server_rounds import dead, rotated
from bench.servers import _plan, best_settings

ROWS: list[dict[str, Any]] = [
    {"server": "mosec", "setting": {"batch": 1}, "closed 16: goodput": 50.0, "ours 300%: goodput": 10.0},
    {"server": "mosec", "setting": {"batch": 4}, "closed 16: goodput": 45.0, "ours 300%: goodput": 30.0},
    {"server": "triton", "setting": {"batch": 1}, "failed": "it ended"},
    {"server": "triton", "setting": {"batch": 2}, "closed 16: goodput": 0.0, "closed 16: p99_ms": 9e9},
]


def test_the_best_setting_serves_most_over_all_loads() -> None:
    assert best_settings(ROWS) == {"mosec": {"batch": 4}, "triton": {"batch": 2}}


def test_the_comparison_takes_the_tuned_settings_where_there_are_some(tmp_path: Path) -> None:
    tuned = tmp_path / "tuned.txt"
    tuned.write_text("a table\n" + json.dumps({"best": {"mosec": {"batch": 4}}}) + "\n")
    assert best("mosec", tuned) == {"batch": 4}
    assert best("triton", tuned) == TRIED["triton"][0]
    assert best("servox", None) == {}


def test_what_never_came_is_null_in_json() -> None:
    found = json.loads(json.dumps(finite({"a": math.inf, "b": [math.nan, 1.23456], "c": ("x", 1)})))
    assert found == {"a": None, "b": [None, 1.2346], "c": ["x", 1]}


def test_a_quick_run_still_has_a_closed_loop_and_an_overload() -> None:
    given = Namespace(quick=True, rounds=3, seconds=3.0, deadline_s=0.5)
    plan = _plan(given)
    assert plan.clients
    assert max(plan.shares) == 3.0
    assert plan.deadline_s == 0.5
    given.quick = False
    assert _plan(given).rounds == 3


def test_a_server_that_only_fails_is_dead() -> None:
    def burst(*outcomes: Outcome) -> Burst:
        shots = [Shot(due_s=0.0, sent_s=0.0, ended_s=0.1, outcome=outcome) for outcome in outcomes]
        return Burst(shots=shots, begin_s=0.0, end_s=1.0, generator_cpu_s=0.0)

    assert dead(burst("failed", "failed"))
    assert not dead(burst("failed", "refused"))
    assert not dead(burst("late", "failed"))
    assert not dead(burst())


def test_everyone_is_measured_first_once() -> None:
    assert [rotated(["a", "b", "c"], number)[0] for number in range(3)] == ["a", "b", "c"]
