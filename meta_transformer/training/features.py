"""Encoded tokens as plain tensors, one sample after the other, and back to a `TokenSequence`.

    TokenSequence of a batch  ->  tokens of each sample without padding, each with its place  ->  TokenSequence

With `n` modalities in the configuration, place `m` is in front of the tokens of modality `m`, where its class token
is, and place `n + m` is among them. Layouts are left out: a head that reads them needs the sample itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ..sequence import Segment, TokenSequence

__all__ = ["SampleFeatures", "flatten", "gather", "reduce", "restore"]


@dataclass(frozen=True)
class SampleFeatures:
    """What a head reads of one sample.

    Attributes:
        tokens: `(tokens, layers, hidden)`.
        places: `(tokens,)` integers; see the module's description.
    """

    tokens: Tensor
    places: Tensor


def reduce(sequence: TokenSequence) -> TokenSequence:
    """The class token and the mean of the other tokens, of each block: all that pooling by one of the two reads."""
    blocks = list(dict.fromkeys(sequence.blocks))
    own = [sequence.select([block]) for block in blocks] or [sequence]
    tokens = torch.cat([part.embeddings[:, :1] for part in own] + [part.mean()[:, None] for part in own], dim=1)
    mask = None
    if sequence.mask is not None:
        mask = sequence.mask[:, sequence.class_tokens].bool().repeat(1, 2)
    names = blocks or [sequence.modalities[0]]
    segments = tuple(Segment(name, len(own) + number, 1) for number, name in enumerate(names))
    return TokenSequence(tokens, mask, segments=segments, blocks=(*blocks, *blocks))


def flatten(layers: Sequence[TokenSequence], config: PreTrainedConfig) -> list[SampleFeatures]:
    """Take a batch apart.

    Args:
        layers: The same tokens, of one or more layers.
        config: The model's; reads `modalities` and `fusion`.
    """
    sequence = layers[0]
    tokens = torch.stack([layer.embeddings for layer in layers], dim=2)
    places = torch.tensor(_places(sequence, config), device=tokens.device)
    if sequence.mask is None:
        return [SampleFeatures(own, places) for own in tokens]
    return [SampleFeatures(own[real], places[real]) for own, real in zip(tokens, sequence.mask.bool(), strict=True)]


def _places(sequence: TokenSequence, config: Any) -> list[int]:
    number = {modality: place for place, modality in enumerate(config.modalities)}
    if sequence.blocks:
        front = [number[block] for block in sequence.blocks[: sequence.prefix]]
    else:  # one class token for all; of late fusion, for the one modality that there is
        front = [0 if config.fusion == "early" else number[sequence.modalities[0]]] * sequence.prefix
    return front + [len(number) + number[each.modality] for each in sequence.segments for _ in range(each.length)]


def gather(samples: Sequence[SampleFeatures]) -> dict[str, Any]:
    """Put samples together.

    Args:
        samples: Of a batch.

    Returns:
        `tokens` `(batch, columns, layers, hidden)`, in which every column holds tokens of one place; `mask`
        `(batch, columns)`, `None` if all are real; and `places`, that of each column.
    """
    if len({len(sample.places) for sample in samples}) == 1:  # mostly alike, so that nothing has to be moved
        places = torch.stack([sample.places for sample in samples])
        if (places == places[0].sort().values).all():
            tokens = torch.stack([sample.tokens for sample in samples])
            return {"tokens": tokens, "mask": None, "places": places[0].tolist()}
    tokens = torch.cat([sample.tokens for sample in samples])
    found, kind = torch.cat([sample.places for sample in samples]).unique(return_inverse=True)
    owner = torch.arange(len(samples)).repeat_interleave(torch.tensor([len(each.places) for each in samples]))
    group = owner * len(found) + kind
    sizes = group.bincount(minlength=len(samples) * len(found))
    widths = sizes.view(len(samples), -1).amax(dim=0)
    order = group.argsort(stable=True)
    rank = torch.arange(len(group)) - (sizes.cumsum(0) - sizes)[group[order]]  # within its sample and place
    column = (widths.cumsum(0) - widths)[kind[order]] + rank
    places = found.repeat_interleave(widths).tolist()
    batch = tokens.new_zeros(len(samples), len(places), *tokens.shape[1:])
    batch[owner[order], column] = tokens[order]
    mask = torch.zeros(batch.shape[:2], dtype=torch.bool)
    mask[owner[order], column] = True
    return {"tokens": batch, "mask": None if mask.all() else mask, "places": places}


def restore(batch: dict[str, Any], config: PreTrainedConfig) -> list[TokenSequence]:
    """Undo `flatten`, but for the order of columns, which heads do not know of.

    Args:
        batch: Of `gather`.
        config: As of `flatten`.

    Returns:
        A sequence for each layer.
    """
    settings: Any = config
    names, places, mask = list(settings.modalities), batch["places"], batch["mask"]
    owners = [names[place % len(names)] for place in places]
    segments, start = [], sum(place < len(names) for place in places)
    for modality in dict.fromkeys(owners[start:]):
        length = owners[start:].count(modality)
        present = None if mask is None else mask[:, start : start + length].any(dim=1)
        segments.append(Segment(modality, start, length, present=present))
        start += length
    blocks = () if settings.fusion == "early" else tuple(owners)
    shared = TokenSequence(batch["tokens"], mask, segments=tuple(segments), blocks=blocks)
    return [shared.replace_embeddings(layer) for layer in batch["tokens"].unbind(dim=2)]
