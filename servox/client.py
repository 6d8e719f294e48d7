"""The Python client: audio in, embeddings or emotions out, over gRPC.

    async with Client(embedder="localhost:50051") as client:
        async for answer in client.embed(files("a.wav", "b.flac")):
            print(answer.id, answer.array.shape if isinstance(answer, Embedding) else answer.error)

`SyncClient` has the same methods for code without an event loop. Bulk work keeps a bounded number of clips in flight,
resends what a full or restarting server did not answer, and reports a bad clip by itself. Behind a name with several
replicas it is spread over all of them, those included that come later.
"""

import asyncio
import contextlib
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
)
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt

from servox.errors import BadInput, BadSetting, NotFound, Overloaded, ServoxError, Unavailable
from servox.resending import embed_all, pause_s
from servox.rpc import Tls, channel, translated
from servox.v1 import common_pb2, embedder_pb2, embedder_pb2_grpc, prober_pb2, prober_pb2_grpc
from servox.wire import Floats, array_from_proto

Pooling = Literal["mean", "mean_std", "frames"]
Audio = bytes | Path | common_pb2.Audio
Clips = Iterable["Clip"] | AsyncIterable["Clip"]
T = TypeVar("T")

_POOLINGS: dict[str, embedder_pb2.Pooling] = {
    "mean": embedder_pb2.POOLING_MEAN,
    "mean_std": embedder_pb2.POOLING_MEAN_STD,
    "frames": embedder_pb2.POOLING_FRAMES,
}
ATTEMPTS = 5
CONNECT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Audio under a name of the caller's choice; a path is read when its turn comes."""

    id: str
    audio: Audio


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """What a clip became.

    Args:
        id: of the clip.
        array: float32 [layers, d], [layers, 2, d] or [frames, d], by pooling.
        layers: the first axis of `array`, unless frames were asked for.
        bundle: what made it; embeddings of different digests do not compare.
        timings: where the server's time went, in microseconds.
        duration_ms: of the audio that was embedded.
        truncated: whether the clip was longer.
    """

    id: str
    array: Floats
    layers: tuple[int, ...]
    bundle: common_pb2.Bundle
    timings: common_pb2.Timings
    duration_ms: int
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Why one clip has no embedding while the others have theirs."""

    id: str
    error: ServoxError


def files(*paths: Path | str) -> list[Clip]:
    """Files as clips named by their paths."""
    return [Clip(id=str(path), audio=Path(path)) for path in paths]


def pcm(samples: npt.ArrayLike, rate_hz: int) -> common_pb2.Audio:
    """Float samples [n] or [n, channels], full scale 1.0, as audio.

    Raises:
        BadInput: another number of dimensions.
    """
    values = np.asarray(samples, dtype="<f4")
    if values.ndim not in (1, 2):
        raise BadInput(f"samples of shape {values.shape}: give [n] or [n, channels]")
    channels = values.shape[1] if values.ndim == 2 else 1
    return common_pb2.Audio(
        pcm=common_pb2.Pcm(
            data=values.tobytes(), rate_hz=rate_hz, channels=channels, format=common_pb2.SAMPLE_FORMAT_F32
        )
    )


class Client:
    """Talks to an embedder, a prober, or both; use it inside the event loop that made it.

    Args:
        embedder: its address: `host:port`, `dns:///name:port` for all replicas, or `unix:/path`.
        prober: likewise.
        tls: whom to trust and who we are; None for plain text.
        in_flight: most clips sent and not answered.
        max_message_bytes: largest message in either direction.
    """

    def __init__(
        self,
        *,
        embedder: str | None = None,
        prober: str | None = None,
        tls: Tls | None = None,
        in_flight: int = 32,
        max_message_bytes: int = 64 << 20,
    ) -> None:
        self._addresses = {"embedder": embedder, "prober": prober}
        self._channels = {
            name: channel(address, max_message_bytes=max_message_bytes, tls=tls)
            for name, address in self._addresses.items()
            if address
        }
        self._in_flight = in_flight
        self._max_message_bytes = max_message_bytes

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        for each in self._channels.values():
            await each.close()

    async def describe(self) -> embedder_pb2.DescribeResponse:
        """What the embedder runs and accepts.

        Raises:
            Unavailable: nobody answers.
        """
        stub = embedder_pb2_grpc.EmbedderStub(self._channel("embedder"))  # type: ignore[no-untyped-call]
        answer: embedder_pb2.DescribeResponse = await self._retrying(
            "embedder", lambda: stub.Describe(embedder_pb2.DescribeRequest(), wait_for_ready=True, timeout=CONNECT_S)
        )
        return answer

    async def embed(
        self, clips: Clips, *, pooling: Pooling = "mean", layers: Iterable[int] = (), truncate_ms: int = 0
    ) -> AsyncGenerator[Embedding | Failed, None]:
        """Embeds clips and yields them as they finish, in no order.

        Args:
            clips: with unique ids; drawn from as answers come back.
            pooling: over each clip's own frames.
            layers: of the bundle; empty for its default layer.
            truncate_ms: cut longer audio here; 0 lets the server refuse it.

        Raises:
            BadInput: an id twice, an unknown pooling.
            Unavailable: the embedder stays away.
        """
        if pooling not in _POOLINGS:
            raise BadInput(f"pooling {pooling!r} is unknown: use {', '.join(_POOLINGS)}")
        wanted = tuple(layers)
        unreadable: asyncio.Queue[Failed] = asyncio.Queue()

        async def requests() -> AsyncIterator[tuple[str, embedder_pb2.EmbedRequest]]:
            async for clip in _each(clips):
                try:
                    audio = await _load(clip.audio)
                except ServoxError as error:
                    unreadable.put_nowait(Failed(id=clip.id, error=error))
                    continue
                yield (
                    clip.id,
                    embedder_pb2.EmbedRequest(
                        audio=audio, pooling=_POOLINGS[pooling], layers=wanted, truncate_ms=truncate_ms
                    ),
                )

        # An embedder that stays away is noticed here, before anything is read; 0 comes from one that names no limit.
        limit_bytes = min(self._max_message_bytes, (await self.describe()).max_message_bytes or self._max_message_bytes)
        stub = embedder_pb2_grpc.EmbedderStub(self._channel("embedder"))  # type: ignore[no-untyped-call]
        sent = embed_all(stub, requests(), in_flight=self._in_flight, max_message_bytes=limit_bytes)
        async with contextlib.aclosing(sent) as answers:
            async for name, outcome in answers:
                while not unreadable.empty():
                    yield unreadable.get_nowait()
                yield _answer(name, outcome)
        while not unreadable.empty():
            yield unreadable.get_nowait()

    async def recognize(
        self, audio: Audio, *, head: str, prior: prober_pb2.Prior | None = None, window_ms: int = 0, hop_ms: int = 0
    ) -> prober_pb2.RecognizeResponse:
        """Emotions of a clip.

        Args:
            audio: a file, its bytes, or `pcm(...)`.
            head: its name, or name:version.
            prior: the class prior to assume; None for the training set's.
            window_ms: length of the windows; 0 for the whole clip.
            hop_ms: from one window to the next; 0 for their length.

        Raises:
            BadInput, NotFound, HeadMismatch: what the prober refuses.
            Unavailable: it stays away.
        """
        config = prober_pb2.RecognizeConfig(head=head, prior=prior, window_ms=window_ms, hop_ms=hop_ms)
        request = prober_pb2.RecognizeRequest(audio=await _load(audio), config=config)
        stub = prober_pb2_grpc.ProberStub(self._channel("prober"))  # type: ignore[no-untyped-call]
        answer: prober_pb2.RecognizeResponse = await self._retrying("prober", lambda: stub.Recognize(request))
        return answer

    def _channel(self, name: str) -> Any:  # noqa: ANN401 -- generated stubs have no types
        if name not in self._channels:
            raise BadSetting(f"this client knows no {name}: give its address, as in Client({name}='localhost:...')")
        return self._channels[name]

    async def _retrying(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        for attempt in range(ATTEMPTS):
            try:
                with translated(f"{name} at {self._addresses[name]}"):
                    return await call()
            except (Overloaded, Unavailable) as error:
                if attempt == ATTEMPTS - 1:
                    raise
                await asyncio.sleep(pause_s(error, attempt))
        raise AssertionError("the last attempt returns or raises")


class SyncClient:
    """`Client` for code without an event loop: the same calls, each waiting for its answer.

    Takes the arguments of `Client`. Safe to use from several threads.
    """

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 -- those of Client
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="servox-client", daemon=True)
        self._thread.start()
        self._client = self._wait(_make(options))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections and ends the thread."""
        self._wait(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def describe(self) -> embedder_pb2.DescribeResponse:
        """`Client.describe`."""
        return self._wait(self._client.describe())

    def embed(
        self, clips: Iterable[Clip], *, pooling: Pooling = "mean", layers: Iterable[int] = (), truncate_ms: int = 0
    ) -> Iterator[Embedding | Failed]:
        """`Client.embed`."""
        answers = self._client.embed(clips, pooling=pooling, layers=layers, truncate_ms=truncate_ms)
        try:
            while (answer := self._wait(_next(answers))) is not None:
                yield answer
        finally:
            self._wait(_finish(answers))

    def recognize(
        self, audio: Audio, *, head: str, prior: prober_pb2.Prior | None = None, window_ms: int = 0, hop_ms: int = 0
    ) -> prober_pb2.RecognizeResponse:
        """`Client.recognize`."""
        return self._wait(self._client.recognize(audio, head=head, prior=prior, window_ms=window_ms, hop_ms=hop_ms))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


async def _make(options: dict[str, Any]) -> Client:
    return Client(**options)


async def _next(answers: AsyncGenerator[Embedding | Failed, None]) -> Embedding | Failed | None:
    return await anext(answers, None)


async def _finish(answers: AsyncGenerator[Embedding | Failed, None]) -> None:
    await answers.aclose()


async def _each(clips: Clips) -> AsyncIterator[Clip]:
    if isinstance(clips, AsyncIterable):
        async for clip in clips:
            yield clip
    else:
        for clip in clips:
            yield clip


async def _load(audio: Audio) -> common_pb2.Audio:
    if isinstance(audio, common_pb2.Audio):
        return audio
    if isinstance(audio, bytes):
        return common_pb2.Audio(container=audio)
    try:
        return common_pb2.Audio(container=await asyncio.to_thread(audio.read_bytes))
    except OSError as error:
        raise NotFound(f"{audio}: {error.strerror}; give a readable audio file") from None


def _answer(name: str, outcome: embedder_pb2.EmbedResponse | ServoxError) -> Embedding | Failed:
    if isinstance(outcome, ServoxError):
        return Failed(id=name, error=outcome)
    return Embedding(
        id=name,
        array=array_from_proto(outcome.embedding, name="embedding"),
        layers=tuple(outcome.layers),
        bundle=outcome.bundle,
        timings=outcome.timings,
        duration_ms=outcome.duration_ms,
        truncated=outcome.truncated,
    )
