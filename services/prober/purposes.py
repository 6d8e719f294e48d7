"""What answers may be used for: a deployment declares its purposes, requests name theirs, and some are refused.

- The list is closed, so that a refusal is no matter of words. `workplace` and `education` are never allowed: Regulation
  (EU) 2024/1689, Article 5(1)(f), forbids to infer emotions there, except for medical or safety reasons, which have
  purposes of their own.
- A purpose is what the caller says. The policy makes sure that it was said, counted and within what was declared; it
  cannot know whether it is true.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter

from servox.errors import BadInput, BadSetting, Forbidden

# Purpose → what it means.
PURPOSES: Mapping[str, str] = {
    "accessibility": "to help a person who asked for it to perceive how speech sounds",
    "art-entertainment": "games, installations and performances that people join knowingly",
    "customer-quality": "how calls go for customers, never to judge the staff who answer them",
    "health-monitoring": "of a person who asked for it, outside of medical devices",
    "medical": "diagnosis or therapy, under the law of medical devices",
    "research": "studies with the consent of those who are heard",
    "safety": "to prevent harm, such as a driver's fatigue or a call for help",
    "training-data": "to find or label recordings whose speakers agreed to that",
    "workplace-medical": "of people at work, for medical reasons only",
    "workplace-safety": "of people at work, for safety reasons only",
    "education-medical": "of pupils or students, for medical reasons only",
    "education-safety": "of pupils or students, for safety reasons only",
    "workplace": "any other use on people at work, or who apply for work: forbidden",
    "education": "any other use on pupils or students: forbidden",
}
FORBIDDEN = ("workplace", "education")
UNDECLARED = "none"  # in the metric
_KEYS = ("purposes", "require", "notice", "notices")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a deployment declares.

    Attributes:
        purposes: of this deployment; empty: any that is not forbidden.
        require: whether requests have to name theirs.
        notice: what those who are heard are told; empty for nothing.
        notices: the same by purpose, where it differs.
    """

    purposes: tuple[str, ...] = ()
    require: bool = False
    notice: str = ""
    notices: Mapping[str, str] = field(default_factory=dict)

    def purpose(self, asked: str) -> str:
        """The purpose of a request, by what it says; empty where none is declared.

        Raises:
            BadInput: no purpose of the list.
            Forbidden: one that nobody may have, that this deployment does not, or none where one is needed.
        """
        if asked and asked not in PURPOSES:
            raise BadInput(f"purpose = {asked[:40]!r}: it is unknown; give one of {', '.join(self._allowed())}")
        if asked in FORBIDDEN:
            raise Forbidden(
                f"purpose = {asked!r}: inferring emotions there is forbidden (Regulation (EU) 2024/1689, Article "
                f"5(1)(f)); only for medical or safety reasons it is not, which are {asked}-medical and {asked}-safety"
            )
        if not asked:
            if self.require:
                raise Forbidden(f"purpose: none was named, and one is needed here; give {' or '.join(self._allowed())}")
            return self.purposes[0] if len(self.purposes) == 1 else ""
        if self.purposes and asked not in self.purposes:
            raise Forbidden(f"purpose = {asked!r}: this deployment is for {', '.join(self.purposes)} only")
        return asked

    def told(self, purpose: str) -> str:
        """What those who are heard are told."""
        return self.notices.get(purpose, self.notice)

    def _allowed(self) -> tuple[str, ...]:
        return self.purposes or tuple(each for each in PURPOSES if each not in FORBIDDEN)


def policy_at(path: Path | None) -> Policy:
    """The policy in a TOML file; without one, nothing is asked and only what is forbidden is refused.

    Raises:
        BadSetting: it cannot be read, or declares what makes no sense.
    """
    if path is None:
        return Policy()
    try:
        given = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadSetting(f"policy {path}: {error}; give a readable TOML file") from None
    return policy_of(given, f"policy {path}")


def policy_of(given: Mapping[str, Any], place: str) -> Policy:
    """The policy in a table.

    Raises:
        BadSetting: it makes no sense.
    """
    if unknown := sorted(set(given) - set(_KEYS)):
        raise BadSetting(f"{place}: {unknown[0]!r} is unknown; use {', '.join(_KEYS)}")
    purposes, notices = given.get("purposes", []), given.get("notices", {})
    _check_purposes(purposes, place)
    require, notice = given.get("require", len(purposes) > 1), given.get("notice", "")
    if not isinstance(require, bool):
        raise BadSetting(f"{place}: require = {require!r}: give true or false")
    if len(purposes) > 1 and not require:
        raise BadSetting(f"{place}: of {len(purposes)} purposes nobody could tell which one is meant: require = true")
    if not isinstance(notices, dict) or not all(isinstance(each, str) for each in [notice, *notices.values()]):
        raise BadSetting(f"{place}: notice is a text, notices a table of texts by purpose; correct them")
    if unknown := sorted(set(notices) - set(purposes or PURPOSES)):
        raise BadSetting(f"{place}: notices.{unknown[0]} is of no declared purpose; use {', '.join(purposes)}")
    return Policy(purposes=tuple(purposes), require=require, notice=notice, notices=notices)


def _check_purposes(purposes: object, place: str) -> None:
    if not isinstance(purposes, list) or not all(isinstance(each, str) for each in purposes):
        raise BadSetting(f"{place}: purposes = {purposes!r}: give a list, such as purposes = ['research']")
    if unknown := [each for each in purposes if each not in PURPOSES]:
        raise BadSetting(f"{place}: purpose {unknown[0]!r} is unknown; use {', '.join(PURPOSES)}")
    if forbidden := [each for each in purposes if each in FORBIDDEN]:
        raise BadSetting(
            f"{place}: purpose {forbidden[0]!r} is forbidden (Regulation (EU) 2024/1689, Article 5(1)(f)) except for "
            f"medical or safety reasons; where it is one of these, declare {forbidden[0]}-medical or -safety"
        )


class Purposes:
    """A policy at work.

    Args:
        policy: what is declared.
        registry: of metrics.
    """

    def __init__(self, policy: Policy, registry: CollectorRegistry) -> None:
        self._policy = policy
        self._asked = Counter(
            "servox_prober_purposes",
            "Recognitions asked for, by the purpose that they named or inherited (none, unknown, or one of the closed "
            "list) and outcome: allowed, refused.",
            ["purpose", "outcome"],
            registry=registry,
        )

    def check(self, asked: str) -> str:
        """The notice for a request; see `Policy.purpose` for what it raises."""
        try:
            purpose = self._policy.purpose(asked)
        except (BadInput, Forbidden):
            named = asked if asked in PURPOSES else "unknown"
            self._asked.labels(named if asked else UNDECLARED, "refused").inc()
            raise
        self._asked.labels(purpose or UNDECLARED, "allowed").inc()
        return self._policy.told(purpose)
