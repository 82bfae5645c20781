"""
Write what the code says of itself into the documentation: docs/reference.md and the settings in .env.example.

    make docs

`tests/test_docs.py` fails when the files differ from what this writes, so no setting, option, route, metric or error
goes undocumented.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer.main
from prometheus_client import CollectorRegistry

import app.errors
import models.errors
from app.cli.taesar import cli
from app.http.application import Application, create_app
from app.http.problems import STATUS
from app.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference.md"
EXAMPLE = ROOT / ".env.example"
# The last section; its first paragraph stays, and each setting follows with its reason above it.
EXAMPLE_SETTINGS = re.compile(r"(?<=\n# --- Settings of the service -)(-+\n(?:# .*\n)+\n)[\s\S]*")
# What docker-compose.yml or the image decides, and what .env.example has words of its own for.
NOT_IN_EXAMPLE = {"bundle", "bundle_root", "data", "host", "port", "device", "api_keys", "api_keys_file"}
NOT_IN_EXAMPLE |= {"database_url", "redis_url", "input_roots", "metrics_port"}


def main() -> None:
    """Write both files."""
    REFERENCE.write_text(reference(), encoding="utf-8")
    EXAMPLE.write_text(with_settings(EXAMPLE.read_text(encoding="utf-8")), encoding="utf-8")


def reference() -> str:
    """The text of docs/reference.md."""
    application = create_app(Settings.model_construct(), registry=CollectorRegistry())
    parts = [
        "# Reference",
        "Written by `make docs` from the code; do not edit.",
        "## Commands",
        *commands(),
        "## Settings",
        "Environment variables of `taesar serve` and of what runs beside it. `taesar settings` prints the same.",
        table(("variable", "default", "what it does, and why so"), settings()),
        "## Routes",
        "`/docs` and `/openapi.json` of a running service have the schemas, with examples.",
        table(("route", "what it does", "errors"), routes(application)),
        "## Metrics",
        table(("metric", "kind", "what it counts", "labels"), metrics(application)),
        "## Errors",
        "Over HTTP an error is `application/problem+json` whose `type` is the kind's URN. On the command line it is "
        "one line and exit code 2. A type without a status never reaches a client as itself.",
        table(("type", "status", "when"), errors()),
    ]
    return "\n\n".join(parts) + "\n"


def commands() -> Iterator[str]:
    """A section per command of ``taesar``: its promise and its options."""
    group: Any = typer.main.get_command(cli)
    for name, command in sorted(group.commands.items()):
        yield f"### `taesar {name}`"
        yield inspect.cleandoc(command.help or "")
        rows = []
        for parameter in command.params:
            label = parameter.metavar if parameter.param_type_name == "argument" and parameter.metavar else None
            label = label or (parameter.opts[0] if parameter.param_type_name == "option" else parameter.name.upper())
            rows.append((f"`{label}`", default_of(parameter), parameter.help or ""))
        if rows:
            yield table(("option", "default", "what it does, and why so"), rows)


def default_of(parameter: Any) -> str:
    """The default as ``--help`` shows it."""
    if parameter.required:
        return "required"
    shown = getattr(parameter, "show_default", None)
    if isinstance(shown, str):
        return f"`{shown}`"
    if getattr(parameter, "is_flag", False):
        return "off"
    return "none" if parameter.default is None else f"`{parameter.default}`"


def settings() -> Iterator[tuple[str, ...]]:
    """One row per setting of the service."""
    for name, field in Settings.model_fields.items():
        default = "unset" if field.default in (None, ()) else f"`{field.default}`"
        yield f"`TAESAR_{name.upper()}`", default, field.description or ""


def routes(application: Application) -> Iterator[tuple[str, ...]]:
    """One row per operation of the OpenAPI document."""
    for path, operations in sorted(application.openapi()["paths"].items()):
        for method, operation in sorted(operations.items()):
            statuses = [status for status in operation["responses"] if int(status) >= 400]
            yield f"`{method.upper()} {path}`", operation["summary"], ", ".join(sorted(statuses))


def metrics(application: Application) -> Iterator[tuple[str, ...]]:
    """One row per metric that the service itself defines."""
    registry: CollectorRegistry = application.state.metrics.registry
    for collector in sorted(set(registry._collector_to_names), key=lambda one: str(getattr(one, "_name", ""))):
        for family in collector.describe() if hasattr(collector, "describe") else ():
            if family.name.startswith("taesar_"):
                name = family.name + ("_total" if family.type == "counter" else "")
                labels = ", ".join(getattr(collector, "_labelnames", ()))
                yield f"`{name}`", family.type, family.documentation, labels or "none"


def errors() -> Iterator[tuple[str, ...]]:
    """One row per type of both trees."""
    for module, root in ((models.errors, models.errors.ModelError), (app.errors, app.errors.ServiceError)):
        for name, kind in inspect.getmembers(module, inspect.isclass):
            if issubclass(kind, root) and kind.__module__ == module.__name__ and kind is not root:
                status = next((STATUS[base] for base in kind.__mro__ if base in STATUS), "")
                yield f"`{name}`", str(status), first_line(kind.__doc__)


def with_settings(example: str) -> str:
    """.env.example with its last section as the settings are."""
    assert EXAMPLE_SETTINGS.search(example), ".env.example has lost the place of the settings"
    return EXAMPLE_SETTINGS.sub(lambda kept: kept[1] + "".join(f"{line}\n" for line in example_settings()), example)


def example_settings() -> Iterator[str]:
    """Per setting its reason and its default, commented out."""
    for name, field in Settings.model_fields.items():
        if name not in NOT_IN_EXAMPLE:
            yield textwrap.fill(field.description or "", 118, initial_indent="# ", subsequent_indent="# ")
            yield f"#TAESAR_{name.upper()}={'' if field.default in (None, ()) else field.default}"


def first_line(docstring: str | None) -> str:
    """The promise: the first sentence, without its full stop."""
    paragraph = " ".join((docstring or "").strip().split("\n\n")[0].split())
    return re.split(r"(?<!\beq)(?<!\bal)\.(?= [A-Z`]|$)", paragraph)[0].replace("``", "`")


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |" for row in lines
    )


if __name__ == "__main__":
    main()
