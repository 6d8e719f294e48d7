"""`servox heads promote | rollback | history | canary | shadow | rollout | compare`: what answers, and who decides.

All but `compare` work on the registry at hand; what they write, every prober on it follows with its next call.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from servox.client import StageFigures, SyncClient
from servox.errors import BadInput
from servox.keys import key_of_environment

from .command_options import AsJson, Folder, Named, Reason, at_work, open_registry, print_last
from .gate import Result, load_rules, refused
from .promotion import Promotions
from .registry import Registry
from .rollout import Rollout
from .settings import Settings

GateFile = Annotated[Path | None, typer.Option("--gate", help="TOML file of rules; the prober's own by default.")]
Replaces = Annotated[
    str | None, typer.Option("--replaces", help="Version in production as you know it; refused if another is.")
]
Off = Annotated[bool, typer.Option("--off", help="End it.")]


def promotions_of(registry: Registry, gate: Path | None) -> Promotions:
    """Changes under the rules of a file, or of the prober's settings.

    Raises:
        BadSetting: a file that is no gate.
    """
    return Promotions(registry, load_rules(gate or Settings.load().gate))


def promote_head(
    name: Named,
    heads: Folder = None,
    replaces: Replaces = None,
    reason: Reason = "",
    gate: GateFile = None,
    check: Annotated[bool, typer.Option("--check", help="Say what the gate says, and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a version what its bare name answers with; refused unless it passes every rule of the gate."""
    registry = open_registry(heads)
    promotions = promotions_of(registry, gate)
    results = promotions.judged(registry.get(name))
    Console().print(table_of(results))
    if check:
        print_last({"head": name, "gate": [asdict(result) for result in results]}, as_json=as_json)
        raise typer.Exit(int(bool(refused(results))))
    with at_work():
        entry = promotions.promote(name, replaces=replaces, reason=reason).entry
    typer.echo(f"{entry.card.name} answers with {entry.card.tag} from now on")
    document = {"promoted": entry.card.tag, "digest": entry.digest, "gate": [asdict(result) for result in results]}
    print_last(document, as_json=as_json)


def roll_back(
    name: Named, heads: Folder = None, replaces: Replaces = None, reason: Reason = "", as_json: AsJson = False
) -> None:
    """Put the version back that the last promotion replaced; again walks further back."""
    with at_work():
        entry = Promotions(open_registry(heads)).rollback(name, replaces=replaces, reason=reason)
    typer.echo(f"{entry.card.name} answers with {entry.card.tag} again")
    print_last({"rolled_back": entry.card.tag, "digest": entry.digest}, as_json=as_json)


def show_history(name: Named, heads: Folder = None, as_json: AsJson = False) -> None:
    """Show what was promoted, rolled back and rolled out under a name, by whom and why."""
    events = Promotions(open_registry(heads)).history(name)
    table = Table("time (UTC)", "what", "version", "before", "who", "why", box=None, pad_edge=False)
    for event in events:
        when = datetime.fromtimestamp(event.time_unix_ms / 1000, UTC).isoformat(" ", "seconds")[:19]
        why = "; ".join(filter(None, (event.reason, refused(event.gate))))
        cells = (when, event.action.replace("_", " "), event.version or "–", event.replaced or "–", event.actor, why)
        table.add_row(*map(escape, cells))
    Console().print(table)
    print_last({"history": [asdict(event) for event in events]}, as_json=as_json)


def set_canary(
    name: Named,
    heads: Folder = None,
    share: Annotated[float, typer.Option(help="Of the callers, 0 to 1.", min=0, max=1)] = 0.05,
    off: Off = False,
    reason: Reason = "",
    gate: GateFile = None,
    as_json: AsJson = False,
) -> None:
    """Let a version answer a share of the callers of its bare name; the same callers each time."""
    promotions = promotions_of(open_registry(heads), gate)
    bare, version = _chosen(name, off=off)
    rollout = replace(promotions.rollout(bare)[0], canary=version, canary_share=0.0 if off else share)
    _set(promotions, bare, rollout, reason, as_json=as_json)


def set_shadow(
    name: Named,
    heads: Folder = None,
    share: Annotated[float, typer.Option(help="Of the windows, 0 to 1.", min=0, max=1)] = 1.0,
    off: Off = False,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Score a version beside the one that answers, and never answer with it."""
    promotions = Promotions(open_registry(heads))
    bare, version = _chosen(name, off=off)
    rollout = replace(promotions.rollout(bare)[0], shadow=version, shadow_share=0.0 if off else share)
    _set(promotions, bare, rollout, reason, as_json=as_json)


def show_rollout(name: Named, heads: Folder = None, as_json: AsJson = False) -> None:
    """Show what answers a name: production, canary, shadow; `servox heads compare` says how they differ."""
    bare = name.partition(":")[0]
    rollout, production = Promotions(open_registry(heads)).rollout(bare)
    typer.echo(f"{bare}: production {production or 'none'}, {rollout}")
    print_last({"name": bare, "production": production, **asdict(rollout)}, as_json=as_json)


def compare_versions(
    name: Named,
    address: Annotated[str, typer.Option(help="Of the prober that answers.")] = "localhost:50052",
    as_json: AsJson = False,
) -> None:
    """Show how canary and shadow differ from production so far, by the figures of a prober that runs."""
    with SyncClient(prober=address, key=key_of_environment()) as client:
        found = client.compare(name.partition(":")[0])
    for figures in found.stages:
        typer.echo(_line_of(figures))
    if (shadow := found.shadow) is not None:
        typer.echo(
            f"shadow {shadow.version}: {shadow.windows} windows, {shadow.disagreed / max(1, shadow.windows):.1%} "
            f"answered otherwise, {shadow.divergence:.3f} nats apart, confidence {shadow.confidence_difference:+.3f}; "
            f"{shadow.dropped} dropped, {shadow.unfit} unfit"
        )
    if not found.stages:
        canary, shown = found.rollout.canary or "none", found.rollout.shadow or "none"
        typer.echo(f"{name}: nothing to compare yet; canary {canary}, shadow {shown}")
    print_last(asdict(found), as_json=as_json)


def table_of(results: Sequence[Result]) -> Table:
    """What the gate says, a row a rule."""
    table = Table("rule", "", "found", box=None, pad_edge=False)
    for result in results:
        passed = "passed" if result.passed else "[red]failed[/]"
        table.add_row(escape(result.rule), passed, escape(result.found))
    return table


def _line_of(figures: StageFigures) -> str:
    shares = {label: count / figures.windows for label, count in sorted(figures.labels.items())}
    said = ", ".join(f"{label} {share:.1%}" for label, share in shares.items())
    return (
        f"{figures.stage} {figures.version}: {figures.calls} calls, {figures.failed} failed; {figures.windows} "
        f"windows, {figures.abstained} abstained, mean confidence {figures.confidence:.3f}; {said or 'no answers'}"
    )


def _chosen(name: str, *, off: bool) -> tuple[str, str]:
    bare, _, version = name.partition(":")
    if off:
        return bare, ""
    if not version:
        raise BadInput(f"head {name!r}: name a version, such as {bare}:latest, or end it with --off")
    return bare, version


def _set(promotions: Promotions, bare: str, rollout: Rollout, reason: str, *, as_json: bool) -> None:
    with at_work():
        chosen = promotions.set_rollout(bare, rollout, reason=reason)
    typer.echo(f"{bare}: {chosen}")
    print_last({"name": bare, **asdict(chosen)}, as_json=as_json)


COMMANDS: dict[str, Callable[..., None]] = {
    "promote": promote_head,
    "rollback": roll_back,
    "history": show_history,
    "canary": set_canary,
    "shadow": set_shadow,
    "rollout": show_rollout,
    "compare": compare_versions,
}
