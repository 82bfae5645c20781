"""
Print the house: rooms, their files with the first line of what each says of itself, and what a room imports.

    make map

A room is a folder of ``models/`` or ``app/``, or a file beside them. Everything is read from the sources, the order
too: a room stands below all that it imports, so imports point upwards. docs/architecture.md says what rooms are for.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("models", "app")
NAME_WIDTH = 26


@dataclass
class Room:
    """
    One room.

    Args:
        name: ``models/decoding`` or ``models/bundle``.
        files: its Python files.
        imports: rooms that they import, itself left out.
    """

    name: str
    files: list[Path] = field(default_factory=list)
    imports: set[str] = field(default_factory=set)


def main() -> None:
    """Print the map."""
    sys.stdout.write("\n".join(house_map(ROOT)) + "\n")


def house_map(root: Path) -> Iterator[str]:
    """The lines of the map."""
    rooms = read_rooms(root)
    for package in PACKAGES:
        yield f"{package}/"
        for room in in_order([room for room in rooms.values() if room.name.startswith(f"{package}/")]):
            above = ", ".join(sorted(room.imports, key=list(rooms).index))
            yield f"  {room.name.removeprefix(f'{package}/')}{f'   imports {above}' if above else ''}"
            for path in room.files:
                place = root / package if path.parent == root / package else root / room.name
                yield f"    {path.relative_to(place).as_posix():<{NAME_WIDTH}} {promise(path)}"


def read_rooms(root: Path) -> dict[str, Room]:
    """Every room of both packages by its name."""
    rooms: dict[str, Room] = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            if path.name != "__init__.py":
                rooms.setdefault(room_of(root, path), Room(room_of(root, path))).files.append(path)
    for room in rooms.values():
        imported = {name for path in room.files for name in imported_names(path)}
        room.imports = {found for name in imported if (found := room_named(rooms, name))} - {room.name}
    return rooms


def room_of(root: Path, path: Path) -> str:
    """Package and first name below it."""
    package, first, *_ = path.relative_to(root).parts
    return f"{package}/{first.removesuffix('.py')}"


def room_named(rooms: dict[str, Room], dotted: str) -> str | None:
    """The room that an import leads to; None for other people's packages."""
    name = "/".join(dotted.split(".")[:2])
    return name if name in rooms else None


def imported_names(path: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def in_order(rooms: list[Room]) -> Iterator[Room]:
    """Rooms after all of their package that they import; by name where nothing else decides."""
    names, done = {room.name for room in rooms}, set[str]()
    waiting = sorted(rooms, key=lambda room: room.name)
    while waiting:
        ready = [room for room in waiting if room.imports & names <= done]
        if not ready:
            sys.exit(f"rooms import one another in a circle: {', '.join(room.name for room in waiting)}")
        yield from ready
        done |= {room.name for room in ready}
        waiting = [room for room in waiting if room.name not in done]


def promise(path: Path) -> str:
    """The first sentence of a file's docstring, or its first paragraph where that has none."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<!\beq)(?<!\bal)\. ", paragraph)[0].removesuffix(".").replace("``", "`")


if __name__ == "__main__":
    main()
