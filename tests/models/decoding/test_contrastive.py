"""Rule ``paper`` by arithmetic on cases small enough to follow; properties of every rule."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.decoding.blocks import View, log_softmax
from models.decoding.contrastive import ContrastiveRule, decide, decide_in_blocks
from models.decoding.paper import agreement, confidence, paper_scores
from models.decoding.reference import reference_confidence, reference_disagreement, reference_divergence
from models.decoding.rules import RULES, Rule, load_rule
from models.kernels.paper_rule import Decisions
from models.vocabulary import TokenRange


def contrastive(name: Rule) -> ContrastiveRule:
    rule = load_rule(name)
    assert isinstance(rule, ContrastiveRule)
    return rule


CONTRASTIVE_RULES = [name for name in RULES if isinstance(load_rule(name), ContrastiveRule)]


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def decide_logits(
    rule: Rule, target: torch.Tensor, base: torch.Tensor, source: torch.Tensor, target_range: TokenRange
) -> Decisions:
    """Decide on given logits: with the identity as item table, hidden states are logits."""
    identity = torch.eye(target.shape[1])
    views = (View(logits, identity) for logits in (target, base, source))
    target_expert, base_view, source_expert = views
    return decide(
        contrastive(rule),
        target_expert=target_expert,
        base=base_view,
        source_experts=[source_expert],
        target_range=target_range,
    )


def define_logits(
    rule: Rule, target: torch.Tensor, base: torch.Tensor, source: torch.Tensor, target_range: TokenRange
) -> Decisions:
    """``decide_logits`` by the definition, where ``decide`` may take compiled code."""
    identity = torch.eye(target.shape[1])
    target_expert, base_view, source_expert = (View(logits, identity) for logits in (target, base, source))
    return decide_in_blocks(
        contrastive(rule),
        target_expert=target_expert,
        base=base_view,
        source_expert=source_expert,
        target_range=target_range,
    )


def test_confidence_is_one_minus_normalised_entropy() -> None:
    entropy = -(0.5 * log(0.5) + 2 * 0.25 * log(0.25))
    torch.testing.assert_close(confidence(logits_of(0.5, 0.25, 0.25)), torch.tensor([1 - entropy / log(3)]))


def test_confidence_keeps_its_digits_however_large_the_logits_are() -> None:
    """Whole numbers, which a thousand more leaves exact: entropy is a difference of what grows with them."""
    logits = torch.arange(6.0).repeat(2, 1)
    logits[1] += 1000

    torch.testing.assert_close(*confidence(logits), rtol=0, atol=1e-6)


def test_confidence_keeps_its_digits_beside_a_candidate_out_of_the_question() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0, -10_000.0]])

    torch.testing.assert_close(confidence(logits), confidence(logits.double()).float(), rtol=0, atol=1e-6)


def test_confidence_of_uniform_is_zero_and_of_certain_is_one() -> None:
    torch.testing.assert_close(confidence(torch.zeros(1, 7)), torch.tensor([0.0]), rtol=0, atol=1e-6)
    assert confidence(torch.tensor([[200.0, 0.0, 0.0]])).item() == 1
    assert confidence(torch.tensor([[3.0]])).item() == 1


def test_agreement_is_one_minus_jensen_shannon_divergence() -> None:
    p, q = (0.5, 0.5), (0.9, 0.1)
    mean = (0.7, 0.3)
    divergence = sum(0.5 * a * log(a / m) + 0.5 * b * log(b / m) for a, b, m in zip(p, q, mean, strict=True))
    torch.testing.assert_close(agreement(logits_of(*p), logits_of(*q)), torch.tensor([1 - divergence / log(2)]))


def test_agreement_of_equal_is_one_and_of_disjoint_is_zero() -> None:
    torch.testing.assert_close(agreement(logits_of(0.2, 0.8), logits_of(0.2, 0.8)), torch.tensor([1.0]))
    disjoint = agreement(torch.tensor([[500.0, 0.0]]), torch.tensor([[0.0, 500.0]]))
    torch.testing.assert_close(disjoint, torch.tensor([0.0]), rtol=0, atol=1e-6)


def test_paper_score_by_arithmetic() -> None:
    """(1 + 1/2) * 4 + 1/4 * (3 - 1) = 6.5."""
    one = torch.ones(1, 1)
    assert paper_scores(4 * one, 3 * one, one, torch.tensor([0.5]), torch.tensor([0.25])).item() == 6.5


@pytest.mark.parametrize("decided", [decide_logits, define_logits])
def test_global_argmax_outside_the_target_deletes(decided: Callable[..., Decisions]) -> None:
    """All decoders favour token 3 of another domain: nothing of domain 1..2 may stand in."""
    favour = torch.tensor([[0.0, 1.0, 2.0, 9.0]])
    decisions = decided("paper", favour, favour, favour, TokenRange(1, 2))
    assert decisions.token_ids_N.tolist() == [0]


@pytest.mark.parametrize("decided", [decide_logits, define_logits])
def test_global_argmax_inside_the_target_is_replaced_by_the_local_argmax(decided: Callable[..., Decisions]) -> None:
    """
    The global step only gates; alpha and beta of the local step choose.

    Globally base and source expert are nearly disjoint on the foreign tokens 3 to 5, so beta is about 0 and the target
    expert's favourite 1 wins. Locally the two nearly agree, beta is about 1 and the contrast lifts token 2.
    """
    target = torch.tensor([[0.0, 2.0, 1.8, -5.0, -5.0, -5.0]])
    base = torch.tensor([[0.0, 0.0, 0.6, 9.0, -9.0, -9.0]])
    source = torch.tensor([[0.0, 0.0, 0.0, -9.0, 9.0, 9.0]])
    everywhere = [part[:, 1:] for part in (target, base, source)]
    local = [part[:, 1:3] for part in (target, base, source)]
    global_scores = paper_scores(*everywhere, confidence(everywhere[0]), agreement(*everywhere[1:]))[0]
    alpha, beta = confidence(local[0]), agreement(*local[1:])
    local_scores = paper_scores(*local, alpha, beta)[0]

    decisions = decided("paper", target, base, source, TokenRange(1, 2))

    assert global_scores.argmax().item() + 1 == 1
    assert decisions.token_ids_N.item() == local_scores.argmax().item() + 1 == 2
    torch.testing.assert_close(decisions.alpha_N, alpha)
    torch.testing.assert_close(decisions.beta_N, beta)
    torch.testing.assert_close(decisions.score_N, local_scores.max()[None])
    torch.testing.assert_close(decisions.margin_N, (local_scores.max() - local_scores.min())[None])


# Rows: the contrast turns the choice (above), the global argmax is the target's token 2, the global argmax is foreign.
ABLATED = (
    torch.tensor([[0.0, 2.0, 1.8, -5.0], [0.0, 1.0, 4.0, 2.0], [0.0, 1.0, 3.0, 9.0]]),
    torch.tensor([[0.0, 0.0, 1.0, 9.0], [0.0] * 4, [0.0] * 4]),
    torch.tensor([[0.0, 0.0, 0.0, -9.0], [0.0] * 4, [0.0] * 4]),
)


def test_without_sde_the_target_expert_decides_alone_and_the_gate_stays() -> None:
    """score = l_T: 2.0 beats 1.8, 4 beats 1 among the target's, and foreign 9 beats 3 over all, so deletes."""
    decisions = decide_logits("without-sde", *ABLATED, TokenRange(1, 2))

    assert decisions.token_ids_N.tolist() == [1, 2, 0]
    torch.testing.assert_close(decisions.score_N, torch.tensor([2.0, 4.0, 9.0]))
    torch.testing.assert_close(decisions.margin_N, torch.tensor([2.0 - 1.8, 4.0 - 1.0, 9.0 - 3.0]))
    assert decisions.alpha_N.tolist() == decisions.beta_N.tolist() == [0, 0, 0]


def test_without_gcs_every_item_becomes_the_local_argmax() -> None:
    """
    Also where a foreign item leads, as in row 2, which rule ``paper`` deletes.

    Local, row 0: p_M = softmax(0, 1), p_S uniform. Row 2: equal logits, so no contrast: (1 + alpha) (3 - 1) ahead.
    """
    decisions = decide_logits("without-gcs", *ABLATED, TokenRange(1, 2))
    alpha = confidence(torch.tensor([[2.0, 1.8], [1.0, 4.0], [1.0, 3.0]]))
    beta = agreement(torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2)).item()

    assert decisions.token_ids_N.tolist() == [2, 2, 2]
    torch.testing.assert_close(decisions.alpha_N, alpha)
    torch.testing.assert_close(decisions.beta_N, torch.tensor([beta, 1.0, 1.0]))
    leads = torch.tensor([(1 + alpha[0].item()) * (1.8 - 2.0) + beta, 0.0, 0.0])
    leads[1:] = (1 + alpha[1:]) * torch.tensor([4.0 - 1.0, 3.0 - 1.0])
    torch.testing.assert_close(decisions.margin_N, leads)
    assert decide_logits("paper", *ABLATED, TokenRange(1, 2)).token_ids_N.tolist() == [2, 2, 0]


def test_without_lcs_the_global_argmax_itself_replaces() -> None:
    """
    The case above in which the local step turns the choice from token 1 to 2; and a foreign argmax still deletes.
    """
    target = torch.tensor([[0.0, 2.0, 1.8, -5.0, -5.0, -5.0], [0.0, 1.0, 2.0, 9.0, 0.0, 0.0]])
    base = torch.tensor([[0.0, 0.0, 0.6, 9.0, -9.0, -9.0], [0.0] * 6])
    source = torch.tensor([[0.0, 0.0, 0.0, -9.0, 9.0, 9.0], [0.0] * 6])
    decisions = decide_logits("without-lcs", target, base, source, TokenRange(1, 2))
    alpha, beta = confidence(target[:, 1:]), agreement(base[:, 1:], source[:, 1:])
    scores = paper_scores(target[:, 1:], base[:, 1:], source[:, 1:], alpha, beta)

    assert decisions.token_ids_N.tolist() == [1, 0]
    assert decide_logits("paper", target, base, source, TokenRange(1, 2)).token_ids_N.tolist() == [2, 0]
    torch.testing.assert_close(decisions.alpha_N, alpha)
    torch.testing.assert_close(decisions.beta_N, beta)
    torch.testing.assert_close(decisions.score_N, scores.amax(dim=1))


@pytest.mark.parametrize("rule", [rule for rule in CONTRASTIVE_RULES if not rule.startswith("reference")])
def test_padding_is_never_a_candidate_of_rule_paper_and_its_ablations(rule: Rule) -> None:
    favour_padding = torch.tensor([[99.0, 2.0, 1.0, 0.0]])
    decisions = decide_logits(rule, favour_padding, favour_padding, favour_padding, TokenRange(1, 2))
    assert decisions.token_ids_N.tolist() == [1]


def test_a_domain_of_one_item_has_infinite_margin() -> None:
    favour = torch.tensor([[0.0, 5.0, 1.0]])
    decisions = decide_logits("paper", favour, favour, favour, TokenRange(1, 1))
    assert decisions.token_ids_N.tolist() == [1]
    assert decisions.margin_N.tolist() == [inf]


def test_reference_writes_the_item_after_the_winner_and_corrected_the_winner() -> None:
    favour = torch.tensor([[0.0, 1.0, 8.0, 2.0, 0.0, 0.0]])
    no_source = torch.zeros(1, 6)
    target_range = TokenRange(1, 3)
    assert decide_logits("reference", favour, favour, no_source, target_range).token_ids_N.tolist() == [3]
    assert decide_logits("reference-corrected", favour, favour, no_source, target_range).token_ids_N.tolist() == [2]


def test_reference_deletes_when_the_item_after_the_winner_is_foreign() -> None:
    favour = torch.tensor([[0.0, 1.0, 2.0, 8.0, 0.0, 0.0]])
    decisions = decide_logits("reference", favour, favour, torch.zeros(1, 6), TokenRange(1, 3))
    assert decisions.token_ids_N.tolist() == [0]


def test_reference_weights_by_arithmetic() -> None:
    """p = (1/2, 1/4, 1/4): h = (.3466, .3466, .3466), so every alpha is 1; equal logits have beta 0."""
    logits = logits_of(0.5, 0.25, 0.25)
    torch.testing.assert_close(reference_confidence(logits), torch.ones(1, 3))
    # float32 noise over the guard 1e-10 must not be compared; a clear difference has a largest beta of 1
    assert reference_disagreement(logits, logits_of(0.1, 0.1, 0.8)).amax().item() == pytest.approx(1)


def test_reference_disagreement_of_distributions_closer_than_its_guard_is_near_zero() -> None:
    """Largest terms of some 1e-12 over 1e-10."""
    logits = logits_of(0.5, 0.25, 0.25).double()
    nearly = logits + 1e-6 * torch.tensor([[1.0, 0.0, -1.0]])
    terms = reference_divergence(logits, nearly)
    betas = reference_disagreement(logits, nearly)

    assert 0 < terms.amax() < 1e-11
    torch.testing.assert_close(betas, terms / (terms.amax() + 1e-10))


@pytest.mark.parametrize("rule", CONTRASTIVE_RULES)
def test_no_positions_give_no_decisions(rule: Rule) -> None:
    nothing, table = torch.zeros(0, 4), torch.zeros(4, 4)
    decisions = decide(
        contrastive(rule),
        target_expert=View(nothing, table),
        base=View(nothing, table),
        source_experts=[View(nothing, table)],
        target_range=TokenRange(1, 2),
    )
    assert len(decisions.token_ids_N) == 0


def test_what_no_compiled_code_reads_is_decided_by_the_definition() -> None:
    """Numbers of double precision, for one."""
    generator = torch.Generator().manual_seed(2)
    hidden, table = (torch.randn(rows, 8, generator=generator, dtype=torch.float64) for rows in (40, 31))
    views = [View(hidden + shift, table) for shift in range(3)]
    decisions = decide(
        contrastive("paper"),
        target_expert=views[0],
        base=views[1],
        source_experts=views[2:],
        target_range=TokenRange(11, 20),
    )

    assert decisions.score_N.dtype == torch.float64
    assert len(set(decisions.token_ids_N.tolist())) > 1


@pytest.mark.parametrize("rule", CONTRASTIVE_RULES)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1_000), num_positions=st.integers(1, 70), block_elements=st.sampled_from([1, 1_000, 1 << 21])
)
def test_decisions_depend_neither_on_neighbours_nor_on_blocks(
    rule: Rule, seed: int, num_positions: int, block_elements: int
) -> None:
    """Bit for bit: a position decided alone, among others, or in blocks of another size."""
    generator = torch.Generator().manual_seed(seed)
    views = [
        View(torch.randn(num_positions, 8, generator=generator), torch.randn(31, 8, generator=generator))
        for _ in range(3)
    ]

    def decisions(rows: slice, block: int) -> Decisions:
        target, base, source = (View(view.hidden_ND[rows], view.table_VD) for view in views)
        return decide_in_blocks(
            contrastive(rule),
            target_expert=target,
            base=base,
            source_expert=source,
            target_range=TokenRange(11, 20),
            block_elements=block,
        )

    together = decisions(slice(None), block_elements)
    chosen = seed % num_positions
    alone = decisions(slice(chosen, chosen + 1), 1 << 21)
    for name in ("token_ids_N", "alpha_N", "beta_N", "score_N", "margin_N"):
        assert torch.equal(getattr(together, name)[chosen], getattr(alone, name)[0])
    tokens = set(together.token_ids_N.tolist())
    assert tokens <= {0, *range(11, 21)}
    assert (together.margin_N >= 0).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: a CPU sums every row alike")
def test_a_gpu_sums_every_row_alike_wherever_it_begins() -> None:
    """Rows of such lengths begin at 0, 4, 8 or 12 bytes after a multiple of 16."""
    for num_items in (1_023, 8_001, 8_002, 8_003, 8_004):
        row_X = torch.randn(num_items, generator=torch.Generator().manual_seed(1)).cuda()
        of_block_CX = log_softmax(row_X.repeat(9, 1))

        assert torch.equal(of_block_CX, of_block_CX[:1].expand(9, -1))
        torch.testing.assert_close(of_block_CX[0], torch.log_softmax(row_X, dim=0))
