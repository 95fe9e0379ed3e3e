"""One block of the trunk, and its smaller parts."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import SelfAttention
from .linear import Linear
from .packing import Packing
from .token_merging import TokenMerging

__all__ = ["DropPath", "FeedForward", "LayerScale", "MetaTransformerLayer"]


class FeedForward(nn.Module):
    """Two linear layers with an activation between them, applied to each token alone."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


class DropPath(nn.Module):
    """Drop the whole residual branch of random samples in training (stochastic depth, Huang et al. 2016, equation 2).

    Args:
        rate: Probability of dropping a sample's branch; the others are scaled up, so that the expectation stays.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor, packing: Packing | None = None) -> Tensor:
        if not self.training or self.rate == 0.0:
            return branch
        count = branch.shape[0] if packing is None else len(packing.lengths)
        keep = torch.empty(count, 1, 1, dtype=branch.dtype, device=branch.device).bernoulli_(1 - self.rate)
        if packing is not None:
            keep = keep[packing.rows].transpose(0, 1)
        return branch * keep / (1 - self.rate)


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch (Touvron et al. 2021, CaiT, section 2.1)."""

    def __init__(self, hidden_size: int, initial_value: float) -> None:
        super().__init__()
        self.initial_value = initial_value
        self.factor = nn.Parameter(torch.full((hidden_size,), initial_value))

    def init_parameters(self, std: float) -> None:
        init.constant_(self.factor, self.initial_value)

    def forward(self, branch: Tensor) -> Tensor:
        return branch * self.factor


class MetaTransformerLayer(GradientCheckpointingLayer):
    """Pre-norm transformer block: `x + attention(norm(x))`, then `x + mlp(norm(x))` (ViT, equations 2 and 3).

    Args:
        config: The trunk's configuration.
        drop_path_rate: Stochastic depth of this layer.
    """

    def __init__(self, config: PreTrainedConfig, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = SelfAttention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = FeedForward(config)
        self.drop_path = DropPath(drop_path_rate)
        scale = config.layer_scale_init_value
        self.layer_scale1 = nn.Identity() if scale is None else LayerScale(config.hidden_size, scale)
        self.layer_scale2 = nn.Identity() if scale is None else LayerScale(config.hidden_size, scale)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        packing: Packing | None = None,
        merging: TokenMerging | None = None,
        **kwargs: Any,
    ) -> Tensor:
        attended, _ = self.attention(self.layernorm_before(hidden_states), attention_mask, packing, merging, **kwargs)
        hidden_states = hidden_states + self.drop_path(self.layer_scale1(attended), packing)
        if merging is not None:
            hidden_states = merging.merge(hidden_states)
        fed = self.layer_scale2(self.mlp(self.layernorm_after(hidden_states)))
        return hidden_states + self.drop_path(fed, packing)
