"""What every recommender promises, one suite over all of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.data.dataset import Sequences, pad_right
from models.ranking_metrics import hit_rate_at_k, pessimistic_ranks
from models.recommenders.multidomain import MultiDomainRecommender
from models.recommenders.recommender import SharedConfig, with_shared
from models.recommenders.registry import CONFIGURATIONS, COUNTED, MULTI_DOMAIN, RECOMMENDERS, TRAINED
from models.vocabulary import TokenRange

NUM_ITEMS = 30
ALL = TokenRange(1, NUM_ITEMS)
DOMAINS = (TokenRange(1, 10), TokenRange(11, 18), TokenRange(19, NUM_ITEMS))
SMALL = SharedConfig(width=16, inner_width=16, max_length=16)
ROWS = Sequences.from_lists(
    np.random.default_rng(3).integers(1, NUM_ITEMS + 1, size=length).tolist() for length in (2, 3, 5, 8, 8, 13, 20)
)
HISTORIES = [np.asarray(tokens, dtype=np.int32) for tokens in ([4], [3, 5, 3, 7, 7, 2, 3], [9, 9], [1, 2, 3, 4])]

every_trained = pytest.mark.parametrize("name", [*TRAINED, *MULTI_DOMAIN])
every_session = pytest.mark.parametrize("name", TRAINED)
every_causal = pytest.mark.parametrize("name", [name for name, model in TRAINED.items() if model.causal])
every_counted = pytest.mark.parametrize("name", COUNTED)


def small(name, **changed):
    """The configuration of one recommender; of *changed*, what it has."""
    config = with_shared(CONFIGURATIONS[name], SMALL)
    if name == "gru4rec":
        config = replace(config, hidden_width=16)
    return replace(config, **{key: value for key, value in changed.items() if hasattr(config, key)})


def build(name, config=None, rows=ROWS, seed=0):
    torch.manual_seed(seed)
    config = config or small(name)
    if name in MULTI_DOMAIN:
        return MULTI_DOMAIN[name].build(DOMAINS, config).eval()
    return TRAINED[name].build(rows, NUM_ITEMS, config).eval()


def session_vectors(model, item_ids_BT):
    """All vectors that scores are made of."""
    if isinstance(model, MultiDomainRecommender):
        return torch.stack([model.encode_for(domain, item_ids_BT) for domain in range(len(DOMAINS))])
    return model.encode(item_ids_BT)


@every_causal
def test_future_items_do_not_change_past_states(name):
    """Prefix invariance: the state at t depends on items up to t only."""
    model = build(name)
    whole = torch.randint(1, NUM_ITEMS + 1, (4, 9))
    changed = whole.clone()
    changed[:, 5:] = torch.randint(1, NUM_ITEMS + 1, (4, 4))

    torch.testing.assert_close(model.encode_all(whole)[:, :5], model.encode_all(changed)[:, :5])
    assert not torch.allclose(model.encode_all(whole)[:, 5:], model.encode_all(changed)[:, 5:])


@every_trained
def test_padding_does_not_change_the_session_vector(name):
    """Five more padded columns leave every vector where it was."""
    model = build(name)

    torch.testing.assert_close(
        session_vectors(model, pad_right(HISTORIES, 7)), session_vectors(model, pad_right(HISTORIES, 12))
    )


@every_trained
def test_a_history_scores_the_same_alone_and_in_a_batch(name):
    """Neighbours in a batch have no say."""
    model = build(name)
    together = model.scores(pad_right(HISTORIES), ALL)

    for row, history in enumerate(HISTORIES):
        torch.testing.assert_close(model.scores(pad_right([history]), ALL)[0], together[row])


@every_trained
def test_a_longer_history_than_the_model_holds_keeps_its_last_items(name):
    """max_length + 4 items score as the last max_length do, and a short history beside them loses nothing."""
    model = build(name)
    long, short = np.arange(1, SMALL.max_length + 5, dtype=np.int32), np.asarray([3, 1, 2], dtype=np.int32)
    together = model.scores(pad_right([long, short]), ALL)

    torch.testing.assert_close(together[:1], model.scores(pad_right([long[4:]]), ALL))
    torch.testing.assert_close(together[1:], model.scores(pad_right([short]), ALL))


@every_trained
def test_scores_cover_the_candidates_and_nothing_else(name):
    """One column per candidate; a range that names padding is refused."""
    model = build(name)
    scores = model.scores(pad_right(HISTORIES), TokenRange(11, 15))

    assert scores.shape == (len(HISTORIES), 5)
    torch.testing.assert_close(scores, model.scores(pad_right(HISTORIES), ALL)[:, 10:15])
    assert model.item_table_XD.shape[0] == NUM_ITEMS
    with pytest.raises(AssertionError):
        model.scores(pad_right(HISTORIES), TokenRange(0, 5))


@every_trained
def test_one_pass_has_the_announced_batches_finite_losses_and_gradients(name):
    """num_batches tells the truth; every batch has a finite loss that reaches the item table."""
    model = build(name).train()
    batches = list(model.batches(ROWS, 3, np.random.default_rng(0)))

    assert len(batches) == model.num_batches(ROWS, 3)
    for batch in batches:
        loss = model.loss(batch)
        assert loss.isfinite()
        loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.abs().sum() > 0 for gradient in gradients)


@every_trained
def test_the_same_generator_seed_gives_the_same_batches(name):
    """Everything random in a pass comes from the generator it was given."""
    model = build(name).eval()
    first, second = (
        [model.loss(batch).item() for batch in model.batches(ROWS, 2, np.random.default_rng(5))] for _ in range(2)
    )

    assert first == second


@every_trained
def test_weights_survive_a_round_trip(name):
    """state_dict of one model makes another score the same."""
    model = build(name)
    other = build(name, seed=99)
    before = other.scores(pad_right(HISTORIES), ALL)
    other.load_state_dict(model.state_dict())

    assert not torch.equal(before, model.scores(pad_right(HISTORIES), ALL))
    assert torch.equal(other.scores(pad_right(HISTORIES), ALL), model.scores(pad_right(HISTORIES), ALL))


@every_session
def test_fifty_users_on_a_cycle_are_learnt(name):
    """Every model can overfit: the next item of a deterministic cycle over 30 items is in the top 3 for > 90 %."""
    generator = np.random.default_rng(1)
    starts, lengths = generator.integers(NUM_ITEMS, size=50), generator.integers(4, 12, size=50)
    rows = Sequences.from_lists(
        (np.arange(start, start + length) % NUM_ITEMS + 1).tolist()
        for start, length in zip(starts, lengths, strict=True)
    )
    config = small(name, dropout=0.0, attention_dropout=0.0, dropout_global=0.0, width=32)
    model = build(name, config, rows).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(25):
        for batch in model.batches(rows, 10, generator):
            optimiser.zero_grad()
            model.loss(batch).backward()
            optimiser.step()
    histories = pad_right([row[:-1] for row in rows])
    targets = torch.tensor([int(row[-1]) for row in rows])
    with torch.no_grad():
        ranks = pessimistic_ranks(model.eval().scores(histories, ALL), targets - 1)

    assert hit_rate_at_k(ranks, 3).mean() > 0.9


@pytest.mark.parametrize("name", RECOMMENDERS)
def test_the_registry_knows_a_model_by_the_name_that_it_has(name):
    """Its line points to a class of that name, and to hyper-parameters that are a frozen dataclass of defaults."""
    model = next(models[name] for models in (TRAINED, MULTI_DOMAIN, COUNTED) if name in models)

    assert model.name == name
    assert (name in CONFIGURATIONS) == (name not in COUNTED)
    if name in CONFIGURATIONS:
        assert CONFIGURATIONS[name]() == with_shared(CONFIGURATIONS[name], SharedConfig())


@every_counted
def test_counted_models_score_the_candidates_of_any_history_an_empty_one_included(name):
    """Shape, range and finiteness of the floors."""
    model = COUNTED[name].build(ROWS, NUM_ITEMS)
    histories = torch.cat([pad_right(HISTORIES), torch.zeros(1, 7, dtype=torch.int64)])

    scores = model.scores(histories, TokenRange(11, 15))

    assert scores.shape == (len(HISTORIES) + 1, 5)
    assert scores.isfinite().all()
    torch.testing.assert_close(scores, model.scores(histories, ALL)[:, 10:15])
