"""Heads, health, metrics, ids, traces and logs of the HTTP server."""
# ruff: noqa: ANN401 -- types of a conftest cannot be imported

import asyncio
import json
import logging
import shutil
import ssl
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from google.protobuf import json_format
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from servox.v1 import prober_pb2

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


async def test_heads_are_those_of_grpc(face: Any) -> None:
    listed = (await face.http.get("/v1/heads")).json()["heads"]
    expected = await face.grpc.ListHeads(prober_pb2.ListHeadsRequest())
    assert [json_format.ParseDict(each, prober_pb2.HeadSummary()) for each in listed] == list(expected.heads)
    assert [each["head"]["name"] for each in listed] == ["other", "toy"]
    found = await face.http.get("/v1/heads", params={"prefix": "to"})
    assert [each["head"]["name"] for each in found.json()["heads"]] == ["toy"]
    assert (await face.http.get("/v1/heads", params={"prefix": "zz"})).json() == {"heads": []}


@pytest.mark.parametrize("name", ["toy", "toy:0123456789abcdef", "toy%3A0123456789abcdef"])
async def test_one_head_has_its_card(face: Any, name: str) -> None:
    answer = await face.http.get(f"/v1/heads/{name}")
    expected = await face.grpc.GetHead(prober_pb2.GetHeadRequest(head="toy"))
    document = answer.json()
    assert json_format.ParseDict(document["summary"], prober_pb2.HeadSummary()) == expected.summary
    assert document["card"] == json.loads(expected.card_json)
    assert document["card"]["class_counts"] == [5, 6, 13]


async def test_probes_and_metrics(face: Any) -> None:
    assert (await face.http.get("/livez")).json() == {"status": "ok"}
    assert (await face.http.get("/readyz")).json() == {"status": "ok"}
    await face.recognize(face.wav(1))
    text = (await face.http.get("/metrics")).text
    for line in (
        'servox_prober_http_requests_total{method="POST",route="/v1/recognize",status="200"} 1.0',
        'servox_prober_http_requests_total{method="GET",route="/livez",status="200"} 1.0',
        'servox_prober_http_seconds_count{route="/v1/recognize"} 1.0',
        'servox_prober_http_under_way{kind="request"} 0.0',
        'servox_prober_requests_total{method="Recognize",outcome="ok"} 1.0',
    ):
        assert line in text


async def test_labels_are_closed_whatever_is_asked(face: Any) -> None:
    for path in ("/a", "/b", "/v1/heads/c", "/v1/heads/d"):
        await face.http.get(path)
        await face.http.request("BREW", path)
    routes = {
        (sample.labels["route"], sample.labels["method"])
        for family in face.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "servox_prober_http_requests_total"
    }
    assert routes == {(route, method) for route in ("other", "/v1/heads/{name}") for method in ("GET", "other")}


async def test_ids_of_requests_come_back(face: Any) -> None:
    answer = await face.http.get("/v1/heads", headers={"x-request-id": "my-id_1.2"})
    assert answer.headers["x-request-id"] == "my-id_1.2"
    for bad in ("a b", "é", "x" * 129, "<script>"):
        answer = await face.http.get("/v1/heads", headers={"x-request-id": bad.encode()})
        assert len(answer.headers["x-request-id"]) == 32


async def test_answers_say_what_browsers_may_do_with_them(face: Any) -> None:
    for path in ("/v1/heads", "/nowhere"):
        answer = await face.http.get(path)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert "access-control-allow-origin" not in answer.headers
        assert "date" in answer.headers
        assert "server" not in answer.headers


async def test_pages_of_other_origins_may_call_where_a_setting_says_so(opened: Any) -> None:
    async with opened(http_origins="https://there.example") as face:
        asked = {
            "origin": "https://there.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type, x-request-timeout-ms",
        }
        leave = await face.http.options("/v1/recognize", headers=asked)
        assert leave.status_code == 200
        assert leave.headers["access-control-allow-origin"] == "https://there.example"
        refused = await face.recognize(b"", headers={"origin": "https://there.example"})
        assert refused.status_code == 422
        assert refused.headers["access-control-allow-origin"] == "https://there.example"
        other = await face.http.get("/v1/heads", headers={"origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers


async def test_a_request_is_one_line_of_log_without_what_was_sent(face: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await face.recognize(face.wav(1), prior='{"anger": 0.2, "happiness": 0.3, "sadness": 0.5}')
    await face.http.get("/v1/heads/secret-head")
    await face.http.get("/livez")
    lines = [vars(record) for record in caplog.records if record.name == "services.prober.http.edge"]
    assert [(line["route"], line["method"], line["status"]) for line in lines] == [
        ("/v1/recognize", "POST", 200),
        ("/v1/heads/{name}", "GET", 404),
    ]
    assert all(line["request_id"] and line["ms"] >= 0 for line in lines)
    said = [record.getMessage() for record in caplog.records if not record.name.startswith("httpx")]
    assert not [line for line in said if "secret-head" in line or "anger" in line]


async def test_a_request_is_a_span_of_its_callers_trace(spans: InMemorySpanExporter, opened: Any) -> None:
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-01", "x-request-id": "secret-id"}
    async with opened() as face:
        assert (await face.recognize(face.wav(1), headers=headers)).status_code == 200
        assert (await face.recognize(b"", headers=headers)).status_code == 422
        await face.http.get("/livez", headers=headers)
    servers = [span for span in spans.get_finished_spans() if span.kind is SpanKind.SERVER]
    mine = [span for span in servers if span.name == "POST /v1/recognize"]
    assert [span.attributes and span.attributes["http.response.status_code"] for span in mine] == [200, 422]
    assert all(span.status.status_code is not StatusCode.ERROR for span in mine)
    for span in mine:
        assert span.parent
        assert f"{span.parent.trace_id:032x}" == TRACE
        assert f"{span.parent.span_id:016x}" == CALLER
    embedder = next(span for span in servers if span.name.endswith("Embedder/Embed"))
    assert f"{embedder.context.trace_id:032x}" == TRACE
    assert not any("livez" in span.name for span in servers)
    assert "secret-id" not in str([span.to_json() for span in spans.get_finished_spans()])


async def test_it_can_be_turned_off_and_an_address_can_be_taken(opened: Any, tmp_path: Any) -> None:
    from servox.errors import Unavailable

    async with opened() as face:
        with pytest.raises(Unavailable, match="cannot listen for HTTP on"):
            async with opened(grpc_socket=tmp_path / "q.sock", embedder="unix:/none"):
                pass
        assert (await face.http.get("/livez")).status_code == 200
    async with opened(http_socket=None) as face:
        assert face.server.http == ""


async def test_a_socket_that_a_dead_process_left_is_taken_over(opened: Any, tmp_path: Any) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "h.sock"))
    async with opened() as face:
        assert (await face.http.get("/livez")).status_code == 200


async def test_it_listens_on_a_port(opened: Any, hold_port: Callable[[], int]) -> None:
    port = hold_port()
    async with opened(http_socket=None, http_port=port) as face:
        assert face.server.http == f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=face.server.http, timeout=30) as client:
            assert (await client.get("/readyz")).status_code == 200


async def test_it_speaks_https_and_asks_for_certificates_as_grpc_does(opened: Any, tmp_path: Any) -> None:
    if not shutil.which("openssl"):
        pytest.skip("no openssl here to make certificates with")
    for arguments in (
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ca",
        "req -newkey rsa:2048 -nodes -keyout own.key -out own.csr -subj /CN=localhost -addext "
        "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "x509 -req -in own.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out own.pem -days 2 -copy_extensions copy",
    ):
        await (await asyncio.create_subprocess_exec("openssl", *arguments.split(), cwd=tmp_path, stderr=-3)).wait()
    certificate, key, ca = (str(tmp_path / name) for name in ("own.pem", "own.key", "ca.pem"))
    trusting, known = ssl.create_default_context(cafile=ca), ssl.create_default_context(cafile=ca)
    known.load_cert_chain(certificate, key)
    async with opened(tls_certificate=certificate, tls_key=key) as face:
        assert await status_of(face, trusting) == 200
    async with opened(tls_certificate=certificate, tls_key=key, tls_client_ca=ca) as face:
        assert await status_of(face, known) == 200
        with pytest.raises(httpx.TransportError):
            await status_of(face, trusting)


async def status_of(face: Any, context: ssl.SSLContext) -> int:
    transport = httpx.AsyncHTTPTransport(uds=str(face.socket), verify=context)
    async with httpx.AsyncClient(transport=transport, base_url="https://localhost") as client:
        return (await client.get("/livez")).status_code
