"""gRPC adapters of promotion: what is in production, how it came there, and who answers beside it."""
# ruff: noqa: ARG002, N802 -- gRPC names the methods and their arguments

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc

from servox.v1 import prober_pb2 as pb

from .comparison import ShadowFigures, StageFigures
from .dataplane import Dataplane
from .gate import Result
from .ledger import Action, Event
from .messages import STAGES, summary_to_proto
from .metrics import ProberMetrics
from .rollout import Rollout

Context = grpc.aio.ServicerContext[Any, Any]

_ACTIONS: dict[Action, pb.HeadEvent.Action] = {
    "promoted": pb.HeadEvent.ACTION_PROMOTED,
    "rolled_back": pb.HeadEvent.ACTION_ROLLED_BACK,
    "rolled_out": pb.HeadEvent.ACTION_ROLLED_OUT,
    "refused": pb.HeadEvent.ACTION_REFUSED,
    "evaluated": pb.HeadEvent.ACTION_EVALUATED,
    "deleted": pb.HeadEvent.ACTION_DELETED,
    "found": pb.HeadEvent.ACTION_FOUND,
}


class PromotionServicer:
    """The part of `Prober` that changes what answers."""

    _dataplane: Dataplane
    _metrics: ProberMetrics

    async def Promote(self, request: pb.PromoteRequest, context: Context) -> pb.PromoteResponse:
        """Makes a version the one that its name answers with."""
        with self._metrics.call("Promote"):
            promotion = await asyncio.to_thread(
                self._dataplane.promotions.promote,
                request.head,
                replaces=request.replaces if request.HasField("replaces") else None,
                reason=request.reason,
            )
            return pb.PromoteResponse(summary=summary_to_proto(promotion.entry), gate=gate_to_proto(promotion.gate))

    async def Rollback(self, request: pb.RollbackRequest, context: Context) -> pb.RollbackResponse:
        """Puts back what the last promotion replaced."""
        with self._metrics.call("Rollback"):
            entry = await asyncio.to_thread(
                self._dataplane.promotions.rollback,
                request.name,
                replaces=request.replaces if request.HasField("replaces") else None,
                reason=request.reason,
            )
            return pb.RollbackResponse(summary=summary_to_proto(entry))

    async def StoreEvaluation(self, request: pb.StoreEvaluationRequest, context: Context) -> pb.StoreEvaluationResponse:
        """Keeps what a head scored elsewhere."""
        with self._metrics.call("StoreEvaluation"):
            stored = await asyncio.to_thread(
                self._dataplane.promotions.store_evaluation, request.head, request.evaluation_json
            )
            return pb.StoreEvaluationResponse(summary=summary_to_proto(stored.entry), gate=gate_to_proto(stored.gate))

    async def GetHistory(self, request: pb.GetHistoryRequest, context: Context) -> pb.GetHistoryResponse:
        """Every change of a name."""
        with self._metrics.call("GetHistory"):
            events = await asyncio.to_thread(self._dataplane.promotions.history, request.name)
            return pb.GetHistoryResponse(events=[event_to_proto(event) for event in events])

    async def SetRollout(self, request: pb.SetRolloutRequest, context: Context) -> pb.SetRolloutResponse:
        """Sets canary and shadow."""
        with self._metrics.call("SetRollout"):
            wanted = request.rollout
            rollout = Rollout(
                canary=wanted.canary,
                canary_share=wanted.canary_share,
                shadow=wanted.shadow,
                shadow_share=wanted.shadow_share,
            )
            promotions = self._dataplane.promotions
            chosen = await asyncio.to_thread(promotions.set_rollout, request.name, rollout, reason=request.reason)
            return pb.SetRolloutResponse(rollout=rollout_to_proto(chosen))

    async def GetRollout(self, request: pb.GetRolloutRequest, context: Context) -> pb.GetRolloutResponse:
        """Canary and shadow, and how they have differed so far."""
        with self._metrics.call("GetRollout"):
            rollout, production = await asyncio.to_thread(self._dataplane.promotions.rollout, request.name)
            name, comparison = request.name.partition(":")[0], self._dataplane.comparison
            shadow = comparison.shadow(name)
            return pb.GetRolloutResponse(
                rollout=rollout_to_proto(rollout),
                production=production,
                stages=[stage_to_proto(figures) for figures in comparison.stages(name)],
                shadow=shadow_to_proto(shadow) if shadow else None,
            )


def gate_to_proto(results: tuple[Result, ...]) -> list[pb.GateResult]:
    """What the rules said."""
    return [pb.GateResult(rule=each.rule, passed=each.passed, found=each.found) for each in results]


def event_to_proto(event: Event) -> pb.HeadEvent:
    """One change."""
    return pb.HeadEvent(
        time_unix_ms=event.time_unix_ms,
        action=_ACTIONS[event.action],
        version=event.version,
        replaced=event.replaced,
        actor=event.actor,
        reason=event.reason,
        gate=gate_to_proto(event.gate),
    )


def rollout_to_proto(rollout: Rollout) -> pb.Rollout:
    """Canary and shadow."""
    return pb.Rollout(
        canary=rollout.canary,
        canary_share=rollout.canary_share,
        shadow=rollout.shadow,
        shadow_share=rollout.shadow_share,
    )


def stage_to_proto(figures: StageFigures) -> pb.StageFigures:
    """What one stage answered; means of sums."""
    classes = {label: count for label, count in figures.labels.items() if label != "out_of_distribution"}
    return pb.StageFigures(
        stage=STAGES[figures.stage],
        version=figures.version,
        windows=figures.windows,
        confidence=figures.confidence / max(1, figures.windows),
        abstained=figures.windows - sum(classes.values()),
        labels=classes,
        calls=figures.calls.total(),
        failed=figures.calls.total() - figures.calls["ok"] - figures.calls["cancelled"],
    )


def shadow_to_proto(figures: ShadowFigures) -> pb.ShadowFigures:
    """How a shadow differed; means of sums."""
    count = max(1, figures.windows)
    return pb.ShadowFigures(
        version=figures.version,
        windows=figures.windows,
        disagreed=figures.disagreed,
        divergence=figures.divergence / count,
        confidence_difference=figures.difference / count,
        dropped=figures.dropped,
        unfit=figures.unfit,
    )


def results_from_proto(messages: Iterable[pb.GateResult]) -> tuple[Result, ...]:
    """What the rules said, as a client reads it."""
    return tuple(Result(rule=each.rule, passed=each.passed, found=each.found) for each in messages)
