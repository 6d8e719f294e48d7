"""`POST /v1/embeddings`: what the embedder answers, as JSON and as bytes."""
# ruff: noqa: ANN401 -- types of a conftest cannot be imported

import asyncio
from typing import Any

import numpy as np
import pytest

from servox.v1 import embedder_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")
WAV = {"content-type": "audio/wav"}


async def test_json_and_bytes_hold_the_same_numbers(shared: Any) -> None:
    clip = shared.wav(1)
    answer = await shared.http.post("/v1/embeddings", content=clip, headers=WAV)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    values = np.array(document["embedding"]["values"], dtype=np.float32)
    assert list(values.shape) == document["embedding"]["shape"] == [1, 24]
    assert document["bundle"]["digest"] == shared.embedder.bundle
    assert document["duration_ms"] == 1000
    accept = {**WAV, "accept": "application/octet-stream"}
    raw = await shared.http.post("/v1/embeddings", content=clip, headers=accept)
    assert raw.headers["content-type"] == "application/octet-stream"
    assert raw.headers["x-embedding-shape"] == "1,24"
    assert raw.headers["x-embedding-dtype"] == "float32"
    assert raw.headers["x-bundle-digest"] == shared.embedder.bundle
    assert np.array_equal(np.frombuffer(raw.content, dtype="<f4").reshape(1, 24), values)
    expected = np.abs(np.fft.rfft(shared.samples(1), n=46))[None].astype(np.float32)
    np.testing.assert_array_equal(values, expected)


async def test_the_query_is_handed_on(shared: Any) -> None:
    query = {"pooling": "frames", "layers": "2,0", "truncate_ms": 500}
    answer = await shared.http.post("/v1/embeddings", content=shared.wav(1), headers=WAV, params=query)
    assert answer.status_code == 200, answer.text
    asked = shared.embedder.requests[-1]
    assert asked.pooling == embedder_pb2.POOLING_FRAMES
    assert (list(asked.layers), asked.truncate_ms) == ([2, 0], 500)
    assert answer.json()["embedding"]["shape"] == [2, 24]


async def test_a_form_and_raw_samples_are_taken(shared: Any) -> None:
    samples = shared.samples(1)
    kind = {"content-type": "audio/pcm; rate=16000; format=f32le"}
    raw = await shared.http.post("/v1/embeddings", content=samples.tobytes(), headers=kind)
    form = await shared.http.post("/v1/embeddings", files={"audio": shared.wav(1)})
    assert raw.json()["embedding"] == form.json()["embedding"]
    assert shared.embedder.requests[-2].audio.pcm.rate_hz == 16_000


async def test_many_at_a_time_get_their_own(shared: Any) -> None:
    seconds = [0.1 * n for n in range(1, 20)]
    answers = await asyncio.gather(
        *(shared.http.post("/v1/embeddings", content=shared.wav(each), headers=WAV) for each in seconds)
    )
    assert [answer.json()["duration_ms"] for answer in answers] == [round(1000 * each) for each in seconds]
