"""What the client answers with: plain values, no protobuf.

A window that should not be acted on says why in `abstention`. For silence and for too little audio it has no label and
no probabilities; out of distribution it has both, unproven.
"""

import csv
import importlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from servox.errors import BadInput, BadSetting, ServoxError
from servox.v1 import common_pb2, prober_pb2
from servox.wire import Floats

Row = dict[str, Any]

FIXED = ("index", "start_ms", "end_ms", "label", "confidence", "abstention", "speech", "novelty")
CLASS = "p_"  # before a class's name in a row: a class may be called "label"


class Abstention(StrEnum):
    """Why a window has no answer that should be acted on."""

    SILENCE = "silence"
    TOO_SHORT = "too_short"
    OUT_OF_DISTRIBUTION = "out_of_distribution"
    UNKNOWN = "unknown"  # a reason of a later server


_ABSTENTIONS = {
    prober_pb2.ABSTENTION_SILENCE: Abstention.SILENCE,
    prober_pb2.ABSTENTION_TOO_SHORT: Abstention.TOO_SHORT,
    prober_pb2.ABSTENTION_OUT_OF_DISTRIBUTION: Abstention.OUT_OF_DISTRIBUTION,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Which artefact turned audio into embeddings; those of different digests do not compare."""

    digest: str
    source: str
    family: str
    context: str
    blocks: int
    precision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Which head turned embeddings into emotions; `digest` covers its weights and its card."""

    name: str
    version: str
    digest: str
    bundle_digest: str

    @property
    def tag(self) -> str:
        """`name:version`, which names this very head in a later call."""
        return f"{self.name}:{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """How long each stage took, in microseconds."""

    decode_us: int
    queue_us: int
    inference_us: int
    total_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSummary:
    """One head of a list.

    Attributes:
        head: which.
        classes: order of its outputs.
        production: whether its bare name answers with it by promotion.
        created_unix_ms: when it was trained.
    """

    head: Head
    classes: tuple[str, ...]
    production: bool
    created_unix_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Emotions of one stretch of audio.

    Attributes:
        index: 0, 1, 2, … in a file and in a stream alike.
        start_ms, end_ms: from the start of the audio.
        label: the most probable class; None where there is none.
        confidence: its calibrated probability; None likewise.
        probabilities: of every class, summing to one; empty likewise.
        abstention: why the window should not be acted on; None where it may.
        speech: share of it that is speech, 0 to 1; None where nobody looked.
        novelty: distance to the training features over the head's limit, above 1 is out of distribution; None likewise.
    """

    index: int
    start_ms: int
    end_ms: int
    label: str | None
    confidence: float | None
    probabilities: Mapping[str, float]
    abstention: Abstention | None
    speech: float | None
    novelty: float | None

    def to_row(self, classes: Sequence[str] = ()) -> Row:
        """The window as one flat row; a class's probability is called `p_` and its name.

        Args:
            classes: those of the head, so that a window without probabilities has the same columns; its own if empty.
        """
        row = {name: getattr(self, name) for name in FIXED}
        row["abstention"] = self.abstention.value if self.abstention else None
        return row | {f"{CLASS}{name}": self.probabilities.get(name) for name in classes or self.probabilities}

    def to_dict(self) -> Row:
        """The window as JSON has it."""
        return {**{name: getattr(self, name) for name in FIXED}, "probabilities": dict(self.probabilities)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognition:
    """Emotions of one clip.

    Attributes:
        overall: of the whole clip: the mean of its windows, weighted by their length.
        windows: in their order; one where none were asked for.
        head, bundle: what made the answer.
        prior: the class prior that it assumes.
        timings: where the server's time went.
    """

    overall: Window
    windows: tuple[Window, ...]
    head: Head
    bundle: Bundle
    prior: Mapping[str, float]
    timings: Timings

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes of the head, in its order where any window has probabilities."""
        return classes_of([self.overall, *self.windows]) or tuple(sorted(self.prior))

    def to_rows(self) -> list[Row]:
        """One flat row a window; see `Window.to_row`."""
        return [window.to_row(self.classes) for window in self.windows]

    def to_dict(self) -> Row:
        """The whole answer as JSON has it."""
        return {
            "overall": self.overall.to_dict(),
            "windows": [window.to_dict() for window in self.windows],
            "head": asdict(self.head),
            "bundle": asdict(self.bundle),
            "prior": dict(self.prior),
            "timings": asdict(self.timings),
        }

    def to_json(self) -> str:
        """`to_dict` on one line."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    def to_csv(self) -> str:
        """`to_rows` with a line of names."""
        return csv_of(self.to_rows())

    def to_frame(self) -> Any:  # noqa: ANN401 -- pandas is optional
        """`to_rows` as a `pandas.DataFrame`.

        Raises:
            BadSetting: pandas is not installed.
        """
        return frame_of(self.to_rows())


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """One window of a stream, and what made it."""

    window: Window
    head: Head
    bundle: Bundle
    prior: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """What a clip became.

    Args:
        id: of the clip.
        array: float32 [layers, d], [layers, 2, d] or [frames, d], by pooling.
        layers: the first axis of `array`, unless frames were asked for.
        bundle: what made it; embeddings of different digests do not compare.
        timings: where the server's time went, in microseconds.
        duration_ms: of the audio that was embedded.
        truncated: whether the clip was longer.
    """

    id: str
    array: Floats
    layers: tuple[int, ...]
    bundle: Bundle
    timings: Timings
    duration_ms: int
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Why one clip has no answer while the others have theirs."""

    id: str
    error: ServoxError


def classes_of(windows: Iterable[Window]) -> tuple[str, ...]:
    """The classes of the first window that has probabilities; none if none has."""
    return next((tuple(window.probabilities) for window in windows if window.probabilities), ())


def csv_of(rows: Sequence[Row]) -> str:
    """Rows of the same columns as CSV, with a line of names; nothing where there is no row."""
    sink = io.StringIO()
    if rows:
        writer = csv.DictWriter(sink, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return sink.getvalue()


def frame_of(rows: Sequence[Row]) -> Any:  # noqa: ANN401 -- pandas is optional
    """Rows as a `pandas.DataFrame`.

    Raises:
        BadSetting: pandas is not installed.
    """
    try:
        pandas = importlib.import_module("pandas")
    except ModuleNotFoundError:
        raise BadSetting("pandas is not installed: pip install pandas, or take to_rows() or to_csv()") from None
    return pandas.DataFrame(rows)


def bundle_from_proto(message: common_pb2.Bundle) -> Bundle:
    """The bundle that a message names."""
    return Bundle(
        digest=message.digest,
        source=message.source,
        family=message.family,
        context=message.context,
        blocks=message.blocks,
        precision=message.precision,
    )


def head_from_proto(message: common_pb2.Head) -> Head:
    """The head that a message names."""
    return Head(name=message.name, version=message.version, digest=message.digest, bundle_digest=message.bundle_digest)


def summary_from_proto(message: prober_pb2.HeadSummary) -> HeadSummary:
    """One head of a list."""
    return HeadSummary(
        head=head_from_proto(message.head),
        classes=tuple(message.classes),
        production=message.production,
        created_unix_ms=message.created_unix_ms,
    )


def timings_from_proto(message: common_pb2.Timings) -> Timings:
    """The timings in a message."""
    return Timings(
        decode_us=message.decode_us,
        queue_us=message.queue_us,
        inference_us=message.inference_us,
        total_us=message.total_us,
    )


def window_from_proto(message: prober_pb2.Window) -> Window:
    """One window; a reason to abstain that this client does not know stays a reason."""
    answered = bool(message.probabilities)
    abstained = message.abstention != prober_pb2.ABSTENTION_UNSPECIFIED
    return Window(
        index=message.index,
        start_ms=message.start_ms,
        end_ms=message.end_ms,
        label=message.label or None,
        confidence=message.confidence if answered or message.label else None,
        probabilities={each.label: each.probability for each in message.probabilities},
        abstention=_ABSTENTIONS.get(message.abstention, Abstention.UNKNOWN) if abstained else None,
        speech=message.speech if message.HasField("speech") else None,
        novelty=message.novelty if message.HasField("novelty") else None,
    )


def recognition_from_proto(message: prober_pb2.RecognizeResponse) -> Recognition:
    """The answer to a clip."""
    return Recognition(
        overall=window_from_proto(message.overall),
        windows=tuple(window_from_proto(window) for window in message.windows),
        head=head_from_proto(message.head),
        bundle=bundle_from_proto(message.bundle),
        prior=dict(message.prior.probabilities),
        timings=timings_from_proto(message.timings),
    )


def heard_from_proto(message: prober_pb2.RecognizeStreamResponse) -> Heard:
    """One window of a stream."""
    return Heard(
        window=window_from_proto(message.window),
        head=head_from_proto(message.head),
        bundle=bundle_from_proto(message.bundle),
        prior=dict(message.prior.probabilities),
    )


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
    )


def _overall(windows: Sequence[Window]) -> Window:
    """The mean of the answered windows by length; none answered: the commonest reason, and the mean of its windows."""
    reasons = Counter(window.abstention for window in windows)
    reason = None if reasons[None] else reasons.most_common(1)[0][0]
    counted = [window for window in windows if window.abstention == reason and window.probabilities]
    classes = classes_of(counted)
    means = {name: _mean(counted, [window.probabilities[name] for window in counted]) or 0.0 for name in classes}
    total = sum(means.values())
    probabilities = {name: value / total for name, value in means.items()}
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
    )


def _mean(windows: Sequence[Window], values: Sequence[float | None]) -> float | None:
    """Mean of what is not None, weighted by the windows' lengths."""
    pairs = [
        (max(1, window.end_ms - window.start_ms), value)
        for window, value in zip(windows, values, strict=True)
        if value is not None
    ]
    weight = sum(length for length, _ in pairs)
    return sum(length * value for length, value in pairs) / weight if weight else None
