"""Writes the tables of the documentation that restate code: `python docs/tables.py`, or `--check` to compare only.

A table stands between two comments, `<!-- table: NAME -->` and `<!-- end -->`, in any Markdown file of the project;
what is between them is made here from the code and never edited.
"""

import argparse
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Literal, get_args, get_origin

os.environ["SERVOX_HOME"] = "/SERVOX_HOME"  # defaults below it are shown as $SERVOX_HOME/…

from pydantic_core import PydanticUndefined

from services.evaluator import corrections
from services.evaluator.corpora import UNUSED, load_cards
from services.evaluator.protocols import PROTOCOLS
from services.prober.purposes import Policy, Purposes
from services.prober.specs import DEFAULTS
from services.prober.tenants.gauges import TenantMetrics
from servox import errors
from servox.settings import ServiceSettings
from servox.telemetry import DoorMetrics, Metrics

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
SERVICES = ("embedder", "prober", "evaluator")
SLOT = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Rows = Iterable[Sequence[str]]


def markdown(heads: Sequence[str], rows: Rows) -> str:
    """A table in Markdown; bars inside cells are escaped."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def errors_table() -> str:
    """The tree of errors as callers meet it."""
    rows = [
        (
            f"`{cls.__name__}`",
            first_line(cls),
            f"`{cls.grpc_code.name}`",
            str(int(cls.http_status)),
            "yes" if cls.retryable else "no",
        )
        for cls in errors.leaves()
    ]
    return markdown(("error", "meaning", "gRPC", "HTTP", "retry"), rows)


def first_line(thing: object) -> str:
    """First line of a docstring."""
    return (thing.__doc__ or "").strip().splitlines()[0]


def settings_of(service: str) -> type[ServiceSettings]:
    """The settings of a service."""
    found: type[ServiceSettings] = importlib.import_module(f"services.{service}.settings").Settings
    return found


def settings_table(service: str) -> str:
    """Every setting of one service."""
    settings = settings_of(service)
    prefix = settings.model_config.get("env_prefix", "")
    own = [name for name in settings.model_fields if name not in ServiceSettings.model_fields]
    common = [name for name in ServiceSettings.model_fields if changed(settings, name)]
    return markdown(("setting", "variable", "default", "meaning"), [row(settings, prefix, n) for n in common + own])


def common_table() -> str:
    """The settings that every service has."""
    return markdown(
        ("setting", "variable", "default", "meaning"),
        [row(ServiceSettings, "SERVOX_<SERVICE>_", name) for name in ServiceSettings.model_fields],
    )


def changed(settings: type[ServiceSettings], name: str) -> bool:
    """Whether a service has another default than its common one."""
    return default_of(settings, name) != default_of(ServiceSettings, name)


def row(settings: type[ServiceSettings], prefix: str, name: str) -> tuple[str, ...]:
    """One setting."""
    field = settings.model_fields[name]
    flag = f"`--{name.replace('_', '-')}`{choices(field.annotation)}"
    return flag, f"`{prefix.upper()}{name.upper()}`", default_of(settings, name), field.description or ""


def choices(annotation: object) -> str:
    """The values of a closed choice."""
    inner = get_args(annotation) if get_origin(annotation) is UnionType else (annotation,)
    literal = [each for each in inner if get_origin(each) is Literal]
    return f" ({', '.join(map(str, get_args(literal[0])))})" if literal else ""


def default_of(settings: type[ServiceSettings], name: str) -> str:
    """A default as people write it."""
    field = settings.model_fields[name]
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "needed"
    if value is None or value == "":
        return "none"
    if field.default_factory and isinstance(value, int):
        return "by the machine"
    if isinstance(value, float):
        value = f"{value:g}"
    return f"`{str(value).replace('/SERVOX_HOME', '$SERVOX_HOME')}`"


def metrics_table(service: str) -> str:
    """Every metric of one service, as a scrape shows it."""
    module = importlib.import_module(f"services.{service}.metrics")
    shown = Metrics()
    getattr(module, f"{service.capitalize()}Metrics")(shown)
    if service == "prober":
        TenantMetrics(shown.registry, list, most=0)
        Purposes(Policy(), shown.registry)
    DoorMetrics(shown)
    rows = []
    for collector in dict.fromkeys(shown.registry._collector_to_names):  # noqa: SLF001 -- no public way to list them
        for family in collector.collect():
            suffix = "_total" if family.type == "counter" else ""
            names = getattr(collector, "_labelnames", ()) or getattr(family, "_labelnames", ())
            labels = ", ".join(f"`{label}`" for label in names)
            rows.append((f"`{family.name}{suffix}`", family.type, labels or "–", family.documentation))
    return markdown(("metric", "type", "labels", "meaning"), rows)


def cards_table() -> str:
    """Every corpus that has a card."""
    rows = []
    for card in load_cards().values():
        classes = {label for label in card.labels.sound.values() if label != UNUSED}
        speakers = str(card.speakers.count or "?") if card.speakers.id else "not told"
        refused = " (not under `sound`)" if card.speakers.reason else ""
        cluster = ("in domain" if card.paper.cluster == 0 else f"cluster {card.paper.cluster}") if card.paper else "–"
        rows.append(
            (
                f"`{card.key}`",
                card.name,
                card.language,
                card.kind,
                str(card.counts.clips or "?"),
                f"{speakers}{refused}",
                str(len(classes)),
                cluster,
                card.licence.name,
                "download" if card.obtain.direct else "by hand",
            )
        )
    heads = ("key", "corpus", "language", "kind", "clips", "speakers", "classes", "paper", "licence", "obtain")
    return markdown(heads, rows)


def ladder_table() -> str:
    """The ladder of corrections."""
    words = {0: "none", -1: "all"}
    rows = [
        (
            f"`{rung.name}`",
            rung.description,
            words.get(rung.target_clips, str(rung.target_clips)),
            "yes" if rung.target_labels else "no",
            ", ".join(f"`{protocol}`" for protocol in rung.protocols),
        )
        for rung in corrections.LADDER.values()
    ]
    return markdown(("correction", "what it does", "target clips", "their labels", "reported by"), rows)


def protocols_table() -> str:
    """What each protocol does."""
    rows = [
        (
            f"`{protocol.name}`",
            ", ".join(f"`{recipe.name}`" for recipe in protocol.heads),
            protocol.pooling_name,
            f"{protocol.folds} speaker-disjoint folds" if protocol.folds > 1 else "one 80/20 split by utterance",
            ", ".join(map(str, protocol.seeds)),
            "the paper's" if protocol.paper_only else "all with speakers",
        )
        for protocol in PROTOCOLS.values()
    ]
    return markdown(("protocol", "heads", "embeddings", "in domain", "seeds", "corpora"), rows)


def heads_table() -> str:
    """Default settings of the kinds of heads."""
    names = list(dict.fromkeys(name for settings in DEFAULTS.values() for name in settings))
    rows = [
        (f"`{name}`", *(f"{settings[name]:g}" if name in settings else "–" for settings in DEFAULTS.values()))
        for name in names
    ]
    return markdown(("setting", *(f"`{kind}`" for kind in DEFAULTS)), rows)


TABLES: Mapping[str, Callable[[], str]] = {
    "errors": errors_table,
    "settings-common": common_table,
    **{f"settings-{name}": partial(settings_table, name) for name in SERVICES},
    **{f"metrics-{name}": partial(metrics_table, name) for name in SERVICES},
    "corpora": cards_table,
    "corrections": ladder_table,
    "protocols": protocols_table,
    "heads": heads_table,
}


def filled(text: str) -> str:
    """A page with its tables as the code has them."""
    return SLOT.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text)


def main() -> int:
    """Writes the pages, or says which are out of step."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a page is out of step")
    options = parser.parse_args()
    behind = [page for page in PAGES if filled(page.read_text()) != page.read_text()]
    for page in behind:
        if not options.check:
            page.write_text(filled(page.read_text()))
        sys.stderr.write(f"{page.relative_to(ROOT)}: {'out of step with the code' if options.check else 'written'}\n")
    return int(options.check and bool(behind))


if __name__ == "__main__":
    sys.exit(main())
