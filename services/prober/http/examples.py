"""Examples of the API's description: one clip of 2.4 s, as a head of three classes would answer it."""

from typing import Any

Example = dict[str, Any]

DIGEST = "9f2c1d4e5b6a79880a1b2c3d4e5f60718293a4b5c6d7e8f90112233445566778"
BUNDLE_DIGEST = "0c9b8a7f6e5d4c3b2a190817161514131211100f0e0d0c0b0a09080706050403"
HEAD: Example = {
    "name": "ravdess",
    "version": "5d1c0a7be2f94c33",
    "digest": DIGEST,
    "bundle_digest": BUNDLE_DIGEST,
}
BUNDLE: Example = {
    "digest": BUNDLE_DIGEST,
    "source": "openai/whisper-base",
    "family": "whisper",
    "context": "silence:32",
    "blocks": 3,
    "precision": "fp32",
}
PRIOR: Example = {"kind": "KIND_TRAIN", "probabilities": {"anger": 0.25, "happiness": 0.25, "sadness": 0.5}}
WINDOW: Example = {
    "start_ms": 0,
    "end_ms": 2400,
    "label": "happiness",
    "confidence": 0.8125,
    "probabilities": [
        {"label": "anger", "probability": 0.125},
        {"label": "happiness", "probability": 0.8125},
        {"label": "sadness", "probability": 0.0625},
    ],
    "index": 0,
    "abstention": "ABSTENTION_UNSPECIFIED",
    "speech": 0.9,
    "novelty": 0.6,
    "uncalibrated": [],
}
MADE_BY: Example = {
    "head": HEAD,
    "bundle": BUNDLE,
    "prior": PRIOR,
    "calibration": {
        "tenant": "",
        "state": "CALIBRATION_STATE_UNSPECIFIED",
        "version": 0,
        "clips": 0,
        "shift": 0.0,
        "relevance": 0.0,
    },
    "stage": "STAGE_PRODUCTION",
    "notice": "",
}
RECOGNITION: Example = {
    "overall": WINDOW,
    "windows": [WINDOW],
    **MADE_BY,
    "timings": {"decode_us": 900, "queue_us": 120, "inference_us": 21000, "total_us": 23400},
}
LAST_LINE: Example = {"overall": WINDOW, **MADE_BY}
EMBEDDING: Example = {
    "embedding": {"dtype": "float32", "shape": [1, 4], "values": [[0.25, -1.5, 0.75, 0.125]]},
    "layers": [3],
    "bundle": BUNDLE,
    "timings": {"decode_us": 900, "queue_us": 120, "inference_us": 21000, "total_us": 22300},
    "duration_ms": 2400,
    "truncated": False,
}
SUMMARY: Example = {
    "head": HEAD,
    "kind": "HEAD_KIND_MLP",
    "classes": ["anger", "happiness", "sadness"],
    "production": True,
    "created_unix_ms": 1789000000000,
    "stage": "STAGE_PRODUCTION",
}
HEADS: Example = {"heads": [SUMMARY]}
ONE_HEAD: Example = {
    "summary": SUMMARY,
    "card": {"name": "ravdess", "version": "5d1c0a7be2f94c33", "classes": ["anger", "happiness", "sadness"]},
}
PROBLEM: Example = {
    "type": "urn:servox:problem:bad-input",
    "title": "Bad input",
    "status": 422,
    "detail": "hop_ms = 5: give 20 to window_ms (3000), or 0 for the window's length",
    "kind": "BadInput",
    "retryable": False,
    "request_id": "5f0c7a3e9b1d4f60a2c4e6f8091b3d5f",
    "field": "hop_ms",
    "value": "5",
}
CONFIG: Example = {
    "head": "ravdess",
    "window_ms": 3000,
    "hop_ms": 1000,
    "rate_hz": 16000,
    "channels": 1,
    "format": "s16le",
    "prior": "train",
    "every_window": False,
    "tenant": "",
    "uncalibrated": False,
    "purpose": "",
    "session": "",
    "next_window": 0,
}
