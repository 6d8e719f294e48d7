"""How much silence an encoder sees after a clip: part of a bundle's identity.

Whisper's own recipe pads every clip to 30 s. What that padding gives the clip's frames is attention mass on silence,
and a few weighted silence tokens give the same at a cost proportional to the clip. A head trained on one policy is
near chance on another, so the policy is written into the bundle and into its digest.

    padded       zeros up to the encoder's whole window (the SER Evals recipe)
    fixed:S      zeros up to S seconds; a longer clip keeps its own length
    exact        nothing after the clip
    silence:K    two real border frames, then K silence tokens that stand for the rest of the window
    cached:K     the same, but the tokens stand where the encoder looks, and after the first block they are what the
                 padded encoder makes of silence, kept in the bundle: see `backbones/silence.py`
"""

import math
from dataclasses import dataclass
from typing import Literal, Self

from servox.errors import BadSetting

Kind = Literal["padded", "fixed", "exact", "silence", "cached"]

SYNTAX = "padded, fixed:SECONDS, exact, silence:K or cached:K"
MAX_SILENCE_TOKENS = 512
LEAST_CACHED_TOKENS = 4  # the window's end, a sink, and two for the rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """A context policy: `seconds` belongs to `fixed`, `tokens` to `silence` and `cached`; the other is 0."""

    kind: Kind
    seconds: float = 0.0
    tokens: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """The policy written as `padded`, `fixed:SECONDS`, `exact`, `silence:K` or `cached:K`.

        Raises:
            BadSetting: when `text` is none of these, or its number is out of range.
        """
        kind, _, value = text.strip().partition(":")
        if kind == "padded" and not value:
            return cls(kind="padded")
        if kind == "exact" and not value:
            return cls(kind="exact")
        if kind == "fixed":
            return cls(kind="fixed", seconds=_seconds(value, text))
        if kind == "silence":
            return cls(kind="silence", tokens=_tokens(value, text))
        if kind == "cached":
            return cls(kind="cached", tokens=_tokens(value, text, least=LEAST_CACHED_TOKENS))
        raise BadSetting(f"--context {text!r} is not a policy: use {SYNTAX}")

    def __str__(self) -> str:
        """The text that `parse` reads back."""
        if self.kind == "fixed":
            return f"fixed:{self.seconds:g}"
        return f"{self.kind}:{self.tokens}" if self.compressed else self.kind

    @property
    def compressed(self) -> bool:
        """Whether a few tokens stand for the padding."""
        return self.kind in ("silence", "cached")


def _seconds(value: str, text: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0.1 <= seconds <= 30.0:
        raise BadSetting(f"--context {text!r} needs seconds from 0.1 to 30, e.g. fixed:5")
    return seconds


def _tokens(value: str, text: str, *, least: int = 1) -> int:
    tokens = int(value) if value.isascii() and value.isdigit() else 0
    if not least <= tokens <= MAX_SILENCE_TOKENS:
        raise BadSetting(
            f"--context {text!r} needs a whole number of tokens from {least} to {MAX_SILENCE_TOKENS}, e.g. silence:32"
        )
    return tokens
