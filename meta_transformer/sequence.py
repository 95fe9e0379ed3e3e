"""`TokenSequence`, the one type that crosses the borders between tokenizers, encoder and heads."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

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
    """The columns `start : start + length` of a sequence, which hold tokens of one modality.

    Attributes:
        modality: Which.
        start: The first column.
        length: How many.
        layout: Where the tokens lie in the raw sample.
        present: `(batch,)` boolean, which samples have these tokens; `None` if all have.
    """

    modality: str
    start: int
    length: int
    layout: Layout | None = None
    present: Tensor | None = field(default=None, compare=False)

    @property
    def columns(self) -> slice:
        return slice(self.start, self.start + self.length)


@dataclass(frozen=True)
class TokenSequence:
    """Tokens of a batch of samples.

    Attributes:
        embeddings: `(batch, tokens, hidden)`.
        mask: `(batch, tokens)` boolean, true for real tokens; `None` when nothing is padded.
        layout: Layout of the tokens, set by a tokenizer on the sequence of its one modality.
        present: `(batch,)` boolean, which samples have these tokens at all; `None` if all have. Set by `take`.
        segments: Which columns belong to which modality, set by `concatenate`. Several may be of one modality.
        blocks: For each column the modality whose tokens it attends to and is attended to by; empty if all tokens of a
            sample attend to each other. Then each modality has a class token of its own.
        hidden_states: Of encoded tokens, what enters the first block and what leaves each, `(batch, tokens, hidden)`
            each; set for heads that read them.
    """

    embeddings: Tensor
    mask: Tensor | None = None
    layout: Layout | None = None
    present: Tensor | None = None
    segments: tuple[Segment, ...] = ()
    blocks: tuple[str, ...] = ()
    hidden_states: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return self.embeddings.shape[1]

    def replace_embeddings(self, embeddings: Tensor) -> "TokenSequence":
        """The same tokens with other embeddings, `(batch, tokens, any width)`."""
        return replace(self, embeddings=embeddings)

    def mean(self) -> Tensor:
        """Mean over the real tokens of all segments, `(batch, hidden)`; the class token does not count."""
        start = self.prefix
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
        return tuple(dict.fromkeys(segment.modality for segment in self.segments))

    def missing(self, modality: str) -> list[int]:
        """The samples without any tokens of a modality."""
        present = [segment.present for segment in self.segments if segment.modality == modality]
        known = [each for each in present if each is not None]
        if len(known) < len(present):
            return []
        return (~torch.stack(known).any(dim=0)).nonzero().flatten().tolist()

    @property
    def prefix(self) -> int:
        """How many columns lie in front of the first segment: class tokens, and what else belongs to no segment."""
        return self.segments[0].start if self.segments else 0

    @property
    def class_tokens(self) -> list[int]:
        """The columns of the class tokens: one for each block."""
        own = range(self.prefix) if self.blocks else range(1)
        return [place for place in own if not place or self.blocks[place] != self.blocks[place - 1]]

    def take(self, rows: Tensor, present: Tensor) -> "TokenSequence":
        """One row for each sample, from the rows that a tokenizer made of those that have its modality.

        Args:
            rows: `(batch,)`, which row belongs to each sample; any row where there is none.
            present: `(batch,)` boolean, which samples have one.
        """
        layout = None if self.layout is None else _take(self.layout, rows)
        return TokenSequence(self.embeddings[rows], self.full_mask()[rows], layout).restrict(present)

    def restrict(self, present: Tensor) -> "TokenSequence":
        """The tokens of those samples alone for which `present`, `(batch,)` boolean, is true."""
        own = present if self.present is None else present & self.present
        return replace(self, mask=self.full_mask() & own[:, None], present=own)

    def select(self, modalities: Collection[str]) -> "TokenSequence":
        """The tokens of some modalities, between what stands in front of and behind all; undoes `concatenate`.

        Of all that there are, it is the sequence itself.
        """
        if set(self.modalities) <= set(modalities):
            return self
        kept = [place for place in range(self.prefix) if not self.blocks or self.blocks[place] in modalities]
        segments = []
        for segment in self.segments:
            if segment.modality in modalities:
                segments.append(replace(segment, start=len(kept)))
                kept += range(len(self))[segment.columns]
        behind = range(self.segments[-1].columns.stop, len(self))
        kept += [place for place in behind if not self.blocks or self.blocks[place] in modalities]
        columns = torch.tensor(kept, device=self.embeddings.device)
        return replace(
            self,
            embeddings=self.embeddings[:, columns],
            mask=None if self.mask is None else self.mask[:, columns],
            segments=tuple(segments),
            blocks=tuple(self.blocks[place] for place in kept) if self.blocks else (),
            hidden_states=tuple(state[:, columns] for state in self.hidden_states),
        )

    def append(self, tokens: Tensor, modality: str) -> "TokenSequence":
        """The sequence with tokens `(count, hidden)` behind all others of each sample, in no segment.

        Where modalities are blocks, the tokens belong to that of `modality`.
        """
        tokens = tokens.to(self.embeddings.dtype).expand(len(self.embeddings), -1, -1)
        mask = None if self.mask is None else functional.pad(self.mask.bool(), (0, tokens.shape[1]), value=True)
        blocks = (*self.blocks, *[modality] * tokens.shape[1]) if self.blocks else ()
        return replace(self, embeddings=torch.cat([self.embeddings, tokens], dim=1), mask=mask, blocks=blocks)

    @staticmethod
    def concatenate(
        prefix: "TokenSequence",
        parts: "Iterable[tuple[str, TokenSequence]]",
        *,
        blocks: Sequence[str] = (),
    ) -> "TokenSequence":
        """Join the modalities of each sample behind a common prefix.

        Args:
            prefix: Class tokens.
            parts: Modalities and their tokens, each of the same batch size; their order is that of the segments.
            blocks: The modality of each token of the prefix, if tokens shall attend to their own modality alone.

        Returns:
            A sequence whose `segments` name the columns of each modality.
        """
        pieces, segments, start, blocks = [prefix], [], len(prefix), list(blocks)
        for modality, part in parts:
            segments.append(Segment(modality, start, len(part), part.layout, part.present))
            blocks += [modality] * len(part) if blocks else []
            pieces.append(part)
            start += len(part)
        mask = None
        if any(piece.mask is not None for piece in pieces):
            mask = torch.cat([piece.full_mask() for piece in pieces], dim=1)
        embeddings = torch.cat([piece.embeddings for piece in pieces], dim=1)
        return TokenSequence(embeddings, mask, segments=tuple(segments), blocks=tuple(blocks))

    def full_mask(self) -> Tensor:
        """`(batch, tokens)` boolean, true for real tokens, also where nothing is padded."""
        if self.mask is None:
            return self.embeddings.new_ones(self.embeddings.shape[:2], dtype=torch.bool)
        return self.mask.bool()


def _take(value: Any, rows: Tensor) -> Any:
    """The same rows of every tensor inside a layout."""
    if isinstance(value, Tensor):
        return value[rows]
    if isinstance(value, Layout | PointStage):
        return replace(value, **{each.name: _take(getattr(value, each.name), rows) for each in fields(value)})
    return tuple(_take(each, rows) for each in value) if isinstance(value, tuple) else value
