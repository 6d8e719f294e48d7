"""What BentoML's `models.create` leaves in its store for a head, written at once.

It makes the same three files in a temporary folder, copies them, and writes its YAML in Python: a tenth of the time of
a head's whole training, under the lock that other threads train by.
"""

from pathlib import Path
from typing import Any

import yaml

from .heads import Head, encode

CARD, WEIGHTS, MODEL = "card.json", "weights.safetensors", "model.yaml"
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # libyaml's, where PyYAML was built with it


def identity(entry: Path) -> tuple[int, int] | None:
    """Differs between two entries that lay at one place in turn, or changed there; None where none lies."""
    try:
        found = entry.stat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns  # an inode is used again at once, and renaming sets the time


def write(head: Head, folder: Path) -> None:
    """Makes the entry of a head in a folder that is not there yet."""
    from bentoml import Tag  # not above: the registry silences what BentoML says and sends on import
    from bentoml._internal.models.model import ModelContext, ModelInfo, ModelOptions

    weights, card = encode(head)
    folder.mkdir(parents=True)
    (folder / WEIGHTS).write_bytes(weights)
    (folder / CARD).write_text(card)
    info = ModelInfo(
        tag=Tag(head.card.name, head.card.version),
        module="",
        labels={"kind": head.card.kind, "bundle": head.card.bundle[:12]},
        options=ModelOptions(),
        metadata={},
        context=ModelContext(framework_name="", framework_versions={}),
        signatures={},
        api_version="v1",
    )
    text = yaml.dump(info.to_dict(), Dumper=_Dumper, sort_keys=False)
    (folder / MODEL).write_text(str(text), encoding="utf-8")
