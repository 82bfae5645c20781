"""`taesar serve`: the HTTP service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from app.cli.console import fail
from app.cli.options import read_settings, say_starting
from models.decoding.rules import DEFAULT_RULE, Rule


def serve(
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="Bundle folder to serve; without one the service waits for an activation.",
            show_default="TAESAR_BUNDLE, or none",
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            help="Address to listen on; local, so that exposing the service is a choice.", show_default="127.0.0.1"
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65_535, help="Port to listen on; 0 takes any free one.", show_default="8000"),
    ] = None,
    rule: Annotated[
        Rule | None,
        typer.Option("--rule", "--recipe", help="Decoding rule; see `taesar regenerate`.", show_default=DEFAULT_RULE),
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"] | None,
        typer.Option(help="Where to compute; auto takes CUDA when there is one.", show_default="auto"),
    ] = None,
) -> None:
    """
    Answer POST /regenerate over HTTP until SIGTERM or Ctrl-C.

    Every setting is also read from the environment as TAESAR_<NAME>; an option goes before it. `taesar settings`
    lists them all.
    """
    from app.settings import ExposedError

    chosen = read_settings(bundle=bundle, host=host, port=port, rule=rule, device=device)
    try:
        chosen.refuse_exposure()  # before torch is loaded
    except ExposedError as error:
        fail(error)
    say_starting(chosen, "serve")
    from app.main import serve as serve_until_stopped
    from app.runtime.tracing import TracingMissingError

    try:
        serve_until_stopped(chosen)
    except TracingMissingError as error:
        fail(error)
