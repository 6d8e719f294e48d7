"""The Python client: audio in, embeddings or emotions out, over gRPC.

    async with Client(prober="localhost:50052") as client:
        answer = await client.recognize(Path("clip.wav"), head="emodb-mlp")
        print(answer.overall.label, answer.overall.confidence)

        async for heard in client.stream(Microphone(), head="emodb-mlp", window_ms=3000, hop_ms=1000):
            print(heard.window.start_ms, heard.window.label)

`SyncClient` has the same methods for code without an event loop. Bulk work keeps a bounded number of clips in flight,
resends what a full or restarting server did not answer, and reports a bad clip by itself. Behind a name with several
replicas it is spread over all of them, those included that come later.
"""

import asyncio
import contextlib
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
)
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from servox.answers import (
    Abstention,
    Bundle,
    CalibrationState,
    Embedding,
    Failed,
    Head,
    HeadSummary,
    Heard,
    Recognition,
    Stage,
    Timings,
    UsedCalibration,
    Window,
)
from servox.capture import Microphone
from servox.errors import BadInput, BadSetting, DeadlineExpired, Overloaded, ServoxError, Unavailable
from servox.live import Asked, Encoded, Recording, Sound, late, stream
from servox.operating import (
    Comparison,
    GateResult,
    HeadEvent,
    Operating,
    Promoted,
    Rollout,
    ShadowFigures,
    StageFigures,
)
from servox.replies import bundle_from_proto, recognition_from_proto, summary_from_proto, timings_from_proto
from servox.resending import embed_all, pause_s
from servox.rpc import Tls, channel, translated
from servox.sources import Audio, Clip, Source, each, files, load, opened, pcm
from servox.sync import SyncClient
from servox.tally import together
from servox.tracing import CLOCKS_S
from servox.v1 import embedder_pb2, embedder_pb2_grpc, prober_pb2, prober_pb2_grpc
from servox.wire import array_from_proto

__all__ = [
    "Abstention",
    "Audio",
    "Bundle",
    "CalibrationState",
    "Client",
    "Clip",
    "Clips",
    "Comparison",
    "Embedding",
    "Failed",
    "GateResult",
    "Head",
    "HeadEvent",
    "HeadSummary",
    "Heard",
    "Microphone",
    "Pooling",
    "Prior",
    "Promoted",
    "Recognition",
    "Rollout",
    "ShadowFigures",
    "Source",
    "Stage",
    "StageFigures",
    "SyncClient",
    "Timings",
    "Tls",
    "UsedCalibration",
    "Window",
    "files",
    "pcm",
    "together",
]

Pooling = Literal["mean", "mean_std", "frames"]
Clips = Iterable[Clip] | AsyncIterable[Clip]
Prior = Literal["train", "uniform", "estimated", "estimated-em", "tenant"] | Mapping[str, float]
T = TypeVar("T")

_POOLINGS: dict[str, embedder_pb2.Pooling] = {
    "mean": embedder_pb2.POOLING_MEAN,
    "mean_std": embedder_pb2.POOLING_MEAN_STD,
    "frames": embedder_pb2.POOLING_FRAMES,
}
_PRIORS = {
    "train": prober_pb2.Prior.KIND_TRAIN,
    "uniform": prober_pb2.Prior.KIND_UNIFORM,
    "estimated": prober_pb2.Prior.KIND_ESTIMATED,
    "estimated-em": prober_pb2.Prior.KIND_ESTIMATED_EM,
    "tenant": prober_pb2.Prior.KIND_TENANT,
}
ATTEMPTS = 5
CONNECT_S = 30.0
RECONNECT_S = 30.0


class Client(Operating):
    """Talks to an embedder, a prober, or both; use it inside the event loop that made it.

    Args:
        embedder: its address: `host:port`, `dns:///name:port` for all replicas, or `unix:/path`.
        prober: likewise.
        tls: whom to trust and who we are; None for plain text.
        key: API key or token that every call shows, or what tells the present one; None for none.
        in_flight: most clips sent and not answered.
        max_message_bytes: largest message in either direction.
    """

    def __init__(
        self,
        *,
        embedder: str | None = None,
        prober: str | None = None,
        tls: Tls | None = None,
        key: str | Callable[[], str] | None = None,
        in_flight: int = 32,
        max_message_bytes: int = 64 << 20,
    ) -> None:
        self._addresses = {"embedder": embedder, "prober": prober}
        self._channels = {
            name: channel(address, max_message_bytes=max_message_bytes, tls=tls, key=key)
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
        for one in self._channels.values():
            await one.close()

    async def describe(self, *, timeout_s: float | None = None) -> embedder_pb2.DescribeResponse:
        """What the embedder runs and accepts.

        Raises:
            Unavailable: nobody answers.
            DeadlineExpired: not within `timeout_s`.
        """
        stub = embedder_pb2_grpc.EmbedderStub(self._channel("embedder"))  # type: ignore[no-untyped-call]
        answer: embedder_pb2.DescribeResponse = await self._retrying(
            "embedder",
            lambda left_s: stub.Describe(
                embedder_pb2.DescribeRequest(),
                wait_for_ready=True,
                timeout=CONNECT_S if left_s is None else min(CONNECT_S, left_s),
            ),
            timeout_s,
        )
        return answer

    async def embed(
        self,
        clips: Clips,
        *,
        pooling: Pooling = "mean",
        layers: Iterable[int] = (),
        truncate_ms: int = 0,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Embedding | Failed, None]:
        """Embeds clips and yields them as they finish, in no order.

        Args:
            clips: with unique ids; drawn from as answers come back.
            pooling: over each clip's own frames.
            layers: of the bundle; empty for its default layer.
            truncate_ms: cut longer audio here; 0 lets the server refuse it.
            timeout_s: for all clips, further attempts and what the caller does between answers included; None for as
                long as it takes.

        Raises:
            BadInput: an id twice, an unknown pooling.
            Unavailable: the embedder stays away.
            DeadlineExpired: not finished within `timeout_s`; what was answered until then has been yielded.
        """
        ends_s = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        if pooling not in _POOLINGS:
            raise BadInput(f"pooling {pooling!r} is unknown: use {', '.join(_POOLINGS)}")
        wanted = tuple(layers)
        unreadable: asyncio.Queue[Failed] = asyncio.Queue()

        async def requests() -> AsyncIterator[tuple[str, embedder_pb2.EmbedRequest]]:
            async for clip in each(clips):
                try:
                    audio = await load(clip.audio)
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
        described = await self.describe(timeout_s=timeout_s)
        limit_bytes = min(self._max_message_bytes, described.max_message_bytes or self._max_message_bytes)
        stub = embedder_pb2_grpc.EmbedderStub(self._channel("embedder"))  # type: ignore[no-untyped-call]
        sent = embed_all(stub, requests(), in_flight=self._in_flight, max_message_bytes=limit_bytes)
        async with contextlib.aclosing(sent) as answers:
            while answer := await self._in_time(anext(answers, None), ends_s, timeout_s):
                while not unreadable.empty():
                    yield unreadable.get_nowait()
                yield _answer(*answer)
        while not unreadable.empty():
            yield unreadable.get_nowait()

    async def recognize(
        self,
        audio: Audio | str,
        *,
        head: str,
        prior: Prior = "train",
        window_ms: int = 0,
        hop_ms: int = 0,
        every_window: bool = False,
        tenant: str = "",
        uncalibrated: bool = False,
        purpose: str = "",
        session: str = "",
        timeout_s: float | None = None,
    ) -> Recognition:
        """Emotions of a clip.

        Args:
            audio: a file, its bytes, or `pcm(...)`.
            head: its name, or name:version.
            prior: the class prior to assume: that of the training set, equal shares, a probability for each class, or
                what the tenant's own speech shows.
            window_ms: length of the windows; 0 for the whole clip.
            hop_ms: from one window to the next; 0 for their length.
            every_window: answer windows without speech as well.
            tenant: whose calibration answers; the caller's own if empty.
            uncalibrated: answer also what the head says without that calibration.
            purpose: what the answers are for; needed where the deployment's policy asks.
            session: who is asking, so that a canary stays with them.
            timeout_s: for all of it, further attempts included; None for as long as it takes.

        Raises:
            BadInput, NotFound, HeadMismatch: what the prober refuses.
            Overloaded, Unavailable: it stays full, or away.
            DeadlineExpired: no answer within `timeout_s`.
        """
        config = prober_pb2.RecognizeConfig(
            head=head,
            prior=_prior(prior),
            window_ms=window_ms,
            hop_ms=hop_ms,
            every_window=every_window,
            tenant=tenant,
            uncalibrated=uncalibrated,
            purpose=purpose,
            session=session,
        )
        request = prober_pb2.RecognizeRequest(audio=await load(audio), config=config)
        stub = prober_pb2_grpc.ProberStub(self._channel("prober"))  # type: ignore[no-untyped-call]
        answer: prober_pb2.RecognizeResponse = await self._retrying(
            "prober", lambda left_s: stub.Recognize(request, timeout=left_s), timeout_s
        )
        return recognition_from_proto(answer)

    async def stream(
        self,
        source: Source,
        *,
        head: str,
        window_ms: int,
        hop_ms: int = 0,
        prior: Prior = "train",
        every_window: bool = False,
        tenant: str = "",
        uncalibrated: bool = False,
        purpose: str = "",
        session: str = "",
        rate_hz: int | None = None,
        timeout_s: float | None = None,
        reconnect_s: float = RECONNECT_S,
    ) -> AsyncGenerator[Heard, None]:
        """Windows of audio as it comes, in their order, each as soon as it is whole.

        A lost connection is opened again and nothing is lost or answered twice.

        Args:
            source: a file of any length, its bytes, a `Microphone`, or chunks of samples, [n] or [n, channels], float
                (full scale 1.0) or int16; a plain iterator is asked in a thread, so it may wait.
            head: its name, or name:version.
            window_ms: length of the windows.
            hop_ms: from one window to the next; 0 for their length.
            prior: as in `recognize`.
            every_window: answer windows without speech as well.
            tenant: as in `recognize`, like the next three.
            uncalibrated: likewise.
            purpose: likewise.
            session: likewise.
            rate_hz: of chunks of samples; a file and a microphone know their own.
            timeout_s: for all of it; None for as long as it takes.
            reconnect_s: how long to go on trying when the prober is away, or full.

        Raises:
            BadSetting: chunks without a rate.
            BadInput, NotFound, HeadMismatch: what the prober refuses.
            Overloaded, Unavailable: it stays full, or away.
            DeadlineExpired: not finished within `timeout_s`, or the source sent nothing for longer than the prober
                waits.
        """
        config = prober_pb2.RecognizeConfig(
            head=head,
            prior=_prior(prior),
            window_ms=window_ms,
            hop_ms=hop_ms,
            every_window=every_window,
            tenant=tenant,
            uncalibrated=uncalibrated,
            purpose=purpose,
            session=session,
        )
        found = await asyncio.to_thread(opened, source, rate_hz)
        sound: Sound = (
            Encoded(found) if isinstance(found, bytes | Path) else Recording(found, window_ms=window_ms, hop_ms=hop_ms)
        )
        stub = prober_pb2_grpc.ProberStub(self._channel("prober"))  # type: ignore[no-untyped-call]
        asked = Asked(config=config, peer=self._peer("prober"), timeout_s=timeout_s, reconnect_s=reconnect_s)
        async with contextlib.aclosing(stream(stub, sound, asked)) as answers:
            async for heard in answers:
                yield heard

    async def heads(self, prefix: str = "", *, timeout_s: float | None = None) -> list[HeadSummary]:
        """Heads whose name begins with `prefix`.

        Raises:
            Unavailable: the prober stays away.
            DeadlineExpired: no answer within `timeout_s`.
        """
        stub = prober_pb2_grpc.ProberStub(self._channel("prober"))  # type: ignore[no-untyped-call]
        request = prober_pb2.ListHeadsRequest(prefix=prefix)
        answer: prober_pb2.ListHeadsResponse = await self._retrying(
            "prober", lambda left_s: stub.ListHeads(request, timeout=left_s), timeout_s
        )
        return [summary_from_proto(summary) for summary in answer.heads]

    def _channel(self, name: str) -> Any:  # noqa: ANN401 -- generated stubs have no types
        if name not in self._channels:
            raise BadSetting(f"this client knows no {name}: give its address, as in Client({name}='localhost:...')")
        return self._channels[name]

    def _peer(self, name: str) -> str:
        return f"{name} at {self._addresses[name]}"

    async def _in_time(self, answer: Awaitable[T], ends_s: float | None, timeout_s: float | None) -> T:
        """The embedder's next answer; at `ends_s` of the loop's clock it is cancelled, and with it the call."""
        timer = asyncio.timeout_at(ends_s)
        try:
            async with timer:
                return await answer
        except TimeoutError:
            if timeout_s is None or not timer.expired():
                raise  # the source's own
            raise late(self._peer("embedder"), timeout_s) from None

    async def _retrying(
        self, name: str, call: Callable[[float | None], Awaitable[T]], timeout_s: float | None = None
    ) -> T:
        """The answer of a call that is given the time that is left; what may succeed later is tried again."""
        ends_s = None if timeout_s is None else time.monotonic() + timeout_s
        for attempt in range(ATTEMPTS):
            left_s = None if ends_s is None else max(0.0, ends_s - time.monotonic())
            try:
                with translated(self._peer(name)):
                    return await call(left_s)
            except (Overloaded, Unavailable) as error:
                wait_s = pause_s(error, attempt)
                if attempt == ATTEMPTS - 1 or (ends_s is not None and time.monotonic() + wait_s >= ends_s):
                    raise
                await asyncio.sleep(wait_s)
            except DeadlineExpired:
                if timeout_s is None or ends_s is None or time.monotonic() < ends_s - CLOCKS_S:
                    raise
                raise late(self._peer(name), timeout_s) from None
        raise AssertionError("the last attempt returns or raises")


def _prior(prior: Prior) -> prober_pb2.Prior:
    if isinstance(prior, Mapping):
        return prober_pb2.Prior(kind=prober_pb2.Prior.KIND_EXPLICIT, probabilities=prior)
    if prior not in _PRIORS:
        raise BadInput(f"prior {prior!r} is unknown: give {', '.join(_PRIORS)} or a probability for each class")
    return prober_pb2.Prior(kind=_PRIORS[prior])


def _answer(name: str, outcome: embedder_pb2.EmbedResponse | ServoxError) -> Embedding | Failed:
    if isinstance(outcome, ServoxError):
        return Failed(id=name, error=outcome)
    return Embedding(
        id=name,
        array=array_from_proto(outcome.embedding, name="embedding"),
        layers=tuple(outcome.layers),
        bundle=bundle_from_proto(outcome.bundle),
        timings=timings_from_proto(outcome.timings),
        duration_ms=outcome.duration_ms,
        truncated=outcome.truncated,
    )
