"""Docs as tests: what the code says of itself stands in docs/reference.md, and what docs name is there."""

from __future__ import annotations

import csv
import importlib.util
import inspect
import json
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main

import app.errors
import models.errors
from app.cli.taesar import cli
from app.http.application import create_app
from app.settings import Settings
from models.data.dataset import Dataset
from models.decoding.rules import DEFAULT_RULE, load_rule
from models.evaluation.arms import build_arm
from models.network.decoder import DecoderConfig

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def script(name: str) -> ModuleType:
    """A file of docs/, which no package holds."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    """What writes the reference."""
    return script("write_reference")


def documented(text: str) -> bool:
    """Whether a row of a table of the reference begins with *text*."""
    return f"\n| `{text}` |" in REFERENCE


def test_the_reference_is_what_the_code_says(writer) -> None:
    """`make docs` writes it again."""
    assert writer.reference() == REFERENCE, "docs/reference.md is out of date: run `make docs`"


def test_every_setting_is_documented_with_its_reason() -> None:
    for name, field in Settings.model_fields.items():
        assert documented(f"TAESAR_{name.upper()}")
        assert field.description
        assert len(field.description.split()) > 5, f"{name}: say what it does and why its default is what it is"


def test_the_limits_that_the_readme_states_are_the_defaults() -> None:
    stated = re.search(
        r"^- One request: at most ([\d,]+) sequences, ([\d,]+) items in each, ([\d,]+) in all, (\d+) MiB\. All four",
        README,
        re.MULTILINE,
    )
    assert stated
    sequences, items, items_in_all, mebibytes = (int(number.replace(",", "")) for number in stated.groups())
    defaults = {name: field.default for name, field in Settings.model_fields.items()}

    assert sequences == defaults["max_sequences_per_request"]
    assert items == defaults["max_items_per_sequence"]
    assert items_in_all == defaults["max_items_per_request"]
    assert mebibytes * 2**20 == defaults["max_body_bytes"]


def test_the_length_that_the_readme_and_the_settings_state_is_the_decoders() -> None:
    max_length = DecoderConfig(num_items=1).max_length
    description = Settings.model_fields["max_items_per_sequence"].description

    assert load_rule(DEFAULT_RULE).max_items(DecoderConfig(num_items=1)) == max_length
    assert load_rule("paper").max_items(DecoderConfig(num_items=1)) == max_length + 1
    assert f"latest {max_length} items (one more under the contrastive rules" in README
    assert description is not None
    assert f"the last {max_length} known ones ({max_length + 1} under" in description


def test_every_command_and_option_is_documented() -> None:
    group = typer.main.get_command(cli)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        assert f"\n### `taesar {name}`\n" in REFERENCE
        for option in (parameter for parameter in command.params if parameter.param_type_name == "option"):
            assert documented(option.opts[0])


def test_every_route_is_documented() -> None:
    paths = create_app(Settings()).openapi()["paths"]
    operations = [f"{method.upper()} {path}" for path, methods in paths.items() for method in methods]

    assert "POST /regenerate" in operations
    assert [operation for operation in operations if not documented(operation)] == []


def test_the_readme_names_no_command_option_or_route_that_is_not_there() -> None:
    """And every command of the four that own data take, and what a production loop calls."""
    group = typer.main.get_command(cli)
    options = {
        name: {opt for parameter in command.params for opt in (*parameter.opts, *parameter.secondary_opts)}
        for name, command in group.commands.items()  # type: ignore[attr-defined]
    }
    paths = create_app(Settings()).openapi()["paths"]
    operations = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    used = re.findall(r"^taesar (\w+)(.*)$", README, re.MULTILINE)
    routes = set(re.findall(r"`((?:GET|POST|DELETE) /[^`]*)`", README))

    assert {name for name, _ in used} == {"check", "prepare", "train", "regenerate", "serve", "evaluate"}
    for name, arguments in used:
        assert set(re.findall(r"(?<= )--[\w-]+", arguments)) <= options[name] | {"--overlap"}
    assert {"POST /regenerate", "POST /jobs", "POST /models/{version}/activate"} <= routes <= operations


def test_the_readme_and_the_results_answer_in_a_minute() -> None:
    """A newcomer reads 150 lines and a table of eight rows, not a wall."""
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    rows = [line for line in results.splitlines() if line.startswith("|")]

    assert len(README.splitlines()) <= 150
    assert len(rows) - 2 <= 8
    assert len(results.split()) < 600
    assert all("docs/charts/gain.svg" in page or "charts/gain.svg" in page for page in (README, results))


def test_same_answers_are_promised_where_tests_compare_them() -> None:
    """To the bit, on the CPU and on a GPU: tests/models/decoding/test_regenerator.py takes whatever the machine has."""
    regenerate = create_app(Settings()).openapi()["paths"]["/regenerate"]["post"]["description"]
    sameness = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## Sameness of answers")[1]
    jobs_guide = (ROOT / "docs" / "jobs.md").read_text(encoding="utf-8").split("\n## ")[0]

    for text in (regenerate, sameness, jobs_guide):
        prose = " ".join(text.lower().split())
        assert "to the bit" in prose
        assert "on the cpu" in prose
        assert "on a gpu" in prose


def test_every_metric_is_documented() -> None:
    """Read from the text that Prometheus would scrape."""
    from prometheus_client import generate_latest

    exposition = generate_latest(create_app(Settings()).state.metrics.registry).decode()
    names = re.findall(r"^# TYPE (taesar_\w+) (?!gauge\n.*_created)", exposition, re.MULTILINE)
    names = [name for name in names if not name.endswith("_created")]

    assert "taesar_http_requests_total" in names
    assert [name for name in names if not documented(name)] == []


@pytest.mark.parametrize("module", [models.errors, app.errors])
def test_every_error_type_is_documented_and_drawn_in_the_tree_atop_its_file(module) -> None:
    kinds = [
        name
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Exception) and kind.__module__ == module.__name__
    ]
    roots = {"ModelError", "ServiceError"}

    assert [name for name in kinds if name not in roots and not documented(name)] == []
    assert [name for name in kinds if name not in module.__doc__] == []


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links_of(page: Path) -> list[tuple[Path, str]]:
    """File and anchor of every link of a page that leads to a file of ours."""
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", page.read_text(encoding="utf-8"))
    return [(page.parent / file if file else page, anchor) for file, anchor in links]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings_that_are_there(document) -> None:
    links = links_of(document)

    assert [str(file) for file, _ in links if not file.exists()] == []
    assert [f"{file}#{anchor}" for file, anchor in links if anchor and anchor not in anchors_of(file)] == []


def test_links_with_a_heading_are_looked_at() -> None:
    """The test above would pass where it finds none."""
    assert any(anchor for document in DOCUMENTS for _, anchor in links_of(document))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_file_that_a_document_names_is_there(document) -> None:
    text = document.read_text(encoding="utf-8")
    named = re.findall(r"`((?:examples|docs|tests|benchmarks|app|models|migrations|deploy)/[\w./-]+)`", text)

    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_document_is_reached_from_the_readme() -> None:
    """By links from page to page; decisions are read by their folder."""
    reached, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop().resolve()
        if page.suffix == ".md" and page not in reached:
            reached.add(page)
            waiting += [file for file, _ in links_of(page) if file.exists()]
    pages = [page for page in DOCUMENTS if page.parent.name != "decisions"]

    assert [page.relative_to(ROOT).as_posix() for page in pages if page.resolve() not in reached] == []


def test_every_example_in_a_docstring_is_run() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    packages = {
        package
        for package in ("app", "models")
        for path in (ROOT / package).rglob("*.py")
        if "\n    >>> " in path.read_text(encoding="utf-8")
    }

    assert "--doctest-modules" in settings["addopts"]
    assert packages == {"app", "models"}
    assert packages <= set(settings["testpaths"])


def test_the_changelog_has_a_place_for_the_next_release() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)

    assert headings[0] == "Unreleased"


def test_the_makefile_has_the_commands_that_the_readme_names() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    # "make docs" in a comment of the README is a command too; PYTHON=... before a target is not one.
    named = set(re.findall(r"`make (?:\w+=\S+ )?([a-z-]+)`", README)) | set(
        re.findall(r"^make ([a-z-]+)", README, re.M)
    )

    assert {"demo", "test", "check", "bench"} <= named
    assert [target for target in sorted(named) if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def report_of(target: str, *, relative: float, half_width: float) -> dict[str, Any]:
    """As `taesar evaluate` writes it: 10 users, scores .10, .12 and the expert's .15, one comparison."""
    means = {"original": 0.1, "regenerated": 0.12}
    scores = [
        {"recommender": "sasrec", "arm": arm, "group": "1 or more", "users": 10, "means": {"NDCG@10": mean}}
        for arm, mean in means.items()
    ]
    scores += [{**score, "recommender": "markov"} for score in scores]
    few = {"recommender": "sasrec", "arm": "original", "group": "1-2", "users": 4, "means": {"HR@10": relative}}
    expert = {"recommender": "target expert", "arm": "mixed", "group": "1 or more", "users": 10}
    compared = {
        "recommender": "sasrec",
        "arm": "regenerated",
        "baseline": "original",
        "baseline_recommender": "sasrec",
        "metric": "NDCG@10",
        "group": "1 or more",
        "users": 10,
        "without_leak_hits": False,
        "interval": {"mean": 0.02, "low": 0.01, "high": 0.03},
        "relative": {"mean": relative, "low": relative - half_width, "high": relative + half_width},
    }
    return {
        "provenance": {"dataset": "d", "target": target, "ranking": "unseen", "composite": None, "command": "evaluate"},
        "results": {
            "scores": [*scores, few, {**expert, "means": {"NDCG@10": 0.15}}],
            "comparisons": [compared],
            "runs": [{"recommender": "sasrec", "seeds": [1, 2, 3]}],
        },
        "audits": [
            {"split": "test", "users": 1234, "hits": 7, "expected_by_chance": 3.25, "hits_of_recommendations": 11}
        ],
    }


def csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_raw_numbers_are_the_reports_and_their_mean_over_targets(tmp_path) -> None:
    """Relative gains of +20 % and +40 %, each give or take 6 % and 8 %: +30 % give or take sqrt(6^2 + 8^2) / 2."""
    paths = []
    for target, relative, half_width in (("food", 0.2, 0.06), ("books", 0.4, 0.08)):
        paths.append(tmp_path / f"{target}.json")
        paths[-1].write_text(json.dumps(report_of(target, relative=relative, half_width=half_width)))
    script("write_results").main(tmp_path / "data", [str(path) for path in paths])
    found = {path.stem: csv_rows(path) for path in (tmp_path / "data").iterdir()}
    scores = {(row["target"], row["recommender"]): row for row in found["scores"]}

    assert {(row["data"], row["rule"], row["ranking"]) for row in found["scores"]} == {("d", "none", "unseen")}
    assert [scores["food", "sasrec"][name] for name in ("users", "seeds", "original", "regenerated")] == [
        "10",
        "3",
        "0.1000",
        "0.1200",
    ]
    assert scores["food", "sasrec"]["regenerated_carries_percent"] == "40"
    assert scores["food", "markov"]["regenerated_carries_percent"] == ""  # a count carries no lead over
    assert found["differences"][0] | {"target": "food", "relative_percent": "+20", "low": "+0.0100"} == (
        found["differences"][0] | {"target": "food", "relative_percent": "+20"}
    )
    assert [(row["targets"], row["relative_percent"], row["low"], row["high"]) for row in found["means"]] == [
        ("2", "+30.0", "+25.0", "+35.0")
    ]
    assert [(row["target_items"], row["users"], row["original"]) for row in found["hit-rate-by-history"]] == [
        ("1-2", "8", "0.3000")
    ]
    assert [row["of_as_many_recommendations"] for row in found["leak-audits"]] == ["11", "11"]
    assert [row["command"] for row in found["commands"]] == ["evaluate"]


def test_raw_numbers_do_not_count_a_comparison_twice(tmp_path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report_of("food", relative=0.2, half_width=0.1)))

    with pytest.raises(SystemExit, match="two reports compare"):
        script("write_results").main(tmp_path / "data", [str(path), str(path)])


def test_raw_numbers_have_the_columns_that_the_command_writes(tmp_path) -> None:
    """docs/data/ was not edited into another form."""
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report_of("food", relative=0.2, half_width=0.1)))
    script("write_results").main(tmp_path / "data", [str(path)])
    written = {one.stem: list(csv_rows(one)[0]) for one in (tmp_path / "data").iterdir()}

    assert written
    assert {name: list(csv_rows(ROOT / "docs" / "data" / f"{name}.csv")[0]) for name in written} == written


@pytest.mark.parametrize("name", script("draw_charts").CHARTS)
def test_charts_are_what_the_raw_numbers_draw(name: str) -> None:
    """`make charts` draws them again. By what each mark says of itself: widths of letters are the machine's."""
    drawn = script("draw_charts").CHARTS[name]()
    kept = (ROOT / "docs" / "charts" / f"{name}.svg").read_text(encoding="utf-8")
    marks = re.findall(r'aria-label="([^"]*)"', drawn)

    assert len(marks) > 10
    assert re.findall(r'aria-label="([^"]*)"', kept) == marks


def test_every_chart_is_made_by_the_command() -> None:
    """No picture without its numbers."""
    kept = {path.stem for path in (ROOT / "docs").rglob("*.svg")}

    assert kept == set(script("draw_charts").CHARTS)


def test_the_table_of_the_results_is_what_the_raw_numbers_say() -> None:
    for page, write in script("draw_charts").TABLES.values():
        assert write() in (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")


EXPERIMENTS = sorted(set((ROOT / "docs" / "experiments").glob("*.md")) - {ROOT / "docs" / "experiments" / "README.md"})


@pytest.mark.parametrize("page", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_begins_with_its_question_and_answer_and_is_in_the_index(page: Path) -> None:
    title, question, answer = page.read_text(encoding="utf-8").split("\n\n")[:3]
    index = (ROOT / "docs" / "experiments" / "README.md").read_text(encoding="utf-8")

    assert title.startswith("# ")
    assert question.startswith("**Question.** ")
    assert question.endswith("?")
    assert answer.startswith("**Answer.** ")
    assert f"]({page.name})" in index


def test_the_map_names_every_file_once_and_imports_point_upwards() -> None:
    """`make map`: rooms in an order in which nothing is imported from below."""
    printer = script("print_map")
    lines = list(printer.house_map(ROOT))
    files = [line.split()[0].rsplit("/", 1)[-1] for line in lines if line.startswith("    ")]
    rooms: list[str] = []
    for line in lines:
        if line.endswith("/") and not line.startswith(" "):
            package = line
        elif not line.startswith("    "):
            name, _, imported = line.strip().partition("   imports ")
            assert set(filter(None, imported.split(", "))) <= set(rooms)
            rooms.append(package + name)

    on_disk = [path.name for package in ("app", "models") for path in (ROOT / package).rglob("*.py")]
    assert sorted(files) == sorted(name for name in on_disk if name != "__init__.py")
    assert {"models/decoding", "app/jobs", "app/main"} <= set(rooms)
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines if line.startswith("    "))


def tries() -> dict[str, list[str]]:
    """The table of docs/architecture.md: a change, and the files that it touches."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## Where a change goes\n")[1]
    rows = re.findall(r"^\| ((?:add|change) [^|]+) \| (`[^|]+) \|", text.split("\n## ")[0], re.MULTILINE)
    return {change: re.findall(r"`([\w./-]+)`", files) for change, files in rows}


def test_a_typical_change_touches_at_most_four_files_and_they_are_there() -> None:
    subjects = ("retried", "recommender", "output format", "decoding rule", "metric", "endpoint", "input format")

    assert [word for word in subjects if not any(word in change for change in tries())] == []
    for change, files in tries().items():
        assert 1 <= len(files) <= 4, change
        assert [name for name in files if not (ROOT / name).exists()] == [], change


def test_the_mean_over_targets_is_of_everyone_in_the_cells(
    dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rank 1 instead of 2 for everybody is log2(3) = 1.58 times the NDCG, whoever is drawn."""
    places = [dataset.directory / target for target in ("food", "kitchen")]
    for place in places:
        queries = build_arm(dataset, place.name, "original", None).test
        cells = dataset.directory.with_name(f"cells-{dataset.directory.name}-{place.name}")
        cells.mkdir()
        for arm, rank in (("original", 2), ("duplicated", 2), ("regenerated", 1)):
            ranks = {ranking: [rank] * len(queries) for ranking in ("all", "unseen")}
            served = ranks if arm == "regenerated" else None
            cell = {"recommender": "sasrec", "arm": arm, "ranks": ranks, "served_ranks": served}
            (cells / f"{arm}.json").write_text(json.dumps(cell), encoding="utf-8")
    script("mean_over_targets").main("sasrec", [str(place) for place in places])

    gain = "+58 % [+58, +58]"
    assert f"| sasrec | unseen | {gain} | {gain} | {gain} | {gain} | 2 |" in capsys.readouterr().out
