"""What the serving benches run on: a bundle and real clips of mixed length, the same for every server.

Clips are drawn evenly from the corpora of a data folder (`corpora/*/**.flac` and other audio files), as they are:
their own rates and containers. Where there are none, generated speech-like clips stand in, and every result says so.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from services.demo import data_root
from services.embedder import bundle as bundles
from services.embedder.bundle import Bundle
from services.embedder.speechlike import speechlike
from servox import audio
from servox.errors import NotFound, ServoxError
from servox.settings import home

SUFFIXES = (".flac", ".wav", ".ogg", ".mp3")
CHECKPOINT = "whisper-base"
LONGEST_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """Clips as files, their lengths, and where they are from."""

    files: tuple[bytes, ...]
    seconds: tuple[float, ...]
    note: str

    @property
    def mean_s(self) -> float:
        """Mean length."""
        return sum(self.seconds) / len(self.seconds)


def speech(count: int, *, data: Path | None, seed: int = 0) -> Speech:
    """`count` clips, the same for the same folder and seed."""
    root = data or data_root()
    corpora = sorted((root / "corpora").iterdir()) if root and (root / "corpora").is_dir() else []
    found = [
        [path for path in sorted(corpus.rglob("*")) if path.suffix.lower() in SUFFIXES]
        for corpus in corpora
        if corpus.is_dir()
    ]
    found = [paths for paths in found if paths]
    if not found:
        return _generated(count, seed)
    rng = np.random.default_rng(seed)
    chosen: list[tuple[bytes, float]] = []
    while len(chosen) < count:
        paths = found[len(chosen) % len(found)]
        data_bytes = paths[int(rng.integers(len(paths)))].read_bytes()
        try:
            clip = audio.decode(data_bytes, 16_000)
        except ServoxError:  # a silent or damaged file of a corpus is nothing to measure with
            continue
        chosen.append((data_bytes, clip.duration_ms / 1000))
    return _speech(chosen, f"{len(found)} corpora")


def bundle(folder: Path | None, *, data: Path | None) -> Bundle:
    """The bundle in `folder`, or the demo's default bundle, exported where it does not exist yet.

    Raises:
        NotFound: there is neither a bundle nor a checkpoint to make one from.
    """
    folder = folder or home() / "bundles" / CHECKPOINT
    if not folder.is_dir():
        root = data or data_root()
        checkpoint = root / "models" / CHECKPOINT if root else Path(CHECKPOINT)
        if not checkpoint.is_dir():
            raise NotFound(f"neither a bundle at {folder} nor a checkpoint at {checkpoint}: give --bundle or --data")
        from services.embedder.export import export

        export(str(checkpoint), folder, data_root=root)
    return bundles.load(folder)


def _generated(count: int, seed: int) -> Speech:
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        seconds = float(np.clip(rng.lognormal(1.0, 0.5), 0.5, LONGEST_S))
        buffer = io.BytesIO()
        soundfile.write(buffer, speechlike(seed + number, duration_s=seconds, rate_hz=16_000), 16_000, format="FLAC")
        made.append((buffer.getvalue(), seconds))
    return _speech(made, "generated clips, no real speech")


def _speech(clips: list[tuple[bytes, float]], note: str) -> Speech:
    return Speech(files=tuple(c[0] for c in clips), seconds=tuple(c[1] for c in clips), note=note)
