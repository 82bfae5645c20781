"""
Parity with the released code on its own values (tests/golden/README.md).

Tolerances: hidden states, logits and weights are float32 sums in another order, so a few units of 1e-6 relative to
values of order 10. Tokens are compared exactly wherever the released code's lead over the runner-up exceeds what
rounding can turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from models.bundle import Bundle
from models.composite.mixed_log import MixedLog
from models.composite.regenerated_rows import composite_rows, regenerated_user
from models.data.dataset import Sequences, pad_right
from models.decoding.blocks import View
from models.decoding.contrastive import decide
from models.decoding.reference import (
    REFERENCE,
    reference_confidence,
    reference_disagreement,
    reference_divergence,
    reference_scores,
)
from models.decoding.regenerator import Regenerator
from models.decoding.rules import Rule
from models.exports.as_inter import SEQUENCES_HEADER, inter_lines
from models.network.decoder import Decoder, DecoderConfig
from models.network.losses import domain_specific_targets, linear_cross_entropy, next_item_targets
from models.vocabulary import TokenRange, Vocabulary

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "reference_tiny.npz")
NETWORKS = ("full", "dom1", "dom2", "dom3")
DOMAINS = ("dom1", "dom2", "dom3")
CASES = ("a", "b", "c", "d", "e_underflow")
# The released code's leads below this may turn with the order of summation.
FLOAT_MARGIN = 1e-4


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(np.asarray(GOLDEN[name]))


def token_range(domain: str) -> TokenRange:
    first, last = GOLDEN["domain_ranges"][DOMAINS.index(domain)]
    return TokenRange(int(first), int(last))


def released_decoder(name: str) -> Decoder:
    """The released code's weights under our names; its query, key and value matrices are one of ours."""
    state = {
        "item_embedding.weight": golden(f"w/{name}/item_embedding.weight"),
        "position_embedding.weight": golden(f"w/{name}/position_embedding.weight"),
        "input_norm.weight": golden(f"w/{name}/LayerNorm.weight"),
        "input_norm.bias": golden(f"w/{name}/LayerNorm.bias"),
    }
    for layer in range(2):
        theirs, ours = f"w/{name}/trm_encoder.layer.{layer}", f"blocks.{layer}"
        attention, feed_forward = f"{theirs}.multi_head_attention", f"{theirs}.feed_forward"
        for kind in ("weight", "bias"):
            parts = [golden(f"{attention}.{part}.{kind}") for part in ("query", "key", "value")]
            state[f"{ours}.query_key_value.{kind}"] = torch.cat(parts)
            state[f"{ours}.attention_output.{kind}"] = golden(f"{attention}.dense.{kind}")
            state[f"{ours}.attention_norm.{kind}"] = golden(f"{attention}.LayerNorm.{kind}")
            state[f"{ours}.inner.{kind}"] = golden(f"{feed_forward}.dense_1.{kind}")
            state[f"{ours}.outer.{kind}"] = golden(f"{feed_forward}.dense_2.{kind}")
            state[f"{ours}.feed_forward_norm.{kind}"] = golden(f"{feed_forward}.LayerNorm.{kind}")
    decoder = Decoder(DecoderConfig(num_items=60, width=16, inner_width=16, max_length=12))
    decoder.load_state_dict(state)
    return decoder.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def released_bundle() -> Bundle:
    items = tuple(tuple(str(t) for t in range(token_range(d).first, token_range(d).last + 1)) for d in DOMAINS)
    base, *experts = (released_decoder(name) for name in NETWORKS)
    return Bundle(Path(), "released", Vocabulary(DOMAINS, items), base.config, {}, base, tuple(experts))


def whole_sequences() -> list[npt.NDArray[np.int32]]:
    lengths = GOLDEN["dom1/seq_len"]
    return [row[:n].astype(np.int32) for row, n in zip(GOLDEN["original_items"], lengths, strict=True)]


@pytest.mark.parametrize("name", NETWORKS)
def test_hidden_states_and_logits_equal_the_released_networks(name: str) -> None:
    decoder, item_ids_BT = released_decoder(name), golden("item_id_list")
    valid_BT = item_ids_BT > 0

    hidden_BTD = decoder(item_ids_BT)
    logits_BTV = hidden_BTD @ decoder.item_embeddings_VD.T

    torch.testing.assert_close(hidden_BTD[valid_BT], golden(f"hidden/{name}")[valid_BT], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits_BTV[valid_BT], golden(f"logits/{name}")[valid_BT], rtol=1e-5, atol=1e-5)


def test_base_loss_equals_the_released_one() -> None:
    """The released softmax holds the padding column, so here the candidates start at 0; training's start at 1."""
    decoder, whole_BT = released_decoder("full"), pad_right(whole_sequences())
    targets_BT = next_item_targets(whole_BT)
    is_target_BT = targets_BT > 0

    loss = linear_cross_entropy(
        decoder(whole_BT[:, :-1])[is_target_BT], decoder.item_embeddings_VD, targets_BT[is_target_BT]
    )

    torch.testing.assert_close(loss, golden("loss/full"), rtol=1e-6, atol=0)


@pytest.mark.parametrize("domain", DOMAINS)
def test_domain_specific_loss_equals_the_released_one(domain: str) -> None:
    decoder, whole_BT, candidates = released_decoder(domain), pad_right(whole_sequences()), token_range(domain)
    targets_BT = domain_specific_targets(whole_BT, candidates)
    is_target_BT = targets_BT > 0
    table_XD = decoder.item_embeddings_VD[candidates.columns]

    loss = linear_cross_entropy(
        decoder(whole_BT[:, :-1])[is_target_BT], table_XD, targets_BT[is_target_BT] - candidates.first
    )

    torch.testing.assert_close(loss, golden(f"loss/{domain}"), rtol=1e-6, atol=0)


@pytest.mark.parametrize("case", CASES[:-1])
def test_weights_and_scores_equal_the_released_ones(case: str) -> None:
    """
    Divergences are differences of nearly equal logarithms, and beta divides them by their largest: the error of
    float32, 1e-6 of a divergence, grows by that quotient, in ours as in theirs.
    """
    target_CV, base_CV, source_CV = (golden(f"fn/{case}/logits_{part}") for part in ("target", "mix", "source"))
    first, last = (int(bound) for bound in GOLDEN[f"fn/{case}/target_range"])
    for step, columns in (("global", slice(None)), ("local", slice(first, last + 1))):
        target_CX, base_CX, source_CX = target_CV[:, columns], base_CV[:, columns], source_CV[:, columns]
        alpha_CX, beta_CX = reference_confidence(target_CX), reference_disagreement(base_CX, source_CX)
        scores_CX = reference_scores(target_CX, source_CX, alpha_CX, beta_CX)
        largest_C1 = reference_divergence(base_CX, source_CX).amax(dim=1, keepdim=True)
        beta_error_CX = (2e-6 / largest_C1 + 1e-5).expand_as(beta_CX)
        score_error_CX = beta_error_CX * source_CX.abs() + 1e-4
        # The released code leaves NaN where it took no local step.
        taken_C = golden(f"fn/{case}/convertible") if step == "local" else torch.ones(len(target_CX), dtype=torch.bool)

        assert taken_C.sum() > 10
        expected = {name: golden(f"fn/{case}/{name}")[taken_C] for name in (f"alpha_{step}", f"beta_{step}")}
        torch.testing.assert_close(alpha_CX[taken_C], expected[f"alpha_{step}"], rtol=1e-5, atol=1e-6)
        assert ((beta_CX[taken_C] - expected[f"beta_{step}"]).abs() <= beta_error_CX[taken_C]).all()
        differences = (scores_CX - golden(f"fn/{case}/{step}_scores")).abs()[taken_C]
        assert (differences <= score_error_CX[taken_C]).all()


@pytest.mark.parametrize("case", CASES)
def test_decided_tokens_equal_the_released_ones(case: str) -> None:
    """Every row is decided, source item or not; the identity as item table makes hidden states the logits."""
    identity_VV = torch.eye(61)
    target, base, source = (
        View(golden(f"fn/{case}/logits_{part}"), identity_VV) for part in ("target", "mix", "source")
    )
    candidates = TokenRange(*(int(bound) for bound in GOLDEN[f"fn/{case}/target_range"]))

    decisions = decide(REFERENCE, target_expert=target, base=base, source_experts=[source], target_range=candidates)

    for field in (decisions.alpha_N, decisions.beta_N, decisions.score_N, decisions.margin_N):
        assert torch.isfinite(field).all()
    if case == "e_underflow":  # NaN in the released code: nothing to compare with
        assert np.isnan(GOLDEN[f"fn/{case}/beta_global"]).any()
        return
    theirs_N, is_source_N = golden(f"fn/{case}/next_tokens_out"), golden(f"fn/{case}/is_dom_mask")
    in_target_N = candidates.mask(theirs_N)
    clear_N = is_source_N & (golden(f"fn/{case}/margin") > FLOAT_MARGIN)
    assert clear_N.sum() > 20
    assert torch.equal(decisions.token_ids_N[clear_N], torch.where(in_target_N, theirs_N, 0)[clear_N])


def intermediate_steps(domain: str) -> Iterator[tuple[str, str]]:
    for key in GOLDEN:
        parts = key.split("/")
        if parts[0] == domain and len(parts) == 4 and parts[3] == "margin":
            yield parts[1], parts[2]


@pytest.mark.parametrize("target", DOMAINS)
def test_every_clear_step_of_the_released_decoding_is_ours_too(released_bundle: Bundle, target: str) -> None:
    """Position by position: token, deletion and margin, with the +1 of rule ``reference``."""
    candidates = token_range(target)
    results = Regenerator(released_bundle, "reference").regenerate(whole_sequences(), target)
    compared = 0
    for name, source in intermediate_steps(target):
        position = int(name[1:]) + 1
        for user, result in enumerate(results):
            here = np.flatnonzero(result.steps.positions == position)
            if not GOLDEN[f"{target}/{name}/{source}/is_src"][user] or position >= GOLDEN[f"{target}/seq_len"][user]:
                continue
            margin = GOLDEN[f"{target}/{name}/{source}/margin"][user]
            written = int(GOLDEN[f"{target}/{name}/{source}/final_argmax"][user]) + 1
            assert margin > FLOAT_MARGIN
            assert int(result.steps.replacements[here[0]]) == (written if written in candidates else 0)
            assert result.steps.margin[here[0]] == pytest.approx(margin, abs=2e-3)
            compared += 1
    assert compared == sum(np.count_nonzero(result.steps.positions > 0) for result in results) > 0


@pytest.mark.parametrize("target", DOMAINS)
def test_decoded_sequences_equal_the_released_ones(released_bundle: Bundle, target: str) -> None:
    candidates = token_range(target)
    results = Regenerator(released_bundle, "reference").regenerate(whole_sequences(), target)
    for row, length, result in zip(GOLDEN[f"{target}/decoded"], GOLDEN[f"{target}/seq_len"], results, strict=True):
        kept = [int(t) for t in row[:length] if t in candidates]
        collapsed = [token for index, token in enumerate(kept) if index == 0 or token != kept[index - 1]]
        assert result.token_ids.tolist() == collapsed


@pytest.mark.parametrize("target", DOMAINS)
def test_training_file_text_equals_the_released_one(released_bundle: Bundle, target: str) -> None:
    """
    The released file before regeneration holds our original rows, the one after all our rows.

    It orders a user's rows as the text of a list, ours puts the original first; everything else is equal.
    """
    sequences = whole_sequences()
    regenerator = Regenerator(released_bundle, "reference")
    log = MixedLog(
        tuple(map(str, range(len(sequences)))),
        Sequences.from_lists(sequences),
        times_N=None,
        skipped_U=np.zeros(len(sequences), dtype=np.int64),
        vocabulary=released_bundle.vocabulary,
        target=target,
        newer_items=(),
    )
    results = regenerator.regenerate(sequences, target)
    users = [regenerated_user(log, user, regenerator.max_items, result) for user, result in enumerate(results)]
    rows = composite_rows(log, users)

    def text(chosen: list[tuple[int, list[int]]]) -> str:
        ordered = sorted(chosen, key=lambda row: (row[0], str(row[1])))
        lines = inter_lines([str(user + 1) for user, _ in ordered], [[str(t) for t in tokens] for _, tokens in ordered])
        return SEQUENCES_HEADER + "".join(lines)

    assert (
        text([(r.user, r.token_ids.tolist()) for r in rows if r.origin == "original"]) == GOLDEN[f"{target}/file_orig"]
    )
    assert text([(r.user, r.token_ids.tolist()) for r in rows]) == GOLDEN[f"{target}/file_new"]


@pytest.mark.parametrize("rule", ["paper", "reference-corrected"])
def test_other_rules_decide_otherwise_on_the_released_networks(released_bundle: Bundle, rule: Rule) -> None:
    """The parity above is the rule's: the same networks under another rule give other sequences."""
    reference = Regenerator(released_bundle, "reference").regenerate(whole_sequences(), "dom1")
    other = Regenerator(released_bundle, rule).regenerate(whole_sequences(), "dom1")
    assert [r.token_ids.tolist() for r in other] != [r.token_ids.tolist() for r in reference]
