"""`servox recognize` against a prober that runs: formats, windows, abstentions, and what goes wrong."""
# ruff: noqa: ANN401 -- JSON and gRPC's servicers have no types worth naming here

import csv
import io
import json
import os
import subprocess
import sys
import textwrap
import threading
import wave
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from services.hearing import prior_of
from services.recognizing import recognize
from servox.client import SyncClient, together
from servox.errors import BadAudio, BadSetting, NotFound, ServoxError
from servox.rpc import Server
from servox.v1 import common_pb2, prober_pb2, prober_pb2_grpc

RATE = 8000


class Prober(prober_pb2_grpc.ProberServicer):
    """Hears anger in odd windows, silence in the first, something strange in the second."""

    async def Recognize(self, request: prober_pb2.RecognizeRequest, context: Any) -> Any:  # noqa: ARG002, N802
        if request.config.head != "toy":
            raise NotFound(f"head {request.config.head!r}: there is none of that name; list the heads, or train one")
        if not request.audio.container.startswith(b"RIFF"):
            raise BadAudio("not audio: [n, 2]")
        return prober_pb2.RecognizeResponse(
            overall=window(3), windows=[window(3)], head=HEAD, bundle=BUNDLE, prior=PRIOR
        )

    async def RecognizeStream(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ARG002, N802
        async for _ in request_iterator:
            pass
        for index in range(4):
            yield prober_pb2.RecognizeStreamResponse(window=window(index), head=HEAD, bundle=BUNDLE, prior=PRIOR)


HEAD, BUNDLE = common_pb2.Head(name="toy", version="a1", digest="d"), common_pb2.Bundle(digest="b")
PRIOR = prober_pb2.Prior(probabilities={"anger": 0.5, "sadness": 0.5})


def window(index: int) -> prober_pb2.Window:
    found = prober_pb2.Window(index=index, start_ms=index * 1000, end_ms=index * 1000 + 3000)
    if index == 0:
        found.abstention = prober_pb2.ABSTENTION_SILENCE
        return found
    if index == 1:
        found.abstention, found.novelty = prober_pb2.ABSTENTION_OUT_OF_DISTRIBUTION, 1.25
    anger = 0.75 if index % 2 else 0.25
    found.label, found.confidence = ("anger", anger) if anger > 0.5 else ("sadness", 1 - anger)
    for label, value in (("anger", anger), ("sadness", 1 - anger)):
        found.probabilities.add(label=label, probability=value)
    return found


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A prober in a thread of its own: the command runs an event loop itself."""
    import asyncio

    loop, name = asyncio.new_event_loop(), f"unix:{tmp_path / 'p.sock'}"
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = Server(address=name, services=[], max_message_bytes=1 << 24, drain_grace_s=0)

    async def start() -> None:
        prober_pb2_grpc.add_ProberServicer_to_server(Prober(), server.grpc)  # type: ignore[no-untyped-call]
        await server.start()

    asyncio.run_coroutine_threadsafe(start(), loop).result()
    yield name
    asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    with wave.open(str(tmp_path / "clip.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.zeros(RATE, dtype="<i2").tobytes())
    return tmp_path / "clip.wav"


def run(*arguments: object) -> tuple[int, str, str]:
    import typer

    app = typer.Typer()
    app.command()(recognize)
    done = CliRunner().invoke(app, [str(each) for each in arguments], env={"COLUMNS": "200"})
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def test_a_table_shows_windows_and_why_some_abstain(address: str, clip: Path) -> None:
    code, out, _ = run(clip, "--head", "toy", "--address", address, "--window", 3, "--hop", 1, "--json")
    assert code == 0
    lines = [line for line in out.splitlines() if "clip.wav" in line]
    assert ["silence" in line for line in lines[:4]] == [True, False, False, False]
    assert "anger?" in lines[1]
    assert "out of distribution" in lines[1]
    assert "sadness" in lines[2]
    document = json.loads(out.splitlines()[-1])["files"][0]
    assert [each["abstention"] for each in document["windows"]] == ["silence", "out_of_distribution", None, None]
    assert (document["head"], document["label"], document["confidence"]) == ("toy:a1", "anger", 0.5)


def test_csv_holds_a_row_a_window(address: str, clip: Path, tmp_path: Path) -> None:
    code, out, _ = run(clip, "--head", "toy", "--address", address, "--window", 3, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert [row["p_anger"] for row in rows] == ["", "0.75", "0.25", "0.75"]
    assert {row["file"] for row in rows} == {str(clip)}
    target = tmp_path / "out.csv"
    assert run(clip, "--head", "toy", "--address", address, "--window", 3, "--format", "csv", "--out", target)[1] == ""
    assert target.read_text() == out


def test_ndjson_ends_each_file_with_the_whole(address: str, clip: Path, tmp_path: Path) -> None:
    (bad := tmp_path / "bad.wav").write_bytes(b"words")
    code, out, _ = run(clip, "--head", "toy", "--address", address, "--window", 3, "--format", "ndjson")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [line.get("index") for line in lines] == [0, 1, 2, 3, None]
    assert lines[-1]["overall"]["probabilities"] == {"anger": 0.5, "sadness": 0.5}
    code, out, _ = run(bad, clip, "--head", "toy", "--address", address, "--format", "ndjson")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert [line.get("error") for line in lines] == ["BadAudio", None, None]


def test_a_bad_file_is_named_and_the_others_go_on(address: str, clip: Path, tmp_path: Path) -> None:
    (bad := tmp_path / "odd[b].wav").write_bytes(b"words")
    asked = (bad, tmp_path / "gone.wav", clip, "--head", "toy", "--address", address)
    code, out, _ = run(*asked)
    assert code == 1
    assert "odd[b].wav" in out, "a name is no markup"
    assert "not audio: [n, 2]" in out
    assert "NotFound" in out
    assert "anger" in out
    code, out, err = run(*asked, "--format", "csv")
    assert code == 1
    assert f"error: {bad}: not audio" in err
    assert err.count("gone.wav") == 1
    assert len(list(csv.DictReader(io.StringIO(out)))) == 1


@pytest.mark.parametrize(
    ("flags", "error", "said"),
    [
        (("--format", "xml"), BadSetting, "give table, csv, json, ndjson"),
        (("--prior", "flat"), BadSetting, "give train, uniform, estimated"),
        (("--window", "-1"), BadSetting, "--window -1: give seconds"),
        (("--window", "nan"), BadSetting, "--window nan"),
        (("--hop", "1"), BadSetting, "--hop 1 without --window"),
        (("--timeout", "inf"), BadSetting, "--timeout inf"),
        (("--out", "no/where/a.csv"), BadSetting, "--out no/where/a.csv: No such file"),
    ],
)
def test_wrong_flags_are_named(
    address: str, clip: Path, flags: tuple[str, ...], error: type[ServoxError], said: str
) -> None:
    with pytest.raises(error, match=said):
        run(clip, "--head", "toy", "--address", address, *flags)


def test_an_unknown_head_is_said_of_each_file(address: str, clip: Path) -> None:
    code, out, _ = run(clip, "--head", "tou", "--address", address, "--json")
    assert code == 1
    assert json.loads(out.splitlines()[-1])["files"][0]["error"] == "NotFound"


def test_windows_together_are_what_the_prober_says_of_them(address: str, clip: Path) -> None:
    with SyncClient(prober=address) as client:
        found = together(list(client.stream(clip, head="toy", window_ms=3000)))
    assert (found.overall.start_ms, found.overall.end_ms, found.overall.abstention) == (0, 6000, None)
    assert found.overall.probabilities == {"anger": 0.5, "sadness": 0.5}


@pytest.mark.parametrize("text", ["", "flat", "a=b", "a=1=2"])
def test_priors_that_cannot_be_read(text: str) -> None:
    with pytest.raises(BadSetting, match="give train, uniform, estimated"):
        prior_of(text)


def test_priors_of_the_command_line() -> None:
    assert prior_of("uniform") == "uniform"
    assert prior_of("anger=.25, joy=.75") == {"anger": 0.25, "joy": 0.75}


def test_with_an_address_the_clients_packages_are_enough(clip: Path, tmp_path: Path) -> None:
    code = textwrap.dedent(f"""
        import sys
        for name in ("bentoml", "pydantic_settings", "openvino", "starlette", "fsspec", "soundfile", "av"):
            sys.modules[name] = None
        from services.cli import main
        sys.argv = ["servox", "recognize", {str(clip)!r}, "--head", "x"]
        try:
            main()
        except SystemExit as done:
            print(done.code)
        sys.argv += ["--address", "unix:{tmp_path}/nobody.sock", "--timeout", "0.2"]
        main()
    """)
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "COLUMNS": "300"}, capture_output=True, text=True, check=False
    )
    assert "pip install 'servox[embedder,prober]', or name a running one with --address" in done.stderr
    assert "nobody.sock" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
