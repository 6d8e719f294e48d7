"""Heads to object storage and back: sealed archives, damage of every kind, and what the registry already holds."""
# ruff: noqa: ANN401, ASYNC240 -- small files; gRPC stubs and JSON have no types worth naming here

import dataclasses
import io
import json
import lzma
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from typer.testing import CliRunner

from services.prober.archives import unpack
from services.prober.exchange import archives_at, export_head, import_head
from services.prober.heads import Head
from services.prober.heads_command import heads_app
from services.prober.registry import Registry
from servox.errors import BadInput, BadSetting, NotFound, Refused
from servox.v1 import prober_pb2


@pytest.fixture
async def full(prober: Any, corpus: Any, tmp_path: Path) -> Registry:
    """A registry with one trained head, `toy`, that passes its gate."""
    spec = corpus.spec(kind=prober_pb2.HEAD_KIND_LOGISTIC, calibrate=True)
    async for _ in prober.Train(prober_pb2.TrainRequest(store_url=corpus.store, heads=[spec])):
        pass
    return Registry(tmp_path / "heads")


@pytest.fixture
def empty(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "other")


def another(head: Head, **changes: Any) -> Head:
    """The same weights under another card."""
    return dataclasses.replace(head, card=dataclasses.replace(head.card, **changes))


def names_in(registry: Registry) -> list[str]:
    return [entry.card.tag for entry in registry.entries("")]


@pytest.mark.parametrize("scheme", ["", "file://", "memory://"])
async def test_a_head_goes_out_and_comes_back(full: Registry, empty: Registry, tmp_path: Path, scheme: str) -> None:
    place = f"{scheme}{tmp_path}/store"
    head = full.get("toy")
    url = export_head(full, "toy", place)
    assert url == f"{place}/toy-{head.card.version}.bentomodel"
    assert archives_at(place) == [url]
    first, again = import_head(empty, url), import_head(empty, url)
    assert (first.new, again.new) == (True, False)
    assert first.entry.digest == empty.get("toy").digest == head.digest
    assert empty.get("toy").card == head.card
    assert not first.entry.production
    fs, path = fsspec.core.url_to_fs(place)
    assert [str(each).rpartition("/")[2] for each in fs.ls(path, detail=False)] == [Path(url).name], "nothing hidden"


async def test_an_export_is_the_same_bytes_each_time(full: Registry, tmp_path: Path) -> None:
    one, two = (Path(export_head(full, "toy", f"{tmp_path}/{name}.bentomodel")) for name in ("a", "b"))
    assert one.read_bytes() == two.read_bytes()


async def test_bentomls_own_tools_read_it(full: Registry, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # BentoML's dependencies', on import
        import bentoml
        from bentoml._internal.models import ModelStore
    url = export_head(full, "toy", str(tmp_path))
    (tmp_path / "bento").mkdir()
    model = bentoml.models.import_model(url, _model_store=ModelStore(tmp_path / "bento"))
    assert str(model.tag) == full.get("toy").card.tag
    assert (Path(model.path) / "weights.safetensors").is_file()


async def test_a_version_with_other_content_is_refused(full: Registry, empty: Registry, tmp_path: Path) -> None:
    head = full.get("toy")
    other = another(head, temperature=head.card.temperature + 1)
    empty.save(other)
    url = export_head(full, "toy", str(tmp_path / "out"))
    with pytest.raises(Refused, match=f"digest {other.digest}, .* with {head.digest}; delete the one"):
        import_head(empty, url)
    assert empty.get("toy").digest == other.digest


async def test_importing_mends_a_damaged_entry(full: Registry, empty: Registry, tmp_path: Path) -> None:
    url = export_head(full, "toy", str(tmp_path / "out"))
    version = import_head(empty, url).entry.card.version
    (tmp_path / "other" / "models" / "toy" / version / "card.json").unlink()
    assert import_head(empty, url).new
    assert empty.get("toy").digest == full.get("toy").digest


def repacked(data: bytes, change: Callable[[dict[str, bytes]], object]) -> bytes:
    """The archive with its files changed, as a tar of another hand."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:xz") as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    change(files)
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:xz", preset=0) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return sink.getvalue()


def manifest_with(**changes: Any) -> Callable[[dict[str, bytes]], object]:
    def change(files: dict[str, bytes]) -> None:
        files["manifest.json"] = json.dumps({**json.loads(files["manifest.json"]), **changes}).encode()

    return change


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "cut short"),
    "half": (lambda data: data[: len(data) // 2], "cut short"),
    "one byte short": (lambda data: data[:-1], "cut short"),
    "more behind": (lambda data: data + b"x", "more behind"),
    "no archive": (lambda _: b"<html>not found</html>" * 50, "no archive"),
    "a bit flipped": (lambda data: data[:500] + bytes([data[500] ^ 1]) + data[501:], "no archive"),
    "no tar inside": (lambda _: lzma.compress(b"words" * 1000), "no archive"),
    "no manifest": (lambda data: repacked(data, lambda f: f.pop("manifest.json")), "no manifest.json"),
    "no weights": (lambda data: repacked(data, lambda f: f.pop("weights.safetensors")), "weights.safetensors is mis"),
    "other weights": (
        lambda data: repacked(data, lambda f: f.update({"weights.safetensors": f["weights.safetensors"][:-4]})),
        r"weights\.safetensors \(\d+ bytes\) has sha256 \w+, its manifest says \w+",
    ),
    "other card": (
        lambda data: repacked(data, lambda f: f.update({"card.json": f["card.json"].replace(b"anger", b"wrath")})),
        r"card\.json .* has sha256",
    ),
    "words for a manifest": (lambda data: repacked(data, lambda f: f.update({"manifest.json": b"{"})), "no JSON"),
    "another schema": (lambda data: repacked(data, manifest_with(schema=2)), "not of schema 1"),
    "a list for files": (lambda data: repacked(data, manifest_with(files=[])), "lists no files"),
    "another digest": (lambda data: repacked(data, manifest_with(digest="0" * 64)), "manifest says 0000"),
}


@pytest.mark.parametrize("kind", DAMAGE)
async def test_a_damaged_archive_is_refused_and_leaves_nothing(
    full: Registry, empty: Registry, tmp_path: Path, kind: str
) -> None:
    change, why = DAMAGE[kind]
    path = Path(export_head(full, "toy", str(tmp_path / "out")))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(BadInput, match=f"head archive {path}: .*{why}.*nothing was imported"):
        import_head(empty, str(path))
    assert not list((tmp_path / "other" / "models").iterdir())


@pytest.mark.parametrize(("name", "version"), [("../up", "a"), ("a/b", "a"), ("toy", "latest"), ("toy", "../x")])
async def test_a_card_that_names_another_place_is_refused(
    full: Registry, tmp_path: Path, name: str, version: str
) -> None:
    from services.prober.archives import pack
    from services.prober.heads import encode

    head = another(full.get("toy"), name=name, version=version)
    weights, card = encode(head)
    data = pack({"model.yaml": b"", "card.json": card.encode(), "weights.safetensors": weights}, head)
    with pytest.raises(BadInput, match="can be no name of a head"):
        unpack(data, origin="x")


async def test_places_that_are_not_there_are_named(full: Registry, empty: Registry, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"gone\.bentomodel: there is no such file"):
        import_head(empty, f"{tmp_path}/gone.bentomodel")
    with pytest.raises(NotFound, match=r"nowhere: there is no \.bentomodel archive"):
        archives_at(f"{tmp_path}/nowhere")
    with pytest.raises(BadSetting, match=r"ftps3://x.*fsspec"):
        export_head(full, "toy", "ftps3://x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadSetting, match="choose another place"):
        export_head(full, "toy", f"{tmp_path}/file")


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(heads_app, [str(each) for each in arguments], env={"COLUMNS": "200"})
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


async def test_the_command_lists_shows_promotes_and_deletes(full: Registry, tmp_path: Path) -> None:
    at = ("--heads", tmp_path / "heads")
    head = full.get("toy")
    full.save(another(head, version="b" * 16))
    assert head.card.version in run("list", *at)[1]
    listed = json.loads(run("list", "to", *at, "--json")[1].splitlines()[-1])["heads"]
    assert {each["version"] for each in listed} == {head.card.version, "b" * 16}
    assert run("promote", head.card.tag, *at)[0] == 0
    shown = json.loads(run("show", "toy", *at, "--json")[1].splitlines()[-1])
    assert (shown["digest"], shown["production"], shown["bundle"]) == (head.digest, True, head.card.bundle)
    with pytest.raises(Refused, match="promoted"):
        run("delete", "toy:production", *at, "--yes")
    code, said = run("delete", f"toy:{'b' * 16}", *at)
    assert code == 1, "nobody answered the question"
    assert "for good?" in said
    assert run("delete", f"toy:{'b' * 16}", *at, "--yes")[0] == 0
    assert names_in(full) == [head.card.tag]
    with pytest.raises(BadInput, match="delete a version"):
        run("delete", "toy", *at, "--yes")
    assert run("delete", head.card.tag, *at, "--yes", "--force")[0] == 0
    assert names_in(full) == []


async def test_the_command_exports_and_imports(full: Registry, tmp_path: Path) -> None:
    at, out = ("--heads", tmp_path / "heads"), tmp_path / "out"
    full.save(another(full.get("toy"), name="second"))
    for name in ("toy", "second"):
        code, said = run("export", name, out, *at, "--json")
        assert code == 0
        assert Path(json.loads(said.splitlines()[-1])["exported"]).is_file()
    (out / "broken.bentomodel").write_bytes(b"x")
    code, said = run("import", out, "--heads", tmp_path / "other", "--json")
    document = json.loads(said.splitlines()[-1])
    assert code == 1, "one archive was refused"
    assert sorted(each["head"] for each in document["imported"]) == sorted(names_in(full))
    assert list(document["refused"]) == [f"{out}/broken.bentomodel"]
    (out / "broken.bentomodel").unlink()
    code, said = run("import", out, "--heads", tmp_path / "other")
    assert code == 0
    assert said.count("was there already") == 2


def test_a_folder_that_is_no_registry_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=f"--heads {tmp_path}/typo: there is no such folder"):
        run("list", "--heads", tmp_path / "typo")
    assert not (tmp_path / "typo").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadSetting, match=f"--heads {tmp_path}/file: .*; choose another folder"):
        run("import", "nowhere", "--heads", tmp_path / "file")
