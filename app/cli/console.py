"""What commands write to: names and paths as they are, in lines that a reader can copy whole."""

from __future__ import annotations

import sys
from typing import NoReturn

from rich.console import Console

USAGE_ERROR = 2
"""Exit code of everything that was refused or failed on purpose."""

# Neither reads brackets as markup nor colours numbers: what is printed are users' own names and paths.
console = Console(markup=False, highlight=False)
errors = Console(stderr=True, markup=False, highlight=False)


def say(line: str, *, style: str | None = None) -> None:
    """One line on the output, however narrow the terminal."""
    console.print(line, style=style, soft_wrap=True)


def print_error(line: str) -> None:
    """One line on the error stream."""
    errors.print(line, style="red", soft_wrap=True)


def fail(error: Exception) -> NoReturn:
    """End the command with *error* as one line on the error stream, and exit code 2."""
    print_error(f"taesar: {error}")
    sys.exit(USAGE_ERROR)
