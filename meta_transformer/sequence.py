"""`TokenSequence`, the one type that crosses the borders between tokenizers, encoder and heads."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

__all__ = [
    "ColumnLayout",
    "GraphLayout",
    "GridLayout",
    "ImageLayout",
    "Layout",
    "PointLayout",
    "PointStage",
    "Segment",
    "SeriesLayout",
    "StepLayout",
    "TokenSequence",
]


@dataclass(frozen=True)
class Layout:
    """Where the tokens of one modality lie in the raw sample; dense heads read it."""


@dataclass(frozen=True)
class GridLayout(Layout):
    """Tokens in row-major order on a grid of patches.

    Attributes:
        shape: The grid of the padded batch, such as `(rows, columns)` of an image or `(frequencies, times)` of a clip.
        patch_size: Size of one patch in raw units, per axis.
        stride: Distance between neighbouring patches in raw units, per axis.
    """

    shape: tuple[int, ...]
    patch_size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class ImageLayout(GridLayout):
    """Patches of pictures, `(rows, columns)`, whose predictions can be shown on them.

    Of cubes they are `(groups of bands, rows, columns)`: several tokens for each place.

    Attributes:
        size: Height and width of the padded batch in pixels, before it is padded to whole patches.
        sizes: `(batch, 2)`, height and width of each picture; `None` when all fill the batch.
        pixels: `(batch, channels, height, width)`, what was cut into patches, 0 where padded; `None` if not known.
    """

    size: tuple[int, int]
    sizes: Tensor | None = field(default=None, compare=False)
    pixels: Tensor | None = field(default=None, compare=False)


@dataclass(frozen=True)
class SeriesLayout(GridLayout):
    """Patches of time series, `(patches,)` or `(channels, patches)`, and the way back to the values that came in.

    Attributes:
        loc: `(batch, channels)`, what was subtracted from each channel, in float32.
        scale: `(batch, channels)`, what it was divided by then: `prediction * scale + loc` undoes it.
        values: `(batch, steps, channels)`, what came out, 0 where nothing was observed, in float32.
        observed: `(batch, steps, channels)` boolean, true where a value was observed.
        lengths: `(batch,)`, steps of each series without padding.
    """

    loc: Tensor = field(compare=False)
    scale: Tensor = field(compare=False)
    values: Tensor = field(compare=False)
    observed: Tensor = field(compare=False)
    lengths: Tensor = field(compare=False)


@dataclass(frozen=True)
class StepLayout(GridLayout):
    """Tokens `(tokens,)` of a sequence, and the steps of it, such as the ids of a text, that each stands for.

    Attributes:
        first: The step at which the first token begins, negative if that lies in front of the sequence.
        steps: Steps of the padded batch.
        lengths: `(batch,)`, steps of each sample without padding.
    """

    first: int
    steps: int
    lengths: Tensor = field(compare=False)


@dataclass(frozen=True, eq=False)  # as SeriesLayout
class PointStage:
    """Groups of neighbouring points, each of which becomes one token or one point of the next stage.

    Attributes:
        centres: `(batch, groups, 3)`, in the unit of the points.
        groups: `(batch, groups, neighbours)`, indices into the points that the stage takes, the nearest first.
        features: `(batch, groups, width)`, the embedding of each group without its position.
        mask: `(batch, groups)` boolean, true for real groups; `None` when nothing is padded.
    """

    centres: Tensor
    groups: Tensor
    features: Tensor
    mask: Tensor | None


@dataclass(frozen=True, eq=False)  # as SeriesLayout
class PointLayout(Layout):
    """Tokens that stand for groups of points.

    Attributes:
        points: `(batch, points, 3)`, the raw points, in float32.
        mask: `(batch, points)` boolean, true for real points; `None` when nothing is padded.
        stages: From the raw points on; the groups of the last one are the tokens.
        features: `(batch, points, channels)`, what is known of the raw points beside their place; `None` if nothing.
    """

    points: Tensor
    mask: Tensor | None
    stages: tuple[PointStage, ...]
    features: Tensor | None = None


@dataclass(frozen=True)
class ColumnLayout(Layout):
    """One token for each named column, in this order."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class GraphLayout(Layout):
    """Tokens of the graph as a whole, then one for each node, then one for each edge, of the padded batch.

    The tokens of the nodes are the columns `graph_tokens : graph_tokens + nodes`, in the order of the raw graph.

    Attributes:
        graph_tokens: Learned tokens in front.
        nodes: Nodes of the largest graph.
        edges: Edges of the largest graph.
        seed: `(batch,)`, the node that a graph was sampled around; `None` where none is marked.
    """

    graph_tokens: int
    nodes: int
    edges: int
    seed: Tensor | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Segment:
    """The columns `start : start + length` of a sequence, which hold the tokens of one modality."""

    modality: str
    start: int
    length: int
    layout: Layout | None = None


@dataclass(frozen=True)
class TokenSequence:
    """Tokens of a batch of samples.

    Attributes:
        embeddings: `(batch, tokens, hidden)`.
        mask: `(batch, tokens)` boolean, true for real tokens; `None` when nothing is padded.
        layout: Layout of the tokens, set by a tokenizer on the sequence of its one modality.
        segments: Which columns belong to which modality, set by `concatenate`.
        hidden_states: Of encoded tokens, what enters the first block and what leaves each, `(batch, tokens, hidden)`
            each; set for heads that read them.
    """

    embeddings: Tensor
    mask: Tensor | None = None
    layout: Layout | None = None
    segments: tuple[Segment, ...] = ()
    hidden_states: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return self.embeddings.shape[1]

    def replace_embeddings(self, embeddings: Tensor) -> "TokenSequence":
        """The same tokens with other embeddings, `(batch, tokens, any width)`."""
        return replace(self, embeddings=embeddings)

    def mean(self) -> Tensor:
        """Mean over the real tokens of all segments, `(batch, hidden)`; the class token does not count."""
        start = self.segments[0].start if self.segments else 0
        embeddings = self.embeddings[:, start:]
        wide = torch.promote_types(embeddings.dtype, torch.float32)  # sums overflow in half precision
        if self.mask is None:
            return embeddings.mean(dim=1, dtype=wide).to(embeddings.dtype)
        real = self.mask[:, start:, None].bool()
        total = embeddings.masked_fill(~real, 0).sum(dim=1, dtype=wide)  # not by a product: zero times NaN is NaN
        return (total / real.sum(dim=1).clamp(min=1)).to(embeddings.dtype)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the tokens come from, in their order."""
        return tuple(segment.modality for segment in self.segments)

    def select(self, modalities: Collection[str]) -> "TokenSequence":
        """The tokens of some modalities, behind what stands in front of the first one; undoes `concatenate`.

        Of all that there are, it is the sequence itself.
        """
        if set(self.modalities) <= set(modalities):
            return self
        prefix = slice(0, self.segments[0].start)
        columns, segments, start = [prefix], [], prefix.stop
        for segment in self.segments:
            if segment.modality in modalities:
                columns.append(slice(segment.start, segment.start + segment.length))
                segments.append(replace(segment, start=start))
                start += segment.length
        embeddings = torch.cat([self.embeddings[:, own] for own in columns], dim=1)
        mask = None if self.mask is None else torch.cat([self.mask[:, own] for own in columns], dim=1)
        return TokenSequence(embeddings, mask, segments=tuple(segments))

    @staticmethod
    def concatenate(prefix: Tensor, parts: "dict[str, TokenSequence]") -> "TokenSequence":
        """Join the modalities of each sample behind a common prefix.

        Args:
            prefix: `(batch, prefix tokens, hidden)`, the class token.
            parts: One sequence per modality, each of the same batch size; their order is the order of the segments.

        Returns:
            A sequence whose `segments` name the columns of each modality.
        """
        segments, start = [], prefix.shape[1]
        for modality, part in parts.items():
            segments.append(Segment(modality, start, len(part), part.layout))
            start += len(part)
        pieces = [TokenSequence(prefix), *parts.values()]
        mask = None
        if any(piece.mask is not None for piece in pieces):
            mask = torch.cat([piece._full_mask() for piece in pieces], dim=1)
        return TokenSequence(torch.cat([piece.embeddings for piece in pieces], dim=1), mask, segments=tuple(segments))

    def _full_mask(self) -> Tensor:
        if self.mask is None:
            return self.embeddings.new_ones(self.embeddings.shape[:2], dtype=torch.bool)
        return self.mask.bool()
