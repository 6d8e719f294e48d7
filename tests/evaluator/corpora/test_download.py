import hashlib
import io
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from services.evaluator.corpora import Card, load_cards, scan
from services.evaluator.corpora.card import Archive, Obtain
from services.evaluator.corpora.download import download
from servox.errors import BadCorpus, Refused, Unavailable


class _Files(BaseHTTPRequestHandler):
    """Serves `server.files`, honours ranges, and breaks off after `server.break_after` bytes once."""

    server: "_Server"

    def do_GET(self) -> None:
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        asked = self.headers.get("Range", "")
        self.server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if start >= len(content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        stop = self.server.break_after
        self.server.break_after = None
        self.wfile.write(content[start:] if stop is None else content[start:stop])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class' name
        """Quiet."""


class _Server(ThreadingHTTPServer):
    files: dict[str, bytes]
    ranges: list[str]
    break_after: int | None = None


def _corpus() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for letter in "WLEAFTN":
            archive.writestr(f"wav/03a01{letter}a.wav", bytes(range(256)) * 40)
    return buffer.getvalue()


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Files) as running:
        running.files, running.ranges = {"/emodb.zip": _corpus()}, []
        thread = Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def _card(server: _Server, *, path: str = "/emodb.zip", sha256: str = "") -> Card:
    url = f"http://127.0.0.1:{server.server_address[1]}{path}"
    obtain = Obtain(direct=True, how="By hand.", archives=(Archive(url=url, sha256=sha256),))
    return replace(load_cards()["emodb"], obtain=obtain)


def test_a_corpus_is_downloaded_checked_unpacked_and_can_be_scanned(server: _Server, tmp_path: Path) -> None:
    sha256 = hashlib.sha256(server.files["/emodb.zip"]).hexdigest()
    told: list[tuple[str, int, int | None]] = []
    card = _card(server, sha256=sha256)
    folder = download(card, tmp_path, progress=lambda *step: told.append(step))
    assert folder == tmp_path / "corpora" / "emodb"
    assert len(scan(folder, card).clips) == 7
    size = len(server.files["/emodb.zip"])
    assert told[-1] == ("emodb.zip", size, size)
    assert [p.name for p in tmp_path.rglob("*") if p.is_dir()].count("emodb") == 1
    server.files.clear()
    assert download(card, tmp_path) == folder


def test_a_broken_download_is_continued_where_it_stopped(server: _Server, tmp_path: Path) -> None:
    server.break_after = 1000
    with pytest.raises(Unavailable, match=r"emodb\.zip .*Run it again to continue"):
        download(_card(server), tmp_path)
    assert not (tmp_path / "corpora" / "emodb").exists()
    folder = download(_card(server), tmp_path)
    assert server.ranges == ["", "bytes=1000-"]
    assert len(list(folder.rglob("*.wav"))) == 7


def test_a_part_that_is_complete_already_is_taken(server: _Server, tmp_path: Path) -> None:
    part = tmp_path / "downloads" / "emodb" / "emodb.zip.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(server.files["/emodb.zip"])
    assert download(_card(server), tmp_path).is_dir()


def test_a_part_of_another_file_is_thrown_away(server: _Server, tmp_path: Path) -> None:
    part = tmp_path / "downloads" / "emodb" / "emodb.zip.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * (len(server.files["/emodb.zip"]) + 5))
    assert len(list(download(_card(server), tmp_path).rglob("*.wav"))) == 7


def test_a_wrong_checksum_removes_the_file_and_leaves_no_corpus(server: _Server, tmp_path: Path) -> None:
    with pytest.raises(BadCorpus, match="the card says 00"):
        download(_card(server, sha256="00"), tmp_path)
    assert not list(tmp_path.rglob("*.zip*"))
    assert not (tmp_path / "corpora" / "emodb").exists()


def test_a_damaged_archive_leaves_no_corpus(server: _Server, tmp_path: Path) -> None:
    server.files["/emodb.zip"] = server.files["/emodb.zip"][:-40]
    with pytest.raises(BadCorpus, match="damaged"):
        download(_card(server), tmp_path)
    assert not [path for path in tmp_path.rglob("*") if "emodb" in path.name]


def test_a_missing_file_and_a_dead_server_are_unavailable(server: _Server, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="404"):
        download(_card(server, path="/gone.zip"), tmp_path)
    dead = replace(
        _card(server), obtain=Obtain(direct=True, how="By hand.", archives=(Archive(url="http://127.0.0.1:9/x.zip"),))
    )
    with pytest.raises(Unavailable, match=r"By hand\."):
        download(dead, tmp_path)


def test_a_corpus_behind_a_signature_is_refused_with_the_way_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"iemocap: no direct download\. Send the release form"):
        download(load_cards()["iemocap"], tmp_path)
