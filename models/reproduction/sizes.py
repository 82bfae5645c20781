"""Table 1: how large each domain of a dataset is, beside the paper's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.data.dataset import Dataset
from models.reproduction.paper_numbers import read_sizes


@dataclass(frozen=True)
class DomainSize:
    """
    One row of table 1, held-out interactions included.

    Args:
        domain: its name.
        users: with an interaction in it.
        items: of the vocabulary.
        interactions: of those users with those items.
    """

    domain: str
    users: int
    items: int
    interactions: int

    @property
    def mean_length(self) -> float:
        """Interactions per user."""
        return self.interactions / max(1, self.users)

    @property
    def sparsity_percent(self) -> float:
        """100 (1 - interactions / (users x items)); repeats count, so it can be a little low."""
        return 100 * (1 - self.interactions / max(1, self.users * self.items))


def measure_domains(dataset: Dataset) -> list[DomainSize]:
    """Every domain of *dataset*."""
    sequences = dataset.complete
    users_of_tokens = np.repeat(np.arange(len(sequences)), sequences.lengths)
    sizes = []
    for domain in dataset.vocabulary.domains:
        tokens = dataset.vocabulary.token_range(domain)
        inside = tokens.mask(sequences.token_ids)
        users = len(np.unique(users_of_tokens[inside]))
        sizes.append(DomainSize(domain, users, len(tokens), int(inside.sum())))
    return sizes


def sizes_as_markdown(sizes: list[DomainSize]) -> str:
    """Ours, then the paper's."""
    lines = ["# Table 1", "", "| domain | users | items | interactions | mean length | sparsity |", "|---" * 6 + "|"]
    lines += [_line(s.domain, s.users, s.items, s.interactions, s.mean_length, s.sparsity_percent) for s in sizes]
    for domain, printed in read_sizes().items():
        users, items, interactions = (int(printed[name]) for name in ("n_users", "n_items", "n_interactions"))
        lines.append(
            _line(f"the paper's {domain}", users, items, interactions, printed["avg_length"], printed["sparsity_pct"])
        )
    return "\n".join(lines) + "\n"


def _line(domain: str, users: int, items: int, interactions: int, length: float, sparsity: float) -> str:
    return f"| {domain} | {users:,} | {items:,} | {interactions:,} | {length:.2f} | {sparsity:.2f} % |"
