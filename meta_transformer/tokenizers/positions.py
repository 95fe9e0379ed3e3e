"""Learned positions along one axis, for samples of any length."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization as init

__all__ = ["InterpolatedPositions"]


class InterpolatedPositions(nn.Module):
    """A table of learned positions that is stretched for samples longer than it, each to its own length.

    So a sample has the same positions alone and in a ragged batch.

    Args:
        max_positions: Entries of the table, at least 1.
        hidden_size: Width of the tokens.
    """

    def __init__(self, max_positions: int, hidden_size: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(max_positions, hidden_size))

    def init_parameters(self, std: float) -> None:
        init.trunc_normal_(self.table, std=std)

    def forward(self, lengths: Tensor, size: int) -> Tensor:
        """Positions of samples that have `lengths` `(samples,)` real tokens each, `(samples, size, hidden)`.

        Up to the length of the table its entries in order; beyond, linear interpolation that puts the table's two ends
        on the ends of the sample.
        """
        last = self.table.shape[0] - 1
        # In integers, which are exact for any length: token j of n lies at j * last / (n - 1) in the table.
        span = (lengths - 1).clamp(min=max(last, 1))[:, None]
        place = torch.arange(size, device=lengths.device) * last
        lower = (place // span).clamp(max=last)
        weight = ((place % span) / span)[:, :, None].to(self.table.dtype)
        start = functional.embedding(lower, self.table)
        end = functional.embedding((lower + 1).clamp(max=last), self.table)
        return torch.lerp(start, end, weight)
