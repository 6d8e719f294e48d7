"""Promotion on a real registry: the gate, two operators at once, rollback, evaluations, deletion, the command."""

import dataclasses
import json
import subprocess
import sys
import textwrap
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.prober.evaluations import Evaluation
from services.prober.heads import Head
from services.prober.heads_command import heads_app
from services.prober.promotion import Promotions
from services.prober.registry import Registry
from services.prober.rollout import Rollout
from servox.callers import Caller, calling
from servox.errors import BadInput, NotFound, Refused
from tests.prober.test_gate import EVALUATION
from tests.prober.test_ledger import C
from tests.prober.test_registry import GOOD, A, B, head


def of(made: Head, **changes: object) -> Evaluation:
    """A good evaluation of a head, made now."""
    now = datetime.now(UTC).isoformat()
    given = {"head": made.card.tag, "digest": made.digest, "created": now, **changes}
    return dataclasses.replace(EVALUATION, **given)  # type: ignore[arg-type]  # by name


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Three versions of one head."""
    made = Registry(tmp_path / "heads")
    for version in (A, B, C):
        made.save(head(version=version))
    return made


def test_a_refusal_names_every_rule_and_is_on_record(registry: Registry) -> None:
    bad = dataclasses.replace(GOOD, macro_f1=0.41, clips=3)
    registry.save(head("poor", out_of_fold=bad))
    promotions = Promotions(registry)
    with pytest.raises(Refused, match=r"0\.410 is not above its prior-matched floor 0\.500.*out_of_fold\.min_clips"):
        promotions.promote(f"poor:{A}", reason="try")
    (event,) = promotions.history("poor")
    assert (event.action, event.version, event.reason) == ("refused", A, "try")
    assert [result.rule for result in event.gate if not result.passed] == [
        "out_of_fold.margin",
        "out_of_fold.min_clips",
    ]
    assert registry.production("poor") == ""


def test_a_stored_evaluation_decides(registry: Registry) -> None:
    promotions, made = Promotions(registry), registry.get(f"toy:{A}")
    stored = promotions.store_evaluation(f"toy:{A}", of(made).to_json())
    assert all(result.passed for result in stored.gate)
    kept = promotions.evaluation(stored.entry)
    assert kept is not None
    assert kept == of(made, created=kept.created)
    worse = dataclasses.replace(EVALUATION.corpora[0], ece=0.99)
    promotions.store_evaluation(f"toy:{A}", of(made, corpora=(worse,)).to_json())
    with pytest.raises(Refused, match=r"evaluation\.max_ece: 0\.990"):
        promotions.promote(f"toy:{A}")
    assert [event.action for event in promotions.history("toy")] == ["evaluated", "evaluated", "refused"]


def test_a_version_may_not_be_worse_than_what_it_replaces(registry: Registry) -> None:
    promotions = Promotions(registry)
    promotions.store_evaluation(f"toy:{A}", of(registry.get(f"toy:{A}")).to_json())
    promotions.promote(f"toy:{A}")
    lower = tuple(dataclasses.replace(each, macro_f1=each.macro_f1 - 0.05) for each in EVALUATION.corpora)
    promotions.store_evaluation(f"toy:{B}", of(registry.get(f"toy:{B}"), corpora=lower).to_json())
    with pytest.raises(Refused, match=r"evaluation\.max_regression: mean macro-F1 on 2 corpora is -0\.050"):
        promotions.promote(f"toy:{B}")
    promotions.promote(f"toy:{C}")  # of which nothing is known


def test_an_evaluation_of_another_head_is_refused(registry: Registry) -> None:
    promotions = Promotions(registry)
    with pytest.raises(Refused, match="the evaluation is of"):
        promotions.store_evaluation(f"toy:{A}", of(registry.get(f"toy:{A}"), digest="0" * 64).to_json())
    with pytest.raises(BadInput, match="evaluate a version"):
        promotions.store_evaluation("toy", of(registry.get(f"toy:{A}")).to_json())
    with pytest.raises(BadInput, match="not JSON"):
        promotions.store_evaluation(f"toy:{A}", "{")
    assert promotions.evaluation(promotions.entry(f"toy:{A}")) is None


def test_an_evaluation_stays_behind_when_its_head_is_trained_again(registry: Registry) -> None:
    promotions = Promotions(registry)
    promotions.store_evaluation(f"toy:{A}", of(registry.get(f"toy:{A}")).to_json())
    promotions.delete(f"toy:{A}")
    registry.save(head(version=A, temperature=2.0))
    assert promotions.evaluation(promotions.entry(f"toy:{A}")) is None
    with pytest.raises(Refused, match=r"evaluation\.of_this_head: .*evaluate it again"):
        promotions.promote(f"toy:{A}")


def test_of_two_operators_one_wins(registry: Registry) -> None:
    promotions = Promotions(registry)
    promotions.promote(f"toy:{A}", replaces="")
    won, lost = list[str](), list[str]()
    start = threading.Barrier(8)

    def promote(version: str) -> None:
        start.wait()
        try:
            Promotions(Registry(registry.root)).promote(f"toy:{version}", replaces=A)
            won.append(version)
        except Refused as error:
            lost.append(str(error))

    threads = [threading.Thread(target=promote, args=(version,)) for version in (B, C) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert registry.production("toy") == won[0]
    assert len(lost) == 7
    assert all(f"version {won[0]} is in production, not {A}" in message for message in lost)
    assert [event.version for event in promotions.history("toy")] == [A, won[0]]


def test_of_two_processes_one_wins(registry: Registry) -> None:
    Promotions(registry).promote(f"toy:{A}")
    script = """
        import pathlib, sys
        from services.prober.promotion import Promotions
        from services.prober.registry import Registry
        from servox.errors import Refused
        promotions = Promotions(Registry(pathlib.Path(sys.argv[1])))
        sys.stdout.write("ready\\n"); sys.stdout.flush(); sys.stdin.readline()
        try:
            promotions.promote(f"toy:{sys.argv[2]}", replaces=sys.argv[3])
            print("won")
        except Refused as error:
            print(error)
        """
    command = [sys.executable, "-c", textwrap.dedent(script), str(registry.root)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        subprocess.Popen([*command, B, A], **pipes) as one,  # type: ignore[call-overload]  # of a mapping
        subprocess.Popen([*command, C, A], **pipes) as two,  # type: ignore[call-overload]  # of a mapping
    ):
        for each in (one, two):
            assert each.stdout.readline() == "ready\n"
        for each in (one, two):
            each.stdin.write("\n")
            each.stdin.flush()
        said = [each.communicate()[0].strip() for each in (one, two)]
    assert sorted(text == "won" for text in said) == [False, True]
    winner = B if said[0] == "won" else C
    assert f"version {winner} is in production, not {A}" in "".join(said)
    assert registry.production("toy") == winner


def test_a_belief_may_name_the_whole_tag(registry: Registry) -> None:
    promotions = Promotions(registry)
    with pytest.raises(Refused, match=f"no version is in production, not {A}"):
        promotions.promote(f"toy:{B}", replaces=A)
    promotions.promote(f"toy:{A}")
    promotions.promote(f"toy:{B}", replaces=f"toy:{A}")
    with pytest.raises(Refused, match=f"version {B} is in production, not none"):
        promotions.promote(f"toy:{C}", replaces="")


def test_promoting_what_is_in_production_changes_nothing(registry: Registry) -> None:
    promotions = Promotions(registry)
    for _ in range(3):
        assert promotions.promote(f"toy:{A}").entry.stage == "production"
    assert len(promotions.history("toy")) == 1


def test_rollbacks_walk_back_to_the_first(registry: Registry) -> None:
    promotions = Promotions(registry)
    for version in (A, B, C, A):
        promotions.promote(f"toy:{version}")
    walked = [promotions.rollback("toy", reason="worse").card.version for _ in range(3)]
    assert walked == [C, B, A]
    with pytest.raises(Refused, match=f"nothing to go back to: {A} is in production"):
        promotions.rollback("toy")
    promotions.promote(f"toy:{C}")
    assert promotions.rollback("toy").card.version == A
    last = promotions.history("toy")[-1]
    assert (last.action, last.version, last.replaced) == ("rolled_back", A, C)


def test_a_rollback_that_somebody_else_made_is_not_made_again(registry: Registry) -> None:
    promotions = Promotions(registry)
    for version in (A, B, C):
        promotions.promote(f"toy:{version}")
    promotions.rollback("toy", replaces=C)
    with pytest.raises(Refused, match=f"version {B} is in production, not {C}"):
        promotions.rollback("toy", replaces=C)


def test_a_rollback_passes_over_what_was_deleted(registry: Registry) -> None:
    promotions = Promotions(registry)
    for version in (A, B, C):
        promotions.promote(f"toy:{version}")
    promotions.delete(f"toy:{B}")
    assert promotions.rollback("toy").card.version == A


def test_a_rollback_is_not_asked_by_the_gate(registry: Registry) -> None:
    promotions = Promotions(registry)
    promotions.promote(f"toy:{A}")
    promotions.promote(f"toy:{B}")
    bad = dataclasses.replace(EVALUATION.corpora[0], ece=0.99)
    promotions.store_evaluation(f"toy:{A}", of(registry.get(f"toy:{A}"), corpora=(bad,)).to_json())
    assert promotions.rollback("toy").card.version == A


def test_nothing_was_ever_promoted(registry: Registry) -> None:
    promotions = Promotions(registry)
    with pytest.raises(Refused, match="no version is in production"):
        promotions.rollback("toy")
    assert promotions.history("toy") == []
    for call in (promotions.history, promotions.rollback, promotions.rollout, promotions.promote):
        with pytest.raises(NotFound, match="none of that name"):
            call("nobody")
        with pytest.raises(NotFound):
            call("../toy")
    assert not (registry.root / "promotion" / "nobody").exists()


def test_who_did_it_is_on_record(registry: Registry) -> None:
    promotions = Promotions(registry)
    with calling(Caller(name="ana")):
        promotions.promote(f"toy:{A}", reason="first")
    promotions.promote(f"toy:{B}")
    assert [(event.actor, event.reason) for event in promotions.history("toy")] == [("ana", "first"), ("", "")]


def test_a_deletion_of_production_is_on_record_and_outlived(registry: Registry) -> None:
    promotions = Promotions(registry)
    promotions.promote(f"toy:{A}")
    with pytest.raises(Refused, match="promote another version first"):
        promotions.delete(f"toy:{A}")
    for version in (A, B, C):
        promotions.delete(f"toy:{version}", force=True)
    assert registry.names("") == []
    assert [(event.action, event.version, event.replaced) for event in promotions.history("toy")] == [
        ("promoted", A, ""),
        ("deleted", "", A),
    ]
    registry.save(head(version=B))
    with pytest.raises(Refused, match="nothing to go back to"):
        promotions.rollback("toy")


@pytest.mark.parametrize(
    ("rollout", "error", "said"),
    [
        (Rollout(canary=B, canary_share=1.5), BadInput, r"canary_share = 1\.5: give 0 to 1"),
        (Rollout(shadow=B, shadow_share=float("nan")), BadInput, "shadow_share = nan"),
        (Rollout(canary_share=0.1), BadInput, "without a canary"),
        (Rollout(canary="e" * 16, canary_share=0.1), NotFound, "no such version"),
        (Rollout(canary=A, canary_share=0.1), Refused, "answers with already"),
        (Rollout(shadow=A), Refused, "answers with already"),
        (Rollout(canary="1" * 16, canary_share=0.1), Refused, "one embedder cannot serve both"),
        (Rollout(shadow="2" * 16), Refused, r"it reads 8 dimensions of layers \(3,\), not 4"),
        (Rollout(shadow="1" * 16), Refused, "it reads bundle"),
        (Rollout(canary="3" * 16, canary_share=0.1), Refused, r"cannot be a canary.*out_of_fold\.margin"),
    ],
)
def test_a_rollout_that_cannot_be_is_refused(
    registry: Registry, rollout: Rollout, error: type[Exception], said: str
) -> None:
    registry.save(head(version="1" * 16, bundle="cd" * 32))
    registry.save(head(version="2" * 16, dims=8))
    registry.save(head(version="3" * 16, out_of_fold=dataclasses.replace(GOOD, macro_f1=0.1)))
    promotions = Promotions(registry)
    promotions.promote(f"toy:{A}")
    with pytest.raises(error, match=said):
        promotions.set_rollout("toy", rollout)
    assert promotions.rollout("toy") == (Rollout(), A)


def test_a_rollout_ends_when_its_version_is_promoted_or_gone(registry: Registry) -> None:
    promotions = Promotions(registry)
    promotions.promote(f"toy:{A}")
    promotions.set_rollout("toy", Rollout(canary=B, canary_share=0.2, shadow=C, shadow_share=1.0), reason="try")
    assert [promotions.entry(f"toy:{version}").stage for version in (A, B, C)] == ["production", "canary", "shadow"]
    promotions.promote(f"toy:{B}")
    assert promotions.rollout("toy")[0] == Rollout(shadow=C, shadow_share=1.0)
    promotions.delete(f"toy:{C}")
    assert promotions.rollout("toy") == (Rollout(), B)
    said = [event.reason for event in promotions.history("toy") if event.action == "rolled_out"]
    assert said == [f"canary {B} for 20.0% of the callers, shadow {C} on 100.0% of the windows; try"]


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(heads_app, [str(each) for each in arguments], env={"COLUMNS": "200"})
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def last(said: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(said.splitlines()[-1])
    return found


def test_the_command_promotes_rolls_back_and_rolls_out(registry: Registry, tmp_path: Path) -> None:
    at = ("--heads", registry.root)
    code, said = run("promote", f"toy:{A}", *at, "--reason", "first", "--json")
    assert code == 0
    assert "out_of_fold.margin" in said
    assert last(said)["promoted"] == f"toy:{A}"
    with pytest.raises(Refused, match="not none"):
        run("promote", f"toy:{B}", *at, "--replaces", "")
    assert run("promote", f"toy:{B}", *at, "--replaces", A)[0] == 0
    assert last(run("canary", f"toy:{C}", *at, "--share", "0.25", "--json")[1])["canary_share"] == 0.25
    assert last(run("shadow", "toy:latest", *at, "--json")[1])["shadow"] == C
    assert f"canary {C} for 25.0% of the callers, shadow {C}" in run("rollout", "toy", *at)[1]
    assert last(run("canary", "toy", *at, "--off", "--json")[1])["canary"] == ""
    with pytest.raises(BadInput, match="name a version"):
        run("canary", "toy", *at)
    assert last(run("rollback", "toy", *at, "--json")[1])["rolled_back"] == f"toy:{A}"
    history = last(run("history", "toy", *at, "--json")[1])["history"]
    assert isinstance(history, list)
    assert [event["action"] for event in history] == ["promoted", "promoted", *["rolled_out"] * 3, "rolled_back"]
    assert history[0]["actor"], "whoever is logged in"
    gate = tmp_path / "gate.toml"
    gate.write_text("[out_of_fold]\nmargin = 0.5")
    code, said = run("promote", f"toy:{C}", *at, "--gate", gate, "--check", "--json")
    assert code == 1
    assert "failed" in said
    assert registry.production("toy") == A, "it only looked"
    with pytest.raises(Refused, match=r"out_of_fold\.margin"):
        run("promote", f"toy:{C}", *at, "--gate", gate)
