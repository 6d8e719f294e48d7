"""The emotion taxonomy: one closed vocabulary that every corpus is mapped to.

- `PAPER_CLASSES` are the eight classes of SER Evals (arXiv 2408.07851) in the paper's order; position = class index.
- `FURTHER_CLASSES` are what corpora hold beyond those. The `sound` protocol keeps them apart; `ser-evals` never uses
  them, since the paper folds or drops them.
- Which raw label of which corpus becomes which class is written in the corpus cards, not here.
"""

import difflib
from collections.abc import Iterable

from servox.errors import BadInput

PAPER_CLASSES = ("happiness", "sadness", "disgust", "fear", "surprise", "anger", "other", "neutral")

FURTHER_CLASSES = {
    "amusement": "amused, laughing while speaking",
    "anxiety": "anxious, worried",
    "apology": "apologetic",
    "assertiveness": "assertive, determined",
    "awe": "overwhelmed, in wonder",
    "boredom": "bored",
    "bother": "bothered, annoyed without anger",
    "calm": "calm, at ease; weaker than happiness and not the absence of emotion",
    "composure": "cool and controlled (the poker style of PAVOQUE)",
    "concentration": "concentrating",
    "concern": "concerned for someone",
    "confusion": "confused",
    "contempt": "contemptuous",
    "desire": "longing",
    "disappointment": "disappointed",
    "drunkenness": "acted as drunk",
    "encouragement": "encouraging",
    "enthusiasm": "enthusiastic",
    "excitement": "excited",
    "frustration": "frustrated",
    "guilt": "guilty",
    "interest": "interested",
    "pain": "in pain",
    "pleasure": "pleased by a sensation",
    "sarcasm": "sarcastic",
    "sleepiness": "sleepy",
    "sympathy": "sympathetic",
    "thinking": "thinking",
}

CLASSES = PAPER_CLASSES + tuple(FURTHER_CLASSES)


def did_you_mean(value: str, choices: Iterable[str]) -> str:
    """A question naming the closest choice, with a leading space, or nothing where none is close."""
    by_folded = {choice.casefold(): choice for choice in choices}
    close = difflib.get_close_matches(value.casefold(), by_folded, n=1, cutoff=0.6)
    return f" Did you mean {by_folded[close[0]]!r}?" if close else ""


def require_class(label: str) -> str:
    """`label` itself when it is one of `CLASSES`.

    Raises:
        BadInput: the label is not in the vocabulary; the message names the closest one.
    """
    if label in CLASSES:
        return label
    raise BadInput(f"unknown emotion {label!r}.{did_you_mean(label, CLASSES)} Known emotions: {', '.join(CLASSES)}.")


def paper_index(label: str) -> int:
    """Class index of a label in the paper's order, 0..7.

    Raises:
        BadInput: the label is not one of the paper's eight.
    """
    if label in PAPER_CLASSES:
        return PAPER_CLASSES.index(label)
    raise BadInput(
        f"{label!r} is not one of the paper's eight classes.{did_you_mean(label, PAPER_CLASSES)} "
        f"They are, in order: {', '.join(PAPER_CLASSES)}."
    )


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Distinct labels in the taxonomy's order: the paper's eight first, then the further ones by name.

    Raises:
        BadInput: a label is not in the vocabulary.
    """
    return tuple(sorted({require_class(label) for label in labels}, key=CLASSES.index))
