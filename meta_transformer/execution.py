"""How a sequence goes through the trunk, padded or packed, and a gradient back through a model that is sharded."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig

from .encoder.bottleneck import Exchange
from .encoder.packing import Packing, has_variable_length
from .encoder.token_merging import TokenMerging
from .sequence import TokenSequence

__all__ = ["block_numbers", "make_exchange", "make_merging", "make_packing", "through_all_weights"]


def block_numbers(sequence: TokenSequence) -> Tensor | None:
    """`(tokens,)`, the number of the block of each column; `None` if there is one block."""
    if not sequence.blocks:
        return None
    numbers = {modality: number for number, modality in enumerate(dict.fromkeys(sequence.blocks))}
    return torch.tensor([numbers[modality] for modality in sequence.blocks], device=sequence.embeddings.device)


def make_packing(
    sequence: TokenSequence, blocks: Tensor | None, config: PreTrainedConfig, *, attentions: bool
) -> Packing | None:
    """How to pack a sequence; `None` if it shall stay padded.

    Args:
        sequence: Tokens that are not encoded yet.
        blocks: Of `block_numbers`.
        config: Reads `packing` and the attention implementation.
        attentions: Whether weights of attention are asked for, which only padded execution has.

    Raises:
        ValueError: They are asked for, and `packing` is true; flash attention of several blocks shall stay padded.
    """
    settings: Any = config
    tokens, mask = sequence.embeddings, sequence.mask
    flash = "flash" in settings._attn_implementation
    if settings.packing is False or torch.compiler.is_compiling():  # a graph cannot follow lengths
        if flash and blocks is not None:
            raise ValueError(
                "Flash attention takes no mask that keeps modalities apart: with this fusion it runs packed alone. Set "
                "config.packing to 'auto' and do not compile, or choose attn_implementation='sdpa'."
            )
        return None
    if attentions:
        if settings.packing is True:
            raise ValueError("Attention weights exist in padded execution alone; set config.packing to 'auto'.")
        return None
    if mask is None and blocks is None:
        return None
    slow = tokens.is_cuda and not has_variable_length(tokens) and not flash
    if settings.packing == "auto" and slow:
        return None
    mask = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    if blocks is None and mask.all():
        return None
    return Packing.of(mask, blocks)


def make_merging(sequence: TokenSequence, config: PreTrainedConfig, options: Mapping[str, Any]) -> TokenMerging | None:
    """How tokens are merged in evaluation mode; `None` if they are not.

    Args:
        sequence: Tokens that are not encoded yet.
        config: Reads `token_merging`, `packing`, `fusion` and the attention implementation.
        options: Of the call, such as `output_hidden_states`.

    Raises:
        ValueError: Something that takes the tokens of all layers one by one: hidden states, weights of attention,
            modalities apart, packed execution, or attention that takes no mask of numbers.
    """
    settings: Any = config
    if not settings.token_merging:
        return None
    shown = [
        name for name in ("output_hidden_states", "output_attentions") if options.get(name, getattr(settings, name))
    ]
    wrong = {
        f"fusion={settings.fusion!r}": bool(sequence.blocks) or settings.fusion == "bottleneck",
        "packing=True": settings.packing is True,
        f"attn_implementation={settings._attn_implementation!r}": settings._attn_implementation
        not in ("sdpa", "eager"),
        "hidden states or attentions, or a head that reads several layers": shown,
    }
    if found := [name for name, is_wrong in wrong.items() if is_wrong]:
        raise ValueError(f"token_merging does not go with {found[0]}; set config.token_merging to 0.")
    places = {column for segment in sequence.segments for column in range(segment.columns.start, segment.columns.stop)}
    protected = [column for column in range(len(sequence)) if column not in places]
    return TokenMerging(settings.token_merging, sequence.mask, protected)


def make_exchange(sequence: TokenSequence, packing: Packing | None, config: PreTrainedConfig) -> Exchange | None:
    """What happens between layers; arguments as of `make_packing`."""
    settings: Any = config
    if settings.fusion != "bottleneck":
        return None
    batch, width = sequence.embeddings.shape[:2]
    device, classes = sequence.embeddings.device, sequence.class_tokens
    columns = torch.tensor(classes, device=device)[:, None] + torch.arange(
        1, 1 + settings.num_bottleneck_tokens, device=device
    )
    places = torch.arange(batch, device=device)[:, None, None] * width + columns
    present = torch.ones(batch, len(classes), dtype=torch.bool, device=device)
    if sequence.mask is not None:
        present = sequence.mask[:, classes].bool()
    return Exchange(places if packing is None else packing.packed_places(places), present, settings.bottleneck_layer)


def through_all_weights(model: nn.Module, loss: Tensor) -> Tensor:
    """The loss, of which every weight of a model under FSDP2 has a gradient: zero where the batch does not use it.

    FSDP2 has the processes exchange the gradients that there are. A process whose batch lacks a modality has none for
    its tokenizer, and would wait for what the others do not send.
    """
    if not isinstance(model, FSDPModule) or not loss.requires_grad:
        return loss
    return loss + 0 * sum(each.flatten()[:1].float().sum() for each in model.parameters() if _is_whole(each))


def _is_whole(parameter: nn.Parameter) -> bool:
    """Whether a parameter trains and is at hand; those of blocks, which every batch uses, are shards again by now."""
    return parameter.requires_grad and not isinstance(parameter, DTensor)
