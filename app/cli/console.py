"""
What commands write to: names and paths as they are, in lines that a reader can copy whole.

People read lines; pipelines ask for ``--json`` and get one object on the output, at the end, with the lines on the
error stream; ``--quiet`` leaves the lines out. Both are options of every command (``with_output_options``).
"""

from __future__ import annotations

import errno
import functools
import inspect
import json
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn, get_type_hints

import typer
from rich.console import Console

USAGE_ERROR = 2
"""Exit code of everything that was refused or failed on purpose."""

# Neither reads brackets as markup nor colours numbers: what is printed are users' own names and paths.
console = Console(markup=False, highlight=False)
errors = Console(stderr=True, markup=False, highlight=False)

_result: dict[str, Any] = {}


def say(line: str, *, style: str | None = None) -> None:
    """One line on the output, however narrow the terminal."""
    console.print(line, style=style, soft_wrap=True)


def set_result(**values: Any) -> None:
    """What ``--json`` prints of the command once it has ended."""
    _result.update(values)


def print_error(line: str) -> None:
    """One line on the error stream."""
    errors.print(line, style="red", soft_wrap=True)


def fail(error: Exception) -> NoReturn:
    """End the command with *error* as one line on the error stream, and exit code 2."""
    line = one_line(error)
    print_error(f"taesar: {line}")
    set_result(error=line)
    sys.exit(USAGE_ERROR)


def one_line(error: Exception) -> str:
    """
    What went wrong, in one line; of a full disk in plain words, whichever library met it.

    >>> one_line(OSError(errno.ENOSPC, "No space left on device", "/data/x"))
    '/data/x: the disk is full'
    """
    if is_disk_full(error):
        return f"{getattr(error, 'filename', None) or 'the output'}: the disk is full"
    return " ".join(str(error).splitlines())


def is_disk_full(error: BaseException) -> bool:
    """Whether it is for want of space; libraries in Rust and C++ say so in words alone."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left on device" in str(error) or "os error 28" in str(error)


_Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Print one JSON object on the output when the command has ended; lines go to the error stream."
    ),
]
_Quiet = Annotated[bool, typer.Option("--quiet", help="Print no lines, only errors.")]


def with_output_options(command: Callable[..., None]) -> Callable[..., None]:
    """*command* with ``--json`` and ``--quiet``; whatever its end, a pipeline gets its object."""

    @functools.wraps(command)
    def run(*, as_json: bool, quiet: bool, **options: Any) -> None:
        _result.clear()
        console.stderr, console.quiet = as_json, quiet
        try:
            command(**options)
        except Exception as error:
            set_result(error=one_line(error))
            raise
        finally:
            if as_json:
                answer = {"command": command.__name__, "ok": "error" not in _result, **_result}
                sys.stdout.write(f"{json.dumps(answer)}\n")
                sys.stdout.flush()
            console.stderr = console.quiet = False

    added = {"as_json": _Json, "quiet": _Quiet}
    hints = get_type_hints(command, include_extras=True) | added
    own = [known.replace(annotation=hints[name]) for name, known in inspect.signature(command).parameters.items()]
    keyword = inspect.Parameter.KEYWORD_ONLY
    own += [inspect.Parameter(name, keyword, default=False, annotation=kind) for name, kind in added.items()]
    run.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
    run.__annotations__ = hints
    return run
