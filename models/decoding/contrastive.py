"""
Contrastive rules: three decoders read the history before a source item, and together they replace or delete it.

The three are the target expert theta_T, the base theta_M and the expert theta_S of the source item's own domain. For
a source item with history s[:t] a rule weighs their logits l_T, l_M, l_S over the items against one another. How it
does so is the rule's own: see ``paper`` and ``reference``.

Everything but ``ContrastiveRule.choose`` is a pure function of hidden states and item tables. Among equal scores the
lowest token wins.

Shapes: N = positions, C = positions of one block, D = width, V = num_items + 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from models.bundle import Bundle
from models.decoding.blocks import View, block_logits, block_rows
from models.decoding.window import Choices, StateReader, Window, read_decoder
from models.kernels.paper_rule import Decisions, SourceGroup
from models.network.decoder import DecoderConfig
from models.network.expert_parts import ExpertPart
from models.vocabulary import TokenRange


def _compiled_nowhere(tensors: Sequence[Tensor]) -> None:
    """Nothing decides but the definition."""


@dataclass(frozen=True)
class ContrastiveRule:
    """
    One way to weigh three decoders; a ``DecodingRule``.

    Args:
        decide_block: decides the positions of one block from the logits [C, V] of target expert, base and source
            expert, and the target's token range.
        find_compiled: what decides the same in compiled code where these tensors are, if anything does.
    """

    decide_block: Callable[[Tensor, Tensor, Tensor, TokenRange], Decisions]
    find_compiled: Callable[[Sequence[Tensor]], Callable[..., Decisions] | None] = _compiled_nowhere

    def max_items(self, config: DecoderConfig) -> int:
        """One more than decoders have positions: the last item is decided, but read by nothing."""
        return config.max_length + 1

    def prepare(self, bundle: Bundle) -> None:
        """Compile what the rule can use, if it is not yet: seconds that the first decision would wait."""
        table_VD = bundle.base.item_embeddings_VD
        view = View(table_VD[:1], table_VD[:2])
        decide(self, target_expert=view, base=view, source_experts=[view], target_range=TokenRange(1, 1))

    def choose(self, window: Window, bundle: Bundle, target: str, *, training_rows: bool) -> Choices:  # noqa: ARG002
        """
        Decide every source item but those at position 0, which have no history and are deleted.

        *training_rows* changes nothing: these rules are the paper's.
        """
        domain_N = bundle.vocabulary.domain_of_tokens(window.tokens_N)
        scored = np.flatnonzero(window.positions_N > 0)
        # One source domain after the other, so that all are decided in one call.
        scored = scored[np.argsort(domain_N[scored], kind="stable")]
        # As the method has it: of the target expert the adapted decoder, without a joint one
        base, adapted = bundle.base, ExpertPart(bundle.expert(target), bundle.tuning(target).own_shares)
        # The item at a position does not read itself: the last one is no history of any.
        reader = StateReader([history[:-1] for history in window.histories], window.sequences_N, window.positions_N - 1)
        decisions = decide(
            self,
            target_expert=View(
                read_decoder(adapted, window.target_range, reader, scored), adapted.decoder.item_embeddings_VD
            ),
            base=View(reader.hidden_states(base, scored), base.item_embeddings_VD),
            source_experts=[
                View(reader.hidden_states(expert, scored[domain_N[scored] == index]), expert.item_embeddings_VD)
                for index, expert in enumerate(bundle.experts)
                if (domain_N[scored] == index).any()
            ],
            target_range=window.target_range,
        )
        choices = Choices.all_deleted(len(window.tokens_N))
        choices.replacements_N[scored] = decisions.token_ids_N.cpu().numpy()
        choices.weights_4N[:, scored] = torch.stack(decisions[1:]).cpu().numpy()
        return choices


def decide(
    rule: ContrastiveRule, *, target_expert: View, base: View, source_experts: Sequence[View], target_range: TokenRange
) -> Decisions:
    """
    Decide N source items for one target domain.

    A rule that has compiled code (``kernels/``, for CPU and GPU) runs in it where it can, everything else in
    ``decide_in_blocks``. The two agree up to float32 rounding: a token may differ where its margin, or
    the lead of the global step that replaced or deleted the item, is below that.

    Args:
        rule: how the three decoders are weighed.
        target_expert: theta_T, hidden states after s[:t], those of one source domain after those of another.
        base: theta_M, likewise.
        source_experts: theta_S, one view per source domain, each with the hidden states of its own items.
        target_range: the target domain's tokens.

    Returns:
        One decision per position, in the order given. A position's decision does not depend on the others.
    """
    stops = list(accumulate(len(view.hidden_ND) for view in source_experts))
    assert len(target_expert.hidden_ND) == len(base.hidden_ND) == (stops[-1] if stops else 0)
    views = (target_expert, base, *source_experts)
    compiled = rule.find_compiled([tensor for view in views for tensor in view]) if stops and stops[-1] else None
    if compiled:
        return compiled(
            [target_expert.hidden_ND, base.hidden_ND, torch.cat([view.hidden_ND for view in source_experts])],
            [target_expert.table_VD, base.table_VD],
            [SourceGroup(view.table_VD, len(view.hidden_ND)) for view in source_experts],
            target_range,
        )
    groups = [
        decide_in_blocks(
            rule,
            target_expert=View(target_expert.hidden_ND[start:stop], target_expert.table_VD),
            base=View(base.hidden_ND[start:stop], base.table_VD),
            source_expert=source_expert,
            target_range=target_range,
        )
        for source_expert, start, stop in zip(source_experts, [0, *stops], stops, strict=False)
    ]
    if not groups:
        return _no_decisions(base)
    return Decisions(*(torch.cat(parts) for parts in zip(*groups, strict=True)))


def decide_in_blocks(
    rule: ContrastiveRule,
    *,
    target_expert: View,
    base: View,
    source_expert: View,
    target_range: TokenRange,
    block_elements: int | None = None,
) -> Decisions:
    """
    ``decide`` for items of one source domain, in plain torch on any device, block by block: the definition.

    Args:
        rule: how the three decoders are weighed.
        target_expert: theta_T, hidden states after s[:t].
        base: theta_M, likewise.
        source_expert: theta_S, the expert of the items' own domain, likewise.
        target_range: the target domain's tokens.
        block_elements: most logits of one decoder held at once (at least 16 positions are taken); by default
            BLOCK_ELEMENTS, on a GPU GPU_BLOCK_ELEMENTS.

    Returns:
        One decision per position, on a CPU the same to the bit whatever *block_elements*.
    """
    N = len(base.hidden_ND)
    rows = block_rows(base.table_VD, block_elements)
    blocks = [
        rule.decide_block(
            block_logits(target_expert, start, rows),
            block_logits(base, start, rows),
            block_logits(source_expert, start, rows),
            target_range,
        )
        for start in range(0, N, rows)
    ]
    if not blocks:
        return _no_decisions(base)
    return Decisions(*(torch.cat(parts)[:N] for parts in zip(*blocks, strict=True)))


def _no_decisions(view: View) -> Decisions:
    empty = view.hidden_ND.new_zeros(0)
    return Decisions(empty.long(), empty, empty, empty, empty)
