"""What operators ask of a prober through the client: which version answers, who answers beside it, and what was done.

A change is sent once and never again by itself: one whose answer was lost may have been made. Name what it `replaces`
and send it again; the prober then refuses what was made already, and says what is in production.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from servox.answers import HeadSummary
from servox.replies import summary_from_proto
from servox.rpc import translated
from servox.v1 import prober_pb2, prober_pb2_grpc


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """What one rule of the gate found; see docs/promotion.md for the rules."""

    rule: str
    passed: bool
    found: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Promoted:
    """A head that answers its bare name, and what the gate said of it."""

    summary: HeadSummary
    gate: tuple[GateResult, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadEvent:
    """One change of what answers under a name.

    Attributes:
        time_unix_ms: when.
        action: promoted, rolled_back, rolled_out, refused, evaluated, deleted or found.
        version: to which version; empty for none.
        replaced: version that was in production before; empty for none.
        actor: name of the caller's key; empty where nobody has to say.
        reason: theirs.
        gate: what the rules said.
    """

    time_unix_ms: int
    action: str
    version: str
    replaced: str
    actor: str
    reason: str
    gate: tuple[GateResult, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """Who answers beside production.

    Attributes:
        canary: version; empty for none.
        canary_share: of the callers, 0 to 1.
        shadow: version; empty for none.
        shadow_share: of the windows that it is scored on, 0 to 1.
        production: version; empty for none.
    """

    canary: str = ""
    canary_share: float = 0.0
    shadow: str = ""
    shadow_share: float = 0.0
    production: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFigures:
    """What the windows of one stage looked like.

    Attributes:
        stage: canary, production, or candidate where nothing was promoted.
        version: that answered.
        windows: with probabilities.
        confidence: mean, 0 to 1.
        abstained: of those windows, out of distribution.
        labels: windows that did not abstain, by answer.
        calls: whole clips, files and streams.
        failed: of those calls.
    """

    stage: str
    version: str
    windows: int
    confidence: float
    abstained: int
    labels: Mapping[str, int]
    calls: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowFigures:
    """A shadow beside production, on the same windows.

    Attributes:
        version: of the shadow.
        windows: that both scored.
        disagreed: of those, another most probable class.
        divergence: mean Jensen-Shannon divergence, nats.
        confidence_difference: mean, shadow less production.
        dropped: windows that found the queue full.
        unfit: windows that the shadow could not read.
    """

    version: str
    windows: int
    disagreed: int
    divergence: float
    confidence_difference: float
    dropped: int
    unfit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How versions of a name differed so far, by the figures of the replica that was asked."""

    rollout: Rollout
    stages: tuple[StageFigures, ...]
    shadow: ShadowFigures | None


class Operating(ABC):
    """The part of a client that changes what answers."""

    @abstractmethod
    def _channel(self, name: str) -> Any:  # noqa: ANN401 -- generated stubs have no types
        """The connection to a service."""

    @abstractmethod
    def _peer(self, name: str) -> str:
        """Its name for messages."""

    async def promote(
        self, head: str, *, replaces: str | None = None, reason: str = "", timeout_s: float | None = None
    ) -> Promoted:
        """Makes `name:version` what its bare name answers with.

        Args:
            head: with its version.
            replaces: version in production as you know it, empty for none; None for whichever.
            reason: for the history.
            timeout_s: None for as long as it takes.

        Raises:
            Refused: rules of the gate, each one named; or another version is in production.
            BadInput, NotFound: no version, or none that is there.
            Unavailable: the prober is away.
        """
        request = prober_pb2.PromoteRequest(head=head, replaces=replaces, reason=reason)
        answer = await self._asked("Promote", request, timeout_s)
        return Promoted(summary=summary_from_proto(answer.summary), gate=_gate(answer.gate))

    async def rollback(
        self, name: str, *, replaces: str | None = None, reason: str = "", timeout_s: float | None = None
    ) -> HeadSummary:
        """Puts the version back that the last promotion replaced; again walks further back.

        Raises:
            Refused: there is none, or another version is in production than `replaces` says.
            NotFound: no such head.
            Unavailable: the prober is away.
        """
        request = prober_pb2.RollbackRequest(name=name, replaces=replaces, reason=reason)
        return summary_from_proto((await self._asked("Rollback", request, timeout_s)).summary)

    async def history(self, name: str, *, timeout_s: float | None = None) -> list[HeadEvent]:
        """Every change of a name, oldest first.

        Raises:
            NotFound: no such head.
            Unavailable: the prober is away.
        """
        answer = await self._asked("GetHistory", prober_pb2.GetHistoryRequest(name=name), timeout_s)
        return [_event(event) for event in answer.events]

    async def rollout(self, name: str, *, timeout_s: float | None = None) -> Rollout:
        """Who answers a name.

        Raises:
            NotFound: no such head.
            Unavailable: the prober is away.
        """
        answer = await self._asked("GetRollout", prober_pb2.GetRolloutRequest(name=name), timeout_s)
        return _rollout(answer.rollout, answer.production)

    async def compare(self, name: str, *, timeout_s: float | None = None) -> Comparison:
        """How canary and shadow differed from production, by one replica; /metrics has the same of each.

        Raises:
            NotFound: no such head.
            Unavailable: the prober is away.
        """
        answer = await self._asked("GetRollout", prober_pb2.GetRolloutRequest(name=name), timeout_s)
        return Comparison(
            rollout=_rollout(answer.rollout, answer.production),
            stages=tuple(_stage(figures) for figures in answer.stages),
            shadow=_shadow(answer.shadow) if answer.HasField("shadow") else None,
        )

    async def set_rollout(
        self, name: str, rollout: Rollout, *, reason: str = "", timeout_s: float | None = None
    ) -> Rollout:
        """Sets canary and shadow; empty ones end them. `production` is not read.

        Raises:
            Refused: the canary does not pass the gate, or cannot be served beside production; likewise the shadow.
            BadInput, NotFound: a share that is none, a version that is not there.
            Unavailable: the prober is away.
        """
        wanted = prober_pb2.Rollout(
            canary=rollout.canary,
            canary_share=rollout.canary_share,
            shadow=rollout.shadow,
            shadow_share=rollout.shadow_share,
        )
        request = prober_pb2.SetRolloutRequest(name=name, rollout=wanted, reason=reason)
        return _rollout((await self._asked("SetRollout", request, timeout_s)).rollout, "")

    async def _asked(self, method: str, request: Any, timeout_s: float | None) -> Any:  # noqa: ANN401 -- generated
        stub = prober_pb2_grpc.ProberStub(self._channel("prober"))  # type: ignore[no-untyped-call]
        with translated(self._peer("prober")):
            return await getattr(stub, method)(request, timeout=timeout_s)


def _gate(results: Iterable[prober_pb2.GateResult]) -> tuple[GateResult, ...]:
    return tuple(GateResult(rule=each.rule, passed=each.passed, found=each.found) for each in results)


def _event(event: prober_pb2.HeadEvent) -> HeadEvent:
    return HeadEvent(
        time_unix_ms=event.time_unix_ms,
        action=prober_pb2.HeadEvent.Action.Name(event.action).removeprefix("ACTION_").lower(),
        version=event.version,
        replaced=event.replaced,
        actor=event.actor,
        reason=event.reason,
        gate=_gate(event.gate),
    )


def _rollout(rollout: prober_pb2.Rollout, production: str) -> Rollout:
    return Rollout(
        canary=rollout.canary,
        canary_share=rollout.canary_share,
        shadow=rollout.shadow,
        shadow_share=rollout.shadow_share,
        production=production,
    )


def _stage(figures: prober_pb2.StageFigures) -> StageFigures:
    stage = prober_pb2.Stage.Name(figures.stage).removeprefix("STAGE_").lower()
    return StageFigures(
        stage="candidate" if stage == "unspecified" else stage,
        version=figures.version,
        windows=figures.windows,
        confidence=figures.confidence,
        abstained=figures.abstained,
        labels=dict(figures.labels),
        calls=figures.calls,
        failed=figures.failed,
    )


def _shadow(figures: prober_pb2.ShadowFigures) -> ShadowFigures:
    return ShadowFigures(
        version=figures.version,
        windows=figures.windows,
        disagreed=figures.disagreed,
        divergence=figures.divergence,
        confidence_difference=figures.confidence_difference,
        dropped=figures.dropped,
        unfit=figures.unfit,
    )
