"""One vector from the tokens of a sample, an option that heads share."""

from typing import Literal

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ..sequence import TokenSequence

__all__ = ["Pooling", "PoolingMode"]

PoolingMode = Literal["cls", "mean", "attention"]


class Pooling(nn.Module):
    """Pool the tokens of each sample.

    `"cls"` takes the class token. `"mean"` averages the other tokens. `"attention"` lets one learned query attend to
    all tokens (multi-head attention pooling, Lee et al. 2019, Set Transformer, equation 11, one seed), which can weigh
    tokens by what they hold and costs `4 * hidden**2` parameters less the output projection.

    Args:
        mode: Which of the three.
        hidden_size: Width of the tokens.
        num_heads: Heads of the attention.
    """

    def __init__(self, mode: PoolingMode, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.mode = mode
        self.num_heads = num_heads
        if mode == "attention":
            self.query = nn.Parameter(torch.zeros(hidden_size))
            self.key = nn.Linear(hidden_size, hidden_size)
            self.value = nn.Linear(hidden_size, hidden_size)

    def init_parameters(self, std: float) -> None:
        if self.mode == "attention":
            init.trunc_normal_(self.query, std=std)

    def forward(self, sequence: TokenSequence) -> Tensor:
        """From tokens `(batch, tokens, hidden)` to `(batch, hidden)`; tokens of padding have no influence.

        Raises:
            ValueError: A class token is asked for, and each of several modalities has one.
        """
        if self.mode == "cls":
            if len(sequence.class_tokens) > 1:
                raise ValueError(
                    f"the modalities {list(sequence.modalities)} have a class token each; make the pooling with "
                    "heads.late_fusion.make_pooling, which combines them."
                )
            return sequence.embeddings[:, 0]
        if self.mode == "mean":
            return sequence.mean()
        tokens = sequence.embeddings
        batch, length, hidden = tokens.shape
        by_head = (batch, length, self.num_heads, hidden // self.num_heads)
        query = self.query.expand(batch, 1, hidden).view(batch, 1, *by_head[2:]).transpose(1, 2)
        mask = None if sequence.mask is None else sequence.mask[:, None, None, :]
        pooled = nn.functional.scaled_dot_product_attention(
            query,
            self.key(tokens).view(by_head).transpose(1, 2),
            self.value(tokens).view(by_head).transpose(1, 2),
            attn_mask=mask,
        )
        return pooled.transpose(1, 2).reshape(batch, hidden)
