"""
GCE-GNN: global context enhanced graph neural network (Wang et al., SIGIR 2020), at position level.

The paper builds a graph of each session's distinct items. Here every position stands for its item and the graph is a
[T, T] matrix of edge types, which gives the same vectors without node lists: positions of one item get equal vectors,
and each distinct item counts once as a neighbour, through its first occurrence.

    local:    e_ij = LeakyReLU_0.2(a_type(i,j) . (h_i * h_j)), alpha = softmax over distinct j, hl_i = sum alpha_ij h_j
    global:   pi_j ~ exp(w_2 . LeakyReLU_0.2(W_1 [s * h_j ; w_ij])), n_i = sum_j pi_j h_j, hg_i = ReLU(W_3 [h_i ; n_i])
    fusion:   H = Dropout(hl) + Dropout(hg), z_i = tanh(W_4 [P[len-1-i] ; H_i]),
              b_i = q . sigmoid(W_5 z_i + c + W_6 mean(H)), session = sum_i b_i H_i
with h = E[x] and s the mean of h over the session. One global hop, as RecBole-GNN's default.

Differs from the authors' code: an item with fewer global neighbours than asked for keeps those it has (they resample
with replacement), one with none aggregates to 0; q starts positive, so that every seed starts with sessions near their
items; width and length are every recommender's, and so is the schedule; prefixes are drawn (``GCEGNNConfig``).
Not causal: every prefix is a session of its own.

Shapes: B = sessions, T = positions, D = width, S = global neighbours, V = num_items + 1, R = 4 edge types.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.data.dataset import Sequences, pad_right
from models.network.dropout import Dropout
from models.network.losses import linear_cross_entropy
from models.recommenders.recommender import SessionRecommender, SharedConfig, check_at_least, check_shares
from models.training.batches import length_bucketed_batches
from models.vocabulary import PADDING

NO_EDGE, SAME, PRECEDES, FOLLOWS, BOTH = range(5)
SLOPE = 0.2


@dataclass(frozen=True)
class GCEGNNConfig:
    """
    Hyper-parameters of GCE-GNN.

    Args:
        width, max_length: see ``SharedConfig``.
        window: items at most this far apart in a training row are linked in the global graph.
        num_neighbours: heaviest links kept per item.
        dropout_local: on the session-graph item vectors.
        dropout_global: on the global-graph item vectors.
        prefixes_per_row: samples drawn from a row each pass, its longest always among them; the authors expand every
            prefix, which costs many times the steps for rows of the same users.

    Raises:
        ConfigurationError: a value is out of its range.
    """

    width: int = SharedConfig.width
    max_length: int = SharedConfig.max_length
    window: int = 3
    num_neighbours: int = 12
    dropout_local: float = 0.0
    dropout_global: float = 0.5
    prefixes_per_row: int = 8

    def __post_init__(self) -> None:
        names = ("width", "max_length", "window", "num_neighbours", "prefixes_per_row")
        check_at_least(self, dict.fromkeys(names, 1))
        check_shares(self, ("dropout_local", "dropout_global"), below_one=True)


@dataclass(frozen=True)
class GlobalGraph:
    """
    The heaviest neighbours of every item over all training rows.

    Args:
        neighbours_VS: int64 item ids, heaviest first (lower id between equals), 0 where there are fewer than S.
        weights_VS: float32 co-occurrence counts, 0 there.
    """

    neighbours_VS: Tensor
    weights_VS: Tensor


@dataclass(frozen=True)
class PrefixBatch:
    """Sessions and the item that follows each."""

    item_ids_BT: Tensor
    targets_B: Tensor


class GCEGNN(SessionRecommender[PrefixBatch]):
    """Session vectors from a session graph and a graph over all training rows."""

    name = "gcegnn"
    causal = False

    def __init__(self, graph: GlobalGraph, num_items: int, config: GCEGNNConfig) -> None:
        super().__init__(num_items, config.max_length)
        D = config.width
        self.prefixes_per_row = config.prefixes_per_row
        self.neighbours_VS: Tensor
        self.weights_VS: Tensor
        self.register_buffer("neighbours_VS", graph.neighbours_VS)
        self.register_buffer("weights_VS", graph.weights_VS)
        self.item_embedding = nn.Embedding(num_items + 1, D, padding_idx=PADDING)
        self.position_embedding = nn.Embedding(config.max_length, D)
        self.edge_type_RD = nn.Parameter(torch.empty(4, D))  # a_1..a_4
        self.global_inner = nn.Linear(D + 1, D, bias=False)  # W_1
        self.global_attention_D = nn.Parameter(torch.empty(D))  # w_2
        self.global_merge = nn.Linear(2 * D, D, bias=False)  # W_3
        self.position_merge = nn.Linear(2 * D, D, bias=False)  # W_4
        self.gate_position = nn.Linear(D, D)  # W_5, c
        self.gate_mean = nn.Linear(D, D, bias=False)  # W_6
        self.gate_D = nn.Parameter(torch.empty(D))  # q
        self.dropout_local = Dropout(config.dropout_local)
        self.dropout_global = Dropout(config.dropout_global)
        self._initialise(1 / math.sqrt(D))

    @classmethod
    def build(cls, rows: Sequences, num_items: int, config: GCEGNNConfig) -> Self:
        """Count the global graph in *rows*, which include regenerated ones where the arm has them."""
        graph = global_graph(rows, num_items, window=config.window, num_neighbours=config.num_neighbours)
        return cls(graph, num_items, config)

    @property
    def item_table_XD(self) -> Tensor:
        """The embedding table without its padding row."""
        return self.item_embedding.weight[1:]

    def encode(self, item_ids_BT: Tensor) -> Tensor:
        """
        Session vectors [B, D].

        1. Item vectors from the session graph.
        2. Item vectors from the global graph.
        3. Their sum, with the position counted from the end, pooled by soft attention.
        """
        valid_BT = item_ids_BT != PADDING
        hidden_BTD = self.item_embedding(item_ids_BT)
        lengths_B1 = valid_BT.sum(dim=1, keepdim=True).clamp(min=1)
        local_BTD = self._local(item_ids_BT, hidden_BTD)
        global_BTD = self._global(item_ids_BT, hidden_BTD, lengths_B1)
        fused_BTD = self.dropout_local(local_BTD) + self.dropout_global(global_BTD)
        return self._pool(fused_BTD * valid_BT[..., None], valid_BT, lengths_B1)

    def num_batches(self, rows: Sequences, batch_size: int) -> int:
        """ceil(drawn prefixes / batch_size)."""
        return -(-int(np.minimum(rows.lengths - 1, self.prefixes_per_row).sum()) // batch_size)

    def batches(self, rows: Sequences, batch_size: int, generator: np.random.Generator) -> Iterator[PrefixBatch]:
        """min(n - 1, prefixes_per_row) prefixes of each row with the item after them, the longest always drawn."""
        row_of, end_of = _draw_prefixes(rows.lengths, self.prefixes_per_row, generator)
        kept = np.minimum(end_of, self.max_length)
        for members in length_bucketed_batches(kept, batch_size, generator):
            sessions = [rows[int(row_of[m])][end_of[m] - kept[m] : end_of[m]] for m in members]
            targets = rows.token_ids[rows.offsets[row_of[members]] + end_of[members]].astype(np.int64)
            yield PrefixBatch(pad_right(sessions), torch.from_numpy(targets))

    def loss(self, batch: PrefixBatch) -> Tensor:
        """Full-softmax cross-entropy of the item after each session."""
        session_BD = self.encode(self.on_device(batch.item_ids_BT))
        columns_B = self.on_device(batch.targets_B) - 1
        return linear_cross_entropy(session_BD, self.item_table_XD, columns_B)

    def _local(self, item_ids_BT: Tensor, hidden_BTD: Tensor) -> Tensor:
        types_BTT = edge_types(item_ids_BT)
        scores_RBTT = torch.stack([(hidden_BTD * a_D) @ hidden_BTD.mT for a_D in self.edge_type_RD])
        picked_BTT = scores_RBTT.gather(0, (types_BTT - 1).clamp(min=0)[None])[0]
        masked_BTT = F.leaky_relu(picked_BTT, SLOPE).masked_fill(types_BTT == NO_EDGE, float("-inf"))
        # A padded position has no edge at all: softmax would make it NaN.
        attention_BTT = torch.nan_to_num(torch.softmax(masked_BTT, dim=-1))
        return attention_BTT @ hidden_BTD

    def _global(self, item_ids_BT: Tensor, hidden_BTD: Tensor, lengths_B1: Tensor) -> Tensor:
        mean_BD = hidden_BTD.sum(dim=1) / lengths_B1
        neighbours_BTS = self.neighbours_VS[item_ids_BT]
        weights_BTS = self.weights_VS[item_ids_BT]
        neighbour_BTSD = self.item_embedding(neighbours_BTS)
        described = torch.cat([mean_BD[:, None, None] * neighbour_BTSD, weights_BTS[..., None]], dim=-1)
        scores_BTS = F.leaky_relu(self.global_inner(described), SLOPE) @ self.global_attention_D
        attention_BTS = torch.softmax(scores_BTS.masked_fill(neighbours_BTS == PADDING, float("-inf")), dim=-1)
        # An item without neighbours has a row of -inf: nothing to aggregate.
        gathered_BTD = (torch.nan_to_num(attention_BTS)[..., None] * neighbour_BTSD).sum(dim=2)
        return F.relu(self.global_merge(torch.cat([hidden_BTD, gathered_BTD], dim=-1)))

    def _pool(self, fused_BTD: Tensor, valid_BT: Tensor, lengths_B1: Tensor) -> Tensor:
        T = valid_BT.shape[1]
        from_end_BT = (lengths_B1 - 1 - torch.arange(T, device=valid_BT.device)).clamp(min=0)
        placed_BTD = torch.cat([self.position_embedding(from_end_BT), fused_BTD], dim=-1)
        placed_BTD = torch.tanh(self.position_merge(placed_BTD))
        mean_BD = fused_BTD.sum(dim=1) / lengths_B1
        gate_BTD = torch.sigmoid(self.gate_position(placed_BTD) + self.gate_mean(mean_BD)[:, None])
        weight_BT = (gate_BTD @ self.gate_D) * valid_BT
        return (weight_BT[..., None] * fused_BTD).sum(dim=1)

    def _initialise(self, bound: float) -> None:
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)
        with torch.no_grad():
            self.item_embedding.weight[PADDING].zero_()
            # With gates of mixed sign it is chance whether a session starts near its items or opposite them, and from
            # the far side training does not come back (docs/experiments/recommender-schedules.md).
            self.gate_D.abs_()


def edge_types(item_ids_BT: Tensor) -> Tensor:
    """
    The session graph: int64 [B, T, T], how column j's item relates to row i's; 0 where it is no neighbour.

    1 the same item, 2 j's item is somewhere immediately followed by i's, 3 the reverse, 4 both. Self wins. Only the
    first occurrence of an item is a column.

    >>> edge_types(torch.tensor([[7, 9, 7, 0]]))[0].tolist()
    [[1, 4, 0, 0], [4, 1, 0, 0], [1, 4, 0, 0], [0, 0, 0, 0]]
    """
    T = item_ids_BT.shape[1]
    valid_BT = item_ids_BT != PADDING
    pair_BTT = valid_BT[:, :, None] & valid_BT[:, None, :]
    same_BTT = (item_ids_BT[:, :, None] == item_ids_BT[:, None, :]) & pair_BTT
    step_TT = torch.diag(torch.ones(T - 1, device=item_ids_BT.device), diagonal=-1)  # [p + 1, p] = 1
    step_BTT = step_TT * pair_BTT
    same = same_BTT.float()
    precedes_BTT = (same @ step_BTT @ same) > 0
    follows_BTT = precedes_BTT.mT
    types_BTT = torch.where(precedes_BTT, PRECEDES, NO_EDGE)
    types_BTT = torch.where(follows_BTT, FOLLOWS, types_BTT)
    types_BTT = torch.where(precedes_BTT & follows_BTT, BOTH, types_BTT)
    types_BTT = torch.where(same_BTT, SAME, types_BTT)
    repeated_BT = same_BTT.tril(-1).any(dim=2)
    return types_BTT.masked_fill(repeated_BT[:, None, :], NO_EDGE)


def global_graph(rows: Sequences, num_items: int, *, window: int, num_neighbours: int) -> GlobalGraph:
    """
    Count, in both directions, every pair of different items at distance 1..window inside a row; keep the heaviest.

    Returns:
        S = num_neighbours columns for V = num_items + 1 items; padding has none.
    """
    V = num_items + 1
    row_of = np.repeat(np.arange(len(rows)), rows.lengths)
    keys = []
    for distance in range(1, window + 1):
        inside = row_of[distance:] == row_of[:-distance]
        early = rows.token_ids[:-distance][inside].astype(np.int64)
        late = rows.token_ids[distance:][inside].astype(np.int64)
        keys += [early * V + late, late * V + early]
    pairs, counts = np.unique(np.concatenate(keys), return_counts=True)
    items, others = pairs // V, pairs % V
    distinct = items != others
    return _heaviest(items[distinct], others[distinct], counts[distinct], V, num_neighbours)


def _heaviest(
    items: npt.NDArray[np.int64],
    others: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    num_rows: int,
    num_neighbours: int,
) -> GlobalGraph:
    order = np.lexsort((others, -counts, items))
    items, others, counts = items[order], others[order], counts[order]
    place = np.arange(len(items)) - np.searchsorted(items, items)
    kept = place < num_neighbours
    neighbours_VS = np.zeros((num_rows, num_neighbours), dtype=np.int64)
    weights_VS = np.zeros((num_rows, num_neighbours), dtype=np.float32)
    neighbours_VS[items[kept], place[kept]] = others[kept]
    weights_VS[items[kept], place[kept]] = counts[kept]
    return GlobalGraph(torch.from_numpy(neighbours_VS), torch.from_numpy(weights_VS))


def _draw_prefixes(
    lengths_U: npt.NDArray[np.int64], most: int, generator: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Row number and prefix length of every drawn prefix; a row of n items has prefixes of 1..n-1 items."""
    row_of = np.repeat(np.arange(len(lengths_U)), lengths_U - 1)
    starts_U = np.cumsum(lengths_U - 1) - (lengths_U - 1)
    end_of = np.arange(len(row_of)) - starts_U[row_of] + 1
    keys = generator.random(len(row_of))
    keys[end_of == lengths_U[row_of] - 1] = -1.0  # the longest comes first in its row
    order = np.lexsort((keys, row_of))
    kept = order[np.arange(len(order)) - starts_U[row_of] < most]
    return row_of[kept], end_of[kept]
