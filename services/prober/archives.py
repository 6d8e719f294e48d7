"""A head as one file: an entry of the registry in BentoML's own form of archive, and a manifest that seals it.

- `NAME-VERSION.bentomodel` is a tar under xz with `model.yaml`, `card.json`, `weights.safetensors`, so that BentoML's
  tools read it as well, and `manifest.json`: sha256 and size of each file, and the digest of the head.
- What is read is checked in full before anything is kept: the seal of every file, the head's digest, its name. An
  archive is never unpacked to disk, so a path inside it can lead nowhere.
"""

import hashlib
import io
import json
import lzma
import tarfile
from collections.abc import Mapping
from typing import Any

from servox.errors import BadInput

from .entries import CARD, WEIGHTS
from .heads import Head, decode
from .registry import NAME

ENDING = ".bentomodel"
MANIFEST, MODEL = "manifest.json", "model.yaml"
SCHEMA = 1
SEALED = frozenset({MODEL, CARD, WEIGHTS})
RESERVED = ("latest", "production")  # pointers, which lie beside the versions
MAX_BYTES = 256 << 20  # of one head, unpacked: a frame head of 1,024 dimensions has 2 MB

Files = Mapping[str, bytes]


def pack(files: Files, head: Head) -> bytes:
    """The files of an entry as one archive; the same files give the same bytes."""
    seals = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()}
    manifest = {"schema": SCHEMA, "head": head.card.tag, "digest": head.digest, "files": seals}
    text = json.dumps(manifest, indent=1, sort_keys=True).encode()
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:xz", preset=1) as tar:
        for name, data in sorted({**files, MANIFEST: text}.items()):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o644
            tar.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def unpack(data: bytes, *, origin: str) -> Head:
    """The head in an archive.

    Args:
        data: the whole file.
        origin: where it came from, for the messages.

    Raises:
        BadInput: cut short, damaged, not sealed, or a head that its manifest does not mean.
    """
    files = _files(data, origin)
    manifest = _manifest(files, origin)
    for name in sorted(SEALED):
        _check(name, files.get(name), manifest["files"].get(name), origin)
    try:
        head = decode(files[WEIGHTS], files[CARD].decode())
    except (BadInput, UnicodeDecodeError) as error:
        raise _bad(origin, f"its head cannot be read ({error})") from error
    if head.digest != manifest["digest"]:
        raise _bad(origin, f"its head has digest {head.digest}, its manifest says {manifest['digest']}")
    if not (NAME.fullmatch(head.card.name) and NAME.fullmatch(head.card.version)) or head.card.version in RESERVED:
        raise _bad(origin, f"{head.card.tag!r} can be no name of a head")
    return head


def _bad(origin: str, why: str) -> BadInput:
    return BadInput(f"head archive {origin}: {why}; nothing was imported: export the head again")


def _files(data: bytes, origin: str) -> dict[str, bytes]:
    """Regular files of the archive by their bare names; BentoML writes `./card.json`."""
    found = dict[str, bytes]()
    try:
        unpacker = lzma.LZMADecompressor()
        unpacked = unpacker.decompress(data, max_length=MAX_BYTES + 1)
        if len(unpacked) > MAX_BYTES:
            raise _bad(origin, f"it unpacks to more than {MAX_BYTES} bytes")
        if not unpacker.eof or unpacker.unused_data:
            raise _bad(origin, f"its {len(data)} bytes are cut short, or have more behind them")
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isreg() else None
                if file is not None:
                    found[member.name.removeprefix("./")] = file.read()
    except (lzma.LZMAError, EOFError, tarfile.TarError, ValueError) as error:
        raise _bad(origin, f"its {len(data)} bytes are cut short or no archive ({error})") from error
    return found


def _manifest(files: Files, origin: str) -> dict[str, Any]:
    if MANIFEST not in files:
        raise _bad(origin, f"it holds {sorted(files)} and no {MANIFEST}, so it is cut short or not of `servox heads`")
    try:
        manifest = json.loads(files[MANIFEST])
    except ValueError as error:
        raise _bad(origin, f"its manifest is no JSON ({error})") from None
    wanted = {"schema", "head", "digest", "files"}
    if not isinstance(manifest, dict) or wanted - set(manifest) or manifest["schema"] != SCHEMA:
        raise _bad(origin, f"its manifest is not of schema {SCHEMA}")
    if not isinstance(manifest["files"], dict):
        raise _bad(origin, "its manifest lists no files")
    return manifest


def _check(name: str, data: bytes | None, seal: Any, origin: str) -> None:  # noqa: ANN401 -- whatever the JSON holds
    if data is None:
        raise _bad(origin, f"{name} is missing")
    found = hashlib.sha256(data).hexdigest()
    said = seal.get("sha256") if isinstance(seal, dict) else None
    if found != said:
        raise _bad(origin, f"{name} ({len(data)} bytes) has sha256 {found}, its manifest says {said}")
