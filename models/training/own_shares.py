"""
How much a target expert reads of the target's own items alone, chosen on validation items (``network.two_readings``).

The share whose ranking has the best NDCG@10 among the target's items that the user has not had: what the user has is no
hint, either. Histories that end with a target item and with a source item are chosen for apart, as they need not agree:
a source item of a distant domain misleads the mixed reading most where it came last.

Shapes: N = validation rows, X = items of the target domain, L = items left out of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.data.dataset import TOKENS, TokenArray, pad_right
from models.network.decoder import Decoder
from models.network.two_readings import read
from models.ranking_metrics import ndcg_at_k, pessimistic_ranks, ranks_without
from models.training.objective import HeldOut
from models.tuning import OwnShares
from models.vocabulary import PADDING, TokenRange

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
# Fewer rows than this are too few to choose by: they take the share that is best for all rows together.
LEAST_ROWS = 100
# Scores held at once, in elements (32 MB).
SCORED_ELEMENTS = 1 << 23


@dataclass(frozen=True)
class ShareTrial:
    """
    What every share of ``SHARES`` gives on one domain's validation rows.

    Args:
        shares: the best, which are chosen.
        num_rows: validation rows by what their history ends with, ``target`` or ``source``.
        ndcg_at_10: likewise, the mean among unseen items for each of ``SHARES``; none where there are no rows.
        best: the mean over all rows under the chosen shares.
    """

    shares: OwnShares
    num_rows: Mapping[str, int]
    ndcg_at_10: Mapping[str, tuple[float, ...]]
    best: float


def try_own_shares(expert: Decoder, held_out: HeldOut, domain: TokenRange) -> ShareTrial:
    """Rank *held_out* items of *domain* by *expert* under every share; equals go to the smaller share."""
    readings = read(expert, held_out.histories, domain)
    table_XD = expert.item_embeddings_VD[domain.columns]
    tried = (OwnShares(share, share) for share in SHARES)
    values_SN = np.stack([ndcg_by_row(readings.combined(shares), table_XD, held_out, domain) for shares in tried])
    ends_in_target_N = readings.ends_in_target_N
    groups = {"target": ends_in_target_N, "source": ~ends_in_target_N}
    best = {
        name: _best_share(values_SN[:, rows_N if rows_N.sum() >= LEAST_ROWS else slice(None)])
        for name, rows_N in groups.items()
    }
    return ShareTrial(
        OwnShares(after_target=best["target"], after_source=best["source"]),
        {name: int(rows_N.sum()) for name, rows_N in groups.items()},
        {name: _means(values_SN[:, rows_N]) for name, rows_N in groups.items() if rows_N.any()},
        float(sum(values_SN[SHARES.index(best[name]), rows_N].sum() for name, rows_N in groups.items()))
        / max(1, len(held_out.targets)),
    )


def _best_share(values_SN: npt.NDArray[np.float64]) -> float:
    # argmax takes the first of equals; without a row all are equal
    return SHARES[int(values_SN.sum(axis=1).argmax())]


def _means(values_SN: npt.NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(round(float(mean), 6) for mean in values_SN.mean(axis=1))


@torch.inference_mode()
def ndcg_by_row(hidden_ND: Tensor, table_XD: Tensor, held_out: HeldOut, domain: TokenRange) -> npt.NDArray[np.float64]:
    """
    NDCG@10 [N] of every held-out item among the items that its history does not hold.

    Args:
        hidden_ND: the expert's states after the histories.
        table_XD: its embeddings of the items of *domain*.
        held_out: histories and items.
        domain: the target's tokens.
    """
    num_rows = len(held_out.targets)
    columns_N = torch.from_numpy(held_out.targets.astype(np.int64)).to(hidden_ND.device) - domain.first
    seen_NL = _seen_columns(held_out, domain).to(hidden_ND.device)
    ranks = []
    step = max(1, SCORED_ELEMENTS // len(domain))
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        scores_CX = hidden_ND[rows] @ table_XD.T
        ranks_C = pessimistic_ranks(scores_CX, columns_N[rows])
        ranks.append(ranks_without(ranks_C, scores_CX, columns_N[rows], seen_NL[rows]))
    values_N: npt.NDArray[np.float64] = ndcg_at_k(torch.cat(ranks) if ranks else torch.zeros(0), 10).cpu().numpy()
    return values_N


def _seen_columns(held_out: HeldOut, domain: TokenRange) -> Tensor:
    """Columns [N, L] of the target's items that each history holds, each once, the held-out one not; -1 beyond them."""

    def others(history: TokenArray, target: int) -> TokenArray:
        own = history[domain.mask(history) & (history != target)]
        return np.unique(own).astype(TOKENS)

    padded_NL = pad_right(
        others(history, int(target)) for history, target in zip(held_out.histories, held_out.targets, strict=True)
    )
    return torch.where(padded_NL == PADDING, -1, padded_NL - domain.first)
