"""The registry of heads: BentoML's model store below one folder, so that its own tools list, export and import heads.

- `<root>/models/<name>/<version>/` holds `model.yaml` (BentoML's), `card.json` and `weights.safetensors`. Beside the
  versions lie BentoML's pointer `latest` and ours, `production`; the label stage=production follows the pointer.
- Who may become what is decided in `promotion`; here versions lie and are found.
- An entry is made under `<root>/staging` and renamed, so a reader sees whole heads or none. A version never changes.
- An entry that is damaged all the same (a bad disk, a meddling hand) fails alone, with its path; a list goes on and
  says so once.
- An entry leaves in one step as well, after the pointers to it: a bare name means a whole head at every moment.
- The store's path is explicit: several registries live in one process. BentoML's usage tracking stays off; that switch
  is an environment variable, the one thing here that belongs to the process.
"""

import difflib
import errno
import logging
import os
import re
import shutil
import uuid
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from servox.arrays import storing
from servox.errors import BadInput, NotFound, Refused

from .card import Card
from .entries import CARD, WEIGHTS, identity, write
from .heads import Head, decode
from .pointers import leave, point, read, replace, sweep, writing

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # its own dependencies', on import
    import bentoml.models
    from bentoml import Tag
    from bentoml._internal.models import ModelStore  # the public API takes a store, but shows no way to make one
    from bentoml.exceptions import BentoMLException

if TYPE_CHECKING:
    from .posterior import Stage  # which needs the embedder, and so gRPC

log = logging.getLogger(__name__)

HIDDEN = "fold."  # names of an evaluation's own heads begin so
NAME = re.compile(r"[a-z0-9][-._a-z0-9]*")  # of a head, and of a version: both are folders
# What BentoML lets through when an entry's files are not what it wrote.
_DAMAGE = (BentoMLException, BadInput, yaml.YAMLError, OSError, KeyError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One head of a list.

    Attributes:
        card: all that is known of it.
        digest: of weights and card.
        production: whether it was promoted last.
        stage: what the version is to its name.
    """

    card: Card
    digest: str
    production: bool
    stage: "Stage" = "candidate"


class Registry:
    """Heads below one folder.

    Args:
        root: made if it is not there.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._models, self._staging = root / "models", root / "staging"
        with storing(str(root)):
            self._models.mkdir(parents=True, exist_ok=True)
            self._staging.mkdir(parents=True, exist_ok=True)
            sweep(self._staging)
        self._store = ModelStore(self._models)
        self._told: set[str] = set()  # damage that the log has seen

    def save(self, head: Head) -> None:
        """Keeps a head under its name and version; the newest becomes `latest`. Saving it again changes nothing.

        Raises:
            StorageFull: the disk refused.
        """
        card, staging = head.card, self._staging / uuid.uuid4().hex
        with writing(f"head {card.tag}"):
            try:
                write(head, staging / card.name / card.version)
                self._publish(staging / card.name / card.version, self._models / card.name / card.version)
                point(self._models / card.name / "latest", card.version)
            finally:
                shutil.rmtree(staging, ignore_errors=True)

    def delete(self, name: str, *, force: bool = False) -> str:
        """Takes `name:version` away, damaged or not; what its bare name means is set first, so no call meets a gap.

        Returns:
            `name:version`, as it was resolved.

        Raises:
            BadInput: no version was named.
            NotFound: no such head.
            Refused: it is the promoted version, and `force` was not given.
            StorageFull: the disk refused to move a pointer.
        """
        bare, version = self.resolve(name)
        if name == bare:
            raise BadInput(f"head {name!r}: delete a version, such as {bare}:{version}")
        if self.production(bare) == version and not force:
            raise Refused(
                f"head {bare}:{version} is the promoted one, which {bare!r} answers with: promote another version "
                "first, or force it"
            )
        folder, grave = self._models / bare, self._staging / uuid.uuid4().hex
        rest = [other for other in self.versions(bare) if other != version]
        with writing(f"the pointers of head {bare}"):
            if self.production(bare) == version:
                (folder / "production").unlink(missing_ok=True)
            if rest and read(folder / "latest") == version:
                point(folder / "latest", self._newest(bare, rest))
            grave.mkdir()
        try:
            (folder / version).rename(grave / version)
            if not rest:
                leave(folder)
        except FileNotFoundError:
            pass  # another process deleted it at the same time
        finally:
            shutil.rmtree(grave, ignore_errors=True)
        return f"{bare}:{version}"

    def get(self, name: str) -> Head:
        """The head that `name`, `name:version`, `name:latest` or `name:production` means.

        A bare name is the promoted version, or the newest where none is promoted.

        Raises:
            NotFound: no such head; the message says what comes close.
            BadInput: its entry is damaged.
        """
        while True:
            bare, version = self.resolve(name)
            try:
                return self._load(bare, version)
            except NotFound:
                if name == f"{bare}:{version}":
                    raise
                # It was deleted between the two steps, and the name means another version now, or none.

    def folder(self, name: str, version: str) -> Path:
        """Where an entry lies, or would lie."""
        return self._models / name / version

    def stamp(self, name: str, version: str) -> tuple[int, int]:
        """Changes when a version is deleted and another entry takes its place; (0, 0) where there is none."""
        try:
            found = (self._models / name / version / WEIGHTS).stat()
        except OSError:
            return 0, 0
        return found.st_ino, found.st_mtime_ns

    def find(self, name: str, version: str) -> Head | None:
        """The head of exactly this version, or None where there is none that can be read."""
        if not (self._models / name / version).is_dir():
            return None
        with suppress(BadInput, NotFound):
            return self._load(name, version)
        return None

    def resolve(self, name: str) -> tuple[str, str]:
        """Name and version that `name` means.

        Raises:
            NotFound: no such head.
        """
        bare, _, wanted = name.partition(":")
        versions = self.versions(bare)
        if not versions:
            close = difflib.get_close_matches(bare, self.names(""), n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(close)}?" if close else "list the heads, or train one"
            raise NotFound(f"head {name!r}: there is none of that name; {hint}")
        if wanted in ("", "production", "latest"):
            return bare, self._pointed(bare, versions, wanted)
        if wanted not in versions:
            raise NotFound(f"head {name!r}: {bare} has no such version; it has {', '.join(versions)}")
        return bare, wanted

    def entries(self, prefix: str) -> list[Entry]:
        """Heads whose name begins with `prefix`, by name and age; those of evaluations only where it asks for them.

        A damaged entry is logged and left out.
        """
        found = (self._entry(name, version) for name in self.names(prefix) for version in self.versions(name))
        return sorted(filter(None, found), key=lambda entry: (entry.card.name, entry.card.created))

    def entry(self, name: str) -> Entry:
        """One head as a list shows it.

        Raises:
            NotFound: no such head.
            BadInput: its entry is damaged.
        """
        bare, version = self.resolve(name)
        head = self._load(bare, version)
        return Entry(card=head.card, digest=head.digest, production=self.production(bare) == version)

    def production(self, name: str) -> str:
        """The version that was promoted; empty for none."""
        return read(self._models / name / "production")

    def put_in_production(self, name: str, version: str) -> None:
        """Makes a version what its bare name answers with; the labels follow.

        Raises:
            StorageFull: the disk refused.
        """
        with writing(f"the pointer to {name}:{version}"):
            replace(self._models / name / "production", version, synced=True)
            self.label(name)

    def label(self, name: str) -> None:
        """Puts the labels that BentoML's tools show in step with what is in production."""
        production = self.production(name)
        for version in self.versions(name):
            self._label(name, version, production=version == production)

    def names(self, prefix: str) -> list[str]:
        """Names that begin with `prefix`, sorted."""
        found = sorted(folder.name for folder in self._models.iterdir() if folder.is_dir())
        shown = prefix.startswith(HIDDEN)
        return [name for name in found if name.startswith(prefix) and (shown or not name.startswith(HIDDEN))]

    def versions(self, name: str) -> list[str]:
        """Versions of a name, sorted; none where there is no such name."""
        if not NAME.fullmatch(name):
            return []
        try:
            return sorted(version.name for version in (self._models / name).iterdir() if version.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _newest(self, name: str, versions: list[str]) -> str:
        """The version that was saved last."""
        return max(versions, key=lambda version: (self.stamp(name, version)[1], version))

    def _pointed(self, name: str, versions: list[str], wanted: str) -> str:
        production, latest = self.production(name), read(self._models / name / "latest")
        if wanted != "latest" and production in versions:
            return production
        if wanted == "production":
            raise NotFound(f"head {name}:production: no version of {name} was promoted; it has {', '.join(versions)}")
        return latest if latest in versions else self._newest(name, versions)

    def _load(self, name: str, version: str) -> Head:
        place = self._models / name / version
        while True:
            began = identity(place)
            try:
                return self._read(name, version)
            except _DAMAGE as error:
                if (now := identity(place)) is None:
                    self.resolve(f"{name}:{version}")  # says what there is
                elif now == began:  # and not another, saved while this one was read
                    why = " ".join(str(error).split())  # a YAML parser draws its message over several lines
                    raise BadInput(
                        f"head {name}:{version}: its entry {place} is damaged ({why}); "
                        "remove the folder and train the head again"
                    ) from error

    def _read(self, name: str, version: str) -> Head:
        model = bentoml.models.get(Tag(name, version), _model_store=self._store)
        head = decode(Path(model.path_of(WEIGHTS)).read_bytes(), Path(model.path_of(CARD)).read_text())
        if head.card.tag != f"{name}:{version}":
            raise BadInput(f"its card says {head.card.tag}")
        return head

    def _entry(self, name: str, version: str) -> Entry | None:
        with suppress(NotFound):  # deleted just now
            try:
                return self.entry(f"{name}:{version}")
            except BadInput as error:
                if (why := str(error)) not in self._told:
                    self._told.add(why)
                    log.warning("a damaged head is left out of the list", extra={"why": why})
        return None

    def _damaged(self, name: str, version: str) -> bool:
        try:
            self._load(name, version)
        except NotFound:
            return False
        except BadInput as error:
            log.warning("a damaged head is replaced", extra={"head": f"{name}:{version}", "why": str(error)})
            return True
        return False

    def _publish(self, made: Path, place: Path) -> None:
        if place.exists() and self._damaged(place.parent.name, place.name):
            with suppress(FileNotFoundError):  # deleted just now
                place.rename(made.parent / "damaged")  # leaves with the staging folder
        while True:
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                made.rename(place)
            except FileNotFoundError:
                if not made.exists():
                    raise
                continue  # the last other version was deleted just now, and the folder with it
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                # Another process trained the same head at the same time; theirs is ours.
            return

    def _label(self, name: str, version: str, *, production: bool) -> None:
        try:
            model = bentoml.models.get(Tag(name, version), _model_store=self._store)
        except _DAMAGE:
            return  # a damaged neighbour must not stop a promotion
        labels = dict(model.info.labels)
        model.info.labels.pop("stage", None)
        if production:
            model.info.labels["stage"] = "production"
        if labels != model.info.labels:
            replace(Path(model.path_of("model.yaml")), str(yaml.safe_dump(model.info.to_dict(), sort_keys=False)))
