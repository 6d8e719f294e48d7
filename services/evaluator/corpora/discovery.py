"""Finds corpora under a data folder by the names that their folders usually have."""

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from servox.errors import BadCorpus

from .card import Card
from .cards import load_cards

# What mirrors and archives append to a corpus' name.
_SUFFIX = re.compile(r"(?:main|master|dataset|database|corpus|data|speech|audio|v\d+|\d+k?hz)*")


def discover(data_dir: Path) -> dict[str, Path]:
    """Corpus key → its folder, for the folders of `data_dir/corpora`, or of `data_dir` itself where that is absent.

    Raises:
        BadCorpus: the folder is not there, or two of its folders are the same corpus.
    """
    if not data_dir.is_dir():
        raise BadCorpus(f"no folder {data_dir}. Give a folder with corpora/ in it, or set SERVOX_DATA.")
    inner = data_dir / "corpora"
    found: dict[str, Path] = {}
    for folder in sorted(p for p in (inner if inner.is_dir() else data_dir).iterdir() if p.is_dir()):
        card = recognise(folder)
        if card is None:
            continue
        if card.key in found:
            raise BadCorpus(
                f"{found[card.key]} and {folder} are both the corpus {card.key!r}. Keep one of them in the folder."
            )
        found[card.key] = folder
    return found


def recognise(folder: Path) -> Card | None:
    """The card whose corpus a folder's name stands for."""
    return _by_name(folder.name, load_cards())


def _by_name(name: str, cards: Mapping[str, Card]) -> Card | None:
    plain = _plain(name)
    hints = [(_plain(hint), card) for card in cards.values() for hint in (card.key, card.name, *card.folders)]
    exact = [card for hint, card in hints if hint == plain]
    if exact:
        return exact[0]
    longer = [
        (len(hint), card)
        for hint, card in hints
        if hint and plain.startswith(hint) and _SUFFIX.fullmatch(plain.removeprefix(hint))
    ]
    return max(longer, key=lambda pair: pair[0])[1] if longer else None


def _plain(name: str) -> str:
    """A folder name without case, accents and punctuation."""
    bare = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    return "".join(c for c in bare.casefold() if c.isalnum())
