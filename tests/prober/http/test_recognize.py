"""`POST /v1/recognize` through a real server: the numbers of gRPC, and every way to ask for them."""
# ruff: noqa: ANN401 -- types of a conftest cannot be imported

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf import json_format

from servox.v1 import common_pb2, prober_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

LINES = {"accept": "application/x-ndjson"}
LONG = 5_000_000  # bytes: more than is kept in memory


def parsed(document: Any) -> prober_pb2.RecognizeResponse:
    answer = prober_pb2.RecognizeResponse()
    json_format.ParseDict(document, answer)
    answer.ClearField("timings")
    return answer


async def over_grpc(shared: Any, sound: common_pb2.Audio, **config: Any) -> prober_pb2.RecognizeResponse:
    asked = prober_pb2.RecognizeConfig(**{"head": "toy", **config})
    answer: prober_pb2.RecognizeResponse = await shared.grpc.Recognize(
        prober_pb2.RecognizeRequest(audio=sound, config=asked)
    )
    answer.ClearField("timings")
    return answer


async def in_lines(shared: Any, body: Any, **query: Any) -> tuple[list[Any], Any]:
    answer = await shared.recognize(body, **{**query, "headers": {**LINES, **query.get("headers", {})}})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    *windows, last = [json.loads(line) for line in answer.text.splitlines()]
    return [each["window"] for each in windows], last


async def pieces(data: bytes, size: int = 60_000) -> AsyncIterator[bytes]:
    for begin in range(0, len(data), size):
        yield data[begin : begin + size]


async def test_a_clip_is_answered_as_over_grpc(shared: Any) -> None:
    clip = shared.wav(2)
    answer = await shared.recognize(clip)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert parsed(answer.json()) == await over_grpc(shared, common_pb2.Audio(container=clip))
    window = answer.json()["overall"]
    assert (window["start_ms"], window["end_ms"], window["index"]) == (0, 2000, 0)
    assert isinstance(window["end_ms"], int)
    assert sum(each["probability"] for each in window["probabilities"]) == pytest.approx(1)
    assert answer.json()["timings"]["inference_us"] == 7


@pytest.mark.parametrize("every_window", ["true", "false"])
async def test_windows_are_answered_as_over_grpc(shared: Any, every_window: str) -> None:
    clip = shared.wav(3)
    answer = await shared.recognize(clip, window_ms=1000, hop_ms=500, every_window=every_window)
    config = {"window_ms": 1000, "hop_ms": 500, "every_window": every_window == "true"}
    assert parsed(answer.json()) == await over_grpc(shared, common_pb2.Audio(container=clip), **config)
    assert len(answer.json()["windows"]) == 5


@pytest.mark.parametrize(
    ("prior", "asked"),
    [
        ("train", {}),
        ("uniform", {"kind": prober_pb2.Prior.KIND_UNIFORM}),
        (
            '{"anger": 0.2, "happiness": 0.3, "sadness": 0.5}',
            {
                "kind": prober_pb2.Prior.KIND_EXPLICIT,
                "probabilities": {"anger": 0.2, "happiness": 0.3, "sadness": 0.5},
            },
        ),
    ],
)
async def test_a_prior_is_assumed_as_over_grpc(shared: Any, prior: str, asked: dict[str, Any]) -> None:
    clip = shared.wav(1)
    answer = await shared.recognize(clip, prior=prior)
    expected = await over_grpc(shared, common_pb2.Audio(container=clip), prior=prober_pb2.Prior(**asked))
    assert parsed(answer.json()) == expected


@pytest.mark.parametrize("encoding", ["f32le", "s16le"])
async def test_raw_samples_are_answered_as_over_grpc(shared: Any, encoding: str) -> None:
    samples = shared.samples(1)
    data = samples.tobytes() if encoding == "f32le" else (samples * 32767).astype("<i2").tobytes()
    shape = {"rate_hz": 16_000, "channels": 1}
    wire = common_pb2.SAMPLE_FORMAT_F32 if encoding == "f32le" else common_pb2.SAMPLE_FORMAT_S16
    sound = common_pb2.Audio(pcm=common_pb2.Pcm(data=data, format=wire, **shape))
    kind = {"content-type": f"audio/pcm; rate=16000; channels=1; format={encoding}"}
    answer = await shared.recognize(data, headers=kind, window_ms=400)
    assert parsed(answer.json()) == await over_grpc(shared, sound, window_ms=400)
    windows, last = await in_lines(shared, data, headers=kind, window_ms=400)
    assert (windows, last["overall"]) == (answer.json()["windows"], answer.json()["overall"])


@pytest.mark.parametrize("kind", ["audio/wav", "AUDIO/X-WAV; x=y", "video/mp4", "application/ogg"])
async def test_any_audio_type_is_taken(shared: Any, kind: str) -> None:
    assert (await shared.recognize(shared.wav(1), headers={"content-type": kind})).status_code == 200


async def test_a_form_with_one_file_is_the_file(shared: Any) -> None:
    clip = shared.wav(2)
    form = await shared.http.post("/v1/recognize", params={"head": "toy"}, files={"anything": ("x.bin", clip)})
    assert parsed(form.json()) == parsed((await shared.recognize(clip)).json())


async def test_a_version_can_be_named(shared: Any) -> None:
    answer = await shared.recognize(shared.wav(1), head="toy:0123456789abcdef")
    assert answer.json()["head"]["version"] == "0123456789abcdef"


@pytest.mark.parametrize("form", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_long_file_in_lines_has_the_windows_of_a_short_one(shared: Any, form: bool, chunked: bool) -> None:
    clip = shared.wav(80)
    assert len(clip) > LONG
    headers = {}
    body: Any = clip
    if form:
        headers = {"content-type": "multipart/form-data; boundary=x-y"}
        body = b'--x-y\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + clip + b"\r\n--x-y--\r\n"
    body = pieces(body) if chunked else body
    windows, last = await in_lines(shared, body, window_ms=4000, hop_ms=2000, headers=headers)
    expected = await over_grpc(shared, common_pb2.Audio(container=clip), window_ms=4000, hop_ms=2000)
    assert parsed({**last, "windows": windows}) == expected


async def test_a_long_file_at_once_has_the_same_windows(shared: Any) -> None:
    clip = shared.wav(80)
    answer = await shared.recognize(clip, window_ms=4000, hop_ms=2000)
    expected = await over_grpc(shared, common_pb2.Audio(container=clip), window_ms=4000, hop_ms=2000)
    assert parsed(answer.json()) == expected


async def test_a_long_file_with_more_windows_than_one_answer_holds_is_refused(shared: Any) -> None:
    clip = shared.wav(80)
    answer = await shared.recognize(clip, window_ms=1000)
    assert answer.status_code == 413
    assert "application/x-ndjson" in answer.json()["detail"]
    windows, _ = await in_lines(shared, clip, window_ms=1000)
    assert len(windows) == 80


async def test_damage_on_the_way_ends_the_lines_with_a_problem(shared: Any) -> None:
    clip = bytearray(shared.wav(40))
    clip[-4:] = b"\x00\x00\xc0\x7f"  # the last sample is NaN
    answer = await shared.recognize(bytes(clip), window_ms=2000, headers=LINES)
    assert answer.status_code == 200
    *windows, last = [json.loads(line) for line in answer.text.splitlines()]
    assert windows
    assert all("window" in each for each in windows)
    assert last["problem"]["kind"] == "BadAudio"
    assert last["problem"]["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("query", [{}, {"window_ms": 400}, {"window_ms": 400, "headers": LINES}])
async def test_silence_is_an_answer_that_abstains(shared: Any, query: dict[str, Any]) -> None:
    answer = await shared.recognize(shared.silence(), **query)
    assert answer.status_code == 200, answer.text
    overall = json.loads(answer.text.splitlines()[-1])["overall"]
    assert (overall["abstention"], overall["probabilities"]) == ("ABSTENTION_SILENCE", [])
    assert (overall["label"], overall["confidence"]) == ("", 0)


async def test_a_whole_clip_can_be_had_in_lines(shared: Any) -> None:
    windows, last = await in_lines(shared, shared.wav(1))
    assert windows == [last["overall"]]
