"""What one recommender alone promises: its equations, read slowly."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.data.dataset import Sequences, pad_right
from models.recommenders.cl4srec import CL4SRec, CL4SRecConfig, crop, mask, nt_xent, reorder
from models.recommenders.gcegnn import GCEGNN, GCEGNNConfig, edge_types, global_graph
from models.recommenders.markov import MarkovChain
from models.recommenders.popularity import Popularity
from models.recommenders.recommender import sequence_batches
from models.vocabulary import TokenRange

GCEGNN_CONFIG = GCEGNNConfig(width=8, max_length=12, num_neighbours=3)
ROWS = Sequences.from_lists([[1, 2, 3], [1, 2], [4, 1, 2, 1], [5, 6]])


def test_a_row_asks_for_the_next_item_at_every_position_and_tokens_weigh_the_same():
    """Inputs, targets and weights of [1,2,3] and [4,5] in one batch, then in two."""
    rows = Sequences.from_lists([[1, 2, 3], [4, 5]])
    (batch,) = sequence_batches(rows, max_length=8, batch_size=2, generator=np.random.default_rng(0))
    asked = {
        (int(batch.item_ids_BT.flatten()[position]), int(target))
        for position, target in zip(batch.positions_N, batch.targets_N, strict=True)
    }

    assert asked == {(1, 2), (2, 3), (4, 5)}
    assert sorted(batch.item_ids_BT.flatten().tolist()) == [0, 1, 2, 4]
    assert batch.weight == 1.0
    alone = sequence_batches(rows, max_length=8, batch_size=1, generator=np.random.default_rng(0))
    assert sorted(each.weight for each in alone) == [1 / 1.5, 2 / 1.5]


def test_a_row_longer_than_the_model_keeps_its_last_positions():
    """Rows of 5 items and max_length 2 ask for the last two items only."""
    rows = Sequences.from_lists([[1, 2, 3, 4, 5]])
    (batch,) = sequence_batches(rows, max_length=2, batch_size=1, generator=np.random.default_rng(0))

    assert batch.item_ids_BT.tolist() == [[3, 4]]
    assert batch.targets_N.tolist() == [4, 5]


def test_popularity_counts_occurrences():
    """Occurrences of items 1..6."""
    scores = Popularity.build(ROWS, 6).scores(pad_right([np.asarray([3])]), TokenRange(1, 6))

    assert scores.tolist() == [[4, 3, 1, 1, 1, 1]]


def test_markov_counts_transitions_out_of_the_last_item_and_popularity_breaks_ties():
    """1 -> 2 three times; no transition crosses rows (3 -> 1 would)."""
    model = MarkovChain.build(ROWS, 6)
    total = 11
    after_1, after_3 = model.scores(pad_right([np.asarray([4, 1]), np.asarray([3])]), TokenRange(1, 6)).tolist()

    assert after_1 == pytest.approx([4 / (1 + total), 3 + 3 / (1 + total)] + [1 / (1 + total)] * 4)
    assert after_3 == pytest.approx([4 / (1 + total), 3 / (1 + total)] + [1 / (1 + total)] * 4)


def test_nt_xent_equals_an_explicit_double_loop():
    """Each of the 2B views against its partner among the other 2B - 1."""
    first, second = torch.randn(4, 8), torch.randn(4, 8)
    views = [*first, *second]
    total = 0.0
    for i, anchor in enumerate(views):
        partner = views[(i + 4) % 8]
        others = [math.exp(float(anchor @ view) / 0.5) for j, view in enumerate(views) if j != i]
        total += -float(anchor @ partner) / 0.5 + math.log(sum(others))

    assert nt_xent(first, second, temperature=0.5).item() == pytest.approx(total / 8, rel=1e-5)


def test_augmentations_do_what_they_say_to_every_row():
    """Crop keeps a consecutive run, mask hides a share, reorder permutes one window; inputs stay as they were."""
    rows = [np.arange(1, n + 1) for n in (1, 2, 3, 5, 9, 10)]
    matrix = pad_right(rows).numpy()
    before = matrix.copy()
    generator = np.random.default_rng(0)
    for _ in range(50):
        cropped, masked = crop(matrix, 0.6, generator), mask(matrix, 0.3, 99, generator)
        shuffled = reorder(matrix, 0.6, generator)
        for row, original in enumerate(rows):
            n = len(original)
            kept = cropped[row][cropped[row] != 0]
            assert len(kept) == max(1, int(0.6 * n))
            assert kept.tolist() == list(range(kept[0], kept[0] + len(kept)))
            assert (masked[row][:n] == 99).sum() == int(0.3 * n)
            assert set(masked[row][:n]) - {99} <= set(original)
            assert (masked[row][n:] == 0).all()
            assert sorted(shuffled[row][:n]) == original.tolist()
            moved = np.flatnonzero(shuffled[row][:n] != original)
            assert len(moved) == 0 or moved[-1] - moved[0] < int(0.6 * n)

    np.testing.assert_array_equal(matrix, before)


def test_cl4srec_loss_is_the_next_item_loss_plus_the_weighted_contrast():
    """The parts add up, and the mask item is neither a target nor a candidate."""
    torch.manual_seed(0)
    model = CL4SRec.build(ROWS, 6, CL4SRecConfig(width=8, inner_width=8, max_length=12)).eval()
    (batch,) = model.batches(ROWS, 8, np.random.default_rng(0))
    contrast = nt_xent(model.encode(batch.first_view_BT), model.encode(batch.second_view_BT), temperature=1.0)
    expected = model.next_item_loss(batch.sequences) + 0.1 * contrast

    torch.testing.assert_close(model.loss(batch), expected)
    assert model.decoder.item_embeddings_VD.shape[0] == 8
    assert model.scores(pad_right([np.asarray([1])]), TokenRange(1, 6)).shape == (1, 6)


def test_the_session_graph_of_the_hand_example():
    """[3,5,3,7,7,2,3]: 3 and 5 follow each other both ways, 3 -> 7 -> 2 -> 3, 7 follows itself."""
    types = edge_types(torch.tensor([[3, 5, 3, 7, 7, 2, 3]]))[0]
    items = [3, 5, 3, 7, 7, 2, 3]
    first = {item: items.index(item) for item in (3, 5, 7, 2)}
    # Row's item i against column's item j: 2 if j precedes i, 3 if j follows i, 4 both.
    expected = {
        (3, 3): 1, (3, 5): 4, (3, 7): 3, (3, 2): 2,
        (5, 3): 4, (5, 5): 1, (5, 7): 0, (5, 2): 0,
        (7, 3): 2, (7, 5): 0, (7, 7): 1, (7, 2): 3,
        (2, 3): 3, (2, 5): 0, (2, 7): 2, (2, 2): 1,
    }  # fmt: skip

    for row, item in enumerate(items):
        for other, column in first.items():
            assert types[row, column] == expected[item, other], (item, other)
    assert types[:, [2, 4, 6]].eq(0).all()


def test_the_global_graph_counts_pairs_within_the_window_in_both_directions():
    """[1,2,3] and [1,2] with window 2: 1-2 twice, 1-3 and 2-3 once; the heaviest come first."""
    graph = global_graph(Sequences.from_lists([[1, 2, 3], [1, 2], [4, 4]]), 4, window=2, num_neighbours=2)

    assert graph.neighbours_VS.tolist() == [[0, 0], [2, 3], [1, 3], [1, 2], [0, 0]]
    assert graph.weights_VS.tolist() == [[0, 0], [2, 1], [2, 1], [1, 1], [0, 0]]


def slow_session_vector(model: GCEGNN, session: list[int]) -> torch.Tensor:
    """GCE-GNN's equations for one session, over its distinct items with dictionaries."""
    table = model.item_embedding.weight
    nodes = sorted(set(session))
    followed_by = {item: set() for item in nodes}
    for early, late in itertools.pairwise(session):
        followed_by[early].add(late)
    mean = sum(table[item] for item in session) / len(session)
    vector = {}
    for item in nodes:
        energy = {}
        for other in nodes:
            if other == item:
                kind = 0
            elif item in followed_by[other] and other in followed_by[item]:
                kind = 3
            elif item in followed_by[other]:
                kind = 1
            elif other in followed_by[item]:
                kind = 2
            else:
                continue
            energy[other] = F.leaky_relu((model.edge_type_RD[kind] * table[item] * table[other]).sum(), 0.2)
        weights = torch.softmax(torch.stack(list(energy.values())), 0)
        local = sum(weight * table[other] for weight, other in zip(weights, energy, strict=True))
        linked = [
            (int(other), weight)
            for other, weight in zip(model.neighbours_VS[item], model.weights_VS[item], strict=True)
            if other
        ]
        gathered = torch.zeros_like(mean)
        if linked:
            affinity = [
                F.leaky_relu(model.global_inner.weight @ torch.cat([mean * table[other], weight[None]]), 0.2)
                @ model.global_attention_D
                for other, weight in linked
            ]
            shares = torch.softmax(torch.stack(affinity), 0)
            gathered = sum(share * table[other] for share, (other, _) in zip(shares, linked, strict=True))
        vector[item] = local + F.relu(model.global_merge.weight @ torch.cat([table[item], gathered]))
    fused = [vector[item] for item in session]
    mean_fused = sum(fused) / len(fused)
    total = torch.zeros_like(mean)
    for position, hidden in enumerate(fused):
        placed = torch.cat([model.position_embedding.weight[len(session) - 1 - position], hidden])
        placed = torch.tanh(model.position_merge.weight @ placed)
        gate = torch.sigmoid(
            model.gate_position.weight @ placed + model.gate_position.bias + model.gate_mean.weight @ mean_fused
        )
        total = total + (model.gate_D @ gate) * hidden
    return total


def test_gcegnn_in_a_batch_equals_its_equations_read_one_session_at_a_time():
    """Repeats, self-repeats, single items and items without global neighbours."""
    torch.manual_seed(0)
    rows = Sequences.from_lists([[3, 5, 3, 7, 7, 2, 3], [1, 2, 3, 1], [2, 7]])
    model = GCEGNN.build(rows, 9, GCEGNN_CONFIG).eval()
    sessions = [[3, 5, 3, 7, 7, 2, 3], [1], [4, 4], [9, 1, 9, 2, 1, 5], [8], [2, 3, 2, 3]]
    batch = model.encode(pad_right([np.asarray(session) for session in sessions]))

    for row, session in enumerate(sessions):
        torch.testing.assert_close(batch[row], slow_session_vector(model, session), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("seed", range(10))
def test_gcegnn_starts_with_sessions_near_their_items_whatever_the_seed(seed):
    """From the far side training does not come back: its best is then hardly above a Markov chain."""
    torch.manual_seed(seed)
    rows = Sequences.from_lists([list(range(start, start + 5)) for start in range(1, 200, 5)])
    model = GCEGNN.build(rows, 204, GCEGNNConfig(max_length=12)).eval()
    item_ids_BT = pad_right(list(rows))
    with torch.no_grad():
        own_BD = F.normalize(model.item_embedding(item_ids_BT).mean(dim=1), dim=-1)
        nearness_B = (F.normalize(model.encode(item_ids_BT), dim=-1) * own_BD).sum(dim=-1)

    assert float(nearness_B.mean()) > 0.3


def test_gcegnn_draws_the_longest_prefix_and_no_more_than_asked():
    """A row of n items gives min(n - 1, m) different prefixes, n - 1 items the longest, each with its next item."""
    model = GCEGNN.build(ROWS, 30, GCEGNNConfig(width=8, max_length=12, prefixes_per_row=3))
    rows = Sequences.from_lists([list(range(1, 11)), [11, 12], [21, 22, 23]])
    drawn = [
        (session[session != 0].tolist(), int(target))
        for batch in model.batches(rows, 2, np.random.default_rng(0))
        for session, target in zip(batch.item_ids_BT, batch.targets_B, strict=True)
    ]

    assert len(drawn) == 3 + 1 + 2
    assert all(target == session[-1] + 1 for session, target in drawn)
    assert ([1, 2, 3, 4, 5, 6, 7, 8, 9], 10) in drawn
    assert ([11], 12) in drawn
    assert len({tuple(session) for session, _ in drawn}) == 6
