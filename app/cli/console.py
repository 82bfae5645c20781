"""
What commands write to: names and paths as they are, in lines that a reader can copy whole.

People read lines; pipelines ask for ``--json`` and get one object on the output, at the end, with the lines on the
error stream; ``--quiet`` leaves the lines out. Both are options of every command (``with_output_options``).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, NoReturn, Protocol, get_type_hints, runtime_checkable

import typer
from rich.console import Console

UNTIL_STOPPED = ("serve", "worker")
"""Commands that go on until somebody stops them: Ctrl-C is their end, and no error."""
USAGE_ERROR = 2
"""Exit code of everything that was refused or failed on purpose."""

# Neither reads brackets as markup nor colours numbers: what is printed are users' own names and paths.
console = Console(markup=False, highlight=False)
errors = Console(stderr=True, markup=False, highlight=False)

_result: dict[str, Any] = {}
_answered: list[str] = []


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


@contextlib.contextmanager
def one_answer(arguments: Sequence[str]) -> Iterator[None]:
    """A pipeline's object for a command that is refused before it begins, too: an unknown option, say."""
    _answered.clear()
    try:
        yield
    except SystemExit as ended:
        if "--json" in arguments and ended.code and not _answered:
            refusal = ended.__context__
            said = refusal.format_message() if isinstance(refusal, _Refusal) else f"exit code {ended.code}"
            _print_answer(arguments[0], {"error": " ".join(said.split())})
        raise


@runtime_checkable
class _Refusal(Protocol):
    """What the parser of the command line ends with."""

    def format_message(self) -> str: ...


def _print_answer(command: str, result: dict[str, Any]) -> None:
    _answered.append(command)
    sys.stdout.write(f"{json.dumps({'command': command, 'ok': 'error' not in result, **result})}\n")
    sys.stdout.flush()


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
        except KeyboardInterrupt:
            if command.__name__ not in UNTIL_STOPPED:
                print_error("taesar: interrupted")
                set_result(error="interrupted")
            raise
        except Exception as error:
            set_result(error=one_line(error))
            raise
        finally:
            if as_json:
                _print_answer(command.__name__, _result)
            console.stderr = console.quiet = False

    added = {"as_json": _Json, "quiet": _Quiet}
    hints = get_type_hints(command, include_extras=True) | added
    own = [known.replace(annotation=hints[name]) for name, known in inspect.signature(command).parameters.items()]
    keyword = inspect.Parameter.KEYWORD_ONLY
    own += [inspect.Parameter(name, keyword, default=False, annotation=kind) for name, kind in added.items()]
    run.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
    run.__annotations__ = hints
    return run
