"""The corpora of a run: which are found and eligible, their clips with digests, and what was left out and why."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from servox.arrays import LabelledClip, clip_set_digest
from servox.emotions import CLASSES, PAPER_CLASSES
from servox.errors import BadCorpus, Refused

from .corpora import Card, Clip, discover, load_cards, scan
from .protocols import Protocol
from .results import CorpusFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One clip of a run: the corpus's clip and the digest of what it sounds like."""

    key: str  # sha256 of the file's bytes, and of the segment where the clip is one
    clip: Clip

    @property
    def labelled(self) -> LabelledClip:
        """The row of a clip set."""
        return LabelledClip(key=self.key, label=self.clip.label, speaker=self.clip.speaker or "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """A corpus as one run uses it."""

    card: Card
    samples: tuple[Sample, ...]
    skipped: int = 0
    duration_ms: int = 0

    @property
    def key(self) -> str:
        """Its key, as in its card."""
        return self.card.key

    @property
    def labelled(self) -> list[LabelledClip]:
        """The clip set of the whole corpus."""
        return [sample.labelled for sample in self.samples]

    def classes(self, protocol: Protocol) -> list[str]:
        """Outputs of a head trained on it: the paper's eight, or those that it holds, in the taxonomy's order."""
        if protocol.paper_only:
            return list(PAPER_CLASSES)
        return sorted({sample.clip.label for sample in self.samples}, key=CLASSES.index)

    def without(self, bad: set[str]) -> "Corpus":
        """The corpus less the clips whose audio could not be used."""
        kept = tuple(sample for sample in self.samples if sample.key not in bad)
        return replace(self, samples=kept, skipped=self.skipped + len(self.samples) - len(kept))

    def facts(self) -> CorpusFacts:
        """What the results say of it."""
        speakers = {sample.clip.speaker for sample in self.samples if sample.clip.speaker}
        return CorpusFacts(
            key=self.key,
            name=self.card.name,
            language=self.card.language,
            licence=self.card.licence.name,
            clips=len(self.samples),
            skipped=self.skipped,
            speakers=len(speakers) or None,
            hours=round(self.duration_ms / 3_600_000, 3),
            digest=clip_set_digest(self.labelled),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """What a run works on."""

    corpora: tuple[Corpus, ...]
    refused: dict[str, str]  # corpus → why
    warnings: tuple[str, ...]


def load(data_dir: Path, *, protocol: Protocol, wanted: Sequence[str] = ()) -> Dataset:
    """Finds, scans and digests the corpora of a data folder.

    Args:
        data_dir: holds `corpora/`, one folder a corpus.
        protocol: decides labels and eligibility.
        wanted: keys; empty for all that are found.

    Raises:
        BadCorpus: a wanted corpus is unknown or not there, or nothing is eligible.
    """
    cards, folders = load_cards(), discover(data_dir)
    keys = _chosen(folders, wanted, known=cards, data_dir=data_dir)
    corpora: list[Corpus] = []
    refused: dict[str, str] = {}
    warnings: list[str] = []
    for key in keys:
        try:
            _check_eligible(cards[key], protocol, asked=key in wanted)
            corpus, said = _read(cards[key], folders[key], protocol)
        except (Refused, BadCorpus) as error:
            refused[key] = str(error)
            continue
        corpora.append(corpus)
        warnings += said
    if not corpora:
        why = "; ".join(refused.values()) or f"no corpus below {data_dir / 'corpora'}"
        raise BadCorpus(
            f"no corpus to run on: {why}. `servox corpora check` says more, `servox corpora list` what to get"
        )
    return Dataset(corpora=tuple(corpora), refused=refused, warnings=tuple(warnings))


def _chosen(
    folders: Mapping[str, Path], wanted: Sequence[str], *, known: Mapping[str, Card], data_dir: Path
) -> list[str]:
    unknown = [key for key in wanted if key not in known]
    if unknown:
        raise BadCorpus(f"corpora: {', '.join(unknown)}: no such key; `servox corpora list` shows all")
    absent = [key for key in wanted if key not in folders]
    if absent:
        raise BadCorpus(f"corpora: {', '.join(absent)}: not below {data_dir / 'corpora'} (found: {', '.join(folders)})")
    return sorted(wanted or folders)


def _check_eligible(card: Card, protocol: Protocol, *, asked: bool) -> None:
    if protocol.needs_speakers and card.speakers.reason:
        raise Refused(f"{card.key}: no speaker-disjoint folds can be made: {card.speakers.reason}")
    if protocol.paper_only and card.paper is None and not asked:
        raise Refused(f"{card.key}: not one of the paper's corpora; name it with --corpora to run it all the same")


def _read(card: Card, root: Path, protocol: Protocol) -> tuple[Corpus, list[str]]:
    found = scan(root, card, protocol=protocol.name)
    said = [str(problem) for problem in found.problems]
    if not found.clips:
        raise BadCorpus("; ".join(said) or f"{card.key}: no clip below {root}")
    files: dict[Path, str] = {}
    samples = [Sample(key=_digest(clip, files), clip=clip) for clip in found.clips]
    lost = sum(len(problem.paths) for problem in found.problems if problem.severity != "note")
    corpus = Corpus(card=card, samples=tuple(samples), skipped=lost)
    if protocol.needs_speakers:
        corpus, more = _without_copies(corpus)
        said += more
    return corpus, said


def _digest(clip: Clip, files: dict[Path, str]) -> str:
    if clip.file not in files:
        files[clip.file] = hashlib.sha256(clip.file.read_bytes()).hexdigest()
    if clip.start_ms is None and clip.channel is None:
        return files[clip.file]
    segment = f"{files[clip.file]}#{clip.start_ms}-{clip.end_ms}@{clip.channel}"
    return hashlib.sha256(segment.encode()).hexdigest()


def _without_copies(corpus: Corpus) -> tuple[Corpus, list[str]]:
    """Identical audio twice in a corpus could stand on both sides of a split: only the first stays."""
    counts = Counter(sample.key for sample in corpus.samples)
    if max(counts.values()) == 1:
        return corpus, []
    first: dict[str, Sample] = {}
    for sample in corpus.samples:
        first.setdefault(sample.key, sample)
    dropped = len(corpus.samples) - len(first)
    message = f"{corpus.key}: {dropped} clips are byte for byte copies of others in the corpus; they were left out"
    return replace(corpus, samples=tuple(first.values()), skipped=corpus.skipped + dropped), [message]
