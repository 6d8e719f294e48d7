"""Canary and shadow: who meets which version, and that nobody ever meets a failure or a shadow because of them."""
# ruff: noqa: ANN401 -- gRPC stubs have no types worth naming here

import asyncio
import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.prober.comparison import Comparison
from services.prober.heads import Head
from services.prober.hosting import Hosted
from services.prober.metrics import ProberMetrics
from services.prober.posterior import Posterior
from services.prober.prior import Prior
from services.prober.promotion import Promotions, folder_of
from services.prober.registry import Registry
from services.prober.rollout import Rollout, Rollouts, mismatch, position, read_rollout, write_rollout
from servox.callers import Caller, calling
from servox.errors import BadInput, HeadMismatch, NotFound, Refused
from servox.priors import divergence
from servox.rpc import translated
from servox.telemetry import Metrics
from servox.v1 import common_pb2, prober_pb2
from tests.prober.test_registry import A, B, head
from tests.prober.test_registry_live import Callers, recognition, trained, versioned

C, OLD, NEW, DARK = "c" * 16, "1" * 16, "2" * 16, "3" * 16


@given(name=st.text(min_size=1), key=st.text(), shares=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_another_share_moves_only_those_between(name: str, key: str, shares: tuple[float, float]) -> None:
    place, (low, high) = position(name, key), sorted(shares)
    assert 0 <= place < 1
    assert place == position(name, key)
    inside = place < low, place < high
    if inside[0] != inside[1]:
        assert low <= place < high, "who moved lay between the old share and the new"
    assert not (place < 0.0)
    assert place < 1.0, "a share of one is everybody"


def test_shares_are_what_they_say() -> None:
    for share in (0.05, 0.2, 0.5):
        met = np.mean([position("toy", f"caller {n}") < share for n in range(20_000)])
        assert met == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 20_000))
    both = np.mean([(position("one", f"{n}") < 0.2) == (position("two", f"{n}") < 0.2) for n in range(5000)])
    assert both == pytest.approx(0.68, abs=0.03), "names draw apart: not always the same callers"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Three versions of one head; A is in production."""
    made = Registry(tmp_path / "heads")
    for version in (A, B, C):
        made.save(head(version=version))
    Promotions(made).promote(f"toy:{A}")
    return made


@pytest.fixture
def metrics() -> ProberMetrics:
    return ProberMetrics(Metrics())


@pytest.fixture
def rollouts(registry: Registry, metrics: ProberMetrics) -> Rollouts:
    return Rollouts(folder_of(registry), Hosted(registry, 8), metrics)


def value(metrics: ProberMetrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


def test_without_a_rollout_production_answers(rollouts: Rollouts) -> None:
    chosen = rollouts.choose("toy", "ana")
    assert (chosen.head.card.version, chosen.stage, chosen.shadow) == (A, "production", None)
    assert rollouts.choose(f"toy:{B}").stage == "candidate"
    with pytest.raises(NotFound):
        rollouts.choose("nobody", "ana")


def test_a_head_that_nobody_promoted_is_a_candidate(tmp_path: Path, metrics: ProberMetrics) -> None:
    registry = Registry(tmp_path)
    registry.save(head())
    assert Rollouts(folder_of(registry), Hosted(registry, 8), metrics).choose("toy").stage == "candidate"


def test_callers_stay_with_what_they_met(registry: Registry, rollouts: Rollouts) -> None:
    promotions = Promotions(registry)
    promotions.set_rollout("toy", Rollout(canary=B, canary_share=0.3))
    other = Rollouts(folder_of(registry), Hosted(registry, 8), ProberMetrics(Metrics()))  # another replica
    met = {n: rollouts.choose("toy", f"caller {n}").stage for n in range(200)}
    assert 30 < Counter(met.values())["canary"] < 90
    for n, stage in met.items():
        assert rollouts.choose("toy", f"caller {n}").stage == other.choose("toy", f"caller {n}").stage == stage
    promotions.set_rollout("toy", Rollout(canary=B, canary_share=0.6))
    now = {n: rollouts.choose("toy", f"caller {n}").stage for n in range(200)}
    assert all(now[n] == "canary" for n, stage in met.items() if stage == "canary"), "a larger share keeps its callers"
    promotions.set_rollout("toy", Rollout())
    assert {rollouts.choose("toy", f"caller {n}").stage for n in range(200)} == {"production"}


def test_the_key_is_who_calls_where_no_session_is_named(registry: Registry, rollouts: Rollouts) -> None:
    Promotions(registry).set_rollout("toy", Rollout(canary=B, canary_share=0.5))
    for name in ("key 1", "key 2", "key 3", "key 4"):
        with calling(Caller(name=name)):
            met = {rollouts.choose("toy").stage for _ in range(10)}
            assert met == {"canary" if position("toy", name) < 0.5 else "production"}
            assert rollouts.choose("toy", "ana").stage == ("canary" if position("toy", "ana") < 0.5 else "production")
    unknown = Counter(rollouts.choose("toy").stage for _ in range(200))
    assert min(unknown["canary"], unknown["production"]) > 50, "whoever cannot be known is drawn with every call"


def test_who_names_a_version_gets_it(registry: Registry, rollouts: Rollouts) -> None:
    Promotions(registry).set_rollout("toy", Rollout(canary=B, canary_share=1.0, shadow=C, shadow_share=1.0))
    assert rollouts.choose("toy").head.card.version == B
    for name, version, stage in (
        (f"toy:{A}", A, "production"),
        ("toy:production", A, "production"),
        (f"toy:{B}", B, "canary"),
        (f"toy:{C}", C, "candidate"),
    ):
        chosen = rollouts.choose(name, "ana")
        assert (chosen.head.card.version, chosen.stage, chosen.shadow) == (version, stage, None)


def test_a_canary_is_not_compared_with_the_shadow(registry: Registry, rollouts: Rollouts) -> None:
    Promotions(registry).set_rollout("toy", Rollout(canary=B, canary_share=0.5, shadow=C, shadow_share=1.0))
    for n in range(50):
        chosen = rollouts.choose("toy", f"{n}")
        assert (chosen.shadow is None) == (chosen.stage == "canary")


def folder(registry: Registry) -> Path:
    return folder_of(registry) / "toy"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda registry: registry.delete(f"toy:{B}"), "missing"),
        (lambda registry: (registry.folder("toy", B) / "card.json").write_text("{"), "damaged"),
        (lambda registry: write_rollout(folder(registry), Rollout(canary=C, canary_share=1.0)), "bundle"),
    ],
)
def test_a_canary_that_cannot_answer_is_no_failure(
    registry: Registry,
    rollouts: Rollouts,
    metrics: ProberMetrics,
    caplog: pytest.LogCaptureFixture,
    spoil: Any,
    reason: str,
) -> None:
    Promotions(registry).set_rollout("toy", Rollout(canary=B, canary_share=1.0))
    registry.delete(f"toy:{C}")
    registry.save(head(version=C, bundle="cd" * 32))
    spoil(registry)
    for n in range(5):
        chosen = rollouts.choose("toy", f"{n}")
        assert (chosen.head.card.version, chosen.stage) == (A, "production")
    assert value(metrics, "servox_prober_canary_fallbacks_total", head="toy", reason=reason) == 5
    assert len([record for record in caplog.records if "production answers alone" in record.message]) == 1


def test_a_shadow_that_cannot_be_scored_is_left_out(
    registry: Registry, rollouts: Rollouts, metrics: ProberMetrics
) -> None:
    registry.save(head(version=DARK, dims=8))
    write_rollout(folder(registry), Rollout(shadow=DARK, shadow_share=1.0))  # production has changed since it was set
    assert rollouts.choose("toy").shadow is None
    write_rollout(folder(registry), Rollout(shadow="f" * 16, shadow_share=1.0))
    assert rollouts.choose("toy").shadow is None
    assert value(metrics, "servox_prober_shadow_windows_total", head="toy", outcome="unfit") == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"canary": "x"}', "\x00"])
def test_a_damaged_rollout_is_none(registry: Registry, rollouts: Rollouts, text: str) -> None:
    (folder(registry) / "rollout.json").write_text(text)
    assert rollouts.choose("toy", "ana").stage == "production"
    assert read_rollout(folder(registry)) == Rollout()


def test_heads_that_read_alike(tmp_path: Path) -> None:
    one = head().card
    assert mismatch(one, head(version=B).card) == ""
    frames = head(kind="frame-mlp", settings={"hidden": 8}).card
    assert mismatch(one, frames) == "one reads frames, the other does not"
    assert "layers (2, 3), not 4 of (3,)" in mismatch(one, head(settings={"layers": 2}, dims=8).card)


@given(st.lists(st.floats(0.001, 1), min_size=4, max_size=4), st.lists(st.floats(0.001, 1), min_size=4, max_size=4))
def test_divergence_is_scipys(first: list[float], second: list[float]) -> None:
    from scipy.spatial.distance import jensenshannon

    p, q = (np.array(each) / sum(each) for each in (first, second))
    assert divergence(p, q) == pytest.approx(float(jensenshannon(p, q)) ** 2, abs=1e-9)


def test_divergence_ends_at_ln_2() -> None:
    assert divergence(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(np.log(2))
    assert divergence(np.array([0.5, 0.5]), np.array([0.5, 0.5])) == 0.0


@pytest.fixture
def comparison(metrics: ProberMetrics) -> Iterator[Comparison]:
    made = Comparison(metrics, capacity=4)
    yield made
    made.close()


def test_a_full_queue_drops_and_counts(
    registry: Registry,
    rollouts: Rollouts,
    metrics: ProberMetrics,
    comparison: Comparison,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from services.prober.answers import Window
    from services.prober.embedder import Embedded

    Promotions(registry).set_rollout("toy", Rollout(shadow=B, shadow_share=1.0))
    chosen = rollouts.choose("toy")
    listeners = comparison.listeners(chosen, lambda shadow: Posterior(shadow, Prior()))
    monkeypatch.setattr(comparison, "_thread", object())  # nobody takes from the queue
    embedded = Embedded(
        values=np.ones((1, 4), dtype=np.float32),
        bundle=common_pb2.Bundle(digest="ab" * 32),
        timings=common_pb2.Timings(),
        duration_ms=1000,
    )
    window = Window(index=0, start_ms=0, end_ms=1000, probabilities=np.array([0.3, 0.7]))
    for _ in range(10):
        for listener in listeners:
            listener.scored(embedded, window)
    monkeypatch.undo()
    figures = comparison.shadow("toy")
    assert figures is not None
    assert figures.dropped == value(metrics, "servox_prober_shadow_windows_total", head="toy", outcome="dropped") == 6
    assert comparison.stages("toy")[0].windows == 10, "what answered is counted all the same"
    wrong = dataclasses.replace(embedded, bundle=common_pb2.Bundle(digest="00" * 32))
    while not comparison._queue.empty():
        comparison._queue.get()
        comparison._queue.task_done()
    for listener in listeners:
        listener.scored(wrong, window)
    comparison.settle()
    assert figures.unfit == 1, "a shadow that cannot be scored does not end its thread"
    for listener in listeners:
        listener.scored(embedded, window)
    comparison.settle()
    assert figures.windows == 1
    same = "disagreed" if figures.disagreed else "agreed"
    assert value(metrics, "servox_prober_shadow_windows_total", head="toy", outcome=same) == 1
    assert value(metrics, "servox_prober_shadow_divergence_nats_sum", head="toy") == pytest.approx(figures.divergence)
    by = {
        who: value(metrics, "servox_prober_shadow_confidence_sum", head="toy", by=who)
        for who in ("production", "shadow")
    }
    assert by["shadow"] - by["production"] == pytest.approx(figures.difference)
    assert value(metrics, "servox_prober_stage_windows_total", head="toy", stage="production", label="sadness") == 12
    assert value(metrics, "servox_prober_stage_confidence_count", head="toy", stage="production") == 12


def test_frames_that_wait_are_bounded_in_bytes(
    registry: Registry, rollouts: Rollouts, metrics: ProberMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    from services.prober import comparison as module
    from services.prober.answers import Window
    from services.prober.embedder import Embedded

    monkeypatch.setattr(module, "WAITING_BYTES", 100)
    comparison = Comparison(metrics)
    monkeypatch.setattr(comparison, "_thread", object())  # nobody takes from the queue
    Promotions(registry).set_rollout("toy", Rollout(shadow=B, shadow_share=1.0))
    listeners = comparison.listeners(rollouts.choose("toy"), lambda shadow: Posterior(shadow, Prior()))
    embedded = Embedded(
        values=np.ones((10, 1), dtype=np.float32),
        bundle=common_pb2.Bundle(digest="ab" * 32),
        timings=common_pb2.Timings(),
        duration_ms=1000,
    )
    for _ in range(5):
        listeners[1].scored(embedded, Window(index=0, start_ms=0, end_ms=1, probabilities=np.array([0.3, 0.7])))
    figures = comparison.shadow("toy")
    assert figures is not None
    assert figures.dropped == 3, "two of forty bytes fit"


def test_classes_that_only_one_has_count_as_zero(
    registry: Registry, rollouts: Rollouts, comparison: Comparison
) -> None:
    from services.prober.comparison import _aligned

    p, q = _aligned(np.array([0.5, 0.5]), ("anger", "fear"), np.array([0.2, 0.8]), ("fear", "joy"))
    assert p.tolist() == [0.5, 0.5, 0.0]
    assert q.tolist() == [0.0, 0.2, 0.8]
    registry.save(head(version=DARK, classes=("anger", "joy", "fear"), class_counts=(3, 3, 3)))
    Promotions(registry).set_rollout("toy", Rollout(shadow=DARK, shadow_share=1.0))
    prior = Prior(kind="explicit", probabilities={"anger": 0.5, "sadness": 0.5})
    listeners = comparison.listeners(rollouts.choose("toy"), lambda shadow: Posterior(shadow, prior))
    assert len(listeners) == 1, "a prior for other classes than the shadow's leaves it out"


async def rolled_out(pair: Any, corpus: Any, **rollout: Any) -> Registry:
    """A prober whose head has three versions: OLD in production, NEW and DARK."""
    await trained(pair.prober, corpus)
    registry = Registry(Path(pair.address.removeprefix("unix:")).parent / "heads")
    base = await asyncio.to_thread(registry.get, "toy")
    for version in (OLD, NEW, DARK):
        await asyncio.to_thread(registry.save, turned(base, version))
    await asyncio.to_thread(registry.delete, base.card.tag)
    await pair.prober.Promote(prober_pb2.PromoteRequest(head=f"toy:{OLD}"))
    wanted = prober_pb2.Rollout(**rollout)
    await pair.prober.SetRollout(prober_pb2.SetRolloutRequest(name="toy", rollout=wanted))
    return registry


def turned(base: Head, version: str) -> Head:
    """A version whose answers are another class's, so that nobody can take one for the other."""
    shift = (OLD, NEW, DARK).index(version)
    weights = {**base.weights, "output.bias": np.roll(np.array([20, 0, 0], dtype=np.float32), shift)}
    return dataclasses.replace(versioned(base, version), weights=weights)


async def asked(pair: Any, **config: Any) -> Any:
    request = recognition()
    request.config.MergeFrom(prober_pb2.RecognizeConfig(**config))
    return await pair.prober.Recognize(request)


async def test_a_shadow_is_scored_and_never_heard(pair: Any, corpus: Any) -> None:
    registry = await rolled_out(pair, corpus, shadow=DARK, shadow_share=1.0)
    answers = [await asked(pair, session=f"{n}") for n in range(12)]
    assert {(answer.head.version, answer.stage) for answer in answers} == {(OLD, prober_pb2.STAGE_PRODUCTION)}
    assert {answer.overall.label for answer in answers} == {"anger"}
    for _ in range(1500):
        shown = await pair.prober.GetRollout(prober_pb2.GetRolloutRequest(name="toy"))
        if shown.shadow.windows == 12:
            break
        await asyncio.sleep(0.02)
    assert (shown.shadow.version, shown.shadow.windows, shown.shadow.disagreed) == (DARK, 12, 12)
    assert shown.shadow.divergence > 0.3
    assert (shown.production, shown.rollout.shadow) == (OLD, DARK)
    (stage,) = shown.stages
    assert (stage.windows, stage.calls, stage.failed, dict(stage.labels)) == (12, 12, 0, {"anger": 12})
    listed = await pair.prober.ListHeads(prober_pb2.ListHeadsRequest(prefix="toy"))
    stages = {summary.head.version: summary.stage for summary in listed.heads}
    assert stages == {
        OLD: prober_pb2.STAGE_PRODUCTION,
        NEW: prober_pb2.STAGE_UNSPECIFIED,
        DARK: prober_pb2.STAGE_SHADOW,
    }
    assert [event.action for event in Promotions(registry).history("toy")] == ["promoted", "rolled_out"]


async def test_a_canary_answers_the_same_callers(pair: Any, corpus: Any) -> None:
    await rolled_out(pair, corpus, canary=NEW, canary_share=0.4)
    for session in map(str, range(10)):
        stage = prober_pb2.STAGE_CANARY if position("toy", session) < 0.4 else prober_pb2.STAGE_PRODUCTION
        for window_ms in (0, 250):
            answer = await asked(pair, session=session, window_ms=window_ms)
            assert answer.stage == stage
            assert answer.head.version == (NEW if stage == prober_pb2.STAGE_CANARY else OLD)
    shown = await pair.prober.GetRollout(prober_pb2.GetRolloutRequest(name="toy"))
    canary, production = shown.stages
    assert (canary.stage, canary.version, production.version) == (prober_pb2.STAGE_CANARY, NEW, OLD)
    assert canary.calls + production.calls == 20
    assert set(canary.labels) == {"happiness"}
    with pytest.raises(BadInput, match="window_ms"), translated("prober"):
        await asked(pair, session=next(s for s in map(str, range(99)) if position("toy", s) < 0.4), window_ms=1)
    shown = await pair.prober.GetRollout(prober_pb2.GetRolloutRequest(name="toy"))
    assert shown.stages[0].failed == 1


async def test_versions_are_deleted_while_calls_run(pair: Any, corpus: Any) -> None:
    registry = await rolled_out(pair, corpus, canary=NEW, canary_share=0.5, shadow=DARK, shadow_share=1.0)
    callers = Callers(*(lambda n=n: asked(pair, session=f"{n}") for n in range(4)))
    met = NEW if any(position("toy", f"{n}") < 0.5 for n in range(4)) else OLD
    await callers.heard(met)
    promotions = Promotions(registry)
    await asyncio.to_thread(promotions.delete, f"toy:{DARK}")
    await asyncio.to_thread(registry.delete, f"toy:{NEW}")  # by a hand that knows of no rollout
    await callers.heard(OLD)
    await asyncio.to_thread(registry.save, turned(await asyncio.to_thread(registry.get, "toy"), NEW))
    await callers.heard(met)
    await asyncio.to_thread(promotions.delete, f"toy:{OLD}", force=True)
    await callers.heard(NEW)
    await callers.stop()
    assert callers.failures == []
    assert [event.action for event in promotions.history("toy")][-1] == "deleted"


async def test_operators_over_grpc(pair: Any, corpus: Any) -> None:
    await rolled_out(pair, corpus, canary=NEW, canary_share=0.1)
    stub = pair.prober
    with pytest.raises(Refused, match=f"version {OLD} is in production, not {DARK}"), translated("prober"):
        await stub.Promote(prober_pb2.PromoteRequest(head=f"toy:{NEW}", replaces=DARK))
    promoted = await stub.Promote(prober_pb2.PromoteRequest(head=f"toy:{NEW}", replaces=OLD, reason="better"))
    assert promoted.summary.stage == prober_pb2.STAGE_PRODUCTION
    assert {result.rule for result in promoted.gate} >= {"out_of_fold.margin", "evaluation.required"}
    assert all(result.passed for result in promoted.gate)
    back = await stub.Rollback(prober_pb2.RollbackRequest(name="toy", reason="worse", replaces=NEW))
    assert back.summary.head.version == OLD
    with pytest.raises(Refused, match="not"), translated("prober"):
        await stub.Rollback(prober_pb2.RollbackRequest(name="toy", replaces=NEW))
    with pytest.raises(BadInput, match="not JSON"), translated("prober"):
        await stub.StoreEvaluation(prober_pb2.StoreEvaluationRequest(head=f"toy:{NEW}", evaluation_json="no"))
    events = (await stub.GetHistory(prober_pb2.GetHistoryRequest(name="toy"))).events
    assert [prober_pb2.HeadEvent.Action.Name(event.action).removeprefix("ACTION_") for event in events] == [
        "PROMOTED",
        "ROLLED_OUT",
        "PROMOTED",
        "ROLLED_BACK",
    ]
    assert (events[2].replaced, events[2].reason, len(events[2].gate)) == (OLD, "better", 5)
    shown = await stub.GetRollout(prober_pb2.GetRolloutRequest(name="toy"))
    assert shown.rollout == prober_pb2.Rollout(), "a canary that was promoted is none any more"


async def test_a_stored_evaluation_is_shown(pair: Any, corpus: Any) -> None:
    from tests.prober.test_promotion import of

    registry = await rolled_out(pair, corpus)
    made = await asyncio.to_thread(registry.get, f"toy:{NEW}")
    document = of(made, bundle=made.card.bundle).to_json()
    request = prober_pb2.StoreEvaluationRequest(head=made.card.tag, evaluation_json=document)
    stored = await pair.prober.StoreEvaluation(request)
    assert "evaluation.mean_margin" in {result.rule for result in stored.gate}
    shown = await pair.prober.GetHead(prober_pb2.GetHeadRequest(head=made.card.tag))
    assert json.loads(shown.evaluation_json)["digest"] == made.digest
    assert not (await pair.prober.GetHead(prober_pb2.GetHeadRequest(head=f"toy:{OLD}"))).evaluation_json


async def test_a_bundle_that_nobody_reads_fails_for_production_alone(pair: Any, corpus: Any) -> None:
    await rolled_out(pair, corpus, canary=NEW, canary_share=1.0)
    pair.embedder.bundle = "ef" * 32
    with pytest.raises(HeadMismatch), translated("prober"):
        await asked(pair)
    shown = await pair.prober.GetRollout(prober_pb2.GetRolloutRequest(name="toy"))
    assert shown.stages[0].failed == 1
