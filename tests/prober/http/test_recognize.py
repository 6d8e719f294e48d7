"""`POST /v1/recognize` through a real server: the numbers of gRPC, and every way to ask for them."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf import json_format

from servox.v1 import common_pb2, prober_pb2


def shown(message: Any) -> Any:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def parsed(document: Any) -> prober_pb2.RecognizeResponse:
    answer = prober_pb2.RecognizeResponse()
    json_format.ParseDict(document, answer)
    answer.ClearField("timings")
    return answer


async def over_grpc(face: Any, sound: common_pb2.Audio, **config: Any) -> prober_pb2.RecognizeResponse:
    asked = prober_pb2.RecognizeConfig(**{"head": "toy", **config})
    answer: prober_pb2.RecognizeResponse = await face.grpc.Recognize(
        prober_pb2.RecognizeRequest(audio=sound, config=asked)
    )
    answer.ClearField("timings")
    return answer


async def test_a_clip_is_answered_as_over_grpc(face: Any) -> None:
    clip = face.wav(2)
    answer = await face.recognize(clip)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert parsed(answer.json()) == await over_grpc(face, common_pb2.Audio(container=clip))
    window = answer.json()["overall"]
    assert (window["start_ms"], window["end_ms"], window["index"]) == (0, 2000, 0)
    assert isinstance(window["end_ms"], int)
    assert sum(each["probability"] for each in window["probabilities"]) == pytest.approx(1)
    assert answer.json()["timings"]["inference_us"] == 7
