"""`taesar keys`: the file of accepted keys."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from app.cli.console import console, say, set_result


def keys(
    action: Annotated[
        Literal["add", "list", "remove"],
        typer.Argument(help="add: make a key and print it, once; list: names and scopes; remove: refuse a key."),
    ],
    name: Annotated[str | None, typer.Argument(help="Of the key: what logs and the audit record call it.")] = None,
    scopes: Annotated[
        str | None,
        typer.Option(
            help="What the key may do, comma-separated: regenerate, jobs, mappings:read, admin (activate, remove).",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="The file, made if it is not there.", show_default="TAESAR_API_KEYS_FILE")
    ] = None,
    existing: Annotated[
        bool,
        typer.Option("--existing", help="Read a key that clients have already from the input, instead of making one."),
    ] = False,
) -> None:
    """
    Keep the file of accepted keys: names, scopes and hashes; no key can be read from it.

    A service that runs takes a change over within 2 s. To rotate a key add another one, give it to the client, and
    remove the first.
    """
    from app.access.key_file import read_keys, remove_key

    path = _file_of(file)
    if action == "list":
        found = read_keys(path)
        for key in found:
            say(f"{key.name}  {','.join(sorted(key.scopes))}")
        set_result(keys=[{"name": key.name, "scopes": sorted(key.scopes)} for key in found])
        return
    if name is None:
        raise typer.BadParameter(f"the name of the key to {action} is missing")
    if action == "remove":
        remove_key(path, name)
        say(f"{name} is removed from {path}")
        set_result(name=name, file=str(path))
    else:
        _add(path, name, scopes, existing=existing)


def _add(path: Path, name: str, scopes: str | None, *, existing: bool) -> None:
    from app.access.key_file import MIN_SECRET_LENGTH, AccessKey, add_key, hash_of, new_secret, scopes_of

    if scopes is None:
        raise typer.BadParameter("--scopes says what the key may do")
    secret = sys.stdin.readline().strip() if existing else new_secret()
    if len(secret) < MIN_SECRET_LENGTH or not secret.isascii() or not secret.isprintable() or " " in secret:
        raise typer.BadParameter(f"a key has at least {MIN_SECRET_LENGTH} printable ASCII characters, without spaces")
    key = AccessKey(name, scopes_of(scopes), hash_of(secret.encode()))
    add_key(path, key)
    set_result(name=name, scopes=sorted(key.scopes), file=str(path))
    if existing:
        say(f"{name} is added to {path}")
        return
    set_result(key=secret)
    if not console.stderr:  # whatever --quiet says: nobody can read it again; with --json it is in the object
        sys.stdout.write(f"{secret}\n")
    say(f"the key of {name}, in {path} from now on, and shown this once")


def _file_of(file: Path | None) -> Path:
    """
    The file of --file, else of the setting, which need not hold a key yet.

    Raises:
        typer.BadParameter: neither names one.
    """
    named = file or os.environ.get("TAESAR_API_KEYS_FILE")
    if not named:
        raise typer.BadParameter("--file or TAESAR_API_KEYS_FILE says which file")
    return Path(named)
