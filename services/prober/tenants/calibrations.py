"""The states of all tenants: which are in memory, who may change them, and when they reach the disk.

- One owner: everything here runs on the event loop, and only the disk is waited for in threads.
- A call takes a state as it is when it begins, and is answered with that to its end; what it teaches goes to the state
  as it is then.
- Of several probers on one folder, the one that holds a state's lock learns; the others answer with what it writes.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry

from services.prober.heads import Head
from services.prober.prior import Prior
from services.prober.settings import Settings
from servox.callers import caller
from servox.errors import BadInput, Forbidden, NotFound, Refused, ServoxError, StorageFull, Unavailable

from .calls import Lesson, Visit, space_of
from .gauges import TenantMetrics, Watched
from .records import checked_tenant, from_json, to_json
from .rules import Rules
from .statistics import Clip, Space, State, frozen, learned, new_state
from .store import StateFile, stored

log = logging.getLogger(__name__)

Key = tuple[str, str]
Floats = npt.NDArray[np.float32]
LOOK_AGAIN_S = 5.0  # at a state that another prober looks after
SEEN = 256  # clips that are known again
DAMAGED = "what was stored could not be read and was set aside: it is collected anew"


@dataclass(slots=True, kw_only=True, eq=False)
class Kept:
    """One state in memory.

    Attributes:
        held: whether this prober looks after it.
        written: the state as it is on disk.
        stamp: of the file that it was read from.
        looked_s: monotonic time of the last look at the file.
        seen: digests of the clips that came last.
        heads: training mean and deviation of the heads that heard it, for drift.
    """

    file: StateFile
    state: State
    held: bool
    written: State | None = None
    stamp: tuple[int, int] = (0, 0)
    looked_s: float = 0.0
    seen: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    heads: dict[str, tuple[Floats, Floats]] = field(default_factory=dict)


def rules_of(settings: Settings) -> Rules:
    """The limits that an operator sets; the others stay."""
    return Rules(
        ready_clips=settings.tenant_ready_clips,
        settled_clips=settings.tenant_settled_clips,
        hourly_clips=settings.tenant_hourly_clips,
        horizon_clips=settings.tenant_horizon_clips,
        call_clips=settings.tenant_call_clips,
        em=settings.tenant_em,
    )


class Calibrations:
    """The calibrations of one prober.

    Args:
        settings: folder and limits.
        registry: where gauges go.
        clock: Unix time in seconds.
    """

    def __init__(self, settings: Settings, registry: CollectorRegistry, clock: Callable[[], float] = time.time) -> None:
        self._settings, self._clock = settings, clock
        self._rules, self._folder = rules_of(settings), settings.tenants
        self._kept: OrderedDict[Key, Kept] = OrderedDict()
        self._disk = asyncio.Lock()
        self._saving: asyncio.Task[None] | None = None
        self._metrics = TenantMetrics(registry, self._watched, most=settings.tenant_gauges)

    # ---- calls ---------------------------------------------------------------------------------------------------

    async def visit(self, tenant: str, head: Head) -> Visit:
        """Whose call it is, and with what it is answered.

        Raises:
            BadInput: a name that is none.
            Forbidden: the caller has a tenant of their own.
            Refused: one tenant too many.
        """
        name = tenant_of(tenant)
        if not name:
            return Visit(rules=self._rules)
        if head.card.kind == "frame-mlp":
            return Visit(tenant=name, rules=self._rules)
        space = space_of(head)
        kept = await self._get(name, space)
        if kept.state.space != space:
            raise BadInput(
                f"tenant {name}: the state has {kept.state.space.dims} dimensions and head {head.card.tag} reads "
                f"{space.dims}; import another, or reset it"
            )
        lesson = Lesson(head, _Pupil(self, (name, space.name)), self._rules)
        return Visit(tenant=name, snapshot=kept.state, rules=self._rules, listeners=(lesson,))

    def teachable(self, key: Key) -> State | None:
        """The state that a call may teach; None where another prober looks after it, or nobody now."""
        kept = self._kept.get(key)
        return kept.state if kept is not None and kept.held else None

    def learn(self, key: Key, clip: Clip, head: Head) -> None:
        """One clip of a call."""
        kept = self._kept.get(key)
        if kept is None or not kept.held:
            return
        kept.heads.setdefault(clip.head, (head.weights["mean"], head.weights["std"]))
        if not _new(kept, clip):
            kept.state = replace(kept.state, refused=kept.state.refused + 1)
            self._metrics.heard("duplicate")
            return
        before = kept.state
        kept.state, reason = learned(
            before, clip, self._rules, now_ms=self._now_ms(), training_mean=head.weights["mean"].astype(np.float64)
        )
        kept.heads = {tag: each for tag, each in kept.heads.items() if kept.state.share(tag)}
        self._metrics.heard(reason or "counted")
        if before.alarm != kept.state.alarm or before.phase != kept.state.phase:
            log.info("a tenant's calibration changed", extra=_told(kept.state))

    # ---- operators -----------------------------------------------------------------------------------------------

    async def states(self, tenant: str, space: Space | None = None) -> list[State]:
        """Of one tenant, or of all that the caller may see.

        Raises:
            BadInput: a name that is none.
            Forbidden: the caller has another tenant.
        """
        name = tenant_of(tenant)
        on_disk = await asyncio.to_thread(lambda: list(stored(self._folder, name)))
        keys = sorted({*on_disk, *(key for key in self._kept if not name or key[0] == name)})
        wanted = [key for key in keys if space is None or key[1] == space.name]
        found = [await self._state(key) for key in wanted]
        return [state for state in found if state is not None and _known(state)]

    async def freeze(self, tenant: str, space: Space | None, *, thaw: bool) -> list[State]:
        """Stops a tenant's states from learning, or lets them go on.

        Raises:
            NotFound: there are none.
            BadInput: nothing was heard yet.
            Unavailable: another prober looks after one.
        """

        def changed(state: State) -> State:
            if not state.weight and not thaw:
                raise BadInput(f"tenant {state.tenant}: nothing was heard yet that could answer; freeze it later")
            return frozen(state, self._rules, thaw=thaw, now_ms=self._now_ms())

        return await self._change(tenant, space, changed)

    async def set_prior(self, tenant: str, space: Space, prior: Prior | None) -> list[State]:
        """Sets what the tenant's own prior is, known or not; None for none."""
        name = _named(tenant)
        kept = await self._get(name, space)
        self._check_held(kept)
        kept.state = replace(kept.state, prior=prior)
        await self._write(kept)
        return [kept.state]

    async def reset(self, tenant: str, space: Space | None) -> list[State]:
        """Forgets a tenant's states; returns them as they were.

        Raises:
            NotFound: there are none.
            Unavailable: another prober looks after one.
        """
        found = await self._owned(tenant, space)
        before = [kept.state for kept in found]
        for kept in found:
            async with self._disk:
                await asyncio.to_thread(kept.file.remove)
            kept.state, kept.written = new_state(kept.state.tenant, kept.state.space), None
            kept.seen.clear()
            kept.heads.clear()
        return before

    async def export(self, tenant: str, space: Space | None) -> str:
        """States as JSON.

        Raises:
            NotFound: there are none.
        """
        found = await self.states(_named(tenant), space)
        if not found:
            raise _nothing(tenant)
        return to_json(found)

    async def take_in(self, document: str, tenant: str) -> list[State]:
        """Takes exported states over, in place of those that are there.

        Raises:
            BadInput: a document that is damaged, or made for another schema.
            Forbidden: the caller has another tenant.
            Unavailable: another prober looks after one.
        """
        found = []
        for given in from_json(document):
            name = _named(tenant or given.tenant)
            kept = await self._get(name, given.space)
            self._check_held(kept)
            version = max(given.version, kept.state.version) + 1
            kept.state = replace(given, tenant=name, version=version, changed_ms=self._now_ms())
            kept.heads.clear()
            await self._write(kept)
            found.append(kept.state)
        return found

    # ---- memory and disk -----------------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Writes what was learned since the last time; what the disk refuses stays in memory until the next."""
        for kept in list(self._kept.values()):
            if _unwritten(kept):
                try:
                    await self._write(kept)
                except StorageFull as error:
                    log.warning("a tenant's calibration was not written", extra={"error": str(error)})

    async def close(self) -> None:
        """Writes everything and leaves the states to others."""
        if self._saving is not None:
            self._saving.cancel()
            await asyncio.gather(self._saving, return_exceptions=True)
        await self.flush()
        for kept in self._kept.values():
            kept.file.release()
        self._kept.clear()

    async def _save(self) -> None:
        while True:
            await asyncio.sleep(self._settings.tenant_save_s)
            await self.flush()

    async def _get(self, tenant: str, space: Space) -> Kept:
        key = (tenant, space.name)
        kept = self._kept.get(key)
        if kept is not None and (kept.held or time.monotonic() - kept.looked_s <= LOOK_AGAIN_S):
            self._kept.move_to_end(key)
            return kept  # a call waits for no disk
        async with self._disk:
            kept = self._kept.get(key)
            if kept is None:
                kept = await asyncio.to_thread(self._load, tenant, space)
                self._kept[key] = kept
            elif not kept.held and time.monotonic() - kept.looked_s > LOOK_AGAIN_S:
                await asyncio.to_thread(self._look_again, kept)
            self._kept.move_to_end(key)
            while len(self._kept) > self._settings.tenants_in_memory:
                await self._put_away(next(iter(self._kept)))
        if self._saving is None:
            self._saving = asyncio.create_task(self._save())
        return kept

    def _load(self, tenant: str, space: Space) -> Kept:
        file = StateFile(self._folder, tenant, space.name)
        known = {name for name, _ in stored(self._folder)} if file.stamp() == (0, 0) else set()
        if tenant not in known and len(known) >= self._settings.max_tenants:
            raise Refused(
                f"tenant {tenant} would be one over the limit of {self._settings.max_tenants}: "
                "reset one that is not needed, or raise max_tenants"
            )
        kept = Kept(file=file, state=new_state(tenant, space), held=file.hold())
        self._read(kept)
        return kept

    def _look_again(self, kept: Kept) -> None:
        kept.held = kept.file.hold()  # whoever held it may have ended
        if kept.held or kept.file.stamp() != kept.stamp:
            self._read(kept)

    def _read(self, kept: Kept) -> None:
        kept.looked_s, kept.stamp = time.monotonic(), kept.file.stamp()
        try:
            state = kept.file.read()
        except BadInput as error:
            log.error("a tenant's calibration is damaged", extra={"error": str(error)})  # noqa: TRY400 -- no traceback
            if kept.held:
                kept.file.set_aside()
            kept.state = replace(kept.state, alarm=DAMAGED)
            return
        if state is not None:
            kept.state = kept.written = state

    async def _put_away(self, key: Key) -> None:
        """Out of memory; while the disk is ours, so that nobody reads what is about to be written."""
        kept = self._kept[key]
        while _unwritten(kept):  # calls go on teaching meanwhile
            await self._written(kept)
        del self._kept[key]
        kept.file.release()

    async def _write(self, kept: Kept) -> None:
        async with self._disk:
            await self._written(kept)

    async def _written(self, kept: Kept) -> None:
        state = kept.state
        await asyncio.to_thread(kept.file.write, state)
        kept.written = state

    async def _state(self, key: Key) -> State | None:
        if key in self._kept:
            return self._kept[key].state
        try:
            return await asyncio.to_thread(StateFile(self._folder, *key).read)
        except BadInput as error:
            log.warning("a tenant's calibration is damaged", extra={"error": str(error)})
            return None

    async def _owned(self, tenant: str, space: Space | None) -> Sequence[Kept]:
        name = _named(tenant)
        found = [await self._get(name, state.space) for state in await self.states(name, space)]
        if not found:
            raise _nothing(name)
        for kept in found:
            self._check_held(kept)
        return found

    async def _change(self, tenant: str, space: Space | None, change: Callable[[State], State]) -> list[State]:
        found = await self._owned(tenant, space)
        changed = [change(kept.state) for kept in found]
        for kept, state in zip(found, changed, strict=True):
            kept.state = state
            await self._write(kept)
        return changed

    def _check_held(self, kept: Kept) -> None:
        if not kept.held:
            raise Unavailable(
                f"tenant {kept.state.tenant}: another prober looks after this calibration; "
                "call that one, or try again once it has ended"
            )

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _watched(self) -> list[Watched]:
        """What gauges show; the tenants that called last come first."""
        return [Watched(state=kept.state, heads=kept.heads) for kept in reversed(list(self._kept.values()))]


class _Pupil:
    """One state of all, for the calls that teach it."""

    def __init__(self, calibrations: Calibrations, key: Key) -> None:
        self._calibrations, self._key = calibrations, key

    def state(self) -> State | None:
        return self._calibrations.teachable(self._key)

    def heard(self, clip: Clip, head: Head) -> None:
        self._calibrations.learn(self._key, clip, head)


def tenant_of(asked: str) -> str:
    """The tenant of a call: the one that is named, or the caller's own; empty where there is neither.

    Raises:
        BadInput: a name that is none.
        Forbidden: the caller has a tenant of their own, and names another.
    """
    own = caller().tenant
    if own and asked and asked != own:
        raise Forbidden(f"tenant {asked[:63]!r}: your key is for tenant {own}; leave the tenant out")
    name = asked or own
    return checked_tenant(name) if name else ""


def _named(tenant: str) -> str:
    name = tenant_of(tenant)
    if not name:
        raise BadInput("tenant: it is missing; name one")
    return name


def _nothing(tenant: str) -> ServoxError:
    return NotFound(f"tenant {tenant}: there is no calibration; `servox tenants list` shows what there is")


def _new(kept: Kept, clip: Clip) -> bool:
    """Whether a clip is another than those that came last; the same audio has the same embedding."""
    digest = blake2b(clip.values.astype("<f4").tobytes(), digest_size=8).digest()
    if digest in kept.seen:
        kept.seen.move_to_end(digest)
        return False
    kept.seen[digest] = None
    while len(kept.seen) > SEEN:
        kept.seen.popitem(last=False)
    return True


def _known(state: State) -> bool:
    """Whether there is anything to tell: a tenant may have been reset, or called with nothing that was heard."""
    return bool(state.recent_weight or state.weight or state.prior or state.alarm)


def _unwritten(kept: Kept) -> bool:
    return kept.held and kept.written is not kept.state and kept.state.recent_weight > 0


def _told(state: State) -> dict[str, str | int]:
    return {"tenant": state.tenant, "phase": state.phase, "clips": state.clips, "alarm": state.alarm}
