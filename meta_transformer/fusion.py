"""From the tokens of each modality, whose rows are those samples that have it, to one sequence for each sample.

    {"image": 3 rows, "audio": 2 rows}, and whose rows they are  ->  [class token, image, image, audio] for each sample

A sample without a modality has no tokens of it, or one learned token. Columns are the same for all samples of a batch,
and masked where a sample has nothing: packed execution computes nothing for them.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init

from .sequence import TokenSequence

__all__ = [
    "AbsentTokens",
    "ModalityEmbeddings",
    "align",
    "count_samples",
    "drop_modalities",
    "fill_absent",
    "join",
]

Slots = dict[str, list[TokenSequence]]


class ModalityEmbeddings(nn.ParameterDict):
    """One vector for each modality, which is added to its tokens.

    They start at zero, so that a pretrained image model gives what it gave before it shared its trunk.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__({name: nn.Parameter(torch.zeros(config.hidden_size)) for name in config.modalities})

    def init_parameters(self, std: float) -> None:
        for embedding in self.values():
            init.zeros_(embedding)


class AbsentTokens(ModalityEmbeddings):
    """One token for each modality, which stands in for it where a sample lacks it."""

    def init_parameters(self, std: float) -> None:
        for token in self.values():
            init.trunc_normal_(token, std=std)


def count_samples(parts: dict[str, TokenSequence], samples: dict[str, Tensor | None]) -> int:
    """How many samples a batch holds.

    Args:
        parts: The tokens of each modality.
        samples: For each modality `(rows,)`, the sample that each row belongs to; `None` if row `i` is sample `i`.

    Raises:
        ValueError: Numbers of another shape, or negative; no rows; modalities that disagree; a sample without any
            modality.
    """
    rows = {modality: len(part.embeddings) for modality, part in parts.items()}
    whole = {modality: count for modality, count in rows.items() if samples[modality] is None}
    if any(count != next(iter(whole.values())) for count in whole.values()):  # no set: it would fix exported sizes
        raise ValueError(f"All modalities of a batch must have the same number of samples, got {whole}.")
    sparse = {modality: numbers for modality, numbers in samples.items() if numbers is not None}
    if not sparse:
        return next(iter(whole.values()))
    for modality, numbers in sparse.items():
        if not rows[modality]:
            raise ValueError(f"{modality!r} has no rows; leave out its inputs where no sample has it.")
        if tuple(numbers.shape) != (rows[modality],) or numbers.is_floating_point() or numbers.min() < 0:
            raise ValueError(
                f"{modality}_samples must be {rows[modality]} integers from 0, the sample of each row of {modality!r}, "
                f"got {numbers.dtype} of shape {tuple(numbers.shape)}: {numbers.flatten()[:8].tolist()}."
            )
    highest = {modality: int(numbers.max()) for modality, numbers in sparse.items()}
    if not whole:
        count = max(highest.values()) + 1
        found = torch.cat(list(sparse.values())).bincount(minlength=count)
        if not found.all():
            raise ValueError(
                f"The samples {(found == 0).nonzero().flatten().tolist()} of {count} have no modality; leave them out."
            )
        return count
    count = next(iter(whole.values()))
    for modality, number in highest.items():
        if number >= count:
            raise ValueError(f"{modality}_samples names sample {number}, but the batch has {count}: {whole}.")
    return count


def align(part: TokenSequence, samples: Tensor | None, count: int) -> list[TokenSequence]:
    """Put the rows of one modality to their samples.

    Args:
        part: The rows.
        samples: `(rows,)`, the sample of each; `None` if row `i` is sample `i`.
        count: Samples of the batch.

    Returns:
        Sequences of `count` samples: the first row of each sample, then the second of those that have two, and so on.
    """
    if samples is None:
        return [part]
    order = samples.argsort(stable=True)
    sizes = samples.bincount(minlength=count)
    first = sizes.cumsum(0) - sizes  # of each sample in `order`
    slots = []
    for slot in range(int(sizes.max())):
        present = sizes > slot
        slots.append(part.take(order[torch.where(present, first + slot, 0)], present))
    return slots


def presence(slots: list[TokenSequence]) -> Tensor:
    """`(batch,)` boolean: which samples have any row of a modality."""
    known = [slot.present for slot in slots if slot.present is not None]
    if len(known) < len(slots):
        return slots[0].embeddings.new_ones(len(slots[0].embeddings), dtype=torch.bool)
    return torch.stack(known).any(dim=0)


def drop_modalities(slots: Slots, rate: float) -> Slots:
    """Take modalities away from random samples, but never all that a sample has.

    Modality dropout (Neverova et al. 2016, ModDrop, section 4.3), so that a model does without what may be missing.

    Args:
        slots: By modality, as of `align`.
        rate: Probability of taking one away. Of a sample that would lose all, one at random stays.
    """
    present = torch.stack([presence(own) for own in slots.values()], dim=1)
    chance = torch.rand(present.shape, device=present.device)
    best = chance.masked_fill(~present, -1).argmax(dim=1, keepdim=True)
    kept = present & ((chance >= rate) | torch.zeros_like(present).scatter(1, best, True))
    return {
        modality: [each.restrict(own) for each in slots[modality]]
        for modality, own in zip(slots, kept.unbind(dim=1), strict=True)
    }


def fill_absent(slots: Slots, tokens: Iterable[tuple[str, Tensor]], count: int) -> Slots:
    """Give a learned token to samples that lack a modality.

    Args:
        slots: By modality, as of `align`.
        tokens: Modalities and their tokens `(hidden,)`, all that the model knows, in their order.
        count: Samples of the batch.
    """
    filled: Slots = {}
    for modality, token in tokens:
        own = slots.get(modality, [])
        absent = ~presence(own) if own else torch.ones(count, dtype=torch.bool, device=token.device)
        filler = TokenSequence(token.expand(count, 1, -1), absent[:, None], None, absent)
        filled[modality] = [*own, filler] if not own or own[0].present is not None else own
    return filled


def join(cls_token: Tensor, slots: Slots, fusion: str, bottleneck_tokens: Tensor | None = None) -> TokenSequence:
    """One sequence for each sample.

    Args:
        cls_token: `(1, 1, hidden)`.
        slots: By modality, as of `align`.
        fusion: Of the configuration. In `"early"`, all tokens of a sample attend to each other behind one class token.
            Else each modality has a class token of its own, and its tokens attend to each other alone.
        bottleneck_tokens: `(1, count, hidden)`, behind the class token of each modality.
    """
    parts = [(modality, slot) for modality, own in slots.items() for slot in own]
    count = len(parts[0][1].embeddings)
    if fusion == "early" or (len(slots) == 1 and bottleneck_tokens is None):
        return TokenSequence.concatenate(TokenSequence(cls_token.expand(count, -1, -1)), parts)
    head = cls_token if bottleneck_tokens is None else torch.cat([cls_token, bottleneck_tokens], dim=1)
    blocks = [modality for modality in slots for _ in range(head.shape[1])]
    mask = None
    if any(slot.present is not None for _, slot in parts):
        present = torch.stack([presence(own) for own in slots.values()], dim=1)
        mask = present.repeat_interleave(head.shape[1], dim=1)
    prefix = TokenSequence(head.expand(count, -1, -1).repeat(1, len(slots), 1), mask)
    return TokenSequence.concatenate(prefix, parts, blocks=blocks)
