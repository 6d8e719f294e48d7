"""What a tenant's statistics must pass before they answer, and how fast they may move; see docs/tenants.md."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Limits of one prober. Clips are weights: 3 s of speech or more is one, less is a part of one.

    Attributes:
        ready_clips: from which on the tenant's mean answers.
        settled_clips: once it answers, one clip moves it by no more than one of so many.
        hourly_clips: most that count in an hour, once it answers.
        horizon_clips: most that the statistics stand for; older ones fade.
        recent_clips: most that "recent" stands for, in drift.
        call_clips: most of one call or stream that count.
        least_diversity: least effective number of classes that the uncalibrated head hears, over the head's classes.
        lean_nats: divergence of what is heard lately from what is usual, above which nothing counts.
        far_spreads: distance from the mean, over that of the tenant's usual clip, beyond which none counts.
        deviations: training deviations from the mean beyond which a dimension is cut off.
        low_shift: of the tenant's mean from the training mean, up to which it says nothing.
        high_shift: from which on it replaces the training mean whole.
        most_shift: beyond which it is not taken for speech.
        smoothing_clips: clips of the training prior that are added to an estimated one.
        em: whether a prior may be estimated by expectation maximisation.
    """

    ready_clips: float = 16.0
    settled_clips: float = 64.0
    hourly_clips: float = 16.0
    horizon_clips: float = 512.0
    recent_clips: float = 32.0
    call_clips: int = 4
    least_diversity: float = 0.5
    lean_nats: float = 0.04
    far_spreads: float = 3.0
    deviations: float = 4.0
    low_shift: float = 0.2
    high_shift: float = 0.3
    most_shift: float = 12.0
    smoothing_clips: float = 8.0
    em: bool = False
