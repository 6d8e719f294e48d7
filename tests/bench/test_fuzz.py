from typing import Any

import pytest

from bench.fuzz import sound

FOUND: dict[str, Any] = {
    "inputs": 6,
    "outcomes": {"ok": 1, "TooLarge": 1, "BadAudio": 2, "SilentAudio": 1, "ShortAudio": 1},
    "serving": True,
    "same_bits": True,
    "inflight_audio_s": 0.0,
}


def test_a_server_that_answered_each_by_itself_is_sound() -> None:
    assert sound(FOUND)


@pytest.mark.parametrize(
    "change",
    [
        {"outcomes": {**FOUND["outcomes"], "ok": 0}},
        {"outcomes": {**FOUND["outcomes"], "ok": 0, "unforeseen": 1}},
        {"outcomes": {**FOUND["outcomes"], "ok": 0, "Unavailable": 1}},
        {"serving": False},
        {"same_bits": False},
        {"inflight_audio_s": 0.4},
    ],
    ids=str,
)
def test_what_is_lost_or_unforeseen_or_left_behind_is_not(change: dict[str, Any]) -> None:
    assert not sound({**FOUND, **change})
