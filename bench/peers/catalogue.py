"""The servers that are compared: how each is started, what its requests look like, and the settings that were tried.

`TRIED` holds, for each peer, every setting that `python -m bench.servers --tune` measures; the comparison runs with the
first of each, or with the best that `--settings` names. All have the processors' worth of encoders with one thread
each, or one encoder with all threads.
"""

import base64
import json
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray

from bench.load import GrpcTarget, HttpTarget, Target
from bench.peers.options import GRPC_METHOD, Options
from services.embedder.settings import BUCKETS_S
from servox.v1 import common_pb2, embedder_pb2
from servox.wire import array_from_proto

Vector = NDArray[np.float32]
Setting = Mapping[str, float]

OURS = "servox"
JSON = {"Content-Type": "application/json"}
BYTES = {"Content-Type": "application/octet-stream"}
HEADER_LENGTH = "Inference-Header-Content-Length"


# One encoder a processor with one thread each, or one encoder with all threads (written for two processors).
EACH: Setting = {"workers": 2, "threads": 1}
ALL: Setting = {"workers": 1, "threads": 2}

TRIED: Mapping[str, Sequence[Setting]] = {
    "mosec": (
        {**EACH, "batch": 1, "queue": 64},
        {**EACH, "batch": 1, "queue": 32},
        {**EACH, "batch": 1, "queue": 1024},
        {**EACH, "batch": 2, "wait_ms": 1},
        {**EACH, "batch": 4, "wait_ms": 1},
        {**EACH, "batch": 4, "wait_ms": 5},
        {**EACH, "batch": 1, "decoders": 1},
        {**EACH, "batch": 4, "wait_ms": 1, "decoders": 1},
        {**ALL, "batch": 8, "wait_ms": 5, "decoders": 1},
    ),
    "litserve": (
        {**EACH, "batch": 1},
        {**EACH, "batch": 2, "wait_ms": 0},
        {**EACH, "batch": 4, "wait_ms": 0},
        {**EACH, "batch": 4, "wait_ms": 5},
        {**ALL, "batch": 1},
        {**ALL, "batch": 8, "wait_ms": 5},
    ),
    "grpcio": ({**EACH, "queue": 32}, {**EACH, "queue": 64}),
    "bentoml": (
        {**EACH, "batch": 4, "queue": 64},
        {**EACH, "batch": 2, "queue": 64},  # BentoML refuses batches of one
        {**EACH, "batch": 4, "queue": 32},
        {**ALL, "batch": 8, "queue": 64},
    ),
    "triton": (
        {**EACH, "batch": 1, "wait_ms": 0, "queue": 64},
        {**EACH, "batch": 1, "wait_ms": 0, "queue": 32},
        {**EACH, "batch": 2, "wait_ms": 0},
        {**EACH, "batch": 4, "wait_ms": 0},
        {**EACH, "batch": 4, "wait_ms": 2},
        {**ALL, "batch": 4, "wait_ms": 0},
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One server of the comparison.

    Args:
        name: of it.
        environment: which of the peers' environments it runs in; empty for the product's own.
        command: arguments after the interpreter, from its options.
        target: a connection, from its port and the clips.
        vector: the embedding in an answer.
    """

    name: str
    environment: str
    command: Callable[[Options], list[str]]
    target: Callable[[int, Sequence[bytes]], Target]
    vector: Callable[[bytes], Vector]


def options(*, bundle: Path, port: int, cores: int, deadline_ms: int, setting: Setting) -> Options:
    """What the server is told: `setting` over what fits the processors."""
    workers = round(setting.get("workers", cores))
    threads = round(setting.get("threads", 1))
    if workers * threads == 2 != cores:  # settings are written for two processors
        workers, threads = (cores, 1) if threads == 1 else (1, cores)
    return Options(
        bundle=str(bundle),
        port=port,
        workers=workers,
        threads=threads,
        batch=round(setting.get("batch", 1)),
        wait_ms=float(setting.get("wait_ms", 1)),
        queue=round(setting.get("queue", 64)),
        deadline_ms=deadline_ms,
        warm_s=BUCKETS_S,
        decoders=round(setting.get("decoders", 0)),
    )


def _ours(told: Options) -> list[str]:
    settings = {"bundle": told.bundle, "grpc-port": told.port, "metrics-port": 0, "log-level": "warning"}
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    return ["-c", "from services.cli import main; main()", "serve", "embedder", *flags]


def ours_body(clip: bytes) -> bytes:
    """A serialised EmbedRequest."""
    request = embedder_pb2.EmbedRequest(audio=common_pb2.Audio(container=clip))
    return bytes(request.SerializeToString())


def _grpc_target(method: str, body: Callable[[bytes], bytes]) -> Callable[[int, Sequence[bytes]], Target]:
    def target(port: int, clips: Sequence[bytes]) -> Target:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_retries", 0)])
        return GrpcTarget(channel, method, [body(clip) for clip in clips])

    return target


def _ours_vector(answer: bytes) -> Vector:
    message = embedder_pb2.EmbedResponse.FromString(answer)
    return np.asarray(array_from_proto(message.embedding), np.float32).reshape(-1)


def _json_target(path: str, body: Callable[[str], object]) -> Callable[[int, Sequence[bytes]], Target]:
    def target(port: int, clips: Sequence[bytes]) -> Target:
        bodies = [json.dumps(body(base64.b64encode(clip).decode())).encode() for clip in clips]
        return HttpTarget(f"http://127.0.0.1:{port}{path}", headers=JSON, bodies=bodies)

    return target


def _bytes_target(port: int, clips: Sequence[bytes]) -> Target:
    return HttpTarget(f"http://127.0.0.1:{port}/inference", headers=BYTES, bodies=clips)


def _triton_target(port: int, clips: Sequence[bytes]) -> Target:
    made = [_triton_body(clip) for clip in clips]
    return HttpTarget(
        f"http://127.0.0.1:{port}/v2/models/embed/infer",
        headers=BYTES,
        bodies=[body for body, _ in made],
        body_headers=[{HEADER_LENGTH: str(length)} for _, length in made],
    )


def _triton_body(clip: bytes) -> tuple[bytes, int]:
    """A request of the Open Inference Protocol with binary tensors, and the length of its JSON part."""
    # numpy drops zero bytes from the end of a byte string: one more byte keeps them.
    tensor = struct.pack("<I", len(clip) + 1) + clip + b"\x01"
    clip_tensor = {"name": "clip", "shape": [1, 1], "datatype": "BYTES"}
    header = json.dumps(
        {
            "inputs": [{**clip_tensor, "parameters": {"binary_data_size": len(tensor)}}],
            "outputs": [{"name": "vector", "parameters": {"binary_data": True}}],
        }
    ).encode()
    return header + tensor, len(header)


def _triton_vector(answer: bytes) -> Vector:
    _, end = json.JSONDecoder().raw_decode(answer[: answer.rfind(b"}") + 1].decode("latin-1"))
    return np.frombuffer(answer[end:], np.float32)


SERVERS: Mapping[str, Server] = {
    server.name: server
    for server in (
        Server(
            name=OURS,
            environment="",
            command=_ours,
            target=_grpc_target("/servox.v1.Embedder/Embed", ours_body),
            vector=_ours_vector,
        ),
        Server(
            name="mosec",
            environment="http",
            command=lambda _: ["-m", "bench.peers.mosec_server"],
            target=_bytes_target,
            vector=lambda answer: np.frombuffer(answer, np.float32),
        ),
        Server(
            name="litserve",
            environment="http",
            command=lambda _: ["-m", "bench.peers.litserve_server"],
            target=_json_target("/predict", lambda clip: {"clip": clip}),
            vector=lambda answer: np.frombuffer(base64.b64decode(json.loads(answer)["vector"]), np.float32),
        ),
        Server(
            name="grpcio",
            environment="",
            command=lambda _: ["-m", "bench.peers.grpc_server"],
            target=_grpc_target(GRPC_METHOD, bytes),
            vector=lambda answer: np.frombuffer(answer, np.float32),
        ),
        Server(
            name="bentoml",
            environment="http",
            command=lambda told: [
                *("-m", "bentoml", "serve", "bench.peers.bentoml_server:Service"),
                *("--host", "127.0.0.1", "--port", str(told.port)),
            ],
            target=_json_target("/embed", lambda clip: {"clips": [clip]}),
            vector=lambda answer: np.frombuffer(base64.b64decode(json.loads(answer)[0]), np.float32),
        ),
        Server(
            name="triton",
            environment="triton",
            command=lambda _: ["-m", "bench.peers.triton_server"],
            target=_triton_target,
            vector=_triton_vector,
        ),
    )
}


def interpreter(server: Server, environments: Path) -> str:
    """What runs a server."""
    return str(environments / server.environment / "bin" / "python") if server.environment else sys.executable


def best(name: str, tuned: Path | None) -> Setting:
    """The setting of a server that came out best, by `tuned`, what `bench.servers --tune` printed, where it says so."""
    if tuned:
        found = json.loads(tuned.read_text(encoding="utf-8").splitlines()[-1])["best"]
        if name in found:
            return dict(found[name])
    return TRIED.get(name, ({},))[0]
