"""
Figures 4 and 5 and the numbers behind them, from a report of one target.

Figure 4 draws source and target items in the plane with the most frequent mappings joined; figure 5 item frequencies,
popularity segments and row lengths before and after. Pictures of either kind can mislead, so their numbers come with
them, and with those of a control: random pairs for figure 4, original rows doubled for figure 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from models.evaluation.statistics import SEGMENTS
from models.evaluation.study import Report
from models.report.pages import draw_correspondence, draw_rows

Figure = Literal[4, 5]
FIGURES: tuple[Figure, ...] = (4, 5)


def draw_figure(figure: Figure, report: Report) -> Iterator[tuple[str, str]]:
    """The charts of a figure as (name, SVG), in reading order."""
    target = report.provenance.target
    if figure == 4:
        for plane, svg in zip(report.projections, draw_correspondence(report.projections, target), strict=True):
            yield f"{target}-from-{plane.source_domain}-{plane.method}", svg
    else:
        yield from zip(
            (f"{target}-{name}" for name in ("item-frequency", "segments", "row-length")),
            draw_rows(report.statistics),
            strict=True,
        )


def number_figure(figure: Figure, report: Report) -> list[dict[str, object]]:
    """The numbers behind a figure, for a CSV file."""
    target = report.provenance.target
    if figure == 4:
        return [
            {
                "target": target,
                "source": pairs.source_domain,
                "items_replaced": pairs.mapped_items,
                "replacements": pairs.replacements,
                "distinct_targets": pairs.distinct_targets,
                "top_target_share": round(pairs.top_target_share, 6),
                "mean_cosine": round(pairs.mean_cosine, 6),
                "mean_cosine_of_random_pairs": round(pairs.mean_cosine_random, 6),
                "median_percentile": round(pairs.median_percentile, 2),
            }
            for pairs in report.correspondences
        ]
    return [
        {
            "target": target,
            "rows_of": view.name,
            "rows": view.rows,
            "interactions": view.interactions,
            **{f"share_{name}": round(share, 6) for name, share in zip(SEGMENTS, view.segment_shares, strict=True)},
            "gini": round(view.gini, 6),
            "entropy_nats": round(view.entropy, 6),
            "coverage": round(view.coverage, 6),
        }
        for view in report.statistics
    ]
