"""The API's description: valid, complete, true of what is answered; the page of it; the page at `/`."""
# ruff: noqa: ANN401 -- types of a conftest cannot be imported

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from services.prober.http import examples
from services.prober.http.description import document
from services.prober.http.guide import html_of
from services.prober.http.schemas import WORDS, message_schemas
from services.prober.settings import Settings
from servox.scopes import ROUTES

DOCUMENT = document(Settings.load({"heads": Path("/nowhere")}))
EXAMPLES = {
    "RecognizeResponse": [examples.RECOGNITION],
    "RecognizeLine": [{"window": examples.WINDOW}, examples.LAST_LINE, {"problem": examples.PROBLEM}],
    "EmbedResponse": [examples.EMBEDDING],
    "HeadList": [examples.HEADS],
    "HeadDescription": [examples.ONE_HEAD],
    "Problem": [examples.PROBLEM],
    "Status": [{"status": "ok"}],
}


def valid(instance: Any, schema: str) -> None:
    whole = {"$ref": f"#/components/schemas/{schema}", "components": DOCUMENT["components"]}
    jsonschema.Draft202012Validator(whole).validate(instance)


def test_every_reference_leads_somewhere() -> None:
    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                target: Any = DOCUMENT
                for part in node["$ref"].removeprefix("#/").split("/"):
                    target = target[part]
            for each in node.values():
                walk(each)
        elif isinstance(node, list):
            for each in node:
                walk(each)

    walk(DOCUMENT)


@pytest.mark.parametrize("name", DOCUMENT["components"]["schemas"])
def test_schemas_are_schemas(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(DOCUMENT["components"]["schemas"][name])


@pytest.mark.parametrize(("name", "instances"), EXAMPLES.items(), ids=EXAMPLES)
def test_examples_are_valid(name: str, instances: list[Any]) -> None:
    for instance in instances:
        valid(instance, name)
    bad = {key: value for key, value in instances[0].items() if key != next(iter(instances[0]))}
    with pytest.raises(jsonschema.ValidationError):
        valid(bad, name)


def test_every_field_of_a_message_is_explained() -> None:
    fields = {f"{name}.{field}" for name, schema in message_schemas().items() for field in schema["properties"]}
    assert fields | set(message_schemas()) == set(WORDS)


def test_every_answer_that_is_no_success_is_a_problem() -> None:
    for path, item in DOCUMENT["paths"].items():
        for operation in item.values():
            for status, response in operation["responses"].items():
                assert (status in ("200", "101")) != ("$ref" in response), f"{path} {status}"


async def test_every_route_is_described_and_answers(face: Any) -> None:
    routes = {
        (method.lower(), route.path)
        for route in face.server._listener._config.app._router.routes
        for method in getattr(route, "methods", None) or ()
        if method != "HEAD" and not route.path.startswith(("/static", "/docs/")) and route.path != "/"
    }
    assert routes == {(method, path) for path, item in DOCUMENT["paths"].items() for method in item}


async def test_answers_fit_their_schemas(face: Any) -> None:
    valid((await face.recognize(face.wav(1), window_ms=300)).json(), "RecognizeResponse")
    valid((await face.http.get("/v1/heads")).json(), "HeadList")
    valid((await face.http.get("/v1/heads/toy")).json(), "HeadDescription")
    wav = {"content-type": "audio/wav"}
    valid((await face.http.post("/v1/embeddings", content=face.wav(1), headers=wav)).json(), "EmbedResponse")
    valid((await face.recognize(b"x")).json(), "Problem")
    valid((await face.http.get("/readyz")).json(), "Status")
    served = (await face.http.get("/openapi.json")).json()
    assert served["openapi"] == "3.1.0"
    assert list(served["paths"]) == list(DOCUMENT["paths"])


class _Loaded(HTMLParser):
    """What a page loads and links to, and the ids that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        self.ids |= {given["id"] or ""} if "id" in given else set()
        self.links += [value for name in ("href", "src") if (value := given.get(name))]


def test_the_guide_shows_everything_and_loads_nothing_from_outside() -> None:
    page = html_of(DOCUMENT)
    loaded = _Loaded(page)
    assert "script" not in loaded.tags
    assert not [link for link in loaded.links if re.match(r"\w+:|//", link)]
    assert {link[1:] for link in loaded.links if link.startswith("#")} <= loaded.ids
    for path in DOCUMENT["paths"]:
        assert path in page
    for name in DOCUMENT["components"]["schemas"]:
        assert f'id="{name}"' in page
    assert "<script" not in html_of({**DOCUMENT, "info": {**DOCUMENT["info"], "title": "<script>"}})


async def test_pages_are_served_with_a_strict_policy(face: Any) -> None:
    for path, kind in (
        ("/docs", "text/html; charset=utf-8"),
        ("/docs/style.css", "text/css; charset=utf-8"),
        ("/", "text/html; charset=utf-8"),
        ("/static/app.js", "text/javascript; charset=utf-8"),
        ("/static/style.css", "text/css; charset=utf-8"),
        ("/static/icon.svg", "image/svg+xml"),
    ):
        answer = await face.http.get(path)
        assert answer.status_code == 200, path
        assert answer.headers["content-type"] == kind
        assert answer.headers["content-security-policy"].startswith("default-src 'self'; ")
        assert answer.headers["x-content-type-options"] == "nosniff"
    etag = (await face.http.get("/static/app.js")).headers["etag"]
    assert etag


def test_the_description_says_where_a_key_is_needed(tmp_path: Path) -> None:
    asking = document(Settings.load({"heads": tmp_path, "keys": tmp_path / "keys.json"}))
    assert asking["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert (asking["security"], DOCUMENT["security"]) == ([{"bearer": []}], [])
    for path, item in asking["paths"].items():
        for operation in item.values():
            closed = "security" not in operation
            assert closed == bool(ROUTES[path]), path
            assert closed == ("401" in operation["responses"]), path
            assert operation.get("security", []) == []
