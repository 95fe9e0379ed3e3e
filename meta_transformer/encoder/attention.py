"""Multi-head self-attention, through transformers' attention interface."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .linear import Linear, to_computable
from .packing import Packing
from .token_merging import TokenMerging

__all__ = ["SelfAttention", "eager_attention_forward"]


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention by explicit matrix products, the only implementation that returns its weights.

    Args:
        module: The attention module.
        query: `(batch, heads, tokens, head_dim)`, as `key` and `value`.
        attention_mask: Additive, broadcast to `(batch, heads, tokens, tokens)`.
        scaling: Factor on the scores.
        dropout: Probability of dropping an attention weight.

    Returns:
        Values `(batch, tokens, heads, head_dim)` and weights `(batch, heads, tokens, tokens)`.
    """
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class SelfAttention(nn.Module):
    """Bidirectional multi-head self-attention with separate projections (Vaswani et al. 2017, section 3.2).

    Args:
        config: Reads `hidden_size`, `num_attention_heads`, `qkv_bias`, `attention_dropout`.
    """

    # sdpa and flash attention take a module without this attribute as causal whenever the mask is None
    is_causal = False

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.q_proj = Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.v_proj = Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.o_proj = Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        packing: Packing | None = None,
        merging: TokenMerging | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from every token to every token that the mask allows.

        Args:
            hidden_states: `(batch, tokens, hidden)`.
            attention_mask: In the form of the implementation in use, from `create_bidirectional_mask`.
            packing: Where rows lie in `(1, tokens, hidden)`; every token then attends to its own row.
            merging: What tokens stand for, in place of `attention_mask`; it gets the keys.

        Returns:
            Tokens `(batch, tokens, hidden)`, and weights `(batch, heads, tokens, tokens)` of the eager implementation,
            unless packed.
        """
        by_head = (*hidden_states.shape[:-1], -1, self.head_dim)
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        query, key, value = (
            projection(hidden_states).view(by_head).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        tensors = (to_computable(query), to_computable(key), to_computable(value))
        kwargs |= {"dropout": self.attention_dropout if self.training else 0.0, "scaling": self.scaling}
        if merging is not None:
            merging.keys, attention_mask = tensors[1], merging.bias(tensors[0].dtype)
        if packing is None:
            values, weights = attend(self, *tensors, attention_mask, **kwargs)
        else:
            values, weights = packing.attend(attend, self, *tensors, **kwargs)
        return self.o_proj(values.reshape(hidden_states.shape).to(query.dtype)), weights
