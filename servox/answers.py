"""What the client answers with: plain values, no protobuf.

A window that should not be acted on says why in `abstention`. For silence and for too little audio it has no label and
no probabilities; out of distribution it has both, unproven.
"""

import csv
import importlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from servox.errors import BadSetting, ServoxError
from servox.wire import Floats

Row = dict[str, Any]

FIXED = ("index", "start_ms", "end_ms", "label", "confidence", "abstention", "speech", "novelty")
CLASS = "p_"  # before a class's name in a row: a class may be called "label"
PLAIN = "u_"  # likewise, for its probability without the tenant's calibration


class Abstention(StrEnum):
    """Why a window has no answer that should be acted on."""

    SILENCE = "silence"
    TOO_SHORT = "too_short"
    OUT_OF_DISTRIBUTION = "out_of_distribution"
    UNKNOWN = "unknown"  # a reason of a later server


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


class Stage(StrEnum):
    """As what a head answered."""

    CANDIDATE = "candidate"  # to those who name it
    PRODUCTION = "production"  # to its bare name
    CANARY = "canary"  # to its bare name, for a share of the callers
    SHADOW = "shadow"  # never
    UNKNOWN = "unknown"  # a stage of a later server


class CalibrationState(StrEnum):
    """How far the statistics of a tenant's speech have come."""

    NONE = "none"  # no tenant: the training statistics answer
    COLLECTING = "collecting"  # too little was heard: the training statistics answer
    READY = "ready"  # the tenant's mean answers, and goes on learning
    FROZEN = "frozen"  # the tenant's mean answers, and stays as it is
    UNKNOWN = "unknown"  # a state of a later server


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedCalibration:
    """The tenant's calibration that an answer used.

    Attributes:
        tenant: whose; empty where the training statistics answer.
        state: how far it has come.
        version: counts the changes of what answers; 0 where the training statistics do.
        clips: that the statistics were taken from.
        shift: of the tenant's mean from the training mean, squared, in training deviations, mean over dimensions.
        relevance: how far the tenant's mean replaces the training mean, 0 to 1.
    """

    tenant: str = ""
    state: CalibrationState = CalibrationState.NONE
    version: int = 0
    clips: int = 0
    shift: float = 0.0
    relevance: float = 0.0


UNCALIBRATED = UsedCalibration()


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
        stage: what it is to its name.
    """

    head: Head
    classes: tuple[str, ...]
    production: bool
    created_unix_ms: int
    stage: Stage = Stage.CANDIDATE


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
        uncalibrated: probabilities without the tenant's calibration; empty where the call did not ask for them.
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
    uncalibrated: Mapping[str, float] = field(default_factory=dict)

    def to_row(self, classes: Sequence[str] = ()) -> Row:
        """The window as one flat row; a class's probability is called `p_` and its name.

        Args:
            classes: those of the head, so that a window without probabilities has the same columns; its own if empty.
        """
        row = {name: getattr(self, name) for name in FIXED}
        row["abstention"] = self.abstention.value if self.abstention else None
        row |= {f"{CLASS}{name}": self.probabilities.get(name) for name in classes or self.probabilities}
        return row | {f"{PLAIN}{name}": value for name, value in self.uncalibrated.items()}

    def to_dict(self) -> Row:
        """The window as JSON has it."""
        plain = {"uncalibrated": dict(self.uncalibrated)} if self.uncalibrated else {}
        return {**{name: getattr(self, name) for name in FIXED}, "probabilities": dict(self.probabilities), **plain}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognition:
    """Emotions of one clip.

    Attributes:
        overall: of the whole clip: the mean of its windows, weighted by their length.
        windows: in their order; one where none were asked for.
        head, bundle: what made the answer.
        prior: the class prior that it assumes.
        timings: where the server's time went.
        calibration: the tenant's, that it used.
        stage: as what the head answered.
        notice: to be shown to the people who were heard, where the deployment's policy says so.
    """

    overall: Window
    windows: tuple[Window, ...]
    head: Head
    bundle: Bundle
    prior: Mapping[str, float]
    timings: Timings
    calibration: UsedCalibration = UNCALIBRATED
    stage: Stage = Stage.CANDIDATE
    notice: str = ""

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
            "calibration": asdict(self.calibration),
            "stage": self.stage.value,
            "notice": self.notice,
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
    calibration: UsedCalibration = UNCALIBRATED
    stage: Stage = Stage.CANDIDATE
    notice: str = ""


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
