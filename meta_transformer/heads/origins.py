"""From tokens to what they were made of: one vector for each node, point or step of the raw sample.

One small function for each layout, all of the same form, stands in `READERS`; a new layout is one more of them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..geometry import gather_points, knn_groups
from ..sequence import GraphLayout, Layout, PointLayout, Segment, SeriesLayout, StepLayout, TokenSequence

__all__ = ["READERS", "FeaturePropagation", "OriginReader", "interpolate", "read_steps"]

_NEIGHBOURS = 3


class OriginReader(nn.Module):
    """Reads the origins of tokens of any layout in `READERS`.

    Args:
        skip_widths: As of `TokenizerConfig.skip_widths`.
        hidden_size: Of the tokens.
        eps: Of the normalisation.
    """

    def __init__(self, skip_widths: list[int], hidden_size: int, eps: float) -> None:
        super().__init__()
        self.propagation = FeaturePropagation(skip_widths, hidden_size, eps) if skip_widths else None

    def forward(self, sequence: TokenSequence, segment: Segment) -> tuple[Tensor, Tensor]:
        """Read one segment.

        Args:
            sequence: Tokens `(batch, tokens, hidden)`.
            segment: Whose layout is one of `READERS`.

        Returns:
            `(batch, origins, hidden)`, finite where padded, and a mask `(batch, origins)`, true for real origins.
        """
        columns = slice(segment.start, segment.start + segment.length)
        tokens = sequence.embeddings[:, columns]
        mask = tokens.new_ones(tokens.shape[:2], dtype=torch.bool)
        if sequence.mask is not None:
            mask = sequence.mask[:, columns].bool()
            tokens = tokens.masked_fill(~mask[:, :, None], 0)  # not by a product: zero times NaN is NaN
        read = next(read for layout, read in READERS.items() if isinstance(segment.layout, layout))
        features, real = read(self, segment.layout, tokens, mask)
        return features.to(tokens.dtype), real


class FeaturePropagation(nn.Module):
    """From groups back to points, stage by stage (PointNet++, Qi et al. 2017 b, section 3.4).

    The features of the groups are interpolated at the points that the stage took, joined with what is known of these,
    and pass a shared layer, which stands in front of the interpolation where it can: both are linear, and groups are
    few. Different from the original: LayerNorm, so that a cloud does not depend on its batch.

    Args:
        skip_widths: Channels known of the raw points, and of the groups of each stage but the last.
        hidden_size: Width.
        eps: Of the normalisation.
    """

    def __init__(self, skip_widths: list[int], hidden_size: int, eps: float) -> None:
        super().__init__()
        self.coarse = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in skip_widths)
        self.skip = nn.ModuleList(nn.Linear(width, hidden_size, bias=False) for width in skip_widths)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_size, eps=eps) for _ in skip_widths)

    def forward(self, layout: PointLayout, tokens: Tensor) -> Tensor:
        """From `(batch, groups, hidden)` to `(batch, points, hidden)`."""
        raw = [layout.points] if layout.features is None else [layout.points, layout.features.float()]
        finer = [(layout.points, torch.cat(raw, dim=2))]
        finer += [(stage.centres, stage.features) for stage in layout.stages[:-1]]
        layers = zip(layout.stages, finer, self.coarse, self.skip, self.norms, strict=True)
        for stage, (points, known), coarse, skip, norm in reversed(list(layers)):
            spread = interpolate(coarse(tokens), stage.centres, points, stage.mask)
            tokens = functional.gelu(norm(spread + skip(known.to(tokens.dtype))))
        return tokens


def interpolate(values: Tensor, centres: Tensor, points: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of the values at the three centres nearest to each point, weighted by inverse squared distances.

    Args:
        values: `(batch, centres, channels)`.
        centres: `(batch, centres, 3)`.
        points: `(batch, points, 3)`.
        mask: `(batch, centres)` boolean, true for real centres; `None` when all are.

    Returns:
        `(batch, points, channels)`.
    """
    nearest = knn_groups(points, centres, _NEIGHBOURS, mask)
    distances = (gather_points(centres, nearest) - points[:, :, None]).square().sum(dim=3)
    # Where there are fewer than three, the nearest is repeated: it counts once.
    repeated = (nearest == nearest[:, :, :1]) & (torch.arange(nearest.shape[2], device=nearest.device) > 0)
    weights = distances.clamp(min=1e-16).reciprocal().masked_fill(repeated, 0)
    weights = (weights / weights.sum(dim=2, keepdim=True)).to(values.dtype)
    return (weights[..., None] * gather_points(values, nearest)).sum(dim=2)


def read_steps(tokens: Tensor, mask: Tensor, layout: Any, first: int, steps: int) -> Tensor:
    """Each step reads the tokens that cover it, of all channels, the more the nearer it lies to their middle.

    Of patches that overlap by half this is linear interpolation; of those that do not, the one token.

    Args:
        tokens: `(batch, channels * patches, hidden)`, or without channels.
        mask: `(batch, channels * patches)`, true for real tokens.
        layout: A `GridLayout` whose last axis is that of the steps.
        first: The step at which the first patch begins.
        steps: How many steps to read.

    Returns:
        `(batch, steps, hidden)` in float32 or wider, zero for a step that no real token covers.
    """
    patches, size, stride = layout.shape[-1], layout.patch_size[-1], layout.stride[-1]
    real = mask.unflatten(1, (-1, patches)).sum(dim=1)  # (batch, patches)
    total = tokens.masked_fill(~mask[:, :, None], 0).unflatten(1, (-1, patches)).sum(dim=1)
    step = torch.arange(steps, device=tokens.device)[:, None]
    patch = (step - first) // stride - torch.arange(-(-size // stride), device=tokens.device)  # those that may cover it
    distance = (step - first - patch * stride - (size - 1) / 2).abs()
    weights = ((size + 1) / 2 - distance).clamp(min=0)  # 1 or more if it does, else 0
    weights = weights * ((patch >= 0) & (patch < patches))
    patch = patch.clamp(0, patches - 1)
    covered = (weights * real[:, patch]).sum(dim=2, keepdim=True)
    return (weights[..., None] * total[:, patch]).sum(dim=2) / covered.clamp(min=1)


def _nodes(reader: OriginReader, layout: GraphLayout, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    columns = slice(layout.graph_tokens, layout.graph_tokens + layout.nodes)
    return tokens[:, columns], mask[:, columns]


def _points(reader: OriginReader, layout: PointLayout, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    if reader.propagation is None:
        raise ValueError("Points need a tokenizer whose configuration says its skip_widths; see TokenizerConfig.")
    real = layout.points.new_ones(layout.points.shape[:2], dtype=torch.bool) if layout.mask is None else layout.mask
    return reader.propagation(layout, tokens), real


def _steps(reader: OriginReader, layout: StepLayout, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return read_steps(tokens, mask, layout, layout.first, layout.steps), _up_to(layout.lengths, layout.steps)


def _series(reader: OriginReader, layout: SeriesLayout, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    steps = layout.values.shape[1]
    return read_steps(tokens, mask, layout, 0, steps), _up_to(layout.lengths, steps)


def _up_to(lengths: Tensor, size: int) -> Tensor:
    return torch.arange(size, device=lengths.device) < lengths[:, None]


#: For each layout, from the reader, the layout, tokens and their mask to the features and mask of the origins.
READERS: dict[type[Layout], Callable[[OriginReader, Any, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    GraphLayout: _nodes,
    PointLayout: _points,
    StepLayout: _steps,
    SeriesLayout: _series,
}
