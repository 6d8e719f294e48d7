"""What is judged by headers and query alone, and messages as JSON: pure functions."""

import asyncio
import json
import re
from collections.abc import Callable

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge
from starlette.datastructures import Headers, QueryParams
from starlette.exceptions import HTTPException

from services.prober.http.encoding import dumps, to_json
from services.prober.http.media import JSON, LINES, sent, wanted
from services.prober.http.multipart import OneFile
from services.prober.http.problems import Refusal, problem_of
from services.prober.http.queries import Query, prior_of
from services.prober.http.traffic import Traffic
from servox.errors import BadInput, Overloaded, OverQuota, Unavailable, leaves
from servox.v1 import common_pb2, prober_pb2


def status_of(call: Callable[[], object]) -> int:
    """200, or that of the problem which a call ends in; it can always be written down."""
    try:
        call()
    except (Refusal, BadInput) as error:
        dumps(problem_of(error).members("id"))
        return problem_of(error).status
    return 200


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("application/x-ndjson", LINES),
        ("APPLICATION/X-NDJSON ; charset=utf-8", LINES),
        ("application/json;q=0.2, application/x-ndjson;q=0.3", LINES),
        ("application/json;q=0.2, */*;q=0.1", JSON),
        ("*/*, application/json;q=0", LINES),
        ("text/html, */*;q=0.1", JSON),
        ("text/html", None),
        ("application/json;q=much", None),
        ("application/*;q=0, */*", None),
        (",,", JSON),
    ],
)
def test_the_best_offer_is_chosen(accept: str, chosen: str | None) -> None:
    headers = Headers({"accept": accept}) if accept else Headers({})
    if chosen is None:
        with pytest.raises(Refusal) as refused:
            wanted(headers, (JSON, LINES))
        assert refused.value.status_code == 406
    else:
        assert wanted(headers, (JSON, LINES)) == chosen


@given(st.text(st.characters(min_codepoint=32, max_codepoint=255)))
def test_any_accept_is_answered_or_refused(text: str) -> None:
    assert status_of(lambda: wanted(Headers({"accept": text}), (JSON, LINES))) in (200, 406)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=255)))
def test_any_content_type_is_taken_or_refused(text: str) -> None:
    assert status_of(lambda: sent(Headers({"content-type": text}))) in (200, 400, 415)


def test_samples_are_what_their_type_says() -> None:
    pcm = sent(Headers({"content-type": "Audio/PCM; rate=44100; channels=2; format=f32le"})).pcm
    assert pcm == common_pb2.Pcm(rate_hz=44_100, channels=2, format=common_pb2.SAMPLE_FORMAT_F32)


@given(st.lists(st.tuples(st.text(), st.text())))
def test_any_query_is_read_or_refused(pairs: list[tuple[str, str]]) -> None:
    def read() -> None:
        query = Query(QueryParams(pairs), ("head", "window_ms", "prior", "every_window"))
        query.text("head", "")
        assert 0 <= query.integer("window_ms") < 1 << 63
        query.flag("every_window")
        query.prior()

    assert status_of(read) in (200, 400, 422)


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(JSONS)
def test_any_prior_is_one_or_refused(document: object) -> None:
    def read() -> None:
        assert all(0 <= share <= 1 for share in prior_of(document).probabilities.values())

    assert status_of(read) in (200, 400, 422)


@given(st.integers(0, 1 << 50), st.floats(0, 1), st.text(max_size=9), st.booleans())
def test_messages_are_protobufs_json_with_numbers(time_ms: int, share: float, label: str, known: bool) -> None:
    window = prober_pb2.Window(start_ms=time_ms, end_ms=time_ms + 1, label=label, confidence=share, index=3)
    window.probabilities.add(label=label, probability=share)
    window.abstention = prober_pb2.ABSTENTION_SILENCE
    if known:
        window.speech = share
    prior = prober_pb2.Prior(kind=prober_pb2.Prior.KIND_EXPLICIT, probabilities={label: share})
    message = prober_pb2.RecognizeResponse(overall=window, windows=[window], prior=prior)
    document = json.loads(dumps(to_json(message)))
    assert json_format.ParseDict(document, prober_pb2.RecognizeResponse()) == message
    assert document["overall"]["start_ms"] == time_ms
    assert ("speech" in document["overall"]) == known
    theirs = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    for shown in (theirs["overall"], *theirs["windows"]):
        shown |= {name: int(shown[name]) for name in ("start_ms", "end_ms", "index")}
    assert document == theirs


def test_bytes_and_unknown_enums_are_shown() -> None:
    assert to_json(common_pb2.Pcm(data=b"\x00\xff"))["data"] == "AP8="
    assert to_json(prober_pb2.Window(abstention=77))["abstention"] == 77  # type: ignore[arg-type]


@pytest.mark.parametrize("error", leaves())
def test_every_error_of_ours_is_a_problem_with_its_status(error: type[Exception]) -> None:
    problem = problem_of(error("window_ms = 'x y': no good"))
    members = problem.members("an-id")
    assert members["kind"] == error.__name__
    assert members["status"] == int(error.http_status)  # type: ignore[attr-defined]
    assert (members["field"], members["value"]) == ("window_ms", "x y")
    assert members["retryable"] == error.retryable  # type: ignore[attr-defined]
    assert re.fullmatch(r"urn:servox:problem:[a-z-]+", str(members["type"]))
    tells_when = error.retryable or error is OverQuota  # type: ignore[attr-defined]
    assert ("retry-after" in problem.response("an-id").headers) == tells_when


def test_errors_that_are_not_ours_are_named_by_their_status_or_not_at_all() -> None:
    assert problem_of(ZeroDivisionError("secret")).members("")["detail"] != "secret"
    assert problem_of(HTTPException(404)).kind == "NotFound"
    assert problem_of(Overloaded("full", retry_after_s=2.5)).response("").headers["retry-after"] == "3"


@given(st.binary(max_size=300), st.integers(1, 40))
def test_a_form_is_the_same_whatever_its_pieces(data: bytes, size: int) -> None:
    if b"--b--" in data or b"\r\n--b" in data:
        return
    body = b'--b--b\r\nContent-Disposition: form-data; name="a"; filename="x"\r\n\r\n' + data + b"\r\n--b--b--\r\n"
    form, got = OneFile(b"b--b"), b""
    for begin in range(0, len(body), size):
        got += b"".join(form.push(body[begin : begin + size]))
    form.finish()
    assert got == data


@given(st.binary(max_size=300))
def test_a_form_that_is_none_is_refused(data: bytes) -> None:
    form = OneFile(b"never-in-the-data-0123456789")

    def read() -> None:
        form.push(data)
        form.finish()

    assert status_of(read) == 400


async def test_traffic_is_counted_refused_and_waited_for() -> None:
    gauge = Gauge("under_way", "x", ["kind"], registry=CollectorRegistry())
    traffic = Traffic(max_requests=1, max_streams=1, under_way=gauge)
    with traffic.admitted("request"):
        with traffic.admitted("stream"), pytest.raises(Overloaded, match="1 requests"), traffic.admitted("request"):
            pass
        closing = asyncio.create_task(traffic.close(5))
        await asyncio.sleep(0)
        assert not closing.done()
        with pytest.raises(Unavailable), traffic.admitted("stream"):
            pass
    await asyncio.wait_for(closing, 1)
    await traffic.close(0.01)
