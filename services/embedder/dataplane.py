"""From audio to embedding: what every transport calls, and the only place that knows the order of the stages.

    check → seat (admission) → decode (processes) → queue → device → choose layers and pooling

It knows nothing of gRPC. Times are of the monotonic clock; a deadline is checked before each stage that costs.
"""

import math
import time
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from servox.audio import Pcm
from servox.errors import BadInput, DeadlineExpired
from servox.tracing import record, span
from servox.visits import visit

from .bundle import Bundle
from .decoding import Decoder, guess_s
from .engine import Answer, Engine
from .gate import Gate, Seat
from .metrics import EmbedderMetrics

Pooling = Literal["mean", "mean_std", "frames"]

LONGEST_PATIENCE_MS = 10_000  # in which a clip is due in any case; see `batching`


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One clip and what is wanted of it.

    Args:
        audio: a whole file, or raw samples.
        pooling: over the clip's own frames.
        layers: numbers of the bundle's layers, in the order of the answer; empty for the default layer.
        truncate_ms: cut longer audio here; 0 refuses audio over the server's limit.
        patience_ms: what comes up to so much later may go before it.
    """

    audio: bytes | Pcm
    pooling: Pooling = "mean"
    layers: tuple[int, ...] = ()
    truncate_ms: int = 0
    patience_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Seconds that each stage took."""

    decode_s: float
    queue_s: float
    inference_s: float
    total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """An embedding: [layers, d], [layers, 2, d] or [frames, d], by pooling; and what it was made of."""

    embedding: npt.NDArray[np.float32]
    layers: tuple[int, ...]
    duration_ms: int
    truncated: bool
    spent: Spent


class Dataplane:
    """Embeds clips with one bundle.

    Args:
        bundle: what the engine runs.
        engine: the device and its queue.
        gate: admission.
        decoder: processes that decode.
        longest_s: the longest clip that the decoder lets through.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        engine: Engine,
        gate: Gate,
        decoder: Decoder,
        longest_s: float,
        metrics: EmbedderMetrics,
    ) -> None:
        self.bundle = bundle
        self._version = bundle.digest[:12]
        self._engine = engine
        self._gate = gate
        self._decoder = decoder
        self._longest_s = longest_s
        self._metrics = metrics

    async def embed(self, request: Request, *, deadline_s: float = math.inf) -> Embedded:
        """Embeds one clip, or refuses at once when the server is full or too busy to answer by `deadline_s`.

        Raises:
            BadInput: a request, or audio, that no retry will help.
            Overloaded: too much audio is in flight, or too much for this deadline.
            OverQuota: the caller has no audio left today.
            DeadlineExpired: the answer would come after `deadline_s`.
            Unavailable: the device is gone.
        """
        self._check(request)
        seat = self._gate.take(self._guess_s(request), deadline_s=deadline_s)
        return await self.embed_seated(request, seat, deadline_s=deadline_s)

    async def seat(self, request: Request) -> Seat:
        """Waits for admission of an item of a stream; give what comes to `embed_seated`, which hands it back."""
        return await self._gate.wait(self._guess_s(request))

    async def embed_seated(self, request: Request, seat: Seat, *, deadline_s: float = math.inf) -> Embedded:
        """Embeds one admitted clip; raises what `embed` raises, except `Overloaded`."""
        with seat:
            began_s = time.monotonic()
            rows = self._check(request)
            _in_time(deadline_s, began_s, "admitted")
            with span("decode"):
                clip = await self._decoder.decode(request.audio, truncate_ms=request.truncate_ms, deadline_s=deadline_s)
            decoded_s = time.monotonic()
            seat.amend(clip.duration_ms / 1000)
            visit().hear(clip.duration_ms / 1000)
            _in_time(deadline_s, decoded_s, "decoded")
            answer = await self._engine.run(
                clip.samples,
                frames=request.pooling == "frames",
                patience_s=request.patience_ms / 1000,
                deadline_s=deadline_s,
            )
            spent = Spent(
                decode_s=decoded_s - began_s,
                queue_s=answer.queue_s,
                inference_s=answer.inference_s,
                total_s=time.monotonic() - began_s,
            )
            self._observe(spent, clip.duration_ms)
            self._trace(answer, decoded_s, clip.duration_ms)
            return Embedded(
                embedding=self._pool(answer, request.pooling, rows, len(clip.samples)),
                layers=tuple(self.bundle.layers[row] for row in rows),
                duration_ms=clip.duration_ms,
                truncated=clip.truncated,
                spent=spent,
            )

    def _guess_s(self, request: Request) -> float:
        kept_s = request.truncate_ms / 1000 if request.truncate_ms > 0 else self._longest_s
        return guess_s(request.audio, longest_s=min(self._longest_s, kept_s))

    def _check(self, request: Request) -> list[int]:
        """Rows of the layers that were asked for, so that a bad request costs nothing more than this."""
        if request.pooling not in get_args(Pooling):
            raise BadInput(f"pooling {request.pooling!r} is unknown: use {', '.join(get_args(Pooling))}")
        if request.truncate_ms < 0:
            raise BadInput(f"truncate_ms = {request.truncate_ms} is negative: give milliseconds to keep, or 0")
        if not 0 <= request.patience_ms <= LONGEST_PATIENCE_MS:
            raise BadInput(f"patience_ms = {request.patience_ms}: give 0 to {LONGEST_PATIENCE_MS}")
        default = self.bundle.default_layer
        if len(request.layers) > len(self.bundle.layers):  # a message could name one layer millions of times
            held = len(self.bundle.layers)
            raise BadInput(f"{len(request.layers)} layers are asked for and the bundle holds {held}: name each once")
        if request.pooling == "frames" and request.layers not in ((), (default,)):
            raise BadInput(f"frames are of layer {default} only, not of {list(request.layers)}: leave layers empty")
        return [self.bundle.layer_index(layer) for layer in request.layers or (default,)]

    def _pool(self, answer: Answer, pooling: Pooling, rows: list[int], samples: int) -> npt.NDArray[np.float32]:
        if pooling == "frames" and answer.frames is not None:
            return answer.frames[: self.bundle.frames(samples)]
        chosen = answer.statistics[rows]
        return chosen[:, 0] if pooling == "mean" else chosen

    def _trace(self, answer: Answer, queued_s: float, duration_ms: int) -> None:
        began_s = queued_s + answer.queue_s
        record("queue", began_s=queued_s, ended_s=began_s)
        record(
            "inference",
            began_s=began_s,
            ended_s=began_s + answer.inference_s,
            audio_ms=duration_ms,
            batch_clips=answer.batch_clips,
            bundle=self._version,
        )

    def _observe(self, spent: Spent, duration_ms: int) -> None:
        self._metrics.decode.observe(spent.decode_s)
        self._metrics.queue.observe(spent.queue_s)
        self._metrics.inference.observe(spent.inference_s)
        self._metrics.total.observe(spent.total_s)
        self._metrics.audio.observe(duration_ms / 1000)


def _in_time(deadline_s: float, now: float, stage: str) -> None:
    if deadline_s <= now:
        raise DeadlineExpired(f"the deadline passed by the time the clip was {stage}; allow more time or send less")
