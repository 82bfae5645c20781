"""
The names of the decoding rules, torch-free for commands and settings.

``contrastive`` says what the contrastive rules do, ``anticipate`` what rule ``anticipate`` does.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

ContrastiveRule = Literal["paper", "without-sde", "without-gcs", "without-lcs", "reference", "reference-corrected"]
Rule = Literal[ContrastiveRule, "anticipate"]

CONTRASTIVE_RULES: tuple[ContrastiveRule, ...] = get_args(ContrastiveRule)
ANTICIPATE: Final = "anticipate"
RULES: tuple[Rule, ...] = get_args(Rule)
# Part of every composite's summary: raise it when a change makes a rule decide otherwise, so that composites made
# before are not taken for today's.
RULES_VERSION = 1
# The one that helps recommenders most on validation (docs/decisions/0007-anticipate.md).
DEFAULT_RULE: Rule = ANTICIPATE
