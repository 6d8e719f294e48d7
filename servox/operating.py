"""What operators ask of a prober through the client: which version answers, who answers beside it, and what was done.

A change is sent once and never again by itself: one whose answer was lost may have been made. Name what it `replaces`
and send it again; the prober then refuses what was made already, and says what is in production.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
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
