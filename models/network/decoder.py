"""
The network: a causal Transformer decoder over item tokens (the base theta_M and every expert theta_d).

The architecture is the released code's: item and learned position embeddings, LayerNorm, dropout, post-LN blocks with
an exact GELU, and an output tied to the item table. Position 0 is the oldest item.

Shapes: B = sequences, T = positions, D = width, H = heads, V = num_items + 1 (row 0 is padding).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.network.dropout import Dropout, dropout
from models.vocabulary import PADDING

# Far beyond any network that fits a machine; a configuration over them is a broken or hostile file, and building what
# it says would take all time or memory before anything else is found wrong.
MOST_ITEMS = 1 << 31
MOST_LAYERS = 1 << 10
LARGEST_SIZE = 1 << 20


@dataclass(frozen=True)
class DecoderConfig:
    """
    Size and regularisation of a decoder; the defaults are the released code's.

    Args:
        num_items: items over all domains, padding not counted.
        width: D, size of embeddings and hidden states.
        inner_width: size of the feed-forward layer.
        num_layers: blocks.
        num_heads: attention heads; must divide width.
        max_length: most positions of one sequence (the paper keeps the last 128 interactions).
        dropout: probability on embeddings and on each sublayer's output, in [0, 1).
        attention_dropout: probability on attention weights, in [0, 1).
        layer_norm_epsilon: added to the variance.
        init_std: standard deviation of the normal that fills matrices and tables.

    Raises:
        ValueError: a value is out of its range, or the heads do not divide the width.
    """

    num_items: int
    width: int = 128
    inner_width: int = 128
    num_layers: int = 2
    num_heads: int = 2
    max_length: int = 128
    dropout: float = 0.2
    attention_dropout: float = 0.2
    layer_norm_epsilon: float = 1e-12
    init_std: float = 0.02

    def __post_init__(self) -> None:
        sizes = (self.num_items, self.width, self.inner_width, self.num_layers, self.num_heads, self.max_length)
        # JSON's true is an int to Python, and none to torch
        if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes):
            raise ValueError("every size must be a whole number above 0")
        if self.num_items > MOST_ITEMS or self.num_layers > MOST_LAYERS or max(sizes[1:]) > LARGEST_SIZE:
            raise ValueError(f"more than {MOST_ITEMS} items, {MOST_LAYERS} layers, or a size over {LARGEST_SIZE}")
        for probability in (self.dropout, self.attention_dropout):
            if not (isinstance(probability, float | int) and 0 <= probability < 1):
                raise ValueError(f"a dropout of {probability!r} is not in [0, 1)")
        for positive in (self.layer_norm_epsilon, self.init_std):
            if not (isinstance(positive, float | int) and 0 < positive < math.inf):
                raise ValueError(f"{positive!r} is not a number above 0")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")


def causal_attention(query_key_value_BT3D: Tensor, num_heads: int, dropped: float) -> Tensor:
    """
    Multi-head attention [B, T, D] of every position to those up to it, before the output projection.

    Args:
        query_key_value_BT3D: queries, keys and values side by side, each of D.
        num_heads: divides D.
        dropped: probability of dropping an attention weight, 0 outside training.
    """
    B, T, D3 = query_key_value_BT3D.shape
    heads_3BHTd = query_key_value_BT3D.view(B, T, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
    query_BHTd, key_BHTd, value_BHTd = heads_3BHTd.unbind(0)
    if dropped and heads_3BHTd.device.type == "cpu":
        # What the call below does there, but for its masks, which are slow to draw.
        scores_BHTT = query_BHTd @ key_BHTd.transpose(2, 3) * (D3 // 3 // num_heads) ** -0.5
        later_TT = torch.ones(T, T, dtype=torch.bool).triu_(1)
        weights_BHTT = torch.softmax(scores_BHTT.masked_fill(later_TT, -math.inf), dim=-1)
        attended_BHTd = dropout(weights_BHTT, dropped) @ value_BHTd
    else:
        attended_BHTd = F.scaled_dot_product_attention(
            query_BHTd, key_BHTd, value_BHTd, is_causal=True, dropout_p=dropped
        )
    return attended_BHTd.transpose(1, 2).reshape(B, T, D3 // 3)


# What mixes positions: (queries, keys and values side by side, heads, dropout) -> attended values.
Attention = Callable[[Tensor, int, float], Tensor]


class DecoderBlock(nn.Module):
    """One post-LN block: causal self-attention, then a two-layer feed-forward, each with residual and LayerNorm."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.attention_dropout = config.attention_dropout
        self.query_key_value = nn.Linear(config.width, 3 * config.width)
        self.attention_output = nn.Linear(config.width, config.width)
        self.attention_norm = nn.LayerNorm(config.width, eps=config.layer_norm_epsilon)
        self.inner = nn.Linear(config.width, config.inner_width)
        self.outer = nn.Linear(config.inner_width, config.width)
        self.feed_forward_norm = nn.LayerNorm(config.width, eps=config.layer_norm_epsilon)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden_BTD: Tensor, attention: Attention = causal_attention) -> Tensor:
        """[B, T, D] -> [B, T, D]; position t reads positions <= t. Another *attention* may take another layout."""
        dropped = self.attention_dropout if self.training else 0.0
        attended_BTD = attention(self.query_key_value(hidden_BTD), self.num_heads, dropped)
        attended_BTD = self.attention_output(attended_BTD)
        hidden_BTD = self.attention_norm(hidden_BTD + self.dropout(attended_BTD))
        transformed_BTD = self.outer(F.gelu(self.inner(hidden_BTD)))
        normed_BTD: Tensor = self.feed_forward_norm(hidden_BTD + self.dropout(transformed_BTD))
        return normed_BTD


class Decoder(nn.Module):
    """
    Token ids to hidden states; logits over items are ``hidden @ item_embeddings_VD.T``.

    Sequences are padded on the right, so the causal mask alone keeps padding out of every valid position.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.item_embedding = nn.Embedding(config.num_items + 1, config.width, padding_idx=PADDING)
        self.position_embedding = nn.Embedding(config.max_length, config.width)
        self.input_norm = nn.LayerNorm(config.width, eps=config.layer_norm_epsilon)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.num_layers))
        self.apply(self._initialise)

    @property
    def item_embeddings_VD(self) -> Tensor:
        """The item table, input and output side alike; row 0 is padding and never a candidate."""
        return self.item_embedding.weight

    def forward(self, token_ids_BT: Tensor) -> Tensor:
        """
        Hidden state after every position.

        Args:
            token_ids_BT: int64, padded on the right with 0, T <= config.max_length.

        Returns:
            Hidden states [B, T, D]; meaningless at padded positions.
        """
        T = token_ids_BT.shape[1]
        assert self.config.max_length >= T
        return self.encode(token_ids_BT, torch.arange(T, device=token_ids_BT.device), causal_attention)

    def encode(self, token_ids: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """
        ``forward`` for tokens in any layout: attention alone knows which positions belong together.

        Args:
            token_ids: int64, any shape [...].
            positions: int64, their positions in their sequences, broadcastable to [...].
            attention: takes [..., 3 D] to [..., D].

        Returns:
            Hidden states [..., D].
        """
        embedded = self.item_embedding(token_ids) + self.position_embedding(positions)
        hidden: Tensor = self.dropout(self.input_norm(embedded))
        for block in self.blocks:
            hidden = block(hidden, attention)
        return hidden

    @torch.no_grad()
    def scale_hidden(self, factor: float) -> None:
        """Make every hidden state and logit *factor* times what it was: the last norm's weights take it."""
        last = self.blocks[-1]
        assert isinstance(last, DecoderBlock)
        last.feed_forward_norm.weight.mul_(factor)
        last.feed_forward_norm.bias.mul_(factor)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.init_std)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()
