"""The report of a check: the sentence, one chart, what to do next, and then how it was found."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from models.check.checking import CheckReport, describe_signs
from models.check.verdict import Use, Verdict, percent
from models.files import replace_file
from models.report import charts
from models.report.pages import TEMPLATES, Table, audit_table

PAGE, NUMBERS = "report.html", "check.json"


def write_check(report: CheckReport, folder: Path) -> None:
    """Write report.html and check.json into *folder*."""
    verdict = report.verdict
    content = asdict(report) | {"outcome": outcome_of(report)}
    if verdict is not None:
        content["verdict"] |= {"outcome": verdict.outcome}
        content["verdict"]["regeneration"] |= {"outcome": verdict.regeneration.outcome}
        if verdict.advice is not None:
            content["verdict"]["advice"] |= {"outcome": verdict.advice.outcome}
    written = {NUMBERS: json.dumps(_finite(content), indent=1, allow_nan=False) + "\n", PAGE: check_page(report)}
    for name, text in written.items():
        with replace_file(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")


def outcome_of(report: CheckReport) -> str:
    """helps, harms, undecided (so is a time too short to tell), or, where the signs say so, nothing to gain."""
    if report.plan is None:
        return "nothing to gain"
    return "undecided" if report.plan.is_brief or report.verdict is None else report.verdict.outcome


def check_page(report: CheckReport) -> str:
    """The page, in one file that loads nothing; every text is escaped."""
    verdict = report.verdict
    facts = [
        f"dataset {report.dataset}, {report.dataset_fingerprint[:12]}. {report.split}",
        describe_signs(report.signs),
    ]
    if verdict is not None:
        facts.append(
            f"{verdict.recommender}, {verdict.seeds} {'seed' if verdict.seeds == 1 else 'seeds'}, NDCG@10 among items "
            f"that a user had not had, {verdict.regeneration.users:,} test users"
        )
    return TEMPLATES.get_template("check.html").render(
        title=f"Check of {report.signs.target}",
        sentence=report.sentence,
        charts=[] if verdict is None else [_chart(verdict)],
        next_steps=report.next_steps,
        warnings=report.warnings,
        facts=facts,
        tables=[] if verdict is None else [_use_table(verdict), _line_table(report), audit_table(report.audits)],
    )


def _uses(verdict: Verdict) -> list[Use]:
    advice = () if verdict.advice is None else verdict.advice.uses
    return [*verdict.regeneration.uses, *advice]


def _chart(verdict: Verdict) -> str:
    rows = [charts.IntervalRow(_name(use), use.gain) for use in _uses(verdict) if use.gain is not None]
    title = f"Gain for {verdict.target}: NDCG@10 of {verdict.recommender}, 95 % interval"
    return charts.interval_chart(title, rows, x_label="relative gain", percent=True)


def _name(use: Use) -> str:
    return f"{use.line}, over {use.baseline}"


def _use_table(verdict: Verdict) -> Table:
    judged = {verdict.regeneration.judged, None if verdict.advice is None else verdict.advice.judged}
    return Table(
        "Every use",
        "Relative gain on test items. Of each family the use that was best on validation is judged; its "
        "interval knows users and, where training rows differ, the noise of training.",
        ("use", "judged", "gain", "of which by users alone ±", "gain on validation (NDCG@10)"),
        tuple(
            (
                _name(use),
                "yes" if use in judged else "",
                percent(use.gain),
                "" if use.gain is None else f"{196 * use.user_error:.1f} %",
                f"{use.validation_gain:+.4f} ± {use.validation_error:.4f}",
            )
            for use in _uses(verdict)
        ),
    )


def _line_table(report: CheckReport) -> Table:
    return Table(
        "NDCG@10",
        "Mean over users and seeds.",
        ("line", "validation", "test"),
        tuple((name, f"{both[0]:.4f}", f"{both[1]:.4f}") for name, both in report.ndcg_at_10.items()),
    )


def _finite(content: object) -> object:
    """JSON has no infinity: an error that cannot be told is null."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and content in (float("inf"), float("-inf")) else content
