"""The benchmarks' baseline is the released code: equal to its golden values (tests/golden/README.md), not like them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.released import Networks, decode, next_tokens, training_loss
from models.network.decoder import Decoder, DecoderConfig
from models.network.losses import linear_cross_entropy, next_item_targets
from models.vocabulary import TokenRange

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "reference_tiny.npz")
NETWORKS = ("full", "dom1", "dom2", "dom3")
FLOAT_MARGIN = 1e-4


def golden(name: str) -> Tensor:
    return torch.from_numpy(np.asarray(GOLDEN[name]))


def released_decoder(name: str) -> Decoder:
    """The released weights under our names."""
    renamed = {
        "item_embedding": "item_embedding",
        "position_embedding": "position_embedding",
        "LayerNorm": "input_norm",
        "multi_head_attention.dense": "attention_output",
        "multi_head_attention.LayerNorm": "attention_norm",
        "feed_forward.dense_1": "inner",
        "feed_forward.dense_2": "outer",
        "feed_forward.LayerNorm": "feed_forward_norm",
    }
    state: dict[str, Tensor] = {}
    for kind in ("weight", "bias"):
        for theirs, ours in renamed.items():
            for layer in range(2):
                inside = "." in theirs
                key = f"w/{name}/trm_encoder.layer.{layer}.{theirs}.{kind}" if inside else f"w/{name}/{theirs}.{kind}"
                if key in GOLDEN:
                    state[f"blocks.{layer}.{ours}.{kind}" if inside else f"{ours}.{kind}"] = golden(key)
        for layer in range(2):
            attention = f"w/{name}/trm_encoder.layer.{layer}.multi_head_attention"
            parts = [golden(f"{attention}.{part}.{kind}") for part in ("query", "key", "value")]
            state[f"blocks.{layer}.query_key_value.{kind}"] = torch.cat(parts)
    decoder = Decoder(DecoderConfig(num_items=60, width=16, inner_width=16, max_length=12))
    decoder.load_state_dict(state)
    return decoder.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def networks() -> Networks:
    base, *experts = (released_decoder(name) for name in NETWORKS)
    ranges = [TokenRange(int(first), int(last)) for first, last in GOLDEN["domain_ranges"]]
    return Networks(base, experts, ranges)


@pytest.mark.parametrize("target", [0, 1, 2])
def test_the_loop_writes_the_released_tokens(networks: Networks, target: int) -> None:
    """Every cell of the decoded batch, the + 1 and tokens outside the target domain included."""
    decoded_BL = decode(networks, golden("original_items"), target)

    assert torch.equal(decoded_BL, golden(f"dom{target + 1}/decoded"))


@pytest.mark.parametrize("case", ["a", "b", "c", "d"])
def test_one_scoring_call_writes_the_released_tokens(case: str) -> None:
    logits = [golden(f"fn/{case}/logits_{part}") for part in ("target", "mix", "source")]
    target_range = TokenRange(*(int(bound) for bound in GOLDEN[f"fn/{case}/target_range"]))

    clear_B = golden(f"fn/{case}/is_dom_mask") & (golden(f"fn/{case}/margin") > FLOAT_MARGIN)

    assert clear_B.sum() > 20
    assert torch.equal(next_tokens(*logits, target_range)[clear_B], golden(f"fn/{case}/next_tokens_out")[clear_B])


def test_the_training_step_has_the_released_loss_and_ours(networks: Networks) -> None:
    """The same number from whole rectangles of logits and from our chunks, gradients of the item table included."""
    whole_BL, decoder = golden("original_items"), networks.base
    decoder.requires_grad_(True)
    table_VD = decoder.item_embeddings_VD
    released = training_loss(decoder, whole_BL, longest=12)
    targets_BT = next_item_targets(whole_BL)
    predicts_BT = targets_BT > 0
    ours = linear_cross_entropy(decoder(whole_BL[:, :-1])[predicts_BT], table_VD, targets_BT[predicts_BT])

    torch.testing.assert_close(released, golden("loss/full"), rtol=1e-6, atol=0)
    torch.testing.assert_close(ours, released, rtol=1e-6, atol=0)
    gradients = [torch.autograd.grad(loss, table_VD)[0] for loss in (released, ours)]
    decoder.requires_grad_(False)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-7)
