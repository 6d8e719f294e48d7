"""What NVIDIA's tritonclient sees of an embedder; run by scripts/conformance.sh in an environment that has it.

Ends with one line of JSON: how many checks passed, and the embedding of a clip for whoever compares it. Exit code 1
with the first check that failed.
"""

import argparse
import asyncio
import io
import json
import queue
import sys
import wave
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf import descriptor_pb2
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

RATE = 16_000
CHECKS: list[str] = []


def check(name: str, good: object, why: str = "") -> None:
    """Counts a check, or ends with what failed."""
    if not good:
        sys.exit(f"{name}: {why or 'failed'}")
    CHECKS.append(name)


def tone(seconds: float, hz: float) -> np.ndarray:
    """A clip of mono float samples whose values 16 bit hold exactly."""
    time_s = np.arange(int(seconds * RATE)) / RATE
    return (np.round(0.3 * np.sin(2 * np.pi * hz * time_s) * 32768) / 32768).astype(np.float32)


def wav(samples: np.ndarray) -> bytes:
    """A wav file of 16 bit."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, RATE, 0, "NONE", ""))
        out.writeframes((samples * 32768).astype("<i2").tobytes())
    return file.getvalue()


def files_input(*files: bytes) -> triton.InferInput:
    """Input `audio`."""
    made = triton.InferInput("audio", [len(files)], "BYTES")
    made.set_data_from_numpy(np.array(files, dtype=np.object_))
    return made


def pcm_inputs(*clips: np.ndarray) -> list[triton.InferInput]:
    """Inputs `pcm` and `lengths`."""
    samples = np.zeros((len(clips), max(map(len, clips))), np.float32)
    for row, clip in zip(samples, clips, strict=True):
        row[: len(clip)] = clip
    pcm = triton.InferInput("pcm", list(samples.shape), "FP32")
    lengths = triton.InferInput("lengths", [len(clips)], "INT64")
    pcm.set_data_from_numpy(samples)
    lengths.set_data_from_numpy(np.array([len(clip) for clip in clips], np.int64))
    return [pcm, lengths]


def fields_of(message: descriptor_pb2.DescriptorProto, path: str = "") -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every field below a message type: its path, number, type and label."""
    for field in message.field:
        yield f"{path}{message.name}.{field.name}", (field.number, field.type, field.label)
    for nested in message.nested_type:
        yield from fields_of(nested, f"{path}{message.name}.")


def check_wire(ours: Path) -> None:
    """Every field of the contract has the number and type that tritonclient was generated with."""
    theirs = descriptor_pb2.FileDescriptorProto()
    service_pb2.DESCRIPTOR.CopyToProto(theirs)
    mine = descriptor_pb2.FileDescriptorProto.FromString(ours.read_bytes())
    known = {name: value for message in theirs.message_type for name, value in fields_of(message)}
    for message in mine.message_type:
        for name, value in fields_of(message):
            # Triton's copy of the protocol has no properties: a client skips a field that it does not know.
            if "roperties" not in name:
                check(f"wire {name}", known.get(name) == value, f"{value} here, {known.get(name)} in tritonclient")
    methods = {method.name for service in theirs.service for method in service.method}
    for method in mine.service[0].method:
        check(f"wire {method.name}", method.name in methods and theirs.package == mine.package)


def check_metadata(client: triton.InferenceServerClient, name: str) -> None:
    """Liveness, readiness, server and model metadata."""
    check("live", client.is_server_live())
    check("ready", client.is_server_ready())
    check("model ready", client.is_model_ready(name))
    check("another model is not ready", not client.is_model_ready("no-such-model"))
    server = client.get_server_metadata()
    check("server name", server.name == "servox" and server.version, str(server))
    model = client.get_model_metadata(name, as_json=True)
    check("inputs", [each["name"] for each in model["inputs"]] == ["audio", "pcm", "lengths"], str(model))
    check("model version", client.is_model_ready(name, model["versions"][0]), str(model))


def check_inference(client: triton.InferenceServerClient, name: str) -> np.ndarray:
    """Files and samples give the same; outputs, id and parameters are honoured."""
    clips = [tone(1.0, 220), tone(0.6, 330)]
    layers = {"layers": "all"}
    of_files = client.infer(name, [files_input(*map(wav, clips))], request_id="files", parameters=layers)
    of_pcm = client.infer(name, pcm_inputs(*clips), parameters=layers)
    statistics = of_files.as_numpy("statistics")
    check("shape", statistics.ndim == 4 and statistics.shape[0] == len(clips), str(statistics.shape))
    check("dtype", statistics.dtype == np.float32)
    check("finite", np.isfinite(statistics).all())
    check("files equal samples", np.allclose(statistics, of_pcm.as_numpy("statistics"), atol=1e-4))
    check("embedding", np.array_equal(of_files.as_numpy("embedding"), statistics[:, :, 0]))
    check("durations", of_files.as_numpy("duration_ms").tolist() == [1000, 600])
    check("truncated", of_files.as_numpy("truncated").tolist() == [False, False])
    check("id", of_files.get_response().id == "files")
    check("digest", len(of_files.get_response().parameters["bundle_digest"].string_param) == 64)
    check("timings", of_files.get_response().parameters["total_us"].int64_param > 0)
    wanted = [triton.InferRequestedOutput("duration_ms")]
    only = client.infer(name, pcm_inputs(clips[0]), outputs=wanted, compression_algorithm="gzip", priority=1)
    check("requested output", [each.name for each in only.get_response().outputs] == ["duration_ms"])
    check("output left out", only.as_numpy("embedding") is None)
    return of_files.as_numpy("embedding")[0]


def refused(client: triton.InferenceServerClient, *arguments: Any, **options: Any) -> tuple[str, str]:  # noqa: ANN401
    """Status and message of a call that fails."""
    try:
        client.infer(*arguments, **options)
    except InferenceServerException as error:
        return error.status(), error.message()
    return "StatusCode.OK", ""


def check_errors(client: triton.InferenceServerClient, name: str) -> None:
    """Bad requests come back as their status and a message that names what was wrong."""
    bad_clip = [files_input(wav(tone(0.3, 200)), b"no audio")]
    unknown = triton.InferInput("wave", [1, 8], "FP32")
    unknown.set_data_from_numpy(np.zeros((1, 8), np.float32))
    wrong_type = triton.InferInput("pcm", [1, 8], "FP64")
    wrong_type.set_data_from_numpy(np.zeros((1, 8), np.float64))
    shared = triton.InferInput("pcm", [1, 8], "FP32")
    shared.set_shared_memory("region", 32)
    good = pcm_inputs(tone(0.3, 200))
    cases = {
        "bad clip": ((name, bad_clip), {}, "INVALID_ARGUMENT", "clip 1"),
        "unknown input": ((name, [unknown]), {}, "INVALID_ARGUMENT", "'wave'"),
        "wrong datatype": ((name, [wrong_type]), {}, "INVALID_ARGUMENT", "FP64"),
        "shared memory": ((name, [shared]), {}, "INVALID_ARGUMENT", "shared_memory"),
        "unknown parameter": ((name, good), {"parameters": {"layer": 1}}, "INVALID_ARGUMENT", "'layer'"),
        "unknown output": (
            (name, good),
            {"outputs": [triton.InferRequestedOutput("logits")]},
            "INVALID_ARGUMENT",
            "'logits'",
        ),
        "classification": (
            (name, good),
            {"outputs": [triton.InferRequestedOutput("embedding", class_count=1)]},
            "INVALID_ARGUMENT",
            "classification",
        ),
        "unknown model": (("no-such-model", good), {}, "NOT_FOUND", name),
        "unknown version": ((name, good), {"model_version": "99"}, "NOT_FOUND", "'99'"),
        "too late": ((name, good), {"timeout": 1}, "DEADLINE_EXCEEDED", "passed"),
    }
    for case, (arguments, options, status, text) in cases.items():
        got = refused(client, *arguments, **options)
        check(case, got[0] == f"StatusCode.{status}" and text in got[1], str(got))


async def check_asyncio(address: str, name: str) -> None:
    """Tritonclient's own asyncio client, many calls at a time."""
    async with triton_aio.InferenceServerClient(address) as client:
        check("aio ready", await client.is_model_ready(name))
        calls = [client.infer(name, pcm_inputs(tone(0.2 + 0.01 * n, 200)), request_id=str(n)) for n in range(16)]
        answers = await asyncio.gather(*calls)
        check("aio ids", [each.get_response().id for each in answers] == [str(n) for n in range(16)])
        durations = [int(each.as_numpy("duration_ms")[0]) for each in answers]
        check("aio answers are their own", durations == [200 + 10 * n for n in range(16)], str(durations))


def check_callbacks(client: triton.InferenceServerClient, name: str) -> None:
    """The callback interface, and the deadline of gRPC."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    inputs = pcm_inputs(tone(0.3, 200))
    client.async_infer(name, inputs, callback=lambda result, error: answers.put((result, error)), client_timeout=30)
    result, error = answers.get(timeout=30)
    check("callback", error is None and result.as_numpy("duration_ms").tolist() == [300], str(error))


def main() -> None:
    """All checks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", help="host:port of the embedder")
    parser.add_argument("model", help="name of the model: --model-name of the embedder, else that of its source")
    parser.add_argument("--descriptor", type=Path, help="our FileDescriptorProto, to compare field by field")
    options = parser.parse_args()
    if options.descriptor:
        check_wire(options.descriptor)
    with triton.InferenceServerClient(options.address) as client:
        check_metadata(client, options.model)
        embedding = check_inference(client, options.model)
        check_errors(client, options.model)
        check_callbacks(client, options.model)
    asyncio.run(check_asyncio(options.address, options.model))
    report = {
        "client": f"tritonclient {version('tritonclient')}",
        "checks": len(CHECKS),
        "embedding": embedding.tolist(),
    }
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
