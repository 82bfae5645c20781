"""
The ``taesar`` command.

Torch, polars and FastAPI load inside the command that needs them, so that ``taesar --help`` answers at once. An option
that is not given leaves the default to its config in ``models``; the default that ``--help`` shows is that config's,
which a test compares. Folders to write are resolved here: they are replaced by renaming, which "." has no name for.
Everything raised on purpose ends in one line on the error stream and exit code 2.
"""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Annotated

import typer

from app.cli.audit import audit
from app.cli.backup import backup, restore
from app.cli.check import check
from app.cli.console import fail, is_disk_full, one_answer, say, set_result, with_output_options
from app.cli.crashes import contain_crashes
from app.cli.evaluate import evaluate
from app.cli.gate import gate
from app.cli.keys import keys
from app.cli.lineage import lineage
from app.cli.migrate import migrate
from app.cli.options import SettingsError
from app.cli.prepare import prepare
from app.cli.probe import probe
from app.cli.prune import prune
from app.cli.regenerate import regenerate
from app.cli.reproduce import reproduce
from app.cli.serve import serve
from app.cli.settings import settings
from app.cli.train import train
from app.cli.tune import tune
from app.cli.worker import worker
from app.errors import ServiceError
from models.errors import ModelError

cli = typer.Typer(
    name="taesar",
    help="Regenerate mixed-domain interaction sequences into target-domain sequences.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# The order is that of `taesar --help`: first the way from a log to a service, then what keeps it running.
way = (check, prepare, train, regenerate, evaluate, tune, reproduce, gate, lineage)
for command in (*way, worker, migrate, prune, backup, restore, keys, audit, probe, serve, settings):
    cli.command()(with_output_options(command))


@cli.command()
@with_output_options
def version() -> None:
    """Print the version of Taesar."""
    say(importlib.metadata.version("taesar"))
    set_result(version=importlib.metadata.version("taesar"))


def _print_version(wanted: bool) -> None:
    if wanted:
        say(importlib.metadata.version("taesar"))
        raise typer.Exit


@cli.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version of Taesar.")
    ] = False,
) -> None:
    """Regenerate mixed-domain interaction sequences into target-domain sequences."""


def start() -> None:
    """What the installed command runs: ``main``, in a process of its own where strangers' files could end it."""
    contain_crashes(sys.argv[1:])
    main()


def main() -> None:
    """Run the command; errors on purpose and of the file system become one line and exit code 2."""
    with one_answer(sys.argv[1:]):
        try:
            cli()
        except (ModelError, ServiceError, SettingsError, OSError) as error:
            fail(error)
        except Exception as error:
            if not is_disk_full(error):
                raise
            fail(error)
