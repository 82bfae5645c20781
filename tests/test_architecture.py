"""Which module may import which, read from the sources: docs/architecture.md is the table, this walks the imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("models", "app")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MOST_LINES = 500

# What must start fast, or run where torch is not wanted, never imports it: neither itself nor through what it imports.
TORCH_FREE = (
    "models/errors.py",
    "models/vocabulary.py",
    "models/decoding/rules.py",
    "models/recommenders/registry.py",
    "app/errors.py",
    "app/settings.py",
    "app/runtime/logs.py",
    "app/runtime/metrics.py",
    "app/serving/regeneration_bodies.py",
    "app/serving/batching.py",
    "app/storage/tables.py",
    "app/storage/database.py",
    "app/mappings/mapping_store.py",
    "app/jobs/records.py",
    "app/jobs/job_store.py",
    "app/cli/taesar.py",
)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def imports_of(path: Path, *, at_start_only: bool = False) -> frozenset[str]:
    """Dotted names that a file imports anywhere; *at_start_only* leaves out functions' and TYPE_CHECKING's."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if at_start_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if at_start_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}: relative import; write the whole name"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return frozenset(found)


def module_file(dotted: str) -> Path | None:
    """The file of ours that *dotted* (a module, or a name in one) lies in; None for others' names."""
    parts = dotted.split(".")
    if parts[0] not in PACKAGES:
        return None
    for end in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:end])
        if base.with_suffix(".py").is_file():
            return base.with_suffix(".py")
        if (base / "__init__.py").is_file():
            return base / "__init__.py"
    return None


def layers(package: str) -> list[tuple[str, ...]]:
    """The rows of *package*'s table in docs/architecture.md, top first: names of modules or of folders (``name/``)."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {package}/.*?$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"docs/architecture.md has no section '## {package}/'"
    rows = re.findall(r"^\| (`[^|]+`) \|", section.group(1), re.MULTILINE)
    return [tuple(re.findall(r"`([^`]+)`", row)) for row in rows]


def layer_of(path: Path, package: str) -> int | None:
    """Row of *path* in its package's table; None when the table lacks it."""
    name = path.relative_to(ROOT / package).as_posix()
    for index, names in enumerate(layers(package)):
        if any(name == entry or (entry.endswith("/") and name.startswith(entry)) for entry in names):
            return index
    return None


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_models_never_imports_app(path: Path) -> None:
    """`app` imports `models`, never back."""
    if path.is_relative_to(ROOT / "models"):
        backwards = sorted(name for name in imports_of(path) if name.split(".")[0] == "app")

        assert backwards == []


@pytest.mark.parametrize("path", [path for path in MODULES if path.stat().st_size], ids=relative)
def test_a_module_imports_only_what_stands_above_it_in_the_module_map(path: Path) -> None:
    """The tables of docs/architecture.md are the layer order; modules of one row may use one another."""
    package = path.relative_to(ROOT).parts[0]
    if path == ROOT / package / "__init__.py":
        assert not any(module_file(name) for name in imports_of(path)), "a package's __init__ imports nothing of ours"
        return
    own = layer_of(path, package)
    assert own is not None, f"{relative(path)} is not in the tables of docs/architecture.md"
    for name in sorted(imports_of(path)):
        imported = module_file(name)
        if imported is None or not imported.is_relative_to(ROOT / package):
            continue
        if imported == ROOT / package / "__init__.py":
            continue
        layer = layer_of(imported, package)
        assert layer is not None
        assert layer <= own, f"{relative(path)} imports {name}, which stands below it in docs/architecture.md"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_module_map_names_no_file_that_is_not_there(package: str) -> None:
    """Every row of the tables is a file or a folder."""
    missing = [name for names in layers(package) for name in names if not (ROOT / package / name).exists()]

    assert missing == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_cycle_inside_a_row(package: str) -> None:
    """Modules that share a row may use one another, one way only."""
    files = [path for path in MODULES if path.is_relative_to(ROOT / package)]
    above = {
        path: {found for name in imports_of(path) if (found := module_file(name)) in files and found != path}
        for path in files
    }
    while leaves := [path for path, imported in above.items() if not imported & above.keys()]:
        for leaf in leaves:
            del above[leaf]

    assert sorted(map(relative, above)) == []


@pytest.mark.parametrize("name", TORCH_FREE)
def test_a_torch_free_module_never_reaches_torch(name: str) -> None:
    """Followed through every import of ours that runs when the module is loaded."""
    seen: set[Path] = set()
    waiting = [(ROOT / name, name)]
    while waiting:
        path, route = waiting.pop()
        for imported in imports_of(path, at_start_only=True):
            assert imported.split(".")[0] != "torch", f"{route} imports {imported}"
            file = module_file(imported)
            if file is not None and file not in seen:
                seen.add(file)
                waiting.append((file, f"{route} -> {relative(file)}"))


def test_the_command_line_starts_without_loading_torch() -> None:
    """`taesar --help` answers at once: measured in a fresh interpreter, third-party imports included."""
    code = "import sys, app.cli.taesar; print(sorted({'torch', 'polars', 'fastapi', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_only_the_http_room_knows_the_web_framework() -> None:
    """FastAPI and Starlette are imported in app/http/ alone."""
    outside = [
        relative(path)
        for path in MODULES
        if not path.is_relative_to(ROOT / "app" / "http")
        and {name.split(".")[0] for name in imports_of(path)} & {"fastapi", "starlette"}
    ]

    assert outside == []


def test_training_and_decoding_do_not_know_each_other() -> None:
    """They stand side by side: a bundle is all that goes from one to the other."""
    for room, other in (("training", "decoding"), ("decoding", "training")):
        for path in (ROOT / "models" / room).glob("*.py"):
            assert not [name for name in imports_of(path) if name.startswith(f"models.{other}")], relative(path)


def test_one_name_is_one_type() -> None:
    """No two classes or type aliases of the house share a name, whichever rooms they stand in."""
    places: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(relative(path))

    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_no_two_modules_share_a_name() -> None:
    """A file is found by its name; routes and commands are named for what they do."""
    names: dict[str, list[str]] = {}
    for path in MODULES:
        if path.name not in ("__init__.py", "errors.py") and path.parent.name not in ("routes", "cli"):
            names.setdefault(path.stem.rstrip("s"), []).append(relative(path))

    assert {name: files for name, files in names.items() if len(files) > 1} == {}


def test_no_file_is_named_for_nothing() -> None:
    """`utils`, `helpers`, `manager` and `common` say nothing of what is inside."""
    vague = {"utils", "util", "helper", "helpers", "manager", "managers", "common", "misc"}

    assert [relative(path) for path in MODULES if path.stem in vague] == []


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_module_stays_short_enough_to_read_at_once(path: Path) -> None:
    """Under 500 lines; beyond that a file holds two concerns."""
    num_lines = len(path.read_text(encoding="utf-8").splitlines())

    assert num_lines < MOST_LINES
