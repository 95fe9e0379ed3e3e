"""What turns tokens of a series into steps."""

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["FutureCovariates", "last_places", "overlap_mean"]


def last_places(values: Tensor, counts: Tensor, size: int) -> Tensor:
    """The last of each row's own places, zeros in front where it has fewer.

    Args:
        values: `(..., places, width)`.
        counts: `(...)`, how many places at the start are a row's own.
        size: How many to take.

    Returns:
        `(..., size, width)`.
    """
    places = counts[..., None] + torch.arange(-size, 0, device=values.device)
    index = places.clamp(min=0)[..., None].expand(*places.shape, values.shape[-1])
    return values.gather(-2, index).masked_fill(places[..., None] < 0, 0)


def overlap_mean(cells: Tensor, real: Tensor, stride: int, steps: int) -> Tensor:
    """Steps from patches, the mean where patches overlap.

    Args:
        cells: `(batch, groups, patches, patch_length, outputs)`.
        real: `(batch, groups, patches)` boolean, true for patches that count.
        stride: Steps from one patch to the next.
        steps: Steps of the series, at most what the patches reach.

    Returns:
        `(batch, groups, steps, outputs)`, 0 where no patch counts.
    """
    batch, groups, patches, length, outputs = cells.shape
    reach = (patches - 1) * stride + length
    counted = functional.pad(cells, (0, 1), value=1.0).masked_fill(~real[..., None, None], 0)
    columns = counted.permute(0, 1, 4, 3, 2).reshape(batch * groups, (outputs + 1) * length, patches)
    summed = functional.fold(columns, (1, reach), (1, length), stride=(1, stride))
    total, count = summed.view(batch, groups, outputs + 1, reach)[..., :steps].split([outputs, 1], dim=2)
    return (total / count.clamp(min=1)).transpose(2, 3)


class FutureCovariates(nn.Module):
    """What a future step's known covariates say about its value, given what the series was like.

    One hidden layer over both, the same for each step.

    Args:
        num_features: Covariates of a step.
        hidden_size: Width of the tokens.
        outputs: Values of a step.
    """

    def __init__(self, num_features: int, hidden_size: int, outputs: int) -> None:
        super().__init__()
        self.features = nn.Linear(num_features, hidden_size)
        self.context = nn.Linear(hidden_size, hidden_size, bias=False)
        self.output = nn.Linear(hidden_size, outputs)

    def forward(self, features: Tensor, context: Tensor) -> Tensor:
        """From `(batch, horizon, features)` and `(batch, groups, hidden)` to `(batch, groups, horizon, outputs)`."""
        features = self.features(features.to(self.features.weight.dtype))
        return self.output(functional.gelu(features[:, None] + self.context(context)[:, :, None]))
