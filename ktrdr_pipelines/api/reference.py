"""The reference of all requests as one HTML document, made of the OpenAPI document.

It loads nothing from other servers, so that it also works without the internet, and no foreign
script runs under the address of the API. It has no script of its own.

Not here: the route that serves it (``api.rest_app``).
"""

import json
import re
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, Final

SECURITY_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""The ``Content-Security-Policy`` of the document: its own style, and nothing else."""

_METHODS: Final = ("get", "post", "put", "delete", "patch")
_STYLE: Final = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code { font-family: ui-monospace, monospace; font-size: 0.92em; }
details { border: 1px solid #8886; border-radius: 4px; margin: 0.4rem 0; padding: 0.4rem 0.8rem; }
summary { cursor: pointer; }
summary b { display: inline-block; min-width: 4.2rem; }
table { border-collapse: collapse; margin: 0.6rem 0; }
th, td { border-bottom: 1px solid #8884; padding: 0.2rem 0.8rem 0.2rem 0; text-align: left;
  vertical-align: top; }
"""

_FOR_PROGRAMS: Final = (
    '<p>For programs: <a href="/openapi.json">/openapi.json</a> (OpenAPI), which client '
    "generators read, and viewers such as those of swagger.io.</p>"
)

Document = Mapping[str, Any]


def reference_html(document: Document) -> str:
    """Return an HTML document that describes every request of an OpenAPI document."""
    info = document["info"]
    title = f"{info['title']} {info['version']}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{_prose(one)}</p>" for one in info.get("description", "").split("\n\n")),
        _FOR_PROGRAMS,
    ]
    for tag, found in _by_tag(document).items():
        parts.append(f"<h2>{escape(tag)}</h2>")
        parts += [_request(*one) for one in found]
    parts.append("<h2>Types</h2>")
    schemas: Document = document.get("components", {}).get("schemas", {})
    parts += [_schema(name, schema) for name, schema in sorted(schemas.items())]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _by_tag(document: Document) -> dict[str, list[tuple[str, str, Document]]]:
    """Return method, path and description of each request, by its first tag."""
    found: dict[str, list[tuple[str, str, Document]]] = {}
    for path, methods in document["paths"].items():
        for method in _METHODS:
            if method in methods:
                tag = next(iter(methods[method].get("tags", ())), "others")
                found.setdefault(tag, []).append((method, path, methods[method]))
    return found


def _request(method: str, path: str, request: Document) -> str:
    """Return what is said of one request, folded up."""
    text = request.get("description") or request.get("summary", "")
    parts = [f"<p>{_prose(one)}</p>" for one in text.split("\n\n")]
    rows = [
        (one["name"], one["in"], one.get("required", False), one["schema"], _about(one))
        for one in request.get("parameters", ())
    ]
    if rows:
        parts.append(
            _table(
                ("parameter", "in", "type", "meaning"),
                (
                    (
                        _code(name),
                        escape(where),
                        _kind(schema) + _needed(is_needed=is_needed),
                        about,
                    )
                    for name, where, is_needed, schema, about in rows
                ),
            )
        )
    for media, content in request.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<p>Body, {_code(media)}: {_kind(content.get('schema', {}))}</p>")
    parts.append(_table(("status", "answer"), map(_answer, request["responses"].items())))
    first = text.split("\n", 1)[0]
    return (
        f"<details><summary><b>{method.upper()}</b> {_code(path)} {_prose(first)}</summary>"
        f"{''.join(parts)}</details>"
    )


def _answer(found: tuple[str, Document]) -> tuple[str, str]:
    """Return the status and the description of an answer, with its types."""
    status, answer = found
    kinds = [
        f"{_code(media)}: {_kind(content['schema'])}" if "schema" in content else _code(media)
        for media, content in answer.get("content", {}).items()
    ]
    return escape(status), "<br>".join([_prose(answer.get("description", "")), *kinds])


def _schema(name: str, schema: Document) -> str:
    """Return the fields of a type, folded up, with the anchor that others refer to."""
    about = [f"<p>{_prose(one)}</p>" for one in schema.get("description", "").split("\n\n") if one]
    fields: Document = schema.get("properties", {})
    if fields:
        needed = set(schema.get("required", ()))
        rows = (
            (_code(field), _kind(one) + _needed(is_needed=field in needed), _about(one))
            for field, one in fields.items()
        )
        about.append(_table(("field", "type", "meaning"), rows))
    else:
        about.append(f"<p>{_kind(schema)}</p>")
    return (
        f'<details open id="{escape(name)}"><summary>{_code(name)}</summary>'
        f"{''.join(about)}</details>"
    )


def _kind(schema: Document) -> str:
    """Return the type of a value, with links to the types that have names."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#{escape(name)}">{escape(name)}</a>'
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return " or ".join(_kind(one) for one in schema[several])
    values = schema.get("enum") or ([schema["const"]] if "const" in schema else ())
    if values:
        return ", ".join(_code(str(one)) for one in values)
    kind = schema.get("type", "any value")
    if kind == "array":
        kind = f"list of {_kind(schema.get('items') or {})}"
    elif kind == "object" and isinstance(of := schema.get("additionalProperties"), dict):
        kind = f"object of {_kind(of)}"
    else:
        kind = escape(f"{kind} ({schema['format']})" if "format" in schema else str(kind))
    return kind


def _about(described: Document) -> str:
    """Return the meaning of a parameter or a field, with its default."""
    schema: Document = described.get("schema", described)
    text = _prose(described.get("description", schema.get("description", "")))
    if schema.get("default") is None:
        return text
    return f"{text} (default {_code(json.dumps(schema['default']))})".strip()


def _needed(*, is_needed: bool) -> str:
    return ", required" if is_needed else ""


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table; the text of the rows is HTML."""
    lines = ["".join(f"<th>{one}</th>" for one in head)]
    lines += ["".join(f"<td>{one}</td>" for one in row) for row in rows]
    return f"<table>{''.join(f'<tr>{one}</tr>' for one in lines)}</table>"


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _prose(text: str) -> str:
    """Return prose with the words between backquotes set as code."""
    return re.sub(r"`+([^`]+)`+", r"<code>\1</code>", escape(text.strip()))
