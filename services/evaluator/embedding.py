"""Embeds what the store does not hold yet, in parts, so that a run that dies has lost one part at most.

A clip that cannot be read is warned of and left out; it is never the end of a run, and never left out silently.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace

import numpy as np
import soundfile
from prometheus_client import Counter

from servox.arrays import EmbeddingStore, Floats
from servox.errors import BadAudio, BadCorpus, BadInput, ServoxError
from servox.resending import embed_all
from servox.v1 import common_pb2, embedder_pb2
from servox.wire import array_from_proto

from .corpora import Clip
from .dataset import Corpus, Sample
from .events import Events
from .peers import Peers
from .protocols import Protocol

PART_CLIPS = 64
DURATION = "duration"  # seconds of audio that were embedded, stored beside the embeddings of the bundle


async def embed_missing(
    corpora: Sequence[Corpus],
    *,
    peers: Peers,
    store: EmbeddingStore,
    bundle: embedder_pb2.DescribeResponse,
    protocol: Protocol,
    in_flight: int,
    truncate_ms: int,
    events: Events,
    clips: Counter,
) -> list[Corpus]:
    """The corpora less the clips that could not be embedded; everything else is in the store afterwards.

    Raises:
        BadCorpus: a corpus has no clip left.
        Unavailable: the embedder does not answer.
        StorageFull: the store refused a part.
    """
    part = _Parts(store, bundle, protocol)
    samples = {sample.key: sample for corpus in corpora for sample in corpus.samples}
    missing = {key: sample for key, sample in samples.items() if key not in part.known}
    clips.labels("cached").inc(len(samples) - len(missing))
    done = len(samples) - len(missing)
    events.progress("embed", done, len(samples))
    failed: dict[str, str] = {}
    requests = _requests(missing.values(), bundle, protocol, truncate_ms, failed)
    async with aclosing(
        embed_all(peers.embedder, requests, in_flight=in_flight, max_message_bytes=bundle.max_message_bytes)
    ) as outcomes:
        async for key, outcome in outcomes:
            done += 1
            if isinstance(outcome, BadInput):
                failed[key] = str(outcome)
            elif isinstance(outcome, ServoxError):
                raise outcome
            else:
                part.add(key, outcome)
            events.progress("embed", done, len(samples))
    part.flush()
    clips.labels("failed").inc(len(failed))
    clips.labels("embedded").inc(len(missing) - len(failed))
    for key, why in failed.items():
        events.warn(f"{samples[key].clip.corpus}: {samples[key].clip.path} was left out: {why}")
    return [_kept(corpus, set(failed), part) for corpus in corpora]


def _kept(corpus: Corpus, failed: set[str], part: "_Parts") -> Corpus:
    left = corpus.without(failed)
    if not left.samples:
        raise BadCorpus(
            f"{corpus.key}: none of its {len(corpus.samples)} clips could be embedded; the warnings say why"
        )
    return replace(left, duration_ms=part.duration_ms([sample.key for sample in left.samples]))


class _Parts:
    """Embeddings on their way to the store."""

    def __init__(self, store: EmbeddingStore, bundle: embedder_pb2.DescribeResponse, protocol: Protocol) -> None:
        self._store = store
        self._digest = bundle.bundle.digest
        self._pooling = protocol.pooling_name
        self._arrays: dict[str, Floats] = {}
        self._seconds: dict[str, Floats] = {}
        self.known = store.keys(bundle=self._digest, pooling=self._pooling)

    def add(self, key: str, response: embedder_pb2.EmbedResponse) -> None:
        array = array_from_proto(response.embedding, name="embedding")
        # Frames are two orders of magnitude more data than means, and half precision is well below their noise.
        self._arrays[key] = array.astype(np.float16 if self._pooling == "frames" else np.float32)
        self._seconds[key] = np.array([response.duration_ms / 1000], dtype=np.float32)
        if len(self._arrays) >= PART_CLIPS:
            self.flush()

    def flush(self) -> None:
        if self._arrays:
            self._store.write(bundle=self._digest, pooling=DURATION, arrays=self._seconds)
            self._store.write(bundle=self._digest, pooling=self._pooling, arrays=self._arrays)
            self._arrays, self._seconds = {}, {}

    def duration_ms(self, keys: Sequence[str]) -> int:
        return round(
            1000 * sum(float(each[0]) for each in self._store.read(bundle=self._digest, pooling=DURATION, keys=keys))
        )


def _requests(
    samples: Iterable[Sample],
    bundle: embedder_pb2.DescribeResponse,
    protocol: Protocol,
    truncate_ms: int,
    failed: dict[str, str],
) -> Iterator[tuple[str, embedder_pb2.EmbedRequest]]:
    layers = [] if protocol.pooling == embedder_pb2.POOLING_FRAMES else list(bundle.layers)
    for sample in samples:
        try:
            audio = _audio(sample.clip)
        except BadAudio as error:
            failed[sample.key] = str(error)
            continue
        yield (
            sample.key,
            embedder_pb2.EmbedRequest(audio=audio, pooling=protocol.pooling, layers=layers, truncate_ms=truncate_ms),
        )


def _audio(clip: Clip) -> common_pb2.Audio:
    """The clip's file, or its segment or channel as raw samples.

    Raises:
        BadAudio: the file is gone, or a segment of it cannot be read.
    """
    try:
        data = clip.file.read_bytes()
    except OSError as error:
        raise BadAudio(f"{clip.file}: {error.strerror}; is the corpus still there?") from None
    if clip.start_ms is None and clip.channel is None:
        return common_pb2.Audio(container=data)
    return common_pb2.Audio(pcm=_segment(data, clip))


def _segment(data: bytes, clip: Clip) -> common_pb2.Pcm:
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            first = round((clip.start_ms or 0) / 1000 * file.samplerate)
            file.seek(min(first, file.frames))
            count = -1 if clip.end_ms is None else round(clip.end_ms / 1000 * file.samplerate) - first
            samples, rate = file.read(count, dtype="float32", always_2d=True), file.samplerate
    except soundfile.LibsndfileError as error:
        raise BadAudio(f"{clip.path}: {error}; the file cannot be cut") from None
    chosen = samples if clip.channel is None else samples[:, [clip.channel - 1]]  # channels count from 1
    return common_pb2.Pcm(
        data=chosen.astype("<f4").tobytes(),
        rate_hz=rate,
        channels=chosen.shape[1],
        format=common_pb2.SAMPLE_FORMAT_F32,
    )
