"""Whether a head may be promoted: rules of a file, applied to what is known of the head.

- Two things are known: the card's out-of-fold scores (its own training corpus, unheard speakers) and, where one was
  stored, an evaluation on other corpora. Rules about what is not there do not apply; `required` says if it must be.
- Pure: rules, card and evaluations in, one result a rule out.
"""

import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from servox.emotions import did_you_mean
from servox.errors import BadSetting

from .card import Card
from .evaluations import CorpusScores, Evaluation

DEFAULTS = Path(__file__).with_name("gate.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfFoldRules:
    """Rules about the scores on the card; see `gate.toml`."""

    required: bool
    margin: float
    min_clips: int
    min_speakers: int
    max_ece: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRules:
    """Rules about the stored evaluation; see `gate.toml`."""

    required: bool
    max_age_days: float
    min_corpora: int
    min_clips: int
    min_speakers: int
    mean_margin: float
    worst_margin: float
    share_above_floor: float
    max_ece: float
    max_regression: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """All of a file."""

    out_of_fold: OutOfFoldRules
    evaluation: EvaluationRules


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one rule found.

    Attributes:
        rule: its name in the file.
        passed: whether it lets the head pass.
        found: what was looked at and what was wanted.
    """

    rule: str
    passed: bool
    found: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the rules look at.

    Attributes:
        card: of the head.
        digest: of the head.
        evaluation: what is stored for it; None where nothing is.
        production: what is stored for the version in production; None likewise, or where there is none.
        now: by which an evaluation's age is told.
    """

    card: Card
    digest: str
    evaluation: Evaluation | None
    production: Evaluation | None
    now: datetime


_LIMITS: dict[str, tuple[float, float]] = {
    "margin": (-1, 1),
    "mean_margin": (-1, 1),
    "worst_margin": (-1, 1),
    "share_above_floor": (0, 1),
    "max_ece": (0, 1),
    "max_regression": (0, 1),
}


def load_rules(file: Path | None = None) -> Rules:
    """The rules of a file; those that it leaves out, or all where there is none, are the defaults.

    Raises:
        BadSetting: not a readable TOML file, an unknown table or rule, or a value of a wrong type or out of range.
    """
    given = _read(file) if file else {}
    default = _read(DEFAULTS)
    if unknown := sorted(set(given) - set(default)):
        raise BadSetting(
            f"gate {file}: {unknown[0]!r} is no table of rules.{did_you_mean(unknown[0], default)} Known are "
            f"[{'], ['.join(default)}]"
        )
    tables = {name: _table(file or DEFAULTS, name, given.get(name, {}), default[name]) for name in default}
    return Rules(
        out_of_fold=OutOfFoldRules(**tables["out_of_fold"]), evaluation=EvaluationRules(**tables["evaluation"])
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadSetting(f"gate {file}: {error}; give a readable TOML file") from None


def _table(file: Path, name: str, given: object, default: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise BadSetting(f"gate {file}: {name} = {given!r} is no table; write [{name}] and its rules below")
    for rule in given:
        if rule not in default:
            raise BadSetting(
                f"gate {file}: unknown rule {name}.{rule}.{did_you_mean(rule, default)} Known are {', '.join(default)}"
            )
    cls = OutOfFoldRules if name == "out_of_fold" else EvaluationRules
    types = {field.name: field.type for field in fields(cls)}
    return {rule: _checked(file, f"{name}.{rule}", value, types[rule]) for rule, value in {**default, **given}.items()}


def _checked(file: Path, rule: str, value: object, wanted: object) -> bool | int | float:
    if wanted is bool:
        if isinstance(value, bool):
            return value
        raise BadSetting(f"gate {file}: {rule} = {value!r}: give true or false")
    number = isinstance(value, int) or (wanted is float and isinstance(value, float))
    if isinstance(value, bool) or not isinstance(value, int | float) or not number:
        raise BadSetting(f"gate {file}: {rule} = {value!r}: give a {'number' if wanted is float else 'whole number'}")
    low, high = _LIMITS.get(rule.rpartition(".")[2], (0, math.inf))
    if not low <= value <= high:
        raise BadSetting(f"gate {file}: {rule} = {value}: give {low} to {high}")
    return value


def judge(known: Known, rules: Rules) -> tuple[Result, ...]:
    """What every rule that applies says of a head, in the order of the file."""
    results = _out_of_fold(known.card, rules.out_of_fold), _evaluation(known, rules.evaluation)
    return tuple(result for each in results for result in each)


def refused(results: Sequence[Result]) -> str:
    """Every rule that failed, with what it found; empty where none did."""
    return "; ".join(f"{result.rule}: {result.found}" for result in results if not result.passed)


def _out_of_fold(card: Card, rules: OutOfFoldRules) -> Iterator[Result]:
    scores = card.out_of_fold
    if scores is None:
        found = "it has no out-of-fold scores: train it with calibrate = true, then promote it"
        yield Result(rule="out_of_fold.required", passed=not rules.required, found=found)
        return
    by = f"{rules.margin:+g}" if rules.margin else ""
    passed = scores.macro_f1 > scores.floor + rules.margin
    found = f"macro-F1 {scores.macro_f1:.3f} is {'' if passed else 'not '}above its prior-matched floor"
    yield Result(rule="out_of_fold.margin", passed=passed, found=f"{found} {scores.floor:.3f}{by}")
    yield _at_least("out_of_fold.min_clips", scores.clips, rules.min_clips, "clips scored")
    named = scores.speakers if scores.grouped_by.startswith("speaker") else 0
    yield _at_least("out_of_fold.min_speakers", named, rules.min_speakers, "speakers known")
    yield _at_most("out_of_fold.max_ece", scores.ece_after, rules.max_ece, "calibration error")


def _evaluation(known: Known, rules: EvaluationRules) -> Iterator[Result]:
    evaluation = known.evaluation
    if evaluation is None:
        found = "no evaluation is stored: nothing is known of other corpora's speech; `servox heads evaluate` makes one"
        yield Result(rule="evaluation.required", passed=not rules.required, found=found)
        return
    same = (evaluation.digest, evaluation.bundle) == (known.digest, known.card.bundle)
    of = f"it is of digest {evaluation.digest[:12]} on bundle {evaluation.bundle[:12]}"
    this = f"this head has {known.digest[:12]} on {known.card.bundle[:12]}"
    yield Result(rule="evaluation.of_this_head", passed=same, found=of if same else f"{of}, {this}: evaluate it again")
    age = (known.now.astimezone(UTC) - datetime.fromisoformat(evaluation.created)).total_seconds() / 86_400
    yield _at_most("evaluation.max_age_days", max(0.0, age), rules.max_age_days, "days old")
    yield from _scored(evaluation.corpora, rules)
    yield _regression(evaluation, known.production, rules.max_regression)


def _scored(corpora: Sequence[CorpusScores], rules: EvaluationRules) -> Iterator[Result]:
    yield _at_least("evaluation.min_corpora", len(corpora), rules.min_corpora, "eligible corpora")
    yield _at_least("evaluation.min_clips", sum(each.clips for each in corpora), rules.min_clips, "clips scored")
    yield _at_least("evaluation.min_speakers", sum(each.speakers for each in corpora), rules.min_speakers, "speakers")
    if not corpora:
        return
    mean = math.fsum(each.margin for each in corpora) / len(corpora)
    yield Result(
        rule="evaluation.mean_margin",
        passed=mean > rules.mean_margin,
        found=f"mean macro-F1 less floor is {mean:+.3f}, wanted is more than {rules.mean_margin:+g}",
    )
    worst = min(corpora, key=lambda each: each.margin)
    yield Result(
        rule="evaluation.worst_margin",
        passed=worst.margin >= rules.worst_margin,
        found=f"{worst.key}: macro-F1 {worst.macro_f1:.3f} with floor {worst.floor:.3f} is {worst.margin:+.3f}, "
        f"wanted is {rules.worst_margin:+g} at least",
    )
    above = [each.key for each in corpora if each.low is not None and each.low > each.floor]
    yield Result(
        rule="evaluation.share_above_floor",
        passed=len(above) >= rules.share_above_floor * len(corpora),
        found=f"{len(above)} of {len(corpora)} intervals begin above the floor ({', '.join(above) or 'none'}), wanted "
        f"is a share of {rules.share_above_floor:g}",
    )
    ece = math.fsum(each.ece for each in corpora) / len(corpora)
    yield _at_most("evaluation.max_ece", ece, rules.max_ece, "mean calibration error")


def _regression(evaluation: Evaluation, production: Evaluation | None, limit: float) -> Result:
    rule = "evaluation.max_regression"
    before = {(each.digest, each.classes): each.macro_f1 for each in production.corpora} if production else {}
    both = [each for each in evaluation.corpora if (each.digest, each.classes) in before]
    if not both:
        return Result(rule=rule, passed=True, found="the version in production was not scored on the same clips")
    loss = math.fsum(before[each.digest, each.classes] - each.macro_f1 for each in both) / len(both)
    found = f"mean macro-F1 on {len(both)} corpora is {-loss:+.3f} against production, wanted is {-limit:+g} at least"
    return Result(rule=rule, passed=loss <= limit, found=found)


def _at_least(rule: str, value: float, wanted: float, what: str) -> Result:
    return Result(rule=rule, passed=value >= wanted, found=f"{value:g} {what}, wanted is {wanted:g} at least")


def _at_most(rule: str, value: float, wanted: float, what: str) -> Result:
    shown = f"{value:.3f}" if wanted <= 1 else f"{value:.0f}"
    return Result(rule=rule, passed=value <= wanted, found=f"{shown} {what}, wanted is {wanted:g} at most")
