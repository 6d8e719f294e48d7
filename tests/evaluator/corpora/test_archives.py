import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from services.evaluator.corpora.archives import is_archive, unpack
from servox.errors import BadCorpus


def _tar(file: Path, members: dict[str, bytes], *, link: str = "") -> Path:
    with tarfile.open(file, "w:gz" if file.suffix in {".gz", ".tgz"} else "w:xz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo("link.wav")
            info.type, info.linkname = tarfile.SYMTYPE, link
            archive.addfile(info)
    return file


def _zip(file: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


def _files(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tgz", "a.tar.xz"])
def test_archives_unpack_to_their_members(tmp_path: Path, name: str) -> None:
    members = {"wav/03a01Wa.wav": b"one", "Oréau/x.wav": b"two"}
    archive = (_zip if name.endswith(".zip") else _tar)(tmp_path / name, members)
    assert is_archive(name)
    unpack(archive, tmp_path / "out")
    assert _files(tmp_path / "out") == members


def test_archives_inside_are_unpacked_and_removed(tmp_path: Path) -> None:
    inner = _tar(tmp_path / "train.tar.gz", {"train_splits/dia0_utt0.mp4": b"x"}).read_bytes()
    unpack(_zip(tmp_path / "a.zip", {"MELD.Raw/train.tar.gz": inner}), tmp_path / "out")
    assert _files(tmp_path / "out") == {"MELD.Raw/train_splits/dia0_utt0.mp4": b"x"}


@pytest.mark.parametrize("name", ["../evil.wav", "/etc/evil.wav", "a/../../evil.wav", "..\\evil.wav", "C:\\evil.wav"])
@pytest.mark.parametrize("kind", ["a.zip", "a.tar.gz"])
def test_a_member_outside_the_folder_refuses_the_archive(tmp_path: Path, kind: str, name: str) -> None:
    archive = (_zip if kind.endswith(".zip") else _tar)(tmp_path / kind, {name: b"evil"})
    with pytest.raises(BadCorpus, match="leaves the folder"):
        unpack(archive, tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("evil.wav"))


def test_links_are_ignored(tmp_path: Path) -> None:
    unpack(_tar(tmp_path / "a.tar.gz", {"a.wav": b"x"}, link="/etc/passwd"), tmp_path / "out")
    assert _files(tmp_path / "out") == {"a.wav": b"x"}


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar.xz"])
def test_a_damaged_archive_says_to_download_it_again(tmp_path: Path, name: str) -> None:
    archive = (_zip if name.endswith(".zip") else _tar)(tmp_path / name, {"a.wav": bytes(range(256)) * 99})
    archive.write_bytes(archive.read_bytes()[:-300] if name.endswith("zip") else archive.read_bytes()[:60])
    with pytest.raises(BadCorpus, match="download it again"):
        unpack(archive, tmp_path / "out")
