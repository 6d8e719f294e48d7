"""What is in production, and how it came there: promotion through the gate, rollback, rollouts, stored evaluations.

- Every change is made under the name's lock, checks what the caller believed to be in production, and is written down
  with who did it and why; see `ledger` for what a crash leaves.
- `<registry>/promotion/<name>/` holds the history, the rollout and the evaluations. It lies beside BentoML's store,
  whose folders hold versions alone, and outlives the versions: what answered once stays on record.
- A canary answers real callers, so it passes the gate as well; a shadow answers nobody and need not.
"""

import logging
import math
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from servox.callers import caller
from servox.errors import BadInput, Refused

from .evaluations import Evaluation, evaluation_from_json
from .gate import Known, Result, Rules, judge, load_rules, refused
from .heads import Head
from .ledger import Action, Event, Ledger, before, now_ms
from .pointers import replace as write_file
from .pointers import writing
from .registry import NAME, Entry, Registry
from .rollout import NOTHING, Rollout, mismatch, read_rollout, write_rollout

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """A head, and what every rule of the gate says of it."""

    entry: Entry
    gate: tuple[Result, ...]


def folder_of(registry: Registry) -> Path:
    """Where histories, rollouts and evaluations lie."""
    return registry.root / "promotion"


class Promotions:
    """Changes to what answers.

    Args:
        registry: of the heads.
        rules: of the gate; the defaults if None.
    """

    def __init__(self, registry: Registry, rules: Rules | None = None) -> None:
        self._registry, self._rules = registry, rules or load_rules()

    def promote(self, name: str, *, replaces: str | None = None, reason: str = "") -> Promotion:
        """Makes `name:version` what its bare name answers with.

        Args:
            name: with a version.
            replaces: version that the caller believes to be in production, empty for none; None for whichever.
            reason: for the history.

        Raises:
            BadInput: no version was named, or the entry is damaged.
            NotFound: no such head.
            Refused: a rule of the gate, each one named; or another version is in production than the caller believed.
            StorageFull: the disk refused.
        """
        bare, version = self._versioned(name, "promote")
        ledger = self._ledger(bare)
        with ledger.locked():
            production = self._settled(bare, ledger)
            _check_replaces(bare, production, replaces)
            head = self._registry.get(f"{bare}:{version}")
            gate = self.judged(head)
            event = _event("promoted", version, production, reason, gate)
            if why := refused(gate):
                ledger.append(replace(event, action="refused"))
                raise Refused(f"head {head.card.tag}: {why}")
            if version != production:
                ledger.intend(event)
                self._registry.put_in_production(bare, version)
                ledger.done(event)
                self._forget(bare, version)
        return Promotion(
            entry=Entry(card=head.card, digest=head.digest, production=True, stage="production"), gate=gate
        )

    def rollback(self, name: str, *, replaces: str | None = None, reason: str = "") -> Entry:
        """Puts the version back in production that the last promotion replaced; again walks further back.

        The gate is not asked: the version has answered before, and whoever rolls back is in a hurry.

        Raises:
            NotFound: no such head.
            Refused: nothing was in production before, or another version is than the caller believed.
            StorageFull: the disk refused.
        """
        bare = self._named(name)
        ledger = self._ledger(bare)
        with ledger.locked():
            production = self._settled(bare, ledger)
            _check_replaces(bare, production, replaces)
            there = set(self._registry.versions(bare)) - {production}
            version = next((each for each in reversed(before(ledger.events())) if each in there), "")
            if not version:
                raise Refused(
                    f"head {bare}: nothing to go back to: {production or 'no version'} is in production, and none that "
                    "was there before it is left; promote a version"
                )
            event = _event("rolled_back", version, production, reason)
            ledger.intend(event)
            self._registry.put_in_production(bare, version)
            ledger.done(event)
            self._forget(bare, version)
        return self.entry(f"{bare}:{version}")

    def delete(self, name: str, *, force: bool = False) -> str:
        """Takes a version away, see `Registry.delete`; a rollout to it ends, and production's end is on record."""
        bare = self._named(name)
        ledger = self._ledger(bare)
        if not self._registry.production(bare) and not self._folder(bare).exists():
            return self._registry.delete(name, force=force)  # nobody promoted anything: nothing to record
        with ledger.locked():
            production = self._settled(bare, ledger)
            gone = self._registry.delete(name, force=force)
            version = gone.partition(":")[2]
            if version == production:
                ledger.append(_event("deleted", "", production, "deleted by force"))
            self._forget(bare, version)
        return gone

    def history(self, name: str) -> list[Event]:
        """Every change of a name, oldest first.

        Raises:
            NotFound: no such head, and none that was ever promoted.
        """
        bare = name.partition(":")[0]
        if not NAME.fullmatch(bare) or not self._folder(bare).is_dir():
            self._named(bare)
            return []
        ledger = self._ledger(bare)
        with suppress(Refused), ledger.locked():  # whoever may only read reads what is there
            self._settled(bare, ledger)
        return ledger.events()

    def judged(self, head: Head) -> tuple[Result, ...]:
        """What every rule of the gate says of a head, on what is known of it now."""
        name, production = head.card.name, self._production(head.card.name)
        known = Known(
            card=head.card,
            digest=head.digest,
            evaluation=self._evaluation(name, head.card.version),
            production=self._evaluation(name, production) if production else None,
            now=datetime.now(UTC),
        )
        return judge(known, self._rules)

    def store_evaluation(self, name: str, text: str) -> Promotion:
        """Keeps an evaluation beside its head, in place of an earlier one; returns what the gate says now.

        Raises:
            BadInput: no version was named, or it is no evaluation.
            NotFound: no such head.
            Refused: it is of another head: another digest or bundle.
            StorageFull: the disk refused.
        """
        bare, version = self._versioned(name, "evaluate")
        evaluation = evaluation_from_json(text)
        head = self._registry.get(f"{bare}:{version}")
        if (evaluation.digest, evaluation.bundle) != (head.digest, head.card.bundle):
            raise Refused(
                f"head {head.card.tag} has digest {head.digest} on bundle {head.card.bundle}, the evaluation is of "
                f"{evaluation.digest} on {evaluation.bundle}: evaluate this head"
            )
        ledger = self._ledger(bare)
        with ledger.locked():
            production = self._settled(bare, ledger)
            place = self._folder(bare) / "evaluations"
            with writing(f"the evaluation of head {head.card.tag}"):
                place.mkdir(exist_ok=True)
                write_file(place / f"{version}.json", evaluation.to_json(), synced=True)
            reason = f"on {', '.join(each.key for each in evaluation.corpora) or 'no corpus'}"
            ledger.append(_event("evaluated", version, production, reason))
        return Promotion(entry=self.entry(head.card.tag), gate=self.judged(head))

    def evaluation(self, entry: Entry) -> Evaluation | None:
        """What is stored for this very head."""
        found = self._evaluation(entry.card.name, entry.card.version)
        return found if found is not None and found.digest == entry.digest else None

    def set_rollout(self, name: str, rollout: Rollout, *, reason: str = "") -> Rollout:
        """Sets canary and shadow of a name; empty ones end them.

        Raises:
            BadInput: a share outside 0 to 1, or one without a version.
            NotFound: no such head or version.
            Refused: the canary does not pass the gate or reads another bundle; the shadow cannot be scored on the same
                embeddings; either is what answers already.
            StorageFull: the disk refused.
        """
        bare = self._named(name)
        _check_shares(rollout)
        ledger = self._ledger(bare)
        with ledger.locked():
            production = self._settled(bare, ledger)
            chosen = self._checked(bare, rollout)
            write_rollout(self._folder(bare), chosen)
            said = "; ".join(filter(None, (str(chosen), reason)))
            ledger.append(_event("rolled_out", chosen.canary or chosen.shadow, production, said))
        return chosen

    def rollout(self, name: str) -> tuple[Rollout, str]:
        """The rollout of a name, and the version in production, empty for none.

        Raises:
            NotFound: no such head.
        """
        bare = self._named(name)
        return self._rollout(bare), self._production(bare)

    def entry(self, name: str) -> Entry:
        """One head as a list shows it, with its stage; see `Registry.entry`."""
        return self.staged(self._registry.entry(name))

    def staged(self, entry: Entry) -> Entry:
        """An entry with its stage."""
        if entry.production:
            return replace(entry, stage="production")
        rollout = self._rollout(entry.card.name)
        if entry.card.version == rollout.canary:
            return replace(entry, stage="canary")
        return replace(entry, stage="shadow") if entry.card.version == rollout.shadow else entry

    def _checked(self, bare: str, rollout: Rollout) -> Rollout:
        """The rollout with versions resolved, if it can be."""
        base = self._registry.get(bare)
        canary, shadow = (
            self._registry.get(f"{bare}:{version}") if version else None for version in (rollout.canary, rollout.shadow)
        )
        for what, head in (("canary", canary), ("shadow", shadow)):
            if head and head.card.version == base.card.version:
                raise Refused(f"head {head.card.tag} is what {bare!r} answers with already: name another as {what}")
        if canary and canary.card.bundle != base.card.bundle:
            raise Refused(
                f"head {canary.card.tag} reads bundle {canary.card.bundle[:12]}, what answers now "
                f"{base.card.bundle[:12]}: one embedder cannot serve both; promote it when the embedder changes"
            )
        if canary and (why := refused(self.judged(canary))):
            raise Refused(f"head {canary.card.tag} cannot be a canary, which answers callers: {why}")
        if shadow and (why := mismatch(base.card, shadow.card)):
            raise Refused(f"head {shadow.card.tag} cannot be scored on the embeddings of {base.card.tag}: {why}")
        return replace(
            rollout,
            canary=canary.card.version if canary else "",
            shadow=shadow.card.version if shadow else "",
        )

    def _settled(self, bare: str, ledger: Ledger) -> str:
        """The version in production, after what a killed process began is finished."""
        production = self._production(bare)
        if ledger.settle(production):
            self._registry.label(bare)
        return production

    def _forget(self, bare: str, version: str) -> None:
        """Ends a rollout to a version that answers now, or is gone."""
        rollout = self._rollout(bare)
        if rollout.canary == version:
            rollout = replace(rollout, canary="", canary_share=0.0)
        if rollout.shadow == version:
            rollout = replace(rollout, shadow="", shadow_share=0.0)
        if rollout != self._rollout(bare):
            write_rollout(self._folder(bare), rollout)

    def _rollout(self, bare: str) -> Rollout:
        try:
            return read_rollout(self._folder(bare))
        except OSError:
            return NOTHING

    def _production(self, bare: str) -> str:
        """What the pointer names, if there is such a version."""
        named = self._registry.production(bare)
        return named if named in self._registry.versions(bare) else ""

    def _evaluation(self, bare: str, version: str) -> Evaluation | None:
        try:
            return evaluation_from_json((self._folder(bare) / "evaluations" / f"{version}.json").read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (BadInput, UnicodeDecodeError, OSError) as error:
            log.warning("an evaluation cannot be read", extra={"head": f"{bare}:{version}", "why": str(error)})
            return None

    def _versioned(self, name: str, verb: str) -> tuple[str, str]:
        bare, version = self._registry.resolve(name)
        if name == bare:
            raise BadInput(f"head {name!r}: {verb} a version, such as {bare}:{version}")
        return bare, version

    def _named(self, name: str) -> str:
        return self._registry.resolve(name.partition(":")[0])[0]

    def _folder(self, bare: str) -> Path:
        return folder_of(self._registry) / bare

    def _ledger(self, bare: str) -> Ledger:
        return Ledger(self._folder(bare))


def _event(action: Action, version: str, replaced: str, reason: str, gate: tuple[Result, ...] = ()) -> Event:
    return Event(
        time_unix_ms=now_ms(),
        action=action,
        version=version,
        replaced=replaced,
        actor=caller().name,
        reason=reason,
        gate=gate,
    )


def _check_replaces(bare: str, production: str, replaces: str | None) -> None:
    if replaces is None or replaces.removeprefix(f"{bare}:") == production:
        return
    raise Refused(
        f"head {bare}: {f'version {production}' if production else 'no version'} is in production, not "
        f"{replaces or 'none'}: somebody else was faster; look at the history and decide again"
    )


def _check_shares(rollout: Rollout) -> None:
    for what, version, share in (
        ("canary", rollout.canary, rollout.canary_share),
        ("shadow", rollout.shadow, rollout.shadow_share),
    ):
        if not (math.isfinite(share) and 0 <= share <= 1):
            raise BadInput(f"{what}_share = {share}: give 0 to 1")
        if share and not version:
            raise BadInput(f"{what}_share = {share} without a {what}: name its version, or give 0")
