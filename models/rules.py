"""The names of the decoding rules, torch-free for commands and settings; ``models.contrastive`` says what each does."""

from __future__ import annotations

from typing import Literal, get_args

Rule = Literal["paper", "without-sde", "without-gcs", "without-lcs", "reference", "reference-corrected"]
RULES: tuple[Rule, ...] = get_args(Rule)
