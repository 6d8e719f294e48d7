"""Checkpoints by hub id, from a local server that speaks the part of the hub's protocol that is needed."""

import hashlib
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from transformers import Wav2Vec2Model

from bench.small_models import save
from services.embedder.backbones import open_backbone
from servox.errors import BadInput, NotFound

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.ThreadingHTTPServer):
    """Serves the folders below `root` as models `owner/<folder>`; notes what was asked for."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.root = root
        self.asked: list[str] = []
        self.gated: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        content = self.answer()
        if content is not None:
            self.wfile.write(content)

    def answer(self) -> bytes | None:
        parts = self.path.strip("/").split("/")
        if len(parts) < 5:
            return self.send(200, b"")
        _, model, _, _, name = parts
        self.server.asked.append(name)
        if not (self.server.root / model).is_dir():
            return self.send(404, b"", **{"X-Error-Code": "RepoNotFound"})
        if model in self.server.gated:
            return self.send(403, b"", **{"X-Error-Code": "GatedRepo"})
        path = self.server.root / model / name
        if not path.is_file():
            return self.send(404, b"", **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        content = path.read_bytes()
        return self.send(200, content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', **{"X-Repo-Commit": COMMIT})

    def send(self, status: int, content: bytes, **headers: str) -> bytes:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        return content

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in one file, the same in shards, and the same as a pickle."""
    root = tmp_path_factory.mktemp("hub")
    save(root, "wav2vec2-robust")
    Wav2Vec2Model.from_pretrained(root / "wav2vec2-robust").save_pretrained(root / "sharded", max_shard_size="20KB")
    shutil.copytree(root / "sharded", root / "pickle", ignore=shutil.ignore_patterns("*.safetensors*"))
    (root / "pickle" / "pytorch_model.bin").write_bytes(b"never read")
    (root / "wav2vec2-robust" / "tf_model.h5").write_bytes(b"never read")
    return root


@pytest.fixture
def hub(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(models) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server
        server.shutdown()


def test_a_model_is_fetched_by_its_id_and_nothing_but_what_is_read(hub: Hub, models: Path) -> None:
    backbone = open_backbone("owner/wav2vec2-robust")
    assert backbone.name == "owner/wav2vec2-robust"
    assert backbone.sha256 == open_backbone(str(models / "wav2vec2-robust")).sha256
    assert set(hub.asked) == {"config.json", "preprocessor_config.json", "model.safetensors"}
    assert backbone.frame_step(1) == 320


def test_shards_are_fetched_all(hub: Hub, models: Path) -> None:
    backbone = open_backbone("owner/sharded")
    assert backbone.sha256 == open_backbone(str(models / "sharded")).sha256
    assert sum(name.startswith("model-") for name in set(hub.asked)) > 1
    whole = open_backbone(str(models / "wav2vec2-robust")).weights()  # type: ignore[attr-defined]
    for name, tensor in backbone.weights().items():  # type: ignore[attr-defined]
        np.testing.assert_array_equal(tensor, whole[name])


def test_a_model_of_pickles_is_refused_with_the_way_to_convert_it(hub: Hub) -> None:
    with pytest.raises(BadInput, match=r"'owner/pickle' .*hf download owner/pickle --local-dir.*python -c .*save_file"):
        open_backbone("owner/pickle")
    assert "pytorch_model.bin" not in hub.asked


def test_what_the_hub_does_not_have_or_show_is_named(hub: Hub) -> None:
    with pytest.raises(NotFound, match=r"'owner/unknown' is neither a folder nor a model of the hub.*hf auth login"):
        open_backbone("owner/unknown")
    hub.gated.add("sharded")
    with pytest.raises(NotFound, match="'owner/sharded' is gated"):
        open_backbone("owner/sharded")
    with pytest.raises(NotFound, match="neither a folder nor the form of a hub id"):
        open_backbone("no/such folder at all")


def test_offline_the_cache_is_used_or_the_lack_is_named_at_once(hub: Hub, models: Path) -> None:
    open_backbone("owner/wav2vec2-robust")
    open_backbone("owner/sharded")
    hub.shutdown()
    hub.server_close()
    asked = len(hub.asked)
    assert open_backbone("owner/wav2vec2-robust").sha256 == open_backbone(str(models / "wav2vec2-robust")).sha256
    assert open_backbone("owner/sharded").sha256 == open_backbone(str(models / "sharded")).sha256
    with pytest.raises(NotFound, match=r"'owner/other' is no folder, the hub cannot be reached, .* config\.json"):
        open_backbone("owner/other")
    assert len(hub.asked) == asked


def test_offline_by_setting_asks_nobody(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NotFound, match="the hub cannot be reached"):
        open_backbone("owner/sharded")
    assert hub.asked == []


def test_a_file_that_the_cache_lost_is_not_taken_for_one_that_never_was(hub: Hub, tmp_path: Path) -> None:
    """Without its preprocessor_config a model would be heard by another front end."""
    open_backbone("owner/wav2vec2-robust")
    hub.shutdown()
    hub.server_close()
    next((tmp_path / "cache").rglob("preprocessor_config.json")).unlink()
    with pytest.raises(NotFound, match=r"does not hold preprocessor_config\.json"):
        open_backbone("owner/wav2vec2-robust")
