"""Labelled speech for the bench: decoded once, kept in the cache, read by every engine's process."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.evaluator.dataset import Corpus, load
from services.evaluator.protocols import SOUND
from servox import audio
from servox.arrays import clip_set_digest

RATE_HZ = 16_000
LIMITS = audio.Limits(truncate_ms=30_000)

Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """One corpus: labels and speakers here, waveforms at `path`."""

    name: str
    digest: str
    keys: tuple[str, ...]
    labels: tuple[str, ...]
    speakers: tuple[str, ...]
    path: Path


def gather(data: Path, wanted: Sequence[str], cache: Path) -> list[Speech]:
    """The corpora `wanted` below `data`, decoded to 16 kHz.

    Raises:
        BadCorpus: when one is not there.
    """
    dataset = load(data, protocol=SOUND, wanted=[name.lower() for name in wanted])
    return [_speech(corpus, cache) for corpus in dataset.corpora]


def write_clips(path: Path, clips: Sequence[Samples]) -> None:
    """Waveforms into one file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, samples=np.concatenate(clips), lengths=np.array([len(clip) for clip in clips]))
    partial.rename(path)


def read_clips(path: Path) -> list[Samples]:
    """What `write_clips` wrote."""
    with np.load(path) as held:
        return np.split(held["samples"], np.cumsum(held["lengths"])[:-1])


def pick(corpora: Sequence[Speech], count: int) -> list[Samples]:
    """About `count` clips, equally many of each corpus, spread over its durations: the quantiles of each."""
    picked: list[Samples] = []
    for number, corpus in enumerate(corpora):
        share = count // len(corpora) + (number < count % len(corpora))
        clips = sorted(read_clips(corpus.path), key=len)
        picked += [clips[int((place + 0.5) * len(clips) / share)] for place in range(share)]
    return picked


def _speech(corpus: Corpus, cache: Path) -> Speech:
    digest = clip_set_digest(corpus.labelled)
    path = cache / "speech" / f"{corpus.key}-{digest[:12]}.npz"
    if not path.is_file():
        files = [sample.clip.file for sample in corpus.samples]
        write_clips(path, [audio.decode(file.read_bytes(), RATE_HZ, LIMITS).samples for file in files])
    return Speech(
        name=corpus.card.name,
        digest=digest,
        keys=tuple(sample.key for sample in corpus.samples),
        labels=tuple(sample.clip.label for sample in corpus.samples),
        speakers=tuple(sample.clip.speaker or "" for sample in corpus.samples),
        path=path,
    )
