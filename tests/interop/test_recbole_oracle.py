"""RecBole as an independent oracle: same weights, same states and scores; same ranks, same metrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.ranking_metrics import METRICS, per_row_metrics, pessimistic_ranks
from models.recommenders.gru4rec import GRU4Rec, GRU4RecConfig
from models.recommenders.sasrec import SASRec, SASRecConfig
from models.vocabulary import TokenRange

NUM_ITEMS = 40
LENGTH = 14
SASREC = SASRecConfig(width=16, inner_width=24, max_length=LENGTH)
GRU4REC = GRU4RecConfig(width=16, max_length=LENGTH, hidden_width=20, num_recurrent_layers=2)

COMMON = {
    "USER_ID_FIELD": "user_id",
    "ITEM_ID_FIELD": "item_id",
    "LIST_SUFFIX": "_list",
    "ITEM_LIST_LENGTH_FIELD": "item_length",
    "NEG_PREFIX": "neg_",
    "MAX_ITEM_LIST_LENGTH": LENGTH,
    "device": torch.device("cpu"),
    "loss_type": "CE",
}


class Fields:
    """The part of a RecBole dataset that model constructors ask for."""

    def num(self, field):
        return NUM_ITEMS + 1


@pytest.fixture
def batch():
    """Histories of every length up to the longest, padded on the right as RecBole pads them."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.arange(1, LENGTH + 1)
    items = torch.randint(1, NUM_ITEMS + 1, (LENGTH, LENGTH), generator=generator)
    items[torch.arange(LENGTH)[None, :] >= lengths[:, None]] = 0
    return items, lengths


def test_sasrec_equals_recbole_on_the_same_weights(recbole, batch):
    """Session vectors and scores of every item."""
    theirs = recbole.model.sequential_recommender.sasrec.SASRec(
        COMMON
        | {
            "n_layers": 2,
            "n_heads": 2,
            "hidden_size": 16,
            "inner_size": 24,
            "hidden_dropout_prob": 0.2,
            "attn_dropout_prob": 0.2,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
            "initializer_range": 0.3,
        },
        Fields(),
    ).eval()
    ours = SASRec(NUM_ITEMS, SASREC).eval()
    ours.decoder.load_state_dict(decoder_weights(theirs.state_dict()))

    assert_same_answers(ours, theirs, batch)


def decoder_weights(theirs):
    """RecBole's names as the decoder's; query, key and value are one matrix here."""
    renamed = {
        "item_embedding.weight": theirs["item_embedding.weight"],
        "position_embedding.weight": theirs["position_embedding.weight"],
        "input_norm.weight": theirs["LayerNorm.weight"],
        "input_norm.bias": theirs["LayerNorm.bias"],
    }
    parts = {
        "attention_output": "multi_head_attention.dense",
        "attention_norm": "multi_head_attention.LayerNorm",
        "inner": "feed_forward.dense_1",
        "outer": "feed_forward.dense_2",
        "feed_forward_norm": "feed_forward.LayerNorm",
    }
    for layer in range(2):
        for kind in ("weight", "bias"):
            prefix = f"trm_encoder.layer.{layer}"
            renamed[f"blocks.{layer}.query_key_value.{kind}"] = torch.cat(
                [theirs[f"{prefix}.multi_head_attention.{part}.{kind}"] for part in ("query", "key", "value")]
            )
            for ours, name in parts.items():
                renamed[f"blocks.{layer}.{ours}.{kind}"] = theirs[f"{prefix}.{name}.{kind}"]
    return renamed


def test_gru4rec_equals_recbole_on_the_same_weights(recbole, batch):
    """Session vectors and scores of every item; two layers, hidden width other than the embedding's."""
    theirs = recbole.model.sequential_recommender.gru4rec.GRU4Rec(
        COMMON | {"embedding_size": 16, "hidden_size": 20, "num_layers": 2, "dropout_prob": 0.2}, Fields()
    ).eval()
    ours = GRU4Rec(NUM_ITEMS, GRU4REC).eval()
    weights = theirs.state_dict()
    ours.load_state_dict(
        {
            "item_embedding.weight": weights["item_embedding.weight"],
            **{
                f"recurrence.{key.removeprefix('gru_layers.')}": value
                for key, value in weights.items()
                if key.startswith("gru_layers.")
            },
            "output.weight": weights["dense.weight"],
            "output.bias": weights["dense.bias"],
        }
    )

    assert_same_answers(ours, theirs, batch)


@torch.no_grad()
def assert_same_answers(ours, theirs, batch):
    items, lengths = batch
    torch.testing.assert_close(ours.encode(items), theirs.forward(items, lengths), atol=1e-5, rtol=1e-4)
    expected = theirs.full_sort_predict({"item_id_list": items, "item_length": lengths})
    scores = ours.scores(items, TokenRange(1, NUM_ITEMS))
    torch.testing.assert_close(scores, expected[:, 1:], atol=1e-5, rtol=1e-4)
    assert scores.std() > 0.01  # not equal for being nothing


def test_metrics_equal_recboles_evaluator(recbole):
    """HR, NDCG and MRR at 10 and 20 over random scores without ties: 2,000 rows, 100 items."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(2_000, 100, generator=generator)
    targets = torch.randint(100, (2_000,), generator=generator)
    top = scores.topk(20, dim=1).indices
    hits = torch.cat([(top == targets[:, None]).int(), torch.ones(2_000, 1, dtype=torch.int32)], dim=1)
    collected = recbole.evaluator.collector.DataStruct()
    collected.set("rec.topk", hits)
    config = {"topk": [10, 20], "metric_decimal_place": 12}
    expected = {}
    for name, metric in (("HR", "Hit"), ("NDCG", "NDCG"), ("MRR", "MRR")):
        found = getattr(recbole.evaluator.metrics, metric)(config).calculate_metric(collected)
        expected |= {f"{name}@{k}": found[f"{metric.lower()}@{k}"] for k in (10, 20)}
    ours = per_row_metrics(pessimistic_ranks(scores, targets)).mean(dim=0).tolist()

    assert dict(zip(METRICS, ours, strict=True)) == pytest.approx(
        {key: float(np.asarray(value)) for key, value in expected.items()}, abs=1e-9
    )
