"""Data and Results: what a report of ``taesar evaluate`` says, drawn by the report's own charts."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache

from fastapi import APIRouter, Request
from markupsafe import Markup
from pydantic import TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from app.http.pages.own_api import OwnApi, segment
from app.http.pages.rendering import page
from app.http.sessions import PAGES
from models.evaluation.statistics import DomainReach
from models.evaluation.study import Report
from models.evaluation.summary import MAIN, Comparison
from models.report import charts
from models.report.pages import BEFORE_AND_AFTER, draw_rows, result_drawings, tables

router = APIRouter(prefix=PAGES, include_in_schema=False)

METRIC = "NDCG@10"
REPORTS_KEPT = 8
_REPORT: TypeAdapter[Report] = TypeAdapter(Report)


@router.get("/data")
async def show_data(request: Request, report: str = "") -> Response:
    """Before and after: frequencies, segments, lengths; and where domains meet in time and people."""
    return await _show(request, "data", "Data", report, drawn_data, about_data=True)


@router.get("/results")
async def show_results(request: Request, report: str = "") -> Response:
    """The verdict, the forest plot and the tables of a report."""
    return await _show(request, "results", "Results", report, drawn_results, about_data=False)


async def _show(
    request: Request,
    view: str,
    title: str,
    asked: str,
    draw: Callable[[str], tuple[Markup, ...]],
    *,
    about_data: bool,
) -> Response:
    api = OwnApi(request)
    known = (await api.get("/reports"))["reports"]
    names = [summary["name"] for summary in known]
    name = asked if asked in names else next(iter(names), None)
    content = None if name is None else json.dumps(await api.get(f"/reports/{segment(name)}"))
    report = None if content is None else read_report(content)
    drawn = () if content is None or report is None else await run_in_threadpool(draw, content)
    return page(
        request,
        f"{view}.html",
        view=view,
        title=title,
        reports=known,
        name=name,
        report=report,
        charts=drawn,
        tables=[] if report is None else [t for t in tables(report) if (t.title == BEFORE_AND_AFTER) == about_data],
        verdicts=[] if report is None or about_data else verdicts(report),
    )


@lru_cache(maxsize=REPORTS_KEPT)
def read_report(content: str) -> Report | None:
    """A report.json as a report; None where it is not in the form of this version."""
    try:
        return _REPORT.validate_json(content)
    except ValidationError:
        return None


@lru_cache(maxsize=REPORTS_KEPT)
def drawn_data(content: str) -> tuple[Markup, ...]:
    """Figure 5 of a readable report, and when its domains were used; every chart is drawn once."""
    report = read_report(content)
    assert report is not None
    return tuple(map(_as_markup, [*draw_rows(report.statistics), *_reach(report.reach)]))


@lru_cache(maxsize=REPORTS_KEPT)
def drawn_results(content: str) -> tuple[Markup, ...]:
    """Results and forest plots of a readable report."""
    report = read_report(content)
    assert report is not None
    return tuple(map(_as_markup, result_drawings(report)))


def verdicts(report: Report) -> list[tuple[str, str, Comparison]]:
    """What each use of regenerated data gave, against the target's own rows: a word for it, a sentence, the numbers."""
    found = []
    for comparison in report.results.comparisons:
        is_main = comparison.metric == METRIC and comparison.group == MAIN.name and not comparison.without_leak_hits
        own = comparison.recommender == comparison.baseline_recommender
        if is_main and own and comparison.baseline == "original" and comparison.arm != "duplicated":
            word = "no difference shown"
            if comparison.interval.excludes_zero:
                word = "better" if comparison.interval.mean > 0 else "worse"
            found.append((word, f"{comparison.recommender} on {comparison.arm}", comparison))
    return found


def _as_markup(svg: str) -> Markup:
    return Markup(svg)


def _reach(reach: tuple[DomainReach, ...]) -> list[str]:
    if not reach or not reach[0].by_time:
        return []
    first, last = min(filter(None, (r.first_date for r in reach))), max(filter(None, (r.last_date for r in reach)))
    series = [charts.Series(domain.domain, domain.by_time) for domain in reach]
    label = f"{len(reach[0].by_time)} equal spans, {first} to {last}"
    return [charts.line_chart("Interactions over time", series, x_label=label, y_label="interactions")]
