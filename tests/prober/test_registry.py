"""The registry on a real disk: saving, finding, promoting, and entries that are damaged."""

import dataclasses
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
import pytest

from services.prober.card import Card, OutOfFold
from services.prober.heads import Head, decode, shapes
from services.prober.promotion import Promotions
from services.prober.registry import Registry
from servox.errors import BadInput, NotFound, Refused, StorageFull

GOOD = OutOfFold(
    macro_f1=0.7,
    floor=0.5,
    ece_before=0.2,
    ece_after=0.1,
    nll_before=1.0,
    nll_after=0.9,
    clips=90,
    left_out=0,
    speakers=3,
    folds=3,
    grouped_by="speaker",
)


A, B = "a" * 16, "b" * 16


def head(name: str = "toy", version: str = A, **changes: Any) -> Head:  # noqa: ANN401
    given: dict[str, Any] = {
        "name": name,
        "version": version,
        "kind": "logistic",
        "classes": ("anger", "sadness"),
        "class_counts": (4, 5),
        "bundle": "ab" * 32,
        "layer": 3,
        "dims": 4,
        "temperature": 1.5,
        "seed": 0,
        "settings": {"c": 0.1},
        "out_of_fold": GOOD,
        "clip_set": "cd" * 32,
        "clips": 9,
        "speakers": 3,
        "servox": "0.1.0",
        "store": "s",
        "created": f"2026-01-01T00:00:0{(len(version) and version[0] == 'b' and 1) or 0}.000+00:00",
    }
    card = Card(**{**given, **changes})
    return Head(card=card, weights={n: np.ones(shape, dtype=np.float32) for n, shape in shapes(card).items()})


def test_what_is_saved_is_found(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.save(head())
    for name in ("toy", f"toy:{A}", "toy:latest"):
        found = registry.get(name)
        assert found.card == head().card
        assert found.digest == head().digest
    assert Registry(tmp_path).get("toy").digest == head().digest


def test_bentoml_reads_it_too(tmp_path: Path) -> None:
    Registry(tmp_path).save(head())
    from bentoml._internal.models import ModelStore

    model = bentoml.models.get("toy:latest", _model_store=ModelStore(tmp_path / "models"))
    assert model.info.labels["kind"] == "logistic"
    assert sorted(path.name for path in Path(model.path).iterdir()) == [
        "card.json",
        "model.yaml",
        "weights.safetensors",
    ]


def test_the_newest_answers_until_one_is_promoted(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.save(head())
    registry.save(head(version=B))
    assert registry.resolve("toy") == ("toy", B)
    with pytest.raises(NotFound, match="no version of toy was promoted"):
        registry.resolve("toy:production")
    assert Promotions(registry).promote(f"toy:{A}").entry.production
    assert registry.resolve("toy") == registry.resolve("toy:production") == ("toy", A)
    assert registry.resolve("toy:latest") == ("toy", B)
    assert [(e.card.version, e.production) for e in registry.entries("")] == [(A, True), (B, False)]
    Promotions(registry).promote(f"toy:{B}")
    assert registry.resolve("toy") == ("toy", B)
    labels = [yaml.read_text().count("production") for yaml in sorted(tmp_path.glob("models/toy/*/model.yaml"))]
    assert labels == [0, 1], "the label has moved with the promotion"


def test_saving_again_changes_nothing(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.save(head())
    before = (tmp_path / "models" / "toy" / A / "card.json").stat().st_mtime_ns
    registry.save(
        dataclasses.replace(head(), card=dataclasses.replace(head().card, created="2030-01-01T00:00:00+00:00"))
    )
    assert (tmp_path / "models" / "toy" / A / "card.json").stat().st_mtime_ns == before
    assert not list((tmp_path / "staging").iterdir())


def test_many_writers_of_one_head_leave_one(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    threads = [threading.Thread(target=registry.save, args=(head(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(registry.entries("")) == 1
    assert not list((tmp_path / "staging").iterdir())


def test_two_registries_in_one_process_are_apart(tmp_path: Path) -> None:
    one, two = Registry(tmp_path / "one"), Registry(tmp_path / "two")
    one.save(head())
    assert two.entries("") == []
    with pytest.raises(NotFound):
        two.get("toy")


def test_the_gate(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.save(head(out_of_fold=dataclasses.replace(GOOD, macro_f1=0.41)))
    registry.save(head("blind", out_of_fold=None))
    with pytest.raises(Refused, match=r"0\.410 is not above its prior-matched floor 0\.500"):
        Promotions(registry).promote(f"toy:{A}")
    with pytest.raises(Refused, match="no out-of-fold scores"):
        Promotions(registry).promote(f"blind:{A}")
    with pytest.raises(BadInput, match=f"promote a version, such as toy:{A}"):
        Promotions(registry).promote("toy")
    assert not registry.entries("")[0].production


def test_heads_of_evaluations_are_hidden(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.save(head("emodb-mlp"))
    registry.save(head("fold.emodb-mlp"))
    assert [entry.card.name for entry in registry.entries("")] == ["emodb-mlp"]
    assert [entry.card.name for entry in registry.entries("emo")] == ["emodb-mlp"]
    assert [entry.card.name for entry in registry.entries("fold.")] == ["fold.emodb-mlp"]
    assert registry.get("fold.emodb-mlp").card.name == "fold.emodb-mlp"


def test_an_unknown_head_gets_a_hint(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.save(head("emodb-mlp"))
    with pytest.raises(NotFound, match=r"'emodb-mpl'.*did you mean emodb-mlp"):
        registry.get("emodb-mpl")
    with pytest.raises(NotFound, match=f"no such version; it has {A}"):
        registry.get("emodb-mlp:ffff")
    with pytest.raises(NotFound, match="train one"):
        registry.get("../../etc")


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: (entry / "weights.safetensors").unlink(),
        lambda entry: (entry / "weights.safetensors").write_bytes(b"\0" * 10),
        lambda entry: (entry / "card.json").write_text("{"),
        lambda entry: (entry / "model.yaml").write_text(": ["),
        lambda entry: (entry / "model.yaml").write_text("name: toy"),
        lambda entry: (entry / "model.yaml").unlink(),
    ],
)
def test_a_damaged_entry_fails_alone(tmp_path: Path, damage: Any) -> None:  # noqa: ANN401
    registry = Registry(tmp_path)
    registry.save(head())
    registry.save(head("well"))
    damage(tmp_path / "models" / "toy" / A)
    with pytest.raises(BadInput, match=f"toy:{A}.*damaged.*train the head again"):
        registry.get("toy")
    assert [entry.card.name for entry in registry.entries("")] == ["well"]
    assert registry.find("toy", A) is None
    registry.save(head())
    assert registry.get("toy").digest == head().digest, "training again mends it"


def test_an_entry_in_the_wrong_place_is_refused(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.save(head())
    shutil.copytree(tmp_path / "models" / "toy" / A, tmp_path / "models" / "toy" / B)
    with pytest.raises(BadInput, match="its card says"):
        registry.get(f"toy:{B}")


def test_a_full_disk_is_said_so_and_leaves_nothing(tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import resource, signal, sys, pathlib
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_registry as t
        from servox.errors import StorageFull
        registry = t.Registry(pathlib.Path({str(tmp_path)!r}))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
        try:
            registry.save(t.head())
        except StorageFull as error:
            print(error)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert f"cannot write head toy:{A}" in done.stdout, done.stderr
    assert Registry(tmp_path).entries("") == []
    assert not list((tmp_path / "staging").iterdir())


def test_a_disk_that_fills_up_during_a_copy_is_a_full_disk() -> None:
    from services.prober.pointers import writing

    with pytest.raises(StorageFull, match="cannot write head x"), writing("head x"):
        raise shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")])
    with pytest.raises(shutil.Error), writing("head x"):
        raise shutil.Error([("a", "b", "[Errno 13] Permission denied: 'b'")])


def test_a_deleted_version_is_gone_and_the_name_means_another(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.save(head())
    registry.save(head(version=B))
    assert registry.delete("toy:latest") == f"toy:{B}"
    assert registry.resolve("toy") == registry.resolve("toy:latest") == ("toy", A)
    with pytest.raises(NotFound, match=f"no such version; it has {A}"):
        registry.get(f"toy:{B}")
    with pytest.raises(BadInput, match=f"delete a version, such as toy:{A}"):
        registry.delete("toy")
    registry.delete(f"toy:{A}")
    with pytest.raises(NotFound, match="none of that name"):
        registry.get("toy")
    assert not list((tmp_path / "models").iterdir())
    assert not list((tmp_path / "staging").iterdir())
    registry.save(head())
    assert registry.get("toy").digest == head().digest


def test_the_promoted_version_is_deleted_by_force_only(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.save(head())
    registry.save(head(version=B))
    Promotions(registry).promote(f"toy:{A}")
    with pytest.raises(Refused, match="promote another version first"):
        registry.delete(f"toy:{A}")
    registry.delete("toy:production", force=True)
    assert registry.resolve("toy") == ("toy", B)
    with pytest.raises(NotFound, match="no version of toy was promoted"):
        registry.resolve("toy:production")


def test_a_damaged_version_can_be_deleted(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.save(head())
    shutil.rmtree(tmp_path / "models" / "toy" / A)
    (tmp_path / "models" / "toy" / A).mkdir()
    assert registry.delete(f"toy:{A}") == f"toy:{A}"
    assert registry.names("") == []


@pytest.mark.parametrize("pointer", ["latest", "production"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"nothing"])
def test_a_damaged_pointer_leaves_the_newest(tmp_path: Path, pointer: str, content: bytes) -> None:
    registry = Registry(tmp_path)
    registry.save(head(version=B))
    registry.save(head())
    (tmp_path / "models" / "toy" / pointer).write_bytes(content)
    assert registry.get("toy").card.version == A, "the one that was saved last"


def test_damage_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry(tmp_path)
    registry.save(head())
    registry.save(head("well"))
    (tmp_path / "models" / "toy" / A / "card.json").write_text("{")
    for _ in range(3):
        assert [entry.card.name for entry in registry.entries("")] == ["well"]
    told = [record for record in caplog.records if "left out of the list" in record.message]
    assert len(told) == 1
    assert f"toy:{A}" in told[0].why  # type: ignore[attr-defined]  # an extra of the log


def test_what_a_killed_writer_left_is_swept_away_when_it_is_old(tmp_path: Path) -> None:
    Registry(tmp_path)
    for name, age_s in (("old", 2 * 24 * 3600), ("young", 60)):
        left = tmp_path / "staging" / name
        (left / "toy").mkdir(parents=True)
        os.utime(left, (time.time() - age_s,) * 2)
    Registry(tmp_path)
    assert [left.name for left in (tmp_path / "staging").iterdir()] == ["young"]


def test_an_entry_that_is_replaced_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registry, asked = Registry(tmp_path), list[str]()
    registry.save(head())

    def replaced(weights: bytes, card: str) -> Head:
        asked.append(card)
        if len(asked) > 1:
            return decode(weights, card)
        registry.delete(f"toy:{A}")
        registry.save(head())
        raise BadInput("half of it was gone")

    monkeypatch.setattr("services.prober.registry.decode", replaced)
    assert registry.get(f"toy:{A}").digest == head().digest
    assert len(asked) == 2
    assert registry.delete(f"toy:{A}")
    assert registry.find("toy", A) is None
    assert registry.entries("") == []
    assert not caplog.records, "an entry that left is no damage"


def repeated(times: int, step: Callable[[], object], *, allowed: type[Exception], problems: list[Exception]) -> None:
    for _ in range(times):
        try:
            step()
        except allowed:
            continue
        except Exception as error:  # noqa: BLE001 -- told in the test's own thread
            problems.append(error)


def test_deleting_and_saving_at_once_leaves_whole_heads(tmp_path: Path) -> None:
    registry, problems = Registry(tmp_path), list[Exception]()
    registry.save(head(version=B))
    steps: list[tuple[int, Callable[[], object], type[Exception]]] = [
        (20, lambda: registry.save(head()), StorageFull),
        (60, lambda: registry.delete(f"toy:{A}"), NotFound),
        (100, lambda: registry.get("toy"), StorageFull),
        (100, lambda: registry.get("toy"), StorageFull),
    ]
    threads = [
        threading.Thread(target=repeated, args=(times, step), kwargs={"allowed": allowed, "problems": problems})
        for times, step, allowed in steps
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert registry.get(f"toy:{B}").digest == head(version=B).digest
    assert not list((tmp_path / "staging").iterdir())
