"""The class prior that a request wants assumed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

PriorKind = Literal["train", "uniform", "explicit", "estimated", "estimated-em", "tenant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """The class prior to assume; `probabilities` only where the kind is explicit."""

    kind: PriorKind = "train"
    probabilities: Mapping[str, float] = field(default_factory=dict)
