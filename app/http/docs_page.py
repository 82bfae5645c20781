"""
The description of the API as a page to read: /docs.

Our own, of the same document as /openapi.json, and without a script: Swagger's page loads its program from a foreign
host, or weighs two megabytes. Requests to try are shown as curl commands.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterator, Mapping
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #1b1b1b }
h2 { border-top: 1px solid #ccc; margin-top: 2.5rem; padding-top: 1rem }
code, pre { font-family: ui-monospace, monospace; font-size: 0.9em }
pre { background: #f4f4f4; overflow-x: auto; padding: 0.75rem }
table { border-collapse: collapse; width: 100% } td, th { border-bottom: 1px solid #ddd; padding: 0.3rem;
text-align: left; vertical-align: top }
"""
# The one thing that the page may use beside its text
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; frame-ancestors 'none'; style-src 'sha256-"
    + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    + "'"
)

Json = Mapping[str, Any]


def docs_page(document: Json) -> str:
    """*document*, an OpenAPI description, as one HTML page."""
    info = document["info"]
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>{html.escape(info['title'])}</title><style>{STYLE}</style></head><body>",
        f"<h1>{html.escape(info['title'])} {html.escape(info['version'])}</h1>",
        f"<p>{html.escape(info.get('summary', ''))}</p>",
        "<p>The same for programs: <a href='openapi.json'>openapi.json</a>.</p>",
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts += _operation(document, path, method, operation)
    return "\n".join([*parts, "</body></html>"])


def _operation(document: Json, path: str, method: str, operation: Json) -> Iterator[str]:
    yield f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>"
    yield f"<p><b>{html.escape(operation.get('summary', ''))}</b></p>"
    for paragraph in operation.get("description", "").split("\n\n"):
        yield f"<p>{html.escape(paragraph)}</p>"
    if parameters := operation.get("parameters"):
        yield "<table><tr><th>Parameter</th><th>In</th><th>Meaning</th></tr>"
        for parameter in parameters:
            meaning = parameter.get("description", "") + (" Required." if parameter.get("required") else "")
            yield _row(f"<code>{html.escape(parameter['name'])}</code>", parameter["in"], html.escape(meaning))
        yield "</table>"
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        schema = _resolved(document, content.get("schema", {}))
        yield f"<p>Body: <code>{html.escape(media_type)}</code></p>"
        yield "<table><tr><th>Field</th><th>Required</th><th>Meaning</th></tr>"
        for name, field in schema.get("properties", {}).items():
            required = "yes" if name in schema.get("required", ()) else ""
            yield _row(f"<code>{html.escape(name)}</code>", required, html.escape(field.get("description", "")))
        yield "</table>"
        example = content.get("example") or next(iter(schema.get("examples", [])), None)
        if example is not None:
            yield f"<pre>{html.escape(_curl(path, method, media_type, example))}</pre>"
    yield "<table><tr><th>Status</th><th>Meaning</th></tr>"
    for status, response in operation["responses"].items():
        yield _row(f"<code>{html.escape(str(status))}</code>", html.escape(response.get("description", "")))
    yield "</table>"


def _curl(path: str, method: str, media_type: str, example: object) -> str:
    body = json.dumps(example, indent=1).replace("'", "'\\''")
    return f"curl -X {method.upper()} http://localhost:8000{path} -H 'Content-Type: {media_type}' -d '{body}'"


def _row(*cells: str) -> str:
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _resolved(document: Json, schema: Json) -> Json:
    """*schema*, or what it refers to."""
    name = schema.get("$ref", "").rpartition("/")[2]
    found: Json = document["components"]["schemas"][name] if name else schema
    return found
