"""The files of a head's entry against those that BentoML makes itself."""

from datetime import datetime, timedelta
from pathlib import Path

import bentoml
import yaml
from bentoml._internal.models import ModelStore

from services.prober import entries
from services.prober.heads import decode, encode
from tests.prober.test_registry import head


def test_an_entry_is_what_bentoml_would_have_made(tmp_path: Path) -> None:
    card, labels = head().card, {"kind": head().card.kind, "bundle": head().card.bundle[:12]}
    store, tag = ModelStore(tmp_path / "theirs"), bentoml.Tag(card.name, card.version)
    with bentoml.models.create(tag, labels=labels, _model_store=store) as model:
        weights, text = encode(head())
        Path(model.path_of(entries.WEIGHTS)).write_bytes(weights)
        Path(model.path_of(entries.CARD)).write_text(text)
    theirs, ours = tmp_path / "theirs" / card.name / card.version, tmp_path / "ours"
    entries.write(head(), ours)
    assert sorted(each.name for each in ours.iterdir()) == sorted(each.name for each in theirs.iterdir())
    facts = [yaml.safe_load((folder / entries.MODEL).read_text()) for folder in (ours, theirs)]
    made = [datetime.fromisoformat(each.pop("creation_time")) for each in facts]
    assert abs(made[0] - made[1]) < timedelta(hours=1)
    assert facts[0] == facts[1]
    found = decode((ours / entries.WEIGHTS).read_bytes(), (ours / entries.CARD).read_text())
    assert found.digest == head().digest
