"""What one caller may use: calls a second, audio a day, streams at a time.

Pure functions of a state and the time, and the one mutable account that applies them. An account lives in one process:
replicas count for themselves, and a restart begins anew.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from servox.errors import Overloaded, OverQuota

DAY_S = 86_400
FULL_STREAMS_S = 1.0  # when to ask again for a stream: nobody knows when one ends


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What a caller may use; 0 for as much as they like.

    Attributes:
        rate_per_s: calls, on average; as many as a second's may come at once, and at least one.
        audio_s_per_day: audio heard between two midnights of UTC.
        streams: open at a time.
    """

    rate_per_s: float = 0.0
    audio_s_per_day: float = 0.0
    streams: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Calls that may come at once, as of a time."""

    level: float
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """Audio heard on one day; days are counted since 1970, in UTC."""

    number: int = 0
    used_s: float = 0.0


def burst_of(rate_per_s: float) -> float:
    """How many calls may come at once."""
    return max(1.0, rate_per_s)


def take(bucket: Bucket | None, *, rate_per_s: float, now_s: float) -> tuple[Bucket, float]:
    """Takes one call out of a bucket; None is one that was never used.

    Returns:
        The bucket afterwards, and how long to wait: 0 where the call may come now.
    """
    burst = burst_of(rate_per_s)
    level = burst if bucket is None else min(burst, bucket.level + max(0.0, now_s - bucket.at_s) * rate_per_s)
    if level >= 1:
        return Bucket(level=level - 1, at_s=now_s), 0.0
    return Bucket(level=level, at_s=now_s), (1 - level) / rate_per_s


def day_at(now_s: float) -> int:
    """The number of a day."""
    return int(now_s // DAY_S)


def spend(day: Day, audio_s: float, *, limit_s: float, now_s: float) -> tuple[Day, bool]:
    """Counts audio.

    Returns:
        The day afterwards, and whether that much was left; where it was not, nothing is counted.
    """
    number = day_at(now_s)
    used_s = day.used_s if day.number == number else 0.0
    if used_s + audio_s > limit_s:
        return Day(number=number, used_s=used_s), False
    return Day(number=number, used_s=used_s + audio_s), True


def until_midnight_s(now_s: float) -> float:
    """Until the next day of UTC begins."""
    return DAY_S - now_s % DAY_S


def _used_up(used_s: float, limit_s: float, now_s: float) -> OverQuota:
    return OverQuota(
        f"{used_s:.0f} of your {limit_s:g} s of audio a day are used, and this is more: go on after midnight UTC, or "
        "ask for more",
        retry_after_s=until_midnight_s(now_s),
    )


class Account:
    """What one caller has used; the event loop is its only thread.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._bucket: Bucket | None = None
        self._day = Day()
        self._streams = 0

    def call(self, allowance: Allowance) -> None:
        """One more call.

        Raises:
            Overloaded: they come too fast.
        """
        if not allowance.rate_per_s:
            return
        self._bucket, wait_s = take(self._bucket, rate_per_s=allowance.rate_per_s, now_s=self._clock())
        if wait_s:
            raise Overloaded(
                f"more than {allowance.rate_per_s:g} calls a second, which is what you may make: come slower",
                retry_after_s=wait_s,
            )

    def hear(self, audio_s: float, allowance: Allowance, *, already: bool = False) -> None:
        """Audio that is to be heard, or was `already`.

        Raises:
            OverQuota: so much is not left today; never for what was heard already.
        """
        if not allowance.audio_s_per_day:
            return
        now_s, limit_s = self._clock(), allowance.audio_s_per_day
        self._day, left = spend(self._day, audio_s, limit_s=limit_s, now_s=now_s)
        if left:
            return
        if already:
            self._day = Day(number=self._day.number, used_s=self._day.used_s + audio_s)
            return
        raise _used_up(self._day.used_s, limit_s, now_s)

    def left(self, allowance: Allowance) -> None:
        """Raises OverQuota where nothing is left today."""
        now_s, limit_s = self._clock(), allowance.audio_s_per_day
        if limit_s and self._day.number == day_at(now_s) and self._day.used_s >= limit_s:
            raise _used_up(self._day.used_s, limit_s, now_s)

    @contextmanager
    def stream(self, allowance: Allowance) -> Iterator[None]:
        """One stream for as long as it is open.

        Raises:
            Overloaded: as many as may be are open.
        """
        if allowance.streams and self._streams >= allowance.streams:
            raise Overloaded(
                f"{self._streams} of your streams are open, as many as may be: end one first",
                retry_after_s=FULL_STREAMS_S,
            )
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1
