"""What schemathesis sends where the API takes audio: small whole files, and samples."""
# ruff: noqa: ANN401 -- types of a conftest cannot be imported

import io
import json
from typing import Any

import numpy as np
import schemathesis
import soundfile
from hypothesis import strategies as st

LOUD = 0.05


def wav(seconds: float) -> bytes:
    samples = np.random.default_rng(3).normal(scale=LOUD, size=int(16_000 * seconds)).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="WAV", subtype="PCM_16")
    return file.getvalue()


SAMPLES = {"Content-Type": "audio/pcm; rate=16000; channels=1; format=s16le"}
FILES = st.sampled_from([wav(seconds) for seconds in (0.2, 0.5, 1.1)])
for media_type in ("audio/*", "video/*", "application/octet-stream"):
    schemathesis.openapi.media_type(media_type, FILES)
schemathesis.openapi.media_type("audio/pcm", st.sampled_from([wav(0.3)[44:], wav(0.9)[44:]]))


@schemathesis.serializer("audio/*", "video/*", "audio/pcm")
def audio(context: schemathesis.SerializationContext, value: Any) -> bytes:
    return bytes(value)


@schemathesis.deserializer("application/x-ndjson")
def last_line(context: schemathesis.DeserializationContext, response: schemathesis.Response) -> object:
    return [json.loads(line) for line in response.content.splitlines()][-1]


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: "schemathesis.Case[Any]", kwargs: dict[str, object]) -> None:
    """Parameters of a media type are lost on the way here."""
    if case.media_type and case.media_type.startswith("audio/pcm") and case.headers is not None:
        case.headers.update(SAMPLES)
