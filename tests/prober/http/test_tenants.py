"""Tenants and their priors over HTTP and the WebSocket: what is answered, and what is refused."""
# ruff: noqa: ANN401 -- types of a conftest cannot be imported

import io
import json
from typing import Any

import numpy as np
import pytest
import soundfile
from httpx_ws import WebSocketDisconnect, aconnect_ws

pytestmark = pytest.mark.asyncio(loop_scope="module")


def wav(number: int) -> bytes:
    random = np.random.default_rng(number)
    samples = np.convolve(random.normal(size=48_000), random.normal(size=8) / 40, mode="same")
    file = io.BytesIO()
    soundfile.write(file, np.clip(samples, -0.9, 0.9).astype(np.float32), 16_000, format="WAV", subtype="FLOAT")
    return file.getvalue()


async def test_a_tenant_becomes_ready_and_answers_say_so(opened: Any) -> None:
    async with opened(tenant_ready_clips=4) as face:
        for number in range(4):
            answer = (await face.recognize(wav(number), tenant="acme")).json()
            assert answer["calibration"]["state"] == "CALIBRATION_STATE_COLLECTING"
        answer = (await face.recognize(wav(9), tenant="acme", uncalibrated="true", prior="estimated")).json()
        assert answer["calibration"]["tenant"] == "acme"
        assert answer["calibration"]["state"] == "CALIBRATION_STATE_READY"
        assert answer["calibration"]["clips"] == 4
        assert answer["prior"]["kind"] == "KIND_ESTIMATED"
        both = (answer["overall"][name] for name in ("probabilities", "uncalibrated"))
        shares = [sum(each["probability"] for each in one) for one in both]
        assert shares == pytest.approx([1, 1])


@pytest.mark.parametrize(
    ("query", "status", "says"),
    [
        ({"tenant": "../up"}, 422, "use 1 to 63 letters"),
        ({"prior": "estimated"}, 422, "name the tenant"),
        ({"prior": "tenant", "tenant": "acme"}, 422, "none is set for tenant acme"),
        ({"prior": "estimated-em", "tenant": "acme"}, 409, "estimated-em is off here"),
        ({"prior": '{"anger": 0.5, "happiness": 0.3, "sadness": 0.1}'}, 422, "sums to 0.9"),
        ({"prior": '{"anger": 0.5, "joy": 0.5}'}, 422, "unknown classes"),
        ({"prior": "guessed"}, 400, "give train, uniform, estimated"),
    ],
)
async def test_what_is_refused_over_http_and_the_websocket(
    shared: Any, query: dict[str, str], status: int, says: str
) -> None:
    answer = await shared.recognize(wav(1), **query)
    assert answer.status_code == status
    assert says in answer.json()["detail"]
    prior = query.get("prior")
    config = {"head": "toy", "window_ms": 1000, "rate_hz": 16_000, **query}
    if prior and prior.startswith("{"):
        config["prior"] = json.loads(prior)
    socket: Any
    async with aconnect_ws("http://prober/v1/stream", shared.http) as socket:
        await socket.send_text(json.dumps(config))
        said = json.loads(await socket.receive_text())
        with pytest.raises(WebSocketDisconnect):
            await socket.receive_text()
    assert (said["type"], said["problem"]["status"]) == ("error", status)
    assert says in said["problem"]["detail"]
