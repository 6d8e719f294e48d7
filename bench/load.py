"""Load on a server and what came back: closed loops, Poisson arrivals, goodput, percentiles.

- A closed loop has so many clients, each sending its next clip when the last is answered: it finds the capacity.
- An open loop sends when a Poisson process says so, whether or not answers come; a latency counts from the moment the
  clip was due, so a generator that falls behind cannot hide a slow server (coordinated omission).
- Only what ends inside the window is counted, after a ramp: a queue that fills or drains is no throughput.
- A request that got no answer by its deadline counts as infinitely slow in the percentiles; one that was refused is
  counted beside them, with how fast the refusal came.
"""

import asyncio
import math
import resource
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import aiohttp
import grpc
import numpy as np
from numpy.typing import NDArray

Outcome = Literal["answered", "refused", "late", "failed"]

REFUSED_PAUSE_S = 0.02  # before a client of a closed loop that was refused asks again
REFUSED_CODES = (429, 503)
LATE_CODES = (408, 504)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One request; times are of the monotonic clock. `due_s` is when it was to be sent, `sent_s` when it was."""

    due_s: float
    sent_s: float
    ended_s: float
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst:
    """One cell of a benchmark: its requests, the window that counts, and the generator's own CPU in it."""

    shots: Sequence[Shot]
    begin_s: float
    end_s: float
    generator_cpu_s: float

    @property
    def counted(self) -> list[Shot]:
        """What ended inside the window."""
        return [shot for shot in self.shots if self.begin_s <= shot.ended_s < self.end_s]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What bursts of one kind show together; rates a second, times in milliseconds.

    Args:
        goodput: answers within the deadline.
        answers: answers, whenever they came.
        sent: requests that were due.
        p50_ms, p95_ms, p99_ms: of all that was not refused; infinite where that many were never answered in time.
        refused: requests refused.
        refusal_p99_ms: how fast refusals came; NaN without any.
        late: no answer by the deadline.
        failed: another error.
        lag_p99_ms: how late the generator itself was.
        generator_cores: processors that the generator used.
        goodput_rounds: goodput of each burst.
    """

    goodput: float
    answers: float
    sent: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    refused: int
    refusal_p99_ms: float
    late: int
    failed: int
    lag_p99_ms: float
    generator_cores: float
    goodput_rounds: tuple[float, ...] = field(default=())


def arrivals(rate: float, duration_s: float, *, seed: int) -> NDArray[np.float64]:
    """Moments in [0, duration_s) of a Poisson process of `rate` a second, ascending."""
    if rate <= 0 or duration_s <= 0:
        return np.zeros(0)
    rng = np.random.default_rng(seed)
    expected = rate * duration_s
    moments = np.cumsum(rng.exponential(1 / rate, int(expected + 8 * math.sqrt(expected) + 16)))
    while moments[-1] < duration_s:
        moments = np.concatenate([moments, moments[-1] + np.cumsum(rng.exponential(1 / rate, 64))])
    return moments[moments < duration_s]


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed (nearest rank); NaN of nothing."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]


def figures(bursts: Sequence[Burst], *, deadline_s: float) -> Figures:
    """The figures of bursts under one load, pooled."""
    window_s = sum(burst.end_s - burst.begin_s for burst in bursts)
    shots = [shot for burst in bursts for shot in burst.counted]
    due = sum(burst.begin_s <= shot.due_s < burst.end_s for burst in bursts for shot in burst.shots)
    taken_ms = [_taken_ms(shot) for shot in shots if shot.outcome in ("answered", "late")]
    refusals_ms = [_taken_ms(shot) for shot in shots if shot.outcome == "refused"]
    rounds = tuple(_good(burst, deadline_s) / (burst.end_s - burst.begin_s) for burst in bursts)
    return Figures(
        goodput=sum(_good(burst, deadline_s) for burst in bursts) / window_s,
        answers=sum(shot.outcome == "answered" for shot in shots) / window_s,
        sent=due / window_s,
        p50_ms=percentile(taken_ms, 0.50),
        p95_ms=percentile(taken_ms, 0.95),
        p99_ms=percentile(taken_ms, 0.99),
        refused=len(refusals_ms),
        refusal_p99_ms=percentile(refusals_ms, 0.99),
        late=sum(shot.outcome == "late" for shot in shots),
        failed=sum(shot.outcome == "failed" for shot in shots),
        lag_p99_ms=percentile((1000 * (shot.sent_s - shot.due_s) for shot in shots), 0.99),
        generator_cores=sum(burst.generator_cpu_s for burst in bursts) / window_s,
        goodput_rounds=rounds,
    )


def _good(burst: Burst, deadline_s: float) -> int:
    return sum(shot.outcome == "answered" and shot.ended_s - shot.due_s <= deadline_s for shot in burst.counted)


def _taken_ms(shot: Shot) -> float:
    """Milliseconds until the answer or the refusal; without an answer, infinite."""
    return math.inf if shot.outcome == "late" else 1000 * (shot.ended_s - shot.due_s)


class Target(Protocol):
    """A server under load."""

    async def send(self, clip: int, *, patience_s: float) -> Outcome:
        """Sends clip number `clip` and waits at most `patience_s`; the server is told so where its protocol can."""

    async def ask(self, clip: int, *, patience_s: float) -> bytes:
        """The same, for the answer itself."""

    async def close(self) -> None:
        """Ends the connections."""


class GrpcTarget:
    """A unary method over one connection; messages go out and come in as bytes, for the generator's sake.

    Args:
        channel: to the server; closed with the target.
        method: full name.
        bodies: serialised requests.
    """

    def __init__(self, channel: grpc.aio.Channel, method: str, bodies: Sequence[bytes]) -> None:
        self._channel = channel
        self._call: Callable[..., Awaitable[bytes]] = channel.unary_unary(method)
        self._bodies = bodies

    async def send(self, clip: int, *, patience_s: float) -> Outcome:
        """Sends one clip; the deadline travels with it."""
        try:
            await self._call(self._bodies[clip], timeout=patience_s)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                return "refused"
            return "late" if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else "failed"
        return "answered"

    async def ask(self, clip: int, *, patience_s: float) -> bytes:
        """One clip's answer."""
        return await self._call(self._bodies[clip], timeout=patience_s)

    async def close(self) -> None:
        """Ends the connection."""
        await self._channel.close()


class HttpTarget:
    """A POST of a body over as many connections as requests are open.

    Args:
        url: of the method.
        headers: of every request.
        bodies: one for each clip.
        body_headers: more headers of each body.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: dict[str, str],
        bodies: Sequence[bytes],
        body_headers: Sequence[dict[str, str]] | None = None,
    ) -> None:
        self._url = url
        self._headers = [{**headers, **more} for more in body_headers] if body_headers else [headers] * len(bodies)
        self._bodies = bodies
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def send(self, clip: int, *, patience_s: float) -> Outcome:
        """Sends one clip; a caller whose patience ends closes the connection."""
        try:
            status, _ = await self._post(clip, patience_s)
        except TimeoutError:
            return "late"
        except aiohttp.ClientError:
            return "failed"
        if status == 200:
            return "answered"
        if status in REFUSED_CODES:
            return "refused"
        return "late" if status in LATE_CODES else "failed"

    async def ask(self, clip: int, *, patience_s: float) -> bytes:
        """One clip's answer.

        Raises:
            ConnectionError: it was not 200.
        """
        status, body = await self._post(clip, patience_s)
        if status != 200:
            raise ConnectionError(f"{self._url} answered {status}: {body[:300]!r}")
        return body

    async def close(self) -> None:
        """Ends the connections."""
        await self._session.close()

    async def _post(self, clip: int, patience_s: float) -> tuple[int, bytes]:
        timeout = aiohttp.ClientTimeout(total=patience_s)
        async with self._session.post(
            self._url, data=self._bodies[clip], headers=self._headers[clip], timeout=timeout
        ) as answer:
            return answer.status, await answer.read()


async def closed_loop(
    target: Target, *, clients: int, clips: int, ramp_s: float, window_s: float, patience_s: float, seed: int = 0
) -> Burst:
    """`clients` that always wait for their answer, on clips in random order."""
    started_s = time.monotonic()
    begin_s, end_s = started_s + ramp_s, started_s + ramp_s + window_s
    shots: list[Shot] = []

    async def client(number: int) -> None:
        order = np.random.default_rng((seed, number))
        while (sent_s := time.monotonic()) < end_s:
            outcome = await target.send(int(order.integers(clips)), patience_s=patience_s)
            shots.append(Shot(due_s=sent_s, sent_s=sent_s, ended_s=time.monotonic(), outcome=outcome))
            if outcome != "answered":
                await asyncio.sleep(REFUSED_PAUSE_S)

    clock = asyncio.create_task(_cpu_between(begin_s, end_s))
    await asyncio.gather(*(client(number) for number in range(clients)))
    return Burst(shots=shots, begin_s=begin_s, end_s=end_s, generator_cpu_s=await clock)


async def open_loop(
    target: Target, *, rate: float, clips: int, ramp_s: float, window_s: float, deadline_s: float, seed: int = 0
) -> Burst:
    """Poisson arrivals at `rate` a second, each with a deadline, on clips in random order."""
    moments = arrivals(rate, ramp_s + window_s, seed=seed)
    chosen = np.random.default_rng(seed).integers(clips, size=len(moments))
    started_s = time.monotonic()
    begin_s, end_s = started_s + ramp_s, started_s + ramp_s + window_s
    shots: list[Shot] = []

    async def shoot(due_s: float, clip: int) -> None:
        sent_s = time.monotonic()
        # What the generator lost before sending is lost for the caller too.
        outcome = await target.send(clip, patience_s=max(0.001, deadline_s - (sent_s - due_s)))
        shots.append(Shot(due_s=due_s, sent_s=sent_s, ended_s=time.monotonic(), outcome=outcome))

    clock = asyncio.create_task(_cpu_between(begin_s, end_s))
    async with asyncio.TaskGroup() as group:
        for moment, clip in zip(moments, chosen, strict=True):
            due_s = started_s + float(moment)
            if (wait_s := due_s - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            group.create_task(shoot(due_s, int(clip)))
    return Burst(shots=shots, begin_s=begin_s, end_s=end_s, generator_cpu_s=await clock)


async def _cpu_between(begin_s: float, end_s: float) -> float:
    """CPU seconds of this process between two moments."""
    await asyncio.sleep(begin_s - time.monotonic())
    before_s = _cpu_s()
    await asyncio.sleep(end_s - time.monotonic())
    return _cpu_s() - before_s


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
