"""What a variant is, and the ratios of the table."""

import math
from argparse import ArgumentTypeError
from typing import Any

import pytest

from bench.load import Burst, Outcome, Shot
from bench.server_house import Subject
from bench.variants import environment, table


def test_a_variant_is_settings_of_the_embedder() -> None:
    assert environment("default") == {}
    assert environment("batch_clips=4 pad_step_ms=200") == {
        "SERVOX_EMBEDDER_BATCH_CLIPS": "4",
        "SERVOX_EMBEDDER_PAD_STEP_MS": "200",
    }


@pytest.mark.parametrize("variant", ["batch_clips", "batches=4", "batch_clips=1 x", "--help"])
def test_what_is_no_setting_is_refused_before_anything_starts(variant: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is not a setting of the embedder and its value: write"):
        environment(variant)


def _burst(*taken_s: float, outcome: Outcome = "answered") -> Burst:
    shots = [Shot(due_s=0.1, sent_s=0.1, ended_s=0.1 + taken, outcome=outcome) for taken in taken_s]
    return Burst(shots=shots, begin_s=0.0, end_s=2.0, generator_cpu_s=0.0)


def _subject(name: str, burst: Burst, *, cpu_s: float) -> Subject:
    nothing: Any = None  # a subject that was measured; no process is asked any more
    key = ("open", 36.0)
    return Subject(
        name=name, server=nothing, told=nothing, running=nothing, files=[], bursts={key: [burst]}, cpu_s={key: cpu_s}
    )


def test_ratios_are_to_the_first_variant() -> None:
    first = _subject("default", _burst(0.1, 0.2, 0.3, 0.4), cpu_s=0.2)
    other = _subject("batch_clips=1", _burst(0.4, 0.8), cpu_s=0.2)
    one, two = table([first, other], deadline_s=1.0)
    assert (one["goodput_ratio"], one["p99_ratio"]) == (1, 1)
    assert (two["goodput_ratio"], two["p99_ratio"]) == (pytest.approx(0.5), pytest.approx(2))
    assert (one["cpu_ms"], two["cpu_ms"]) == (pytest.approx(50), pytest.approx(100))
    assert {row["load"] for row in (one, two)} == {"36 a second"}


def test_nothing_answered_is_no_division_by_zero() -> None:
    rows = table([_subject("default", _burst(0.5, outcome="late"), cpu_s=0.1)], deadline_s=1.0)
    assert math.isnan(rows[0]["goodput_ratio"])
    assert rows[0]["late"] == 1


def test_a_subject_that_was_lost_has_no_row() -> None:
    lost = _subject("mosec", _burst(0.1), cpu_s=0.1)
    lost.bursts.clear()
    rows = table([_subject("default", _burst(0.5), cpu_s=0.1), lost], deadline_s=1.0)
    assert [row["variant"] for row in rows] == ["default"]
