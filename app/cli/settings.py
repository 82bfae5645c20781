"""`taesar settings`: every setting of the service, with its default and the reason for it."""

from __future__ import annotations

from rich.padding import Padding

from app.cli.console import console, say, set_result


def settings() -> None:
    """List every setting of the service: its variable, its default, and why."""
    from app.settings import Settings

    set_result(
        settings={
            f"TAESAR_{name.upper()}": {"default": str(field.default), "reason": field.description}
            for name, field in Settings.model_fields.items()
        }
    )
    for name, field in Settings.model_fields.items():
        default = "unset" if field.default in (None, ()) else field.default
        say(f"TAESAR_{name.upper()}={default}", style="bold")
        console.print(Padding(field.description or "", (0, 0, 1, 4)))
