"""Corpora: one card each, one parser, one scanner.

`load_cards` gives every card, `discover` finds corpora under a folder, `scan` reads one, `parse_path` a single path.
"""

from .card import PROTOCOLS, UNUSED, Card, Protocol
from .cards import find_card, load_cards, read_card
from .discovery import discover
from .paths import Parsed, parse_path
from .scanning import Clip, Problem, Scan, Skipped, scan
from .tables import Tables, read_given, read_tables

__all__ = [
    "PROTOCOLS",
    "UNUSED",
    "Card",
    "Clip",
    "Parsed",
    "Problem",
    "Protocol",
    "Scan",
    "Skipped",
    "Tables",
    "discover",
    "find_card",
    "load_cards",
    "parse_path",
    "read_card",
    "read_given",
    "read_tables",
    "scan",
]
