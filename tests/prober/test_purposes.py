"""Purposes: what a policy may declare, which requests it lets through, what it says and counts."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from services.prober.purposes import FORBIDDEN, PURPOSES, Policy, Purposes, policy_at, policy_of
from servox.errors import BadInput, BadSetting, Forbidden

LAWFUL = [each for each in PURPOSES if each not in FORBIDDEN]


def test_without_a_policy_only_what_the_law_forbids_is_refused() -> None:
    policy = policy_at(None)
    assert policy.purpose("") == ""
    assert [policy.purpose(each) for each in LAWFUL] == LAWFUL
    for each in FORBIDDEN:
        with pytest.raises(Forbidden, match=r"2024/1689, Article 5\(1\)\(f\)"):
            policy.purpose(each)
    assert FORBIDDEN == ("workplace", "education")
    assert {f"{area}-{reason}" for area in FORBIDDEN for reason in ("medical", "safety")} <= set(LAWFUL)


@given(st.lists(st.sampled_from(LAWFUL), max_size=4, unique=True), st.sampled_from(["", *PURPOSES]), st.booleans())
def test_nothing_passes_that_was_not_declared(declared: list[str], asked: str, require: bool) -> None:
    policy = policy_of({"purposes": declared, "require": require or len(declared) > 1}, "policy")
    try:
        found = policy.purpose(asked)
    except Forbidden:
        undeclared = bool(declared) and asked not in declared
        assert asked in FORBIDDEN or (undeclared and asked) or (policy.require and not asked)
    else:
        assert found not in FORBIDDEN
        assert not declared or found in declared
        assert found or not policy.require


def test_the_only_purpose_of_a_deployment_is_inherited() -> None:
    policy = policy_of({"purposes": ["research"], "notice": "You are heard.", "notices": {"research": "A study."}}, "p")
    assert policy.purpose("") == "research"
    assert policy.told("research") == "A study."
    assert Policy(notice="You are heard.").told("") == "You are heard."
    with pytest.raises(Forbidden, match="for research only"):
        policy.purpose("medical")
    with pytest.raises(BadInput, match="unknown; give one of research"):
        policy.purpose("hiring")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"purpose": ["research"]}, "'purpose' is unknown"),
    ({"purposes": "research"}, "give a list"),
    ({"purposes": ["hiring"]}, "'hiring' is unknown"),
    ({"purposes": ["research", "medical"], "require": False}, "require = true"),
    ({"purposes": ["workplace"]}, "declare workplace-medical or -safety"),
    ({"purposes": ["education"]}, r"Article 5\(1\)\(f\)"),
    ({"require": "yes"}, "true or false"),
    ({"notice": 3}, "notice is a text"),
    ({"notices": []}, "a table of texts"),
    ({"purposes": ["research"], "notices": {"medical": "x"}}, "notices.medical is of no declared purpose"),
]


@pytest.mark.parametrize(("given_", "says"), WRONG)
def test_a_policy_that_makes_no_sense_stops_the_start(given_: dict[str, Any], says: str) -> None:
    with pytest.raises(BadSetting, match=says):
        policy_of(given_, "policy")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (path := tmp_path / "policy.toml").write_text('purposes = ["research"')
    for each in (path, tmp_path / "none.toml"):
        with pytest.raises(BadSetting, match=each.name):
            policy_at(each)
    path.write_text('purposes = ["research", "medical"]\n')
    assert policy_at(path).require


def test_what_was_asked_is_counted_by_a_closed_list() -> None:
    registry = CollectorRegistry()
    purposes = Purposes(policy_of({"purposes": ["research"]}, "p"), registry)
    purposes.check("")
    for asked in ("hiring", "x" * 1000, "workplace", "medical"):
        with pytest.raises((BadInput, Forbidden)):
            purposes.check(asked)
    counted = {
        tuple(sample.labels.values()): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    }
    assert counted == {
        ("research", "allowed"): 1,
        ("unknown", "refused"): 2,
        ("workplace", "refused"): 1,
        ("medical", "refused"): 1,
    }
