"""Who gets in: seconds of audio in flight, counted by ourselves.

- A pure state machine with the clock passed in: no asyncio, no threads, no I/O. The dataplane owns the one instance.
- A single call is refused at once when the budget is full, with a time after which a retry has a chance: what is over
  the budget, divided by the rate at which audio has lately been finished.
- A single call whose deadline would pass while it waits is refused at once as well: its caller learns in milliseconds
  what it would else learn when its time is up, and the device works for those who can still be answered. By the rate
  of late, what is in flight must take no more than a share of the caller's time: the rest is for the clip itself, which
  one stream computes, for those that overtake it, and for the device's worse moments.
- That rate is of a device with all its streams at work: where one clip of two that could be is computed, the time
  counts half, so that a burst after quiet times is not refused for a slowness that was idleness.
- Streams wait instead, and only up to their share of the budget, so that bulk work never locks out single calls.
- Before decoding the length is a guess from the first bytes; `amend` puts the decoded length in its place.
"""

import math
from dataclasses import dataclass

from servox.errors import BadSetting, Overloaded

STREAM_SHARE = 0.75
# Measured at 120 and 300 % load: .45 answers as much in time as .6, the slowest a fifth to a quarter sooner. Of 16
# clients who wait for one answer each, in a second, it refuses none to a few in a hundred; at .4 it was a quarter.
DEADLINE_SHARE = 0.45
# How far back the drain rate looks: so much busy time, or so many answers where they are rare.
MEMORY_S, MEMORY_ANSWERS = 2.0, 16
SHORTEST_RETRY_S, LONGEST_RETRY_S = 0.05, 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is in flight: clips and their seconds of audio."""

    clips: int
    audio_s: float


class Admission:
    """Counts seconds of audio between admission and answer.

    Args:
        budget_s: most seconds in flight.
        longest_s: length of the longest clip that the server accepts.
        streams: how many clips are computed at a time.

    Raises:
        BadSetting: a budget that the longest clip alone would exceed.
    """

    def __init__(self, *, budget_s: float, longest_s: float, streams: int = 1) -> None:
        if budget_s < longest_s:
            raise BadSetting(
                f"max_inflight_audio_s = {budget_s:g} is less than one clip of max_duration ({longest_s:g} s), which "
                f"would never be admitted; set it to {longest_s:g} or more"
            )
        self._budget_s = budget_s
        self._streams = streams
        self._clips = 0
        self._audio_s = 0.0
        self._finished_s = 0.0
        self._answers = 0.0
        self._busy_s = 0.0
        self._last_s = -math.inf

    @property
    def load(self) -> Load:
        """What is in flight now."""
        return Load(clips=self._clips, audio_s=self._audio_s)

    def admit(self, seconds: float, *, now: float, remaining_s: float = math.inf) -> None:
        """Takes a single call in; `remaining_s` is the time that its caller leaves it.

        Raises:
            Overloaded: the budget is full, or so much is in flight that the answer would come too late; carries the
                time after which to retry.
        """
        if not self._fits(seconds, self._budget_s):
            raise Overloaded(
                f"{self._audio_s:.0f} s of audio are in flight and the limit is {self._budget_s:g} s; "
                "retry later or add replicas",
                retry_after_s=self._retry_after_s(self._audio_s + seconds - self._budget_s),
            )
        # Before anything was finished nothing is known; and what is expired already is not refused as overload.
        in_time_s = DEADLINE_SHARE * remaining_s * self._rate if self._rate > 0 < remaining_s else math.inf
        if not self._fits(seconds, in_time_s):
            raise Overloaded(
                f"{self._audio_s:.0f} s of audio are in flight and about {self._rate:.0f} s are finished each second: "
                f"the answer would come after the deadline in {remaining_s:.2f} s; retry later, allow more time or add "
                "replicas",
                retry_after_s=self._retry_after_s(self._audio_s + seconds - in_time_s),
            )
        self._take(seconds, now)

    def admit_stream(self, seconds: float, *, now: float) -> bool:
        """Takes an item of a stream in, or says that it has to wait."""
        if not self._fits(seconds, self._budget_s * STREAM_SHARE):
            return False
        self._take(seconds, now)
        return True

    def amend(self, guessed_s: float, decoded_s: float) -> None:
        """Puts the decoded length in place of the guess that was admitted."""
        self._audio_s += decoded_s - guessed_s

    def release(self, seconds: float, *, now: float, answered: bool = True) -> None:
        """Gives back what one clip held: it was answered; or refused, or its caller left, which is no work done."""
        self._advance(now)
        self._finished_s += seconds if answered else 0.0
        self._answers += answered
        self._clips -= 1
        # An empty server holds exactly nothing: the rounding of many sums must not add up.
        self._audio_s = self._audio_s - seconds if self._clips else 0.0

    def _fits(self, seconds: float, budget_s: float) -> bool:
        # Alone, a clip always fits: the share of streams may be less than the longest clip.
        return self._clips == 0 or self._audio_s + seconds <= budget_s

    def _take(self, seconds: float, now: float) -> None:
        self._advance(now)
        self._clips += 1
        self._audio_s += seconds

    def _advance(self, now: float) -> None:
        """Lets the memory of the drain rate fade by the time that passed, as far as the streams had work."""
        if self._clips:
            passed_s = max(0.0, now - self._last_s) * min(1.0, self._clips / self._streams)
            fade = math.exp(-passed_s / self._memory_s)
            self._finished_s *= fade
            self._answers *= fade
            self._busy_s = self._busy_s * fade + passed_s
        self._last_s = now

    @property
    def _memory_s(self) -> float:
        return max(MEMORY_S, MEMORY_ANSWERS * self._busy_s / self._answers) if self._answers > 0 else math.inf

    @property
    def _rate(self) -> float:
        """Seconds of audio finished in a second of all streams at work, of late; 0 before anything was."""
        return self._finished_s / self._busy_s if self._busy_s > 0 else 0.0

    def _retry_after_s(self, over_s: float) -> float:
        if not self._rate:
            return 1.0
        return min(max(over_s / self._rate, SHORTEST_RETRY_S), LONGEST_RETRY_S)
