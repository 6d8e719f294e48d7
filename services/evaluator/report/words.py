"""How figures and names are written for people; the same in the page and in the terminal."""

from datetime import datetime

from services.evaluator.corrections import LADDER
from services.evaluator.report.figures import Estimate, Score

MISSING = "–"
SCORE_NAMES: dict[Score, str] = {"macro_f1": "macro-F1", "uar": "UAR", "accuracy": "accuracy", "ece": "ECE"}
PROTOCOL_NAMES = {"sound": "sound", "ser-evals": "SER Evals"}
HEAD_NAMES = {"mlp": "pooled MLP", "logistic": "logistic regression", "frame-mlp": "per-frame MLP"}
_SHORT = {
    "none": "no correction",
    "minus-train-prior": "− train prior",
    "oracle-prior": "oracle prior",
    "em-prior": "EM prior",
    "mean-probability": "mean probability",
    "standardise-16": "standardise by 16",
    "standardise-64": "standardise by 64",
    "standardise-all": "standardise by all",
}


def figure(value: float | None, digits: int = 3) -> str:
    """A score, `0.412`."""
    return MISSING if value is None else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    """A difference, `+0.120` or `−0.031`."""
    return MISSING if value is None else f"{value:+.{digits}f}".replace("-", "−")


def interval(estimate: Estimate, digits: int = 3) -> str:
    """`0.350–0.470`, or nothing where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{figure(estimate.low, digits)}–{figure(estimate.high, digits)}"


def signed_interval(estimate: Estimate, digits: int = 3) -> str:
    """`+0.050 to +0.170`, or nothing where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{signed(estimate.low, digits)} to {signed(estimate.high, digits)}"


def correction_name(name: str) -> str:
    """Short name of a correction."""
    return _SHORT.get(name, name.replace("-", " "))


def correction_words(name: str) -> str:
    """What a correction does; nothing where the ladder does not know it."""
    return LADDER[name].description if name in LADDER else ""


def head_name(name: str) -> str:
    """Name of a kind of head."""
    return HEAD_NAMES.get(name, name)


def protocol_name(name: str) -> str:
    """Name of a protocol."""
    return PROTOCOL_NAMES.get(name, name)


def duration(seconds: float) -> str:
    """`1 h 4 min`, `3 min 12 s` or `8 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def moment(created: str) -> str:
    """An ISO 8601 time as `2026-03-01 14:05 UTC`; as it is where it is none."""
    try:
        parsed = datetime.fromisoformat(created)
    except ValueError:
        return created
    return parsed.strftime("%Y-%m-%d %H:%M ") + (parsed.tzname() or "").replace("+00:00", "")


def count(number: int) -> str:
    """`25 636`, with a thin space."""
    return f"{number:,}".replace(",", "\u202f")
