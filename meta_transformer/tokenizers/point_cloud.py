"""Point clouds to tokens: groups of neighbouring points, a small PointNet for each, plus the place of its centre.

Arrives: `point_coordinates` `(batch, points, 3)`, `point_features` `(batch, points, channels)` if the points have any,
and, for clouds of different size, `point_mask` `(batch, points)`. Leaves: `(batch, groups, hidden)`, with a mask if
there was one.

Meta-Transformer (Zhang et al. 2023, section 3.2) and Point-BERT (Yu et al. 2022, section 3.1): centres by farthest
point sampling, the nearest neighbours of each with coordinates relative to it, PointNet's shared layers and maxima (Qi
et al. 2017). Different from the originals: LayerNorm over the channels of a point instead of batch normalisation, so
that a cloud does not depend on its batch; as many groups as the size of each cloud asks for; clouds of any size; half
the width, and the last layer behind the last maximum, which together cost a tenth. Two stages, as in PointNet++ and in
Meta-Transformer's segmentation, group the groups again.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional

from ..geometry import farthest_point_sampling, gather_points, knn_groups
from ..sequence import PointLayout, PointStage, TokenSequence
from .base import ModalityTokenizer, TokenizerConfig

__all__ = ["PointCloudTokenizer", "PointCloudTokenizerConfig"]

_POSITION_WIDTH = 128


@strict
@dataclass(kw_only=True)
class PointCloudTokenizerConfig(TokenizerConfig):
    """Options of the point cloud tokenizer.

    Attributes:
        num_features: Channels of a point beside its coordinates, as of the processor.
        num_groups: Tokens of a cloud at most.
        group_size: Neighbours of a group, its centre among them.
        sampling_ratio: Points for each group: a stage makes one group of every 4 points, up to its limit.
        num_stages: 1, or 2 and more for dense tasks, each of which takes the groups of the one before for its points.
            The limits of the earlier stages are `num_groups` times `sampling_ratio`, once for each that follows.
        embedding_width: Channels of the first layer in the PointNet of the first stage; its other layers have twice as
            many, and each stage has twice those of the one before. Point-BERT's is 128.
        offset_unit: What the neighbours' coordinates relative to their centre are measured in. `"group_radius"`: the
            distance of the group's farthest point, which is a channel of its own then, so that groups of all sizes are
            seen equally well. `"coordinates"`: the unit of the coordinates, as in the originals.
        random_start: Whether training starts sampling at any point, as PointNet++'s code does, so that a cloud has
            other groups each time; evaluation, and both by default, at one that depends on the cloud alone.
    """

    num_features: int = 0
    num_groups: int = 256
    group_size: int = 32
    sampling_ratio: int = 4
    num_stages: int = 1
    embedding_width: int = 64
    offset_unit: Literal["group_radius", "coordinates"] = "group_radius"
    random_start: bool = False

    def validate_sizes(self) -> None:
        for name in ("num_groups", "group_size", "sampling_ratio", "num_stages", "embedding_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.num_features < 0:
            raise ValueError(f"num_features must be at least 0, got {self.num_features}.")

    def group_widths(self, hidden_size: int) -> list[int]:
        """Channels of the groups of each stage: half as many for each stage that follows."""
        return [max(1, hidden_size >> later) for later in reversed(range(self.num_stages))]

    def skip_widths(self, hidden_size: int) -> list[int]:
        return [3 + self.num_features, *self.group_widths(hidden_size)[:-1]]


class GroupEmbedding(nn.Module):
    """The PointNet of one stage: shared layers and a maximum, twice (Qi et al. 2017, section 4.2; Point-BERT).

    A point that stands in a group more than once counts once, because maxima are all that joins points.

    Args:
        channels: Of a neighbour.
        width: Of the first layer.
        out: Of the group's embedding.
    """

    def __init__(self, channels: int, width: int, out: int) -> None:
        super().__init__()
        # Behind the channels comes a constant one, whose weights are a bias that does not start at zero: without it
        # LayerNorm would drop the length of what comes in, such as how far a point lies from its centre.
        self.lift = nn.Linear(channels + 1, width, bias=False)
        self.lift_norm = nn.LayerNorm(width)
        self.point = nn.Linear(width, 2 * width)
        # One layer on a point and its group's maximum side by side, in two parts, so that the part of the maximum is
        # computed once for the group.
        self.joint_point = nn.Linear(2 * width, 2 * width)
        self.joint_group = nn.Linear(2 * width, 2 * width, bias=False)
        self.joint_norm = nn.LayerNorm(2 * width)
        self.group_norm = nn.LayerNorm(2 * width)
        self.projection = nn.Linear(2 * width, out)

    def forward(self, neighbours: Tensor) -> Tensor:
        """From `(batch, groups, neighbours, channels)` of any floating type to `(batch, groups, out)`."""
        neighbours = functional.pad(neighbours.to(self.lift.weight.dtype), (0, 1), value=1.0)
        points = self.point(functional.relu(self.lift_norm(self.lift(neighbours))))
        group = self.joint_group(points.amax(dim=2))
        points = self.joint_norm(self.joint_point(points) + group[:, :, None])
        return self.projection(self.group_norm(points.amax(dim=2)))


class PointCloudTokenizer(ModalityTokenizer):
    """Grouping, one PointNet a stage, and positions of the centres; see the module's description."""

    config_class: ClassVar[type[TokenizerConfig]] = PointCloudTokenizerConfig
    full_precision_inputs: ClassVar[frozenset[str]] = frozenset({"point_coordinates"})

    config: PointCloudTokenizerConfig

    def __init__(self, config: PointCloudTokenizerConfig, hidden_size: int) -> None:
        super().__init__(config, hidden_size)
        self.by_radius = config.offset_unit == "group_radius"
        self.stages = nn.ModuleList()
        channels = config.num_features
        for stage, out in enumerate(config.group_widths(hidden_size)):
            self.stages.append(GroupEmbedding(3 + self.by_radius + channels, config.embedding_width << stage, out))
            channels = out
        self.position_in = nn.Linear(3, _POSITION_WIDTH)
        self.position_out = nn.Linear(_POSITION_WIDTH, hidden_size)

    def forward(
        self, point_coordinates: Tensor, point_features: Tensor | None = None, point_mask: Tensor | None = None
    ) -> TokenSequence:
        """Tokenize a batch of clouds.

        Args:
            point_coordinates: `(batch, points, 3)`, normalised, one point or more; they are taken in float32, whatever
                the type of the weights.
            point_features: `(batch, points, channels)` with the `num_features` channels of the tokenizer; `None` if it
                was made for none.
            point_mask: `(batch, points)`, true for the points of the cloud, anywhere in the row; `None` when all are. A
                cloud without any true point gets no real token.

        Returns:
            `(batch, groups, hidden)` in the order of sampling, coarse to fine, with a `PointLayout`. A cloud of `n`
            points has `min(num_groups, ceil(n / sampling_ratio))` groups with one stage.

        Raises:
            ValueError: Not three dimensions, no point, other channels than the tokenizer was made for, or a mask of
                another shape.
        """
        self._check(point_coordinates, point_features, point_mask)
        points, features, mask = point_coordinates.float(), point_features, point_mask
        if mask is not None:
            mask = mask.bool()
            # Not by a product: zero times NaN is NaN.
            points = points.masked_fill(~mask[:, :, None], 0)
            features = None if features is None else features.masked_fill(~mask[:, :, None], 0)
        raw, stages = (points, mask, features), []
        for index in range(len(self.stages)):
            stage = self._stage(index, points, features, mask)
            stages.append(stage)
            points, features, mask = stage.centres, stage.features, stage.mask
        positions = self.position_in(points.to(self.position_in.weight.dtype))
        positions = self.position_out(functional.gelu(positions))
        return TokenSequence(features + positions, mask, PointLayout(raw[0], raw[1], tuple(stages), raw[2]))

    def _stage(self, index: int, points: Tensor, features: Tensor | None, mask: Tensor | None) -> PointStage:
        """Group `points` `(batch, points, 3)` with `features` `(batch, points, channels)`."""
        count = self._num_groups(index, points.shape[1])
        if index == 0:
            start = "random" if self.training and self.config.random_start else None
            centres = gather_points(points, farthest_point_sampling(points, count, mask, start))
        else:
            # Centres come in the order of sampling: the first of them are the farthest apart already.
            centres = points[:, :count]
        groups = knn_groups(centres, points, self.config.group_size, mask)
        neighbours = gather_points(points, groups) - centres[:, :, None]
        if self.by_radius:
            radius = neighbours.detach().square().sum(dim=3, keepdim=True).amax(dim=2, keepdim=True).sqrt()
            neighbours = neighbours / radius.where(radius > 0, 1)
            neighbours = torch.cat([neighbours, radius.expand(-1, -1, groups.shape[2], -1)], dim=3)
        if features is not None:
            neighbours = torch.cat([neighbours, gather_points(features, groups).float()], dim=3)
        if mask is not None:
            own = self._num_groups(index, mask.sum(dim=1))
            mask = torch.arange(count, device=points.device) < own[:, None]
        return PointStage(centres, groups, self.stages[index](neighbours), mask)

    def _num_groups(self, index: int, points: Any) -> Any:
        """How many groups a stage makes of a number of points, or of a tensor of numbers."""
        ratio = self.config.sampling_ratio
        limit = self.config.num_groups * ratio ** (len(self.stages) - 1 - index)
        groups = (points + ratio - 1) // ratio
        return groups.clamp(max=limit) if isinstance(groups, Tensor) else min(groups, limit)

    def _check(self, coordinates: Tensor, features: Tensor | None, mask: Tensor | None) -> None:
        shape, expected = tuple(coordinates.shape), self.config.num_features
        if len(shape) != 3 or shape[2] != 3 or shape[1] == 0:
            raise ValueError(
                f"point_coordinates must have shape (batch, points, 3) with a point or more, got {shape}. Make them "
                "with PointCloudProcessor; channels beside x, y and z belong in point_features."
            )
        if features is None and expected:
            raise ValueError(
                f"The tokenizer was made for num_features={expected}, but point_features is None. Make it with "
                f"PointCloudProcessor(num_features={expected}), or make the tokenizer with num_features=0."
            )
        if features is not None and (not expected or tuple(features.shape) != (*shape[:2], expected)):
            needed = f"have shape {(*shape[:2], expected)}" if expected else "be None"
            raise ValueError(
                f"point_features must {needed} for a tokenizer with num_features={expected}, got shape "
                f"{tuple(features.shape)}. Make the tokenizer with the processor's num_features."
            )
        if mask is not None and tuple(mask.shape) != shape[:2]:
            raise ValueError(f"point_mask must have shape {shape[:2]}, as point_coordinates, got {tuple(mask.shape)}.")
