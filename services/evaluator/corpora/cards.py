"""Loads and checks the cards: every `*.toml` beside this module is one corpus; nothing else registers it."""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from pydantic import TypeAdapter, ValidationError

from servox.emotions import CLASSES, PAPER_CLASSES, did_you_mean
from servox.errors import BadCorpus, NotFound

from . import card as card_module
from .card import UNUSED, Card
from .paths import compiled
from .templates import FILTERS, places

FOLDER = Path(__file__).resolve().parent
_ADAPTER = TypeAdapter(Card)
_FIELDS = sorted({f.name for cls in vars(card_module).values() if is_dataclass(cls) for f in fields(cls)})
# Fields that the parser itself adds to those of a pattern.
_ALWAYS = frozenset({"stem", "pattern", "segment", "start", "end", "channel"})


@cache
def load_cards() -> Mapping[str, Card]:
    """Every card that comes with Servox, by key in alphabetical order.

    Raises:
        BadCorpus: a card is wrong; the message names card, field and remedy.
    """
    return MappingProxyType({file.stem: read_card(file) for file in sorted(FOLDER.glob("*.toml"))})


def find_card(key: str) -> Card:
    """The card of one corpus.

    Raises:
        NotFound: no card has this key; the message names the closest one.
    """
    cards = load_cards()
    if key in cards:
        return cards[key]
    raise NotFound(f"no corpus {key!r}.{did_you_mean(key, cards)} Known corpora: {', '.join(cards)}.")


def read_card(file: Path) -> Card:
    """One card from its file, checked.

    Raises:
        BadCorpus: the card is wrong; the message names card, field and remedy.
    """
    try:
        card = _ADAPTER.validate_python(tomllib.loads(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise BadCorpus(f"card {file.name}: not readable TOML ({problem}). Correct the file.") from problem
    except ValidationError as problem:
        raise BadCorpus(f"card {file.name}: {_first_fault(problem)}") from problem
    if card.key != file.stem:
        raise BadCorpus(f"card {file.name}: field key is {card.key!r}; it must equal the file's name, {file.stem!r}.")
    for fault in faults_of(card):
        raise BadCorpus(f"card {file.name}: {fault}")
    return card


def _first_fault(problem: ValidationError) -> str:
    fault = problem.errors()[0]
    place = ".".join(str(part) for part in fault["loc"])
    name = str(fault["loc"][-1]) if fault["loc"] else ""
    if fault["type"] == "missing":
        return f"field {place} is missing; add it."
    if fault["type"] == "unexpected_keyword_argument":
        return f"field {place} is unknown.{did_you_mean(name, _FIELDS)} Correct or remove it."
    return f"field {place}: {fault['msg']} (found {fault.get('input')!r}); correct it."


def faults_of(card: Card) -> Iterator[str]:
    """What is wrong with a card beyond its shape, one sentence each."""
    yield from _pattern_faults(card)
    yield from _label_faults(card)
    yield from _template_faults(card)
    yield from _fact_faults(card)


def _pattern_faults(card: Card) -> Iterator[str]:
    regexes = [(f"patterns.{n}.regex", p.regex) for n, p in enumerate(card.patterns)]
    regexes += [(f"excluded.{n}.regex", e.regex) for n, e in enumerate(card.excluded)]
    regexes += [(f"tables.{n}.line", t.line) for n, t in enumerate(card.tables)]
    regexes += [(f"tables.{n}.each", t.each) for n, t in enumerate(card.tables)]
    for place, regex in regexes:
        try:
            compiled(regex)
        except re.error as problem:
            yield f"field {place}: not a regular expression ({problem}) in {regex!r}; correct it."
    if not card.patterns:
        yield "field patterns is empty; add a layout."
    if card.segments and card.segments.table >= len(card.tables):
        yield f"field segments.table: there is no table {card.segments.table}; count from 0."


def _label_faults(card: Card) -> Iterator[str]:
    paper, sound = card.labels.paper, card.labels.sound
    for label in [*paper, *sound]:
        if label not in paper or label not in sound:
            lacking = "paper" if label not in paper else "sound"
            yield f"field labels.{lacking}: no mapping for the raw label {label!r}; add it ({UNUSED!r} for none)."
    for place, raws in (("codes", card.codes.values()), ("counts.labels", card.counts.labels)):
        for raw in raws:
            if raw not in sound:
                yield f"field {place}: {raw!r} is no raw label of this card.{did_you_mean(raw, sound)} Map it first."
    counted = card.paper.counts if card.paper else {}
    yield from _class_faults("labels.paper", paper.values(), PAPER_CLASSES)
    yield from _class_faults("labels.sound", sound.values(), (*CLASSES, UNUSED))
    yield from _class_faults("paper.counts", counted, PAPER_CLASSES)


def _class_faults(place: str, found: Iterable[str], choices: Sequence[str]) -> Iterator[str]:
    for label in found:
        if label not in choices:
            yield f"field {place}: unknown class {label!r}.{_close(label, choices)}"


def _close(value: str, choices: Sequence[str]) -> str:
    return f"{did_you_mean(value, choices)} Use one of {', '.join(choices)}."


def _template_faults(card: Card) -> Iterator[str]:
    known = set(_ALWAYS)
    for pattern in card.patterns:
        known |= set(re.findall(r"\(\?P<(\w+)>", pattern.regex)) | set(pattern.fields)
    from_tables = {name for table in card.tables for name in (*table.columns, *table.constants)}
    templates = [("speakers.id", card.speakers.id), ("speakers.group", card.speakers.group), ("unique", card.unique)]
    templates += [(f"tables.{n}.join", table.join) for n, table in enumerate(card.tables)]
    for place, template in templates:
        for name, kind in places(template):
            if name not in known | from_tables:
                yield f"field {place}: no pattern or table gives {name!r}.{_close(name, sorted(known | from_tables))}"
            if kind and kind not in FILTERS:
                yield f"field {place}: unknown filter {kind!r}.{_close(kind, tuple(FILTERS))}"


def _fact_faults(card: Card) -> Iterator[str]:
    if not card.speakers.id and not card.speakers.reason:
        yield "field speakers.id is absent; give it, or speakers.reason why the corpus has no speakers."
    if card.obtain.direct and not card.obtain.archives:
        yield "field obtain.archives is empty though obtain.direct is true; list the files."
    if card.table_holds_label and not any("label" in table.columns for table in card.tables):
        yield "field tables: neither a pattern nor a table gives a label; add one."
    if sum(card.counts.labels.values()) > card.counts.clips:
        yield f"field counts.labels: they add up to more than the {card.counts.clips} clips of counts.clips."
    if not 3 <= len(card.examples) <= 8:
        yield f"field examples: {len(card.examples)} of them; give 3 to 8."
