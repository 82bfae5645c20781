"""
The registry of decoding rules: their names and what each does, without loading torch.

A new rule is a file in this folder and a line in ``RULES``; commands, settings and the HTTP interface offer it by that.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from models.decoding.window import DecodingRule


@dataclass(frozen=True)
class RuleEntry:
    """
    What is known of a rule before it is loaded.

    Args:
        code: where its ``DecodingRule`` is, as module:name.
        summary: what it does, for help texts: a sentence that begins after the rule's name, without the full stop.
    """

    code: str
    summary: str


RULES: Mapping[str, RuleEntry] = {
    "paper": RuleEntry(
        "models.decoding.paper:PAPER",
        "is the paper's adaptive contrastive decoding: target expert, base and source expert together replace or "
        "delete each source item",
    ),
    "without-sde": RuleEntry(
        "models.decoding.paper:WITHOUT_SDE", "is 'paper' without the contrast: the target expert alone scores the items"
    ),
    "without-gcs": RuleEntry(
        "models.decoding.paper:WITHOUT_GCS",
        "is 'paper' without its global step: no source item is deleted but one without a history",
    ),
    "without-lcs": RuleEntry(
        "models.decoding.paper:WITHOUT_LCS",
        "is 'paper' without its local step: the best of all items replaces, where it is of the target domain",
    ),
    "reference": RuleEntry(
        "models.decoding.reference:REFERENCE",
        "computes what the authors' released code does, its off-by-one included, to compare with",
    ),
    "reference-corrected": RuleEntry(
        "models.decoding.reference:REFERENCE_CORRECTED", "is 'reference' without the off-by-one"
    ),
    "anticipate": RuleEntry(
        "models.decoding.anticipate:ANTICIPATE",
        "puts what the target expert expects after reading a run of source items in their place, without contrastive "
        "decoding; of all rules the most helpful where it helped, and not on every table: see docs/results.md",
    ),
}
# The name of a rule. Checkers see a str; commands, settings and HTTP offer exactly the registered names.
if TYPE_CHECKING:
    Rule = str
else:
    Rule = Literal[tuple(RULES)]
# Whether a bundle's guards are kept to (``decoding.regenerator``).
Dial = Literal["auto", "all"]
DEFAULT_DIAL: Dial = "auto"
# Part of every composite's summary: raise it when a change makes a rule decide otherwise, so that composites made
# before are not taken for today's.
RULES_VERSION = 1
# The one that helped recommenders most on the validation items of the first tables (docs/decisions/0007-anticipate.md).
DEFAULT_RULE: Rule = "anticipate"
# The rule that a bundle's guards were found with and are kept to by; the others replace whatever they choose to.
GUARDED_RULE: Rule = "anticipate"


def load_rule(name: Rule) -> DecodingRule:
    """The rule of that name, its code loaded."""
    assert name in RULES, name
    rule: DecodingRule = pkgutil.resolve_name(RULES[name].code)
    return rule


def describe_rules() -> str:
    """What each rule does, the default first, one sentence a rule."""
    names = sorted(RULES, key=lambda name: name != DEFAULT_RULE)
    return " ".join(f"'{name}' {RULES[name].summary}." for name in names)
