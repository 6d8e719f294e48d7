"""What the windows of a stream say together; the same as the prober itself makes of them."""

from collections import Counter
from collections.abc import Mapping, Sequence

from servox.answers import Heard, Recognition, Timings, Window
from servox.errors import BadInput


def together(heard: Sequence[Heard]) -> Recognition:
    """Windows of a stream as the answer to the whole clip, which is what the prober itself makes of them.

    Raises:
        BadInput: no windows.
    """
    if not heard:
        raise BadInput("the audio gave no windows: it holds nothing to hear")
    windows, last = [each.window for each in heard], heard[-1]
    return Recognition(
        overall=_overall(windows),
        windows=tuple(windows),
        head=last.head,
        bundle=last.bundle,
        prior=last.prior,
        timings=Timings(decode_us=0, queue_us=0, inference_us=0, total_us=0),
        calibration=last.calibration,
        stage=last.stage,
        notice=last.notice,
    )


def _overall(windows: Sequence[Window]) -> Window:
    """The mean of the answered windows by length; none answered: the commonest reason, and the mean of its windows."""
    reasons = Counter(window.abstention for window in windows)
    reason = None if reasons[None] else reasons.most_common(1)[0][0]
    counted = [window for window in windows if window.abstention == reason and window.probabilities]
    probabilities = _shares(counted, [window.probabilities for window in counted])
    label = max(probabilities, key=lambda name: probabilities[name], default=None)
    return Window(
        index=0,
        start_ms=min(window.start_ms for window in windows),
        end_ms=max(window.end_ms for window in windows),
        label=label,
        confidence=probabilities[label] if label is not None else None,
        probabilities=probabilities,
        abstention=reason,
        speech=_mean(windows, [window.speech for window in windows]),
        novelty=_mean(counted, [window.novelty for window in counted]),
        uncalibrated=_shares(counted, [window.uncalibrated for window in counted]),
    )


def _shares(windows: Sequence[Window], values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of probabilities, weighted by the windows' lengths and summing to one; empty where there are none."""
    means = {name: _mean(windows, [each.get(name) for each in values]) or 0.0 for name in (values[0] if values else ())}
    total = sum(means.values())
    return {name: value / total for name, value in means.items()}


def _mean(windows: Sequence[Window], values: Sequence[float | None]) -> float | None:
    """Mean of what is not None, weighted by the windows' lengths."""
    pairs = [
        (max(1, window.end_ms - window.start_ms), value)
        for window, value in zip(windows, values, strict=True)
        if value is not None
    ]
    weight = sum(length for length, _ in pairs)
    return sum(length * value for length, value in pairs) / weight if weight else None
