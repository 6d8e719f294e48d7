"""Typed results: what they take from messages, and rows, JSON, CSV and data frames of them."""

import csv
import io
import json
import sys
from typing import Any

import pytest

from servox.answers import Abstention, Recognition
from servox.errors import BadSetting
from servox.replies import recognition_from_proto, window_from_proto
from servox.v1 import common_pb2, prober_pb2


def window(index: int, *, anger: float | None = None, **given: Any) -> prober_pb2.Window:  # noqa: ANN401
    found = prober_pb2.Window(index=index, start_ms=1000 * index, end_ms=1000 * index + 1500, **given)
    if anger is not None:
        found.label, found.confidence = ("anger", anger) if anger > 0.5 else ("sadness", 1 - anger)
        for label, value in (("sadness", 1 - anger), ("anger", anger)):
            found.probabilities.add(label=label, probability=value)
    return found


def recognition(*windows: prober_pb2.Window) -> Recognition:
    return recognition_from_proto(
        prober_pb2.RecognizeResponse(
            overall=windows[0],
            windows=windows,
            head=common_pb2.Head(name="toy", version="a1", digest="d", bundle_digest="b"),
            bundle=common_pb2.Bundle(digest="b", source="logmel", blocks=3),
            prior=prober_pb2.Prior(probabilities={"anger": 0.25, "sadness": 0.75}),
            timings=common_pb2.Timings(total_us=12),
        )
    )


SILENT = window(1, abstention=prober_pb2.ABSTENTION_SILENCE, speech=0.0)
STRANGE = window(2, anger=0.75, abstention=prober_pb2.ABSTENTION_OUT_OF_DISTRIBUTION, novelty=1.5)


def test_a_message_becomes_plain_values() -> None:
    found = recognition(window(0, anger=0.25), SILENT, STRANGE)
    assert (found.head.tag, found.bundle.source, found.bundle.blocks, found.timings.total_us) == (
        "toy:a1",
        "logmel",
        3,
        12,
    )
    assert found.prior == {"anger": 0.25, "sadness": 0.75}
    first, silent, strange = found.windows
    assert (first.label, first.confidence, first.abstention) == ("sadness", 0.75, None)
    assert (first.speech, first.novelty) == (None, None)
    assert (silent.label, silent.confidence, dict(silent.probabilities)) == (None, None, {})
    assert (silent.abstention, silent.speech) == (Abstention.SILENCE, 0.0)
    assert (strange.label, strange.abstention, strange.novelty) == ("anger", Abstention.OUT_OF_DISTRIBUTION, 1.5)


def test_every_reason_of_the_contract_has_its_name() -> None:
    named = {
        name: window_from_proto(prober_pb2.Window(abstention=name)).abstention
        for name in list(prober_pb2.Abstention.keys())
    }
    assert named.pop("ABSTENTION_UNSPECIFIED") is None
    assert Abstention.UNKNOWN not in named.values()
    assert len(set(named.values())) == len(named)
    assert window_from_proto(prober_pb2.Window(abstention=99)).abstention is Abstention.UNKNOWN  # type: ignore[arg-type]


def test_rows_have_the_same_columns_whatever_a_window_says() -> None:
    rows = recognition(SILENT, window(0, anger=0.25), STRANGE).to_rows()
    assert {tuple(row) for row in rows} == {
        (
            "index",
            "start_ms",
            "end_ms",
            "label",
            "confidence",
            "abstention",
            "speech",
            "novelty",
            "p_sadness",
            "p_anger",
        )
    }
    assert [row["p_anger"] for row in rows] == [None, 0.25, 0.75]
    assert [row["abstention"] for row in rows] == ["silence", None, "out_of_distribution"]
    only = recognition(SILENT).to_rows()
    assert list(only[0])[-2:] == ["p_anger", "p_sadness"], "by name, where no window tells the head's order"


def test_csv_and_json_say_what_the_rows_say() -> None:
    found = recognition(window(0, anger=0.1), SILENT)
    read = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [row["start_ms"] for row in read] == ["0", "1000"]
    assert float(read[0]["p_anger"]) == 0.1
    assert (read[1]["label"], read[1]["p_anger"], read[1]["abstention"]) == ("", "", "silence")
    document = json.loads(found.to_json())
    assert document["windows"][0]["probabilities"] == {"sadness": 0.9, "anger": 0.1}
    assert document["windows"][1]["abstention"] == "silence"
    assert document["head"]["version"] == "a1"


def test_a_frame_has_a_row_a_window() -> None:
    pytest.importorskip("pandas")
    frame = recognition(window(0, anger=0.25), STRANGE).to_frame()
    assert list(frame["p_anger"]) == [0.25, 0.75]
    assert frame["end_ms"].tolist() == [1500, 3500]
    assert frame["label"].tolist() == ["sadness", "anger"]


def test_without_pandas_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(BadSetting, match="pip install pandas"):
        recognition(window(0, anger=0.25)).to_frame()
