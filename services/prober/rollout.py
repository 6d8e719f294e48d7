"""Which version answers whom: production, for a share of the callers a canary, and a shadow that nobody hears.

- A rollout is one small file a name, replaced in one step and looked at with every call, so that every replica follows
  without a restart. It concerns the bare name only: whoever names a version gets that version.
- Who meets the canary follows from a hash of the name and of who asks, so the same caller stays with the same version
  on every replica, and another share moves only those between the old one and the new.
- A canary that cannot answer (deleted, damaged, of another bundle) is never a failed call: production answers.
"""

import hashlib
import json
import logging
import uuid
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servox.callers import caller
from servox.errors import BadInput, NotFound

from .card import Card
from .heads import Head
from .hosting import Hosted
from .metrics import ProberMetrics
from .pointers import replace, writing

if TYPE_CHECKING:
    from .posterior import Stage

log = logging.getLogger(__name__)

FILE = "rollout.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """Who answers beside production.

    Attributes:
        canary: version; empty for none.
        canary_share: of the callers, 0 to 1.
        shadow: version; empty for none.
        shadow_share: of the windows that it is scored on, 0 to 1.
    """

    canary: str = ""
    canary_share: float = 0.0
    shadow: str = ""
    shadow_share: float = 0.0

    def __str__(self) -> str:
        canary = f"canary {self.canary} for {self.canary_share:.1%} of the callers" if self.canary else ""
        shadow = f"shadow {self.shadow} on {self.shadow_share:.1%} of the windows" if self.shadow else ""
        return ", ".join(filter(None, (canary, shadow))) or "no canary, no shadow"


NOTHING = Rollout()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Who answers a call.

    Attributes:
        head: the one that answers.
        stage: as what.
        shadow: the one that is scored beside it; None for none.
        rollout: of the name.
    """

    head: Head
    stage: "Stage"
    shadow: Head | None = None
    rollout: Rollout = NOTHING


def position(name: str, key: str) -> float:
    """Where a caller lies in [0, 1): those below the share meet the canary."""
    digest = hashlib.sha256(f"{name}\0{key}".encode()).digest()
    return (int.from_bytes(digest[:8]) >> 11) / (1 << 53)  # 53 bits: a float holds them exactly, and never reaches 1


def mismatch(card: Card, other: Card) -> str:
    """Why `other` cannot be scored on the embeddings that `card` reads; empty where it can."""
    if other.bundle != card.bundle:
        return f"it reads bundle {other.bundle[:12]}, not {card.bundle[:12]}"
    if (other.kind == "frame-mlp") != (card.kind == "frame-mlp"):
        return "one reads frames, the other does not"
    if (other.layers, other.dims) != (card.layers, card.dims):
        return f"it reads {other.dims} dimensions of layers {other.layers}, not {card.dims} of {card.layers}"
    return ""


def read_rollout(folder: Path) -> Rollout:
    """The rollout of the name whose folder it is; damaged is none.

    Raises:
        OSError: it cannot be read; FileNotFoundError where there is none.
    """
    text = (folder / FILE).read_text()
    try:
        document: dict[str, Any] = json.loads(text)
        return Rollout(**{field.name: document[field.name] for field in fields(Rollout)})
    except (ValueError, TypeError, KeyError) as error:
        log.warning("a rollout cannot be read: production answers", extra={"folder": str(folder), "why": str(error)})
        return NOTHING


def write_rollout(folder: Path, rollout: Rollout) -> None:
    """Keeps a rollout; one of nothing leaves no file.

    Raises:
        StorageFull: the disk refused.
    """
    with writing(f"the rollout of {folder.name}"):
        if rollout.canary or rollout.shadow:
            replace(folder / FILE, json.dumps(asdict(rollout)), synced=True)
        else:
            (folder / FILE).unlink(missing_ok=True)


class Rollouts:
    """Chooses the head of each call; safe to use from several threads.

    Args:
        root: holds a folder a name.
        hosted: heads in memory.
        metrics: counts canaries that could not answer.
    """

    def __init__(self, root: Path, hosted: Hosted, metrics: ProberMetrics) -> None:
        self._root, self._hosted, self._metrics = root, hosted, metrics
        self._read: dict[str, tuple[tuple[int, int], Rollout]] = {}
        self._told: set[tuple[str, str]] = set()

    def of(self, name: str) -> Rollout:
        """The rollout of a name that there is."""
        folder = self._root / name
        try:
            found = (folder / FILE).stat()
            stamp = (found.st_ino, found.st_mtime_ns)
            if self._read.get(name, ((0, 0), NOTHING))[0] != stamp:
                self._read[name] = (stamp, read_rollout(folder))
            return self._read[name][1]
        except OSError:
            return NOTHING

    def choose(self, name: str, session: str = "") -> Chosen:
        """The head that answers to a name, and what is scored beside it.

        Args:
            name: of a head, or `name:version`.
            session: who asks; empty for the caller's key, or for somebody new with every call.

        Raises:
            NotFound: no such head.
            BadInput: its entry is damaged.
        """
        head = self._hosted.get(name)
        bare, _, wanted = name.partition(":")
        rollout = self.of(bare)
        stage = self._hosted.stage(head, canary=rollout.canary)
        if wanted:
            return Chosen(head=head, stage=stage, rollout=rollout)
        if rollout.canary not in ("", head.card.version):
            who = session or caller().name or uuid.uuid4().hex
            if position(bare, who) < rollout.canary_share and (canary := self._canary(head, rollout.canary)):
                return Chosen(head=canary, stage="canary", rollout=rollout)
        return Chosen(head=head, stage=stage, shadow=self._shadow(head, rollout.shadow), rollout=rollout)

    def _canary(self, head: Head, version: str) -> Head | None:
        found = self._found(f"{head.card.name}:{version}")
        if isinstance(found, Head) and found.card.bundle == head.card.bundle:
            return found
        reason = "bundle" if isinstance(found, Head) else found
        self._metrics.canary_fallbacks.labels(head.card.name, reason).inc()
        self._tell(f"{head.card.name}:{version}", "canary", reason)
        return None

    def _shadow(self, head: Head, version: str) -> Head | None:
        if version in ("", head.card.version):
            return None
        found = self._found(f"{head.card.name}:{version}")
        if isinstance(found, Head) and not mismatch(head.card, found.card):
            return found
        self._metrics.shadow_windows.labels(head.card.name, "unfit").inc()
        self._tell(f"{head.card.name}:{version}", "shadow", "layers" if isinstance(found, Head) else found)
        return None

    def _found(self, tag: str) -> Head | str:
        try:
            return self._hosted.get(tag)
        except NotFound:
            return "missing"
        except BadInput:
            return "damaged"

    def _tell(self, tag: str, what: str, reason: str) -> None:
        if (tag, what) not in self._told:
            self._told.add((tag, what))
            log.warning(f"a {what} cannot be used: production answers alone", extra={"head": tag, "why": reason})
