"""Damaged audio files against a running embedder: what it answered, and whether it is as well as before.

    nice -n 10 python -m bench.fuzz --inputs 100000 [--seed 0] [--streams 4] [--bundle DIR]

Whole files of fourteen kinds are cut, flipped, spliced, repeated, and given absurd sizes, by a generator that makes the
same input again from the same seed and number; one in ten is noise behind a known first word. Each goes through
EmbedStream to a server process of its own. Every input must be answered, with an embedding or with an error that its
decoder foresaw; afterwards the server must be SERVING, hold nothing, and embed a whole file to the same bits as before.
Ends with one line of JSON; the exit code is 1 if anything of this does not hold.
"""

import argparse
import asyncio
import io
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import grpc
import numpy as np
import soundfile
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.embedder.speechlike import speechlike
from servox.errors import BadAudio, TooLarge, leaves
from servox.v1 import common_pb2, embedder_pb2, embedder_pb2_grpc

RATE_HZ, CLIP_S = 16_000, 0.4
WORDS = (
    *(b"RIFF\xff\xff\xff\x7fWAVEfmt ", b"OggS\0\2", b"ID3\4\0\0", b"\xff\xfb\x90\0", b"fLaC\0\0\0\x22"),
    *(b"\0\0\0 ftyp", b"\x1aE\xdf\xa3", b"FORM\0\0\1\0AIFF", b".snd", b"caff\0\1", b"riff", b"#EXTM3U\n"),
    *(b"ffconcat version 1.0\n", b"v=0\r\n", b""),
)
SIZES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
FORESEEN = {"ok", TooLarge.__name__, BadAudio.__name__, *(kind.__name__ for kind in leaves(BadAudio))}
Rng = np.random.Generator


def whole_files() -> list[bytes]:
    """One short clip in every kind of file that is accepted."""
    samples = speechlike(0, duration_s=CLIP_S, rate_hz=RATE_HZ)
    kinds = (("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("WAV", "IMA_ADPCM"), ("FLAC", "PCM_16"),
             ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None), ("AIFF", "PCM_24"), ("CAF", "ALAC_16"))  # fmt: skip
    files = []
    for kind, subtype in kinds:
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, RATE_HZ, format=kind, subtype=subtype)
        files.append(buffer.getvalue())
    for kind, codec in (("ipod", "aac"), ("mp4", "aac"), ("webm", "libopus"), ("avi", "mp3")):
        files.append(_contained(samples, kind, codec))
    return files


def _contained(samples: Any, kind: str, codec: str) -> bytes:  # noqa: ANN401 -- an array
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream: Any = container.add_stream(codec, rate=RATE_HZ, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate, frame.time_base = RATE_HZ, Fraction(1, RATE_HZ)
        fifo = av.AudioFifo()
        fifo.write(frame)
        while (piece := fifo.read(1024, partial=True)) is not None:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def damaged(files: Sequence[bytes], rng: Rng) -> bytes:
    """One input: a whole file with one to four kinds of damage, or noise behind a known first word."""
    if rng.random() < 0.1:
        return WORDS[rng.integers(len(WORDS))] + rng.bytes(int(rng.integers(0, 4000)))
    data = bytearray(files[int(rng.integers(len(files)))])
    for _ in range(int(rng.integers(1, 5))):
        DAMAGES[rng.integers(len(DAMAGES))](data, rng, files)
    return bytes(data)


def _at(data: bytearray, rng: Rng) -> int:
    """A place in the file; half of them in its first bytes, where headers are."""
    end = min(len(data), 128) if rng.random() < 0.5 else len(data)
    return int(rng.integers(0, max(1, end)))


def _cut(data: bytearray, rng: Rng, _: Sequence[bytes]) -> None:
    del data[_at(data, rng) :]


def _flip(data: bytearray, rng: Rng, _: Sequence[bytes]) -> None:
    for _number in range(int(rng.integers(1, 17))):
        if data:
            data[_at(data, rng) % len(data)] ^= 1 << int(rng.integers(8))


def _resize(data: bytearray, rng: Rng, _: Sequence[bytes]) -> None:
    at, width = _at(data, rng), int(rng.choice((1, 2, 4)))
    value = SIZES[rng.integers(len(SIZES))] & ((1 << 8 * width) - 1)
    data[at : at + width] = value.to_bytes(width, "little" if rng.random() < 0.5 else "big")


def _splice(data: bytearray, rng: Rng, files: Sequence[bytes]) -> None:
    other = files[int(rng.integers(len(files)))]
    data[_at(data, rng) :] = other[int(rng.integers(len(other))) :]


def _repeat(data: bytearray, rng: Rng, _: Sequence[bytes]) -> None:
    at, size = _at(data, rng), int(rng.integers(1, 400))
    data[at:at] = data[at : at + size] * int(rng.integers(1, 9))


def _remove(data: bytearray, rng: Rng, _: Sequence[bytes]) -> None:
    at = _at(data, rng)
    del data[at : at + int(rng.integers(1, 200))]


DAMAGES = (_cut, _flip, _flip, _resize, _resize, _splice, _repeat, _remove)


# ---- the server, and what is known of it -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server process."""

    pid: int
    address: str
    metrics_port: int

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its name with labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[:1] != "#")}

    def memory_mb(self) -> float:
        """Resident memory of the server itself."""
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())
        return int(found[1]) / 1024 if found else 0.0


@contextmanager
def running(bundle: Path, *flags: str, metrics_port: int) -> Iterator[Running]:
    """A server by the command line that an image starts; killed at the end if it does not stop by itself."""
    command = [sys.executable, "-c", "from services.cli import main; main()", "serve", "embedder"]
    ports = ["--bundle", str(bundle), "--grpc-port", "0", "--metrics-port", str(metrics_port)]
    with subprocess.Popen([*command, *ports, *flags], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        try:
            address = next(found[1] for line in process.stderr if (found := re.match(r"serving on (\S+)", line)))
            threading.Thread(target=process.stderr.read, daemon=True).start()  # or the pipe fills, and the server waits
            yield Running(pid=process.pid, address=address, metrics_port=metrics_port)
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


async def answers(address: str, inputs: Iterator[tuple[int, bytes]], *, streams: int) -> AsyncIterator[tuple[int, str]]:
    """The outcome of each input by its number: ok, the class of its error, or the code that ended its stream."""
    found: asyncio.Queue[tuple[int, str] | None] = asyncio.Queue()

    async def work() -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = embedder_pb2_grpc.EmbedderStub(channel)  # type: ignore[no-untyped-call]
            while part := [each for _, each in zip(range(200), inputs, strict=False)]:
                unanswered = dict(part)
                messages = [
                    embedder_pb2.EmbedStreamRequest(
                        id=str(number), request=embedder_pb2.EmbedRequest(audio=common_pb2.Audio(container=data))
                    )
                    for number, data in part
                ]
                try:
                    async for answer in stub.EmbedStream(iter(messages)):
                        del unanswered[int(answer.id)]
                        found.put_nowait((int(answer.id), _outcome(answer)))
                except grpc.aio.AioRpcError as error:
                    for number in unanswered:
                        found.put_nowait((number, f"stream ended: {error.code().name}"))
        found.put_nowait(None)

    tasks = [asyncio.create_task(work()) for _ in range(streams)]
    left = streams
    while left:
        if (each := await found.get()) is None:
            left -= 1
        else:
            yield each
    await asyncio.gather(*tasks)


def _outcome(answer: embedder_pb2.EmbedStreamResponse) -> str:
    if answer.WhichOneof("result") == "response":
        return "ok"
    unforeseen = answer.failure.message.startswith("the decoder fails on")
    return "unforeseen" if unforeseen else answer.failure.kind


async def embedded(address: str, data: bytes) -> bytes:
    """The embedding of a whole file."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = embedder_pb2_grpc.EmbedderStub(channel)  # type: ignore[no-untyped-call]
        request = embedder_pb2.EmbedRequest(audio=common_pb2.Audio(container=data))
        return bytes((await stub.Embed(request, timeout=60)).embedding.data)


async def serving(address: str) -> bool:
    """Whether the server says that it serves."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=60)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


# ---- the run -----------------------------------------------------------------------------------------------------


async def fuzz(server: Running, *, inputs: int, seed: int, streams: int) -> dict[str, Any]:
    """Everything that happened."""
    files = whole_files()
    numbered = ((n, damaged(files, np.random.default_rng((seed, n)))) for n in range(inputs))
    before, memory_mb, began_s = await embedded(server.address, files[0]), server.memory_mb(), time.monotonic()
    outcomes: Counter[str] = Counter()
    odd: list[int] = []
    async for number, outcome in answers(server.address, numbered, streams=streams):
        outcomes[outcome] += 1
        if outcome not in FORESEEN:
            odd.append(number)
        if outcomes.total() % 10_000 == 0:
            print(outcomes.total(), dict(outcomes), flush=True)
    metrics = await asyncio.to_thread(server.metrics)
    restarts = "servox_embedder_decode_restarts_total"
    return {
        "bench": "fuzz",
        "inputs": inputs,
        "seed": seed,
        "outcomes": dict(outcomes.most_common()),
        "odd": sorted(odd)[:20],
        "decode_restarts": {k.split('"')[1]: int(v) for k, v in metrics.items() if k.startswith(restarts) and v},
        "inflight_audio_s": metrics["servox_embedder_inflight_audio_seconds"],
        "serving": await serving(server.address),
        "same_bits": await embedded(server.address, files[0]) == before,
        "memory_mb": [round(memory_mb), round(server.memory_mb())],
        "inputs_per_s": round(inputs / (time.monotonic() - began_s)),
    }


def sound(found: dict[str, Any]) -> bool:
    """Whether the server came out of it as it went in, with every input answered by itself."""
    answered = set(found["outcomes"]) <= FORESEEN
    all_there = sum(found["outcomes"].values()) == found["inputs"]
    return bool(answered and all_there and found["serving"] and found["same_bits"] and not found["inflight_audio_s"])


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--metrics-port", type=int, default=9191)
    parser.add_argument("--bundle", type=Path, help="bundle to serve; one of log-mel features is exported if not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle or Path(folder) / "logmel"
        if not options.bundle:
            export = [sys.executable, "-c", "from services.cli import main; main()", "export", "logmel"]
            subprocess.run([*export, "--out", str(bundle)], check=True, stdout=subprocess.DEVNULL)
        with running(bundle, metrics_port=options.metrics_port) as server:
            work = fuzz(server, inputs=options.inputs, seed=options.seed, streams=options.streams)
            found = asyncio.run(work)
    for outcome, count in found["outcomes"].items():
        print(f"{outcome:>12}  {count}")
    print(json.dumps(found))
    sys.exit(not sound(found))


if __name__ == "__main__":
    main()
