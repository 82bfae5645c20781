"""
The rows of the paper's tables 2 and 3, and which line of an evaluation is each.

Table 2 compares recommenders of the target's own rows, the same with the composite (``+ Taesar``), and models of mixed
rows. Below the paper's twelve rows stand what it lacks: a control, the same recommenders served with regenerated
histories, and what reads the mixed histories without regenerating anything. Table 3 takes parts away from training or
decoding and asks what SASRec makes of the composite that is left.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.decoding.rules import DEFAULT_RULE, Rule
from models.evaluation.arms import RowName
from models.evaluation.served import BASE_DECODER, TARGET_EXPERT
from models.training.experts import Experts

SINGLE_DOMAIN = {"sasrec": "SASRec", "gru4rec": "GRU4Rec", "gcegnn": "GCE-GNN", "cl4srec": "CL4SRec"}
# Of mixed rows; the first is SASRec of table 2's other rows on arm ``mixed``.
OF_MIXED_ROWS = {"sasrec": "SASRec_m", "abxi": "ABXI", "cgrec": "CGRec", "syncrec": "SyNCRec"}


@dataclass(frozen=True)
class TableRow:
    """
    One row of table 2.

    Args:
        name: as it is printed.
        recommender, line: which line of the evaluation it is.
        base: the name of the row that its gain is over; None for none.
        paper: its name in the paper's table; None where the paper has no such row.
    """

    name: str
    recommender: str
    line: RowName
    base: str | None = None
    paper: str | None = None


@dataclass(frozen=True)
class Variant:
    """
    One row of table 3: the composite that SASRec trains on.

    Args:
        name: as it is printed.
        experts: how the experts of its bundle come to be.
        rule: what decodes.
        paper: its name in the paper's table; None where the paper has no such row.
    """

    name: str
    experts: Experts
    rule: Rule
    paper: str | None = None


def _paper_rows() -> tuple[TableRow, ...]:
    rows = []
    for name, printed in SINGLE_DOMAIN.items():
        rows.append(TableRow(printed, name, "original", None, printed))
        rows.append(TableRow(f"{printed} + Taesar", name, "regenerated", printed, f"{printed}+Taesar"))
    return (*rows, *(TableRow(printed, name, "mixed", None, printed) for name, printed in OF_MIXED_ROWS.items()))


def _own_rows() -> tuple[TableRow, ...]:
    """What the paper lacks."""
    lines: dict[RowName, str] = {
        # The rows of the same users twice: what more weight on the busy ones gives by itself.
        "duplicated": "{}, duplicated rows",
        "served": "{} + Taesar, served",
        "served with expert": "{} + Taesar, served, with target expert",
        "with expert": "{} with target expert, not regenerated",
    }
    return (
        *(
            TableRow(name.format(printed), recommender, line, printed)
            for line, name in lines.items()
            for recommender, printed in SINGLE_DOMAIN.items()
        ),
        EXPERT_ROW,
        TableRow("base decoder alone", BASE_DECODER, "mixed"),
    )


EXPERT_ROW = TableRow("target expert alone", TARGET_EXPERT, "mixed")
PAPER_ROWS = _paper_rows()
TABLE_2 = (*PAPER_ROWS, *_own_rows())
TABLE_3 = (
    Variant("w/o DSA", "from-scratch", "paper", "w/o DSA"),
    Variant("DSA w/o DSP", "single-domain", "paper", "DSA w/o DSP"),
    Variant("DSP w/o SDE", "adapted", "without-sde", "DSP w/o SDE"),
    Variant("DSP w/o GCS", "adapted", "without-gcs", "DSP w/o GCS"),
    Variant("DSP w/o LCS", "adapted", "without-lcs", "DSP w/o LCS"),
    Variant("Taesar Full", "adapted", "paper", "Taesar Full"),
    Variant(f"rule {DEFAULT_RULE}, our default", "adapted", DEFAULT_RULE),
)
# The lines of a recommender that is served, and how each is called beside its rivals.
SERVED: dict[RowName, str] = {"served": "{}", "served with expert": "{} with target expert"}


def rivals_of(recommender: str) -> tuple[TableRow, ...]:
    """Who reads the mixed history when it ranks, as *recommender* does when it is served; last, itself without that."""
    return (
        *(row for row in PAPER_ROWS if row.line == "mixed"),
        EXPERT_ROW,
        TableRow("itself with target expert, not regenerated", recommender, "with expert"),
    )
