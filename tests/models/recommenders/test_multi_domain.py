"""What the multi-domain recommenders promise: alignment, coalitions, streams, and losses read slowly."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.data.dataset import Sequences, pad_right
from models.errors import ConfigurationError
from models.network.domain_streams import domain_streams
from models.ranking_metrics import hit_rate_at_k, pessimistic_ranks
from models.recommenders.abxi import ABXI, LowRank, aligned_streams
from models.recommenders.cgrec import CGRec, shapley_values
from models.recommenders.multidomain import targets_per_domain
from models.recommenders.recommender import SharedConfig, with_shared
from models.recommenders.registry import CONFIGURATIONS, MULTI_DOMAIN
from models.recommenders.syncrec import SyNCRec
from models.vocabulary import TokenRange

DOMAINS = (TokenRange(1, 10), TokenRange(11, 20), TokenRange(21, 30))
NUM_ITEMS = 30
SMALL = SharedConfig(width=16, inner_width=16, max_length=16)
ROWS = Sequences.from_lists(
    np.random.default_rng(3).integers(1, NUM_ITEMS + 1, size=length).tolist() for length in (2, 3, 5, 8, 8, 13, 20)
)

every_model = pytest.mark.parametrize("name", MULTI_DOMAIN)


def build(model, shared=SMALL, **own):
    torch.manual_seed(0)
    return model.build(DOMAINS, replace(with_shared(CONFIGURATIONS[model.name], shared), **own)).eval()


def one_batch(model, rows):
    (batch,) = model.batches(rows, len(rows), np.random.default_rng(0))
    return batch


def of_domain(tokens, domain):
    return [token for token in tokens if token in domain]


# Rows and streams


# -- Batches of several domains


def test_a_batch_asks_for_every_next_item_once_in_its_own_domains_columns():
    """Rows [1,11,2] and [21,1]: targets 11 and 2, and 1, with the items before them."""
    batch = one_batch(build(CGRec), Sequences.from_lists([[1, 11, 2], [21, 1]]))
    asked = {
        (int(batch.item_ids_BT.flatten()[position]), int(column) + domain.first)
        for targets, domain in zip(batch.targets, DOMAINS, strict=True)
        for position, column in zip(targets.positions_M, targets.columns_M, strict=True)
    }

    assert asked == {(1, 11), (11, 2), (21, 1)}
    assert [len(targets) for targets in batch.targets] == [2, 1, 0]


def test_every_target_of_a_domain_weighs_the_same_over_a_pass():
    """A batch's weight is its targets of the domain over their mean per batch: 2, 1 and none of [2, 1] / 2."""
    rows = Sequences.from_lists([[1, 2, 3], [1, 11]])
    weights = {
        tuple(targets.weight for targets in batch.targets)
        for batch in build(CGRec).batches(rows, 1, np.random.default_rng(0))
    }

    assert weights == {(2 / 1, 0, 0), (0, 1 / 0.5, 0)}
    counted = sum(
        np.asarray([len(targets) for targets in batch.targets])
        for batch in build(CGRec).batches(ROWS, 2, np.random.default_rng(0))
    )
    assert counted.tolist() == targets_per_domain(ROWS, DOMAINS, max_length=SMALL.max_length).tolist()


# -- What all three promise


@pytest.mark.parametrize(
    ("recommender", "name", "value"),
    [
        ("cgrec", "weight_memory", 1.0),
        ("cgrec", "weight_temperature", 0.0),
        ("cgrec", "shapley_interval", 0),
        ("abxi", "temperature", -1.0),
        ("abxi", "domain_rank", 0),
        ("syncrec", "weight_memory", 1.0),
        ("syncrec", "weight_temperature", 0.0),
        ("syncrec", "num_experts", 1),
        ("syncrec", "mutual_weight", -0.1),
    ],
)
def test_a_hyper_parameter_out_of_its_range_is_refused_by_name(recommender, name, value):
    """Before anything is trained; a single expert, for one, leaves a side without any."""
    with pytest.raises(ConfigurationError, match=name):
        CONFIGURATIONS[recommender](**{name: value})


# What all of them promise


@every_model
def test_later_items_of_a_batch_do_not_change_what_a_history_scores(name):
    """Training reads a row's prefix as evaluation reads a history: no state at t knows items after t."""
    model = build(MULTI_DOMAIN[name])
    whole = pad_right([np.asarray([1, 11, 2, 21, 12, 3, 22, 13])])
    changed = whole.clone()
    changed[:, 5:] = torch.tensor([9, 29, 19])  # other items of the same domains: positions may count back
    with torch.no_grad():
        if name == "abxi":
            first, second = model.states(whole), model.states(changed)
        elif name == "cgrec":
            first, second = (torch.cat(model.encode_all(items), dim=2) for items in (whole, changed))
        else:
            first, second = model.encode_all(whole), model.encode_all(changed)

    torch.testing.assert_close(first[:, :5], second[:, :5])
    assert not torch.allclose(first[:, 5:], second[:, 5:])


@pytest.mark.parametrize("model", [CGRec, SyNCRec])
def test_states_do_not_know_what_domains_or_how_many_items_follow(model):
    """Where positions count from the oldest item, a prefix alone has the states it has inside the whole row."""
    built = build(model)
    whole = torch.tensor([[1, 11, 2, 21, 12, 3, 22, 13]])
    with torch.no_grad():
        inside, alone = (built.encode_all(items) for items in (whole, whole[:, :4]))
    if model is CGRec:
        inside, alone = inside[1], alone[1]

    torch.testing.assert_close(inside[:, :4], alone)


@every_model
def test_fifty_users_on_a_cycle_through_the_domains_are_learnt(name):
    """The next item of a cycle that changes domain at every step is its domain's first for > 90 %."""
    cycle = [domain.first + step for step in range(10) for domain in DOMAINS]
    generator = np.random.default_rng(1)
    starts, lengths = generator.integers(NUM_ITEMS, size=50), generator.integers(4, 12, size=50)
    rows = Sequences.from_lists(
        [cycle[(start + step) % NUM_ITEMS] for step in range(length)]
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)
    )
    config = replace(SMALL, dropout=0.0, attention_dropout=0.0, width=32)
    model = build(MULTI_DOMAIN[name], config).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(15):
        for batch in model.batches(rows, 10, generator):
            optimiser.zero_grad()
            model.loss(batch).backward()
            optimiser.step()
    model.eval()
    ranks = []
    with torch.no_grad():
        for row in rows:
            (domain,) = (domain for domain in DOMAINS if int(row[-1]) in domain)
            scores = model.scores(pad_right([row[:-1]]), domain)
            ranks.append(pessimistic_ranks(scores, torch.tensor([int(row[-1]) - domain.first])))

    assert hit_rate_at_k(torch.cat(ranks), 1).mean() > 0.9


@every_model
def test_low_precision_training_reaches_every_weight(name):
    """Passes without gradient inside the loss leave autocast no copies of weights that know none."""
    model = build(MULTI_DOMAIN[name]).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.loss(one_batch(model, ROWS))
    loss.backward()

    assert loss.dtype == torch.float32
    assert all(parameter.grad is not None for parameter in model.parameters())
    attention = [p for key, p in model.named_parameters() if key.endswith("query_key_value.weight")]
    assert all(parameter.grad.any() for parameter in attention)


@every_model
def test_a_loss_in_evaluation_mode_changes_nothing(name):
    """Only training moves the domain weights."""
    model = build(MULTI_DOMAIN[name])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.loss(one_batch(model, ROWS))

    assert not model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# ABXI


def aligned_rows(row):
    """The streams that ``aligned_streams`` means, laid back over the mixed slots."""
    batch = one_batch(build(ABXI, replace(SMALL, max_length=32)), Sequences.from_lists([row]))
    streams = aligned_streams(batch, DOMAINS)
    items = torch.cat([group.item_ids_RS.flatten() for group in streams.groups])
    laid = torch.zeros(3, batch.item_ids_BT.shape[1], dtype=torch.int64)
    for domain, targets in enumerate(batch.targets):
        slots_M = streams.slots_KBT[domain, 0, targets.positions_M]
        laid[domain, targets.positions_M] = torch.where(slots_M >= 0, items[slots_M.clamp(min=0)], 0)
    return laid.tolist(), streams


# -- ABXI


def test_abxi_aligns_each_target_with_the_last_item_of_its_domain():
    """x = [1,11,2,21,12,3,22], y = [11,2,21,12,3,22,13] in ranges of ten."""
    laid, streams = aligned_rows([1, 11, 2, 21, 12, 3, 22, 13])

    assert laid == [[0, 1, 0, 0, 2, 0, 0], [0, 0, 0, 11, 0, 0, 12], [0, 0, 0, 0, 0, 21, 0]]
    # Without holes; 3 and 22, which no item of their domain follows, are no part of it.
    assert [group.item_ids_RS.tolist() for group in streams.groups] == [[[1, 2], [11, 12], [21, 0]]]


def test_abxi_alignment_equals_its_definition_on_random_rows():
    """x^d_t is the last item of d among x_0..x_t if y_t is in d, else 0."""
    generator = np.random.default_rng(0)
    for _ in range(50):
        row = generator.integers(1, NUM_ITEMS + 1, size=generator.integers(2, 20)).tolist()
        expected = [
            [(of_domain(row[: t + 1], domain) or [0])[-1] if row[t + 1] in domain else 0 for t in range(len(row) - 1)]
            for domain in DOMAINS
        ]

        assert aligned_rows(row)[0] == expected


def test_abxi_reads_at_the_last_target_of_a_domain_what_it_reads_at_evaluation():
    """The stream's state there equals that of the domain's history alone, encoded on its own."""
    model = build(ABXI)
    row = [1, 11, 2, 21, 12, 3, 22, 13]
    batch = one_batch(model, Sequences.from_lists([row]))
    streams = aligned_streams(batch, DOMAINS)
    own_PD = model.stream_states(streams)
    for domain, targets in enumerate(batch.targets):
        last = int(targets.positions_M[-1])
        history = of_domain(row[: last + 1], DOMAINS[domain])
        slot = streams.slots_KBT[domain, 0, last]

        torch.testing.assert_close(own_PD[slot], model.states(torch.tensor([history]))[0, -1])


def test_abxi_training_loss_is_that_of_its_evaluation_vectors_at_the_last_slot():
    """One row with one target: cross-entropy over the domain of v . E / 0.75, over three domains."""
    model = build(ABXI)
    batch = one_batch(model, Sequences.from_lists([[1, 12]]))
    vector_BD = model.encode_for(1, torch.tensor([[1]]))
    logits_BX = vector_BD @ model.item_table_XD[10:20].T / 0.75

    torch.testing.assert_close(model.loss(batch), F.cross_entropy(logits_BX, torch.tensor([1])) / 3)


def test_abxi_low_rank_projections_are_inert_until_trained():
    """B is zero at the start, so A does not matter; afterwards LoRA h = A B h."""
    torch.manual_seed(0)
    model, low_rank = build(ABXI), LowRank(6, 2)
    histories = pad_right([np.asarray([1, 11, 2, 21])])
    before = model.scores(histories, DOMAINS[0])
    for stage in (model.mixed_stage, *model.stream_stages, *model.domain_stages):
        torch.nn.init.normal_(stage.low_rank.left_Dr)

    assert torch.equal(model.scores(histories, DOMAINS[0]), before)
    torch.nn.init.normal_(low_rank.right_rD)
    hidden_D = torch.randn(6)
    torch.testing.assert_close(low_rank(hidden_D), low_rank.left_Dr @ (low_rank.right_rD @ hidden_D))


def test_abxi_knows_which_domain_it_is_asked_for_even_without_its_items():
    """A history of domain 0 alone has a vector for every domain; projections tell the empty ones apart."""
    model = build(ABXI)
    history = torch.tensor([[1, 2, 3]])
    own, second, third = (model.encode_for(domain, history) for domain in range(3))

    assert not torch.allclose(own, second)
    assert torch.equal(second, third)
    torch.nn.init.normal_(model.domain_stages[1].low_rank.right_rD)
    assert not torch.allclose(model.encode_for(1, history), second)
    assert torch.equal(model.encode_for(2, history), third)
    assert second.isfinite().all()


# CGRec


# -- CGRec


def test_shapley_values_are_the_mean_marginal_contribution_over_all_orders():
    """Brute force over the six orders of three players; they share out v(all) - v(none)."""
    values_C = torch.rand(8, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(3)
    for order in itertools.permutations(range(3)):
        coalition = 0
        for player in order:
            expected[player] += (values_C[coalition | 1 << player] - values_C[coalition]) / 6
            coalition |= 1 << player
    phi_K = shapley_values(values_C)

    torch.testing.assert_close(phi_K, expected)
    torch.testing.assert_close(phi_K.sum(), values_C[7] - values_C[0])


def test_a_player_that_changes_nothing_has_no_shapley_value_and_equal_players_have_equal_ones():
    """Dummy and symmetry: v = [0 or 1 in C] of three players."""
    values_C = torch.tensor([float(coalition & 0b011 > 0) for coalition in range(8)])

    assert shapley_values(values_C).tolist() == pytest.approx([0.5, 0.5, 0])


def slow_level_loss(model, row, domain, coalition):
    """Mean coarse + fine loss over the targets of *domain*, items outside *coalition* unread."""
    items = torch.tensor([row[:-1]])
    known = torch.tensor([[any(item in DOMAINS[k] for k in coalition) for item in row[:-1]]])
    coarse, fine = (states[0] for states in model.encode_all(items, known))
    losses = []
    for t, target in enumerate(row[1:]):
        if target in DOMAINS[domain]:
            columns = slice(DOMAINS[domain].first - 1, DOMAINS[domain].last)
            which = (coarse[t] @ model.input.domain_embedding.weight.T).log_softmax(0)[domain]
            item = (fine[t] @ model.item_table_XD[columns].T).log_softmax(0)[target - DOMAINS[domain].first]
            losses.append(-which - item)
    return sum(losses) / len(losses)


def test_cgrec_loss_is_the_weighted_mean_over_domains_of_both_levels():
    """lambda_d times the mean loss of the targets of d, over K domains."""
    model = build(CGRec)
    model.harm_K.copy_(torch.tensor([0.0, math.log(2), -math.log(2)]))
    row = [1, 11, 2, 21, 12, 3, 22, 13]
    weights = [3 * weight / 3.5 for weight in (1, 0.5, 2)]
    expected = sum(weight * slow_level_loss(model, row, d, (0, 1, 2)) for d, weight in enumerate(weights)) / 3

    assert model.domain_weights_K.tolist() == pytest.approx(weights)
    torch.testing.assert_close(model.loss(one_batch(model, Sequences.from_lists([row]))), expected)


def test_cgrec_harms_share_out_what_all_domains_gain_over_guessing():
    """Each coalition's loss read slowly, against log K + log X_d."""
    model = build(CGRec)
    torch.nn.init.normal_(model.item_embedding.weight)
    row = [1, 11, 2, 21, 12, 3, 22, 13]
    counts = [2, 3, 2]
    values = [0.0]
    for coalition in range(1, 8):
        members = [k for k in range(3) if coalition >> k & 1]
        total = sum(counts[k] * (slow_level_loss(model, row, k, members) - math.log(3) - math.log(10)) for k in members)
        values.append(total.item() / sum(counts[k] for k in members))
    harms_K = model.harms(one_batch(model, Sequences.from_lists([row])))

    torch.testing.assert_close(harms_K, shapley_values(torch.tensor(values)))
    assert float(harms_K.sum()) == pytest.approx(values[-1], abs=1e-5)


def test_cgrec_reads_no_item_outside_a_coalition_but_its_domain_and_place():
    """Other items of the same foreign domain change nothing; other domains there do."""
    model = build(CGRec)
    first, second, third = torch.tensor([[[1, 11, 2]], [[1, 19, 2]], [[1, 21, 2]]])
    known = torch.tensor([[True, False, True]])

    assert torch.equal(model.encode_all(first, known)[1], model.encode_all(second, known)[1])
    assert not torch.equal(model.encode_all(first, known)[1], model.encode_all(third, known)[1])


def test_cgrec_moves_its_weights_every_few_steps_and_against_harm():
    """u <- 0.9 u + 0.1 phi at steps 0 and 3 of interval 3; a harmful domain weighs less; dropout returns."""
    model = build(CGRec, replace(SMALL, dropout=0.5), shapley_interval=3).train()
    batch = one_batch(model, ROWS)
    phi_K = model.harms(batch)
    assert model.training
    seen = []
    for _ in range(4):
        model.loss(batch)
        seen.append(model.harm_K.clone())

    torch.testing.assert_close(seen[0], 0.1 * phi_K)
    assert torch.equal(seen[0], seen[2])
    torch.testing.assert_close(seen[3], 0.19 * phi_K)
    assert int(model.steps) == 4
    assert model.domain_weights_K.argmin() == phi_K.argmax()
    assert float(model.domain_weights_K.mean()) == pytest.approx(1)


# SyNCRec


# -- SyNCRec


def test_syncrec_streams_stop_each_others_gradients_at_the_experts():
    """The mixed stream trains its experts, gate, tower and embeddings, not the single ones; and the other way round."""
    model = build(SyNCRec)
    items = torch.tensor([[1, 11, 2, 21]])
    model.encode_all(items).square().sum().backward()

    def reached(experts):
        return [parameter.grad is not None for expert in experts for parameter in expert.parameters()]

    assert all(reached(model.mixed_experts))
    assert not any(reached(model.single_experts))
    model.zero_grad(set_to_none=True)
    model.encode_streams(domain_streams(items, DOMAINS)).square().sum().backward()
    assert all(reached(model.single_experts))
    assert not any(reached(model.mixed_experts))


def test_syncrec_mixes_distinct_experts_by_its_gates():
    """c is the tower of 0.8 of the mixed experts' weighted sum and 0.2 of the single ones'."""
    model = build(SyNCRec, num_experts=6)
    items = torch.tensor([[1, 11, 2, 21]])
    embedded = model.input(model.item_embedding(items), torch.tensor([[0, 1, 0, 2]]))
    own, other = model.mixed_gate(embedded)
    mixed, single = ([expert(embedded) for expert in side] for side in (model.mixed_experts, model.single_experts))
    expected = model.mixed_tower(
        0.8 * sum(own[..., [e]] * output for e, output in enumerate(mixed))
        + 0.2 * sum(other[..., [e]] * output for e, output in enumerate(single))
    )

    assert (len(mixed), len(single)) == (4, 2)
    assert not torch.allclose(mixed[0], mixed[1])
    torch.testing.assert_close(model.encode_all(items), expected)
    torch.testing.assert_close(own.sum(dim=2), torch.ones(1, 4))


def test_syncrec_encodes_streams_in_groups_as_it_does_one_by_one():
    """Lengths 1 to 9 of three domains: each last state equals the one from the modules read slowly."""
    model = build(SyNCRec)
    rows = [[1, 11, 2, 21], [12, 3], [22], [5] * 6 + [25, 24, 23, 22, 21, 25, 24, 23, 22]]
    streams = domain_streams(pad_right([np.asarray(row) for row in rows]), DOMAINS)
    states_PD = model.encode_streams(streams)

    assert len(streams.groups) == 2
    for domain, (b, row) in itertools.product(range(3), enumerate(rows)):
        own = of_domain(row, DOMAINS[domain])
        if own:
            slot = streams.slots_KBT[domain, b, len(row) - 1]
            torch.testing.assert_close(states_PD[slot], single_state(model, own, domain))


def test_syncrec_gates_are_noisy_in_training_only():
    """The same input twice: equal weights in evaluation mode, different ones in training mode."""
    gate = build(SyNCRec).mixed_gate
    embedded = torch.randn(1, 4, 16)

    assert torch.equal(gate(embedded)[0], gate(embedded)[0])
    gate.train()
    assert not torch.equal(gate(embedded)[0], gate(embedded)[0])


def single_state(model, own, domain):
    """s of *domain* after the items *own* of it, from the modules themselves."""
    items = torch.tensor([own])
    embedded = model.input(model.item_embedding(items), torch.full_like(items, domain))
    gates_own, gates_other = model.single_gates[domain](embedded)
    mixture = 0.8 * sum(gates_own[..., [e]] * expert(embedded) for e, expert in enumerate(model.single_experts))
    mixture += 0.2 * sum(gates_other[..., [e]] * expert(embedded) for e, expert in enumerate(model.mixed_experts))
    return model.single_towers[domain](mixture)[0, -1]


def slow_syncrec_losses(model, row):
    """Per target: domain, cross-entropy of the mixed state, and of the domain's own state or None."""
    mixed = model.encode_all(torch.tensor([row[:-1]]))[0]
    for t, target in enumerate(row[1:]):
        (domain,) = (k for k in range(3) if target in DOMAINS[k])
        table = model.item_table_XD[DOMAINS[domain].first - 1 : DOMAINS[domain].last]
        column = target - DOMAINS[domain].first
        own = of_domain(row[: t + 1], DOMAINS[domain])
        single = None
        if own:
            single = -(single_state(model, own, domain) @ table.T).log_softmax(0)[column]
        yield domain, -(mixed[t] @ table.T).log_softmax(0)[column], single


def test_syncrec_loss_adds_both_streams_weighs_the_mixed_one_and_moves_by_what_mixing_gained():
    """One row without negatives for the mutual information: cross-entropies by hand, then u and lambda."""
    model = build(SyNCRec)
    torch.nn.init.normal_(model.item_embedding.weight)
    model.gain_K.copy_(torch.tensor([0.0, 1.0, -1.0]))
    row = [1, 11, 2, 21, 12, 3, 13, 2]
    losses = list(slow_syncrec_losses(model, row))
    weights = 3 * torch.softmax(model.gain_K, 0)
    expected = sum(weights[d] * mixed + (0 if single is None else single) for d, mixed, single in losses) / 7
    batch = one_batch(model, Sequences.from_lists([row]))

    assert [single is None for _, _, single in losses] == [True, False, True, False, False, False, False]
    torch.testing.assert_close(model.loss(batch), expected)
    still = replace(SMALL, dropout=0.0, attention_dropout=0.0)
    trained = build(SyNCRec, still)
    trained.load_state_dict(model.state_dict())
    for gate in (trained.mixed_gate, *trained.single_gates):
        torch.nn.init.constant_(gate.spread.bias, -100)  # noise of 1e-3 at most
        torch.nn.init.zeros_(gate.spread.weight)
    trained.train().loss(batch)
    for domain, before in enumerate((0.0, 1.0, -1.0)):
        gained = [(single - mixed).item() for d, mixed, single in losses if d == domain and single is not None]
        after = 0.9 * before + 0.1 * sum(gained) / len(gained) if gained else before
        assert float(trained.gain_K[domain]) == pytest.approx(after, abs=1e-3)
    assert model.domain_weights_K.argmax() == 1


def test_syncrec_mutual_information_equals_an_explicit_double_loop():
    """Each item against the single-domain states of all rows that have an item at its slot."""
    model = build(SyNCRec)
    torch.nn.init.normal_(model.agreement.weight)
    rows = [[1, 11, 2, 21], [12, 3], [22]]
    items = pad_right([np.asarray(row) for row in rows])
    streams = domain_streams(items, DOMAINS)
    mixed, single = model.encode_all(items), model.encode_streams(streams)

    def own_state(b, t):
        (domain,) = (k for k in range(3) if rows[b][t] in DOMAINS[k])
        return single_state(model, of_domain(rows[b][: t + 1], DOMAINS[domain]), domain)

    total = 0.0
    for b, row in enumerate(rows):
        for t in range(len(row)):
            anchor = model.agreement.weight @ mixed[b, t] / math.sqrt(16)
            others = [(anchor @ own_state(other, t)).item() for other in range(3) if t < len(rows[other])]
            total += math.log(sum(math.exp(value) for value in others)) - (anchor @ own_state(b, t)).item()

    assert model.mutual_information(items, streams, mixed, single).item() == pytest.approx(total / 7, rel=1e-4)
