"""The API's description as one page of HTML: made here, so that it needs no script and nothing from outside."""

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path

from .schemas import Schema

STYLE = (Path(__file__).resolve().parent / "guide.css").read_text()


def html_of(document: Schema) -> str:
    """The page.

    Args:
        document: OpenAPI's.
    """
    info = document["info"]
    operations = [
        (method, path, operation) for path, item in document["paths"].items() for method, operation in item.items()
    ]
    links = "".join(
        f'<li><a href="#{operation["operationId"]}"><code>{method.upper()} {_text(path)}</code></a></li>'
        for method, path, operation in operations
    )
    sections = "".join(_section(method, path, operation, document) for method, path, operation in operations)
    schemas = "".join(_schema(name, schema) for name, schema in document["components"]["schemas"].items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{_text(info["title"])} API</title><link rel="stylesheet" href="docs/style.css"></head><body>'
        f"<header><h1>{_text(info['title'])} API <small>{_text(info['version'])}</small></h1>"
        f"{_prose(info['description'])}"
        '<p>As a machine reads it: <a href="openapi.json">openapi.json</a> (OpenAPI 3.1).</p></header>'
        f'<nav aria-label="Routes"><ul>{links}</ul></nav><main>{sections}'
        f'<section id="schemas"><h2>Schemas</h2>{schemas}</section></main></body></html>'
    )


def _section(method: str, path: str, operation: Schema, document: Schema) -> str:
    parameters = [_resolved(each, document) for each in operation.get("parameters", [])]
    parts = [
        f'<section id="{operation["operationId"]}"><h2><code>{method.upper()} {_text(path)}</code></h2>',
        f"<p><strong>{_text(operation['summary'])}</strong></p>{_prose(operation.get('description', ''))}",
        _table(("parameter", "in", "type", "meaning"), [_parameter(each) for each in parameters]),
    ]
    if body := operation.get("requestBody"):
        kinds = ", ".join(f"<code>{_text(kind)}</code>" for kind in body["content"])
        parts.append(f"<h3>Body</h3><p>{_text(body['description'])}</p><p>{kinds}</p>")
    if example := operation.get("x-config-example"):
        parts.append(f"<h3>Config</h3>{_code(example)}")
    answers = [(status, _resolved(each, document)) for status, each in operation["responses"].items()]
    parts.append("<h3>Answers</h3>" + _table(("status", "meaning", "as"), [_answer(*each) for each in answers]))
    parts += [
        f"<h4>{_text(kind)}</h4>{_code(content['example'])}"
        for _, answer in answers[:1]
        for kind, content in answer.get("content", {}).items()
        if "example" in content
    ]
    return "".join([*parts, "</section>"])


def _resolved(node: Schema, document: Schema) -> Schema:
    target: Schema = node
    for part in node.get("$ref", "").split("/")[1:]:
        target = (document if target is node else target)[part]
    return target


def _parameter(each: Schema) -> tuple[str, ...]:
    name = f"<code>{_text(each['name'])}</code>{' (needed)' if each.get('required') else ''}"
    return name, each["in"], _type(each["schema"]), _inline(each.get("description", ""))


def _answer(status: str, answer: Schema) -> tuple[str, ...]:
    kinds = "<br>".join(f"<code>{_text(kind)}</code>" for kind in answer.get("content", {}))
    return status, _inline(answer["description"]), kinds


def _schema(name: str, schema: Schema) -> str:
    rows = [
        (f"<code>{_text(key)}</code>", _type(each), _inline(each.get("description", "")))
        for key, each in schema.get("properties", {}).items()
    ]
    table = _table(("field", "type", "meaning"), rows)
    options = f"<p>{' or '.join(_type(each) for each in schema['oneOf'])}</p>" if "oneOf" in schema else ""
    return f'<article id="{name}"><h3>{name}</h3>{_prose(schema.get("description", ""))}{table}{options}</article>'


def _type(schema: Schema) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f'<a href="#{name}">{name}</a>'
    if "enum" in schema:
        return "<br>".join(f"<code>{_text(each)}</code>" for each in schema["enum"])
    if "const" in schema:
        return f"<code>{_text(schema['const'])}</code>"
    kind, inner = schema.get("type", "any"), schema.get("items") or schema.get("additionalProperties")
    if inner:
        return f"{kind} of {_type(inner)}"
    if "properties" in schema:
        return f"{kind} ({', '.join(map(_text, schema['properties']))})"
    return _text(kind) + (" (binary)" if schema.get("format") == "binary" else "")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{each}</th>' for each in heads)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def _code(example: object) -> str:
    return f'<pre tabindex="0"><code>{_text(json.dumps(example, indent=2, ensure_ascii=False))}</code></pre>'


def _prose(text: str) -> str:
    return "".join(f"<p>{_inline(part)}</p>" for part in text.split("\n\n") if part.strip())


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", _text(text))


def _text(text: str) -> str:
    return html.escape(text)
