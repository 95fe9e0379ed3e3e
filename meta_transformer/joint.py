"""Several task models in one pass of the trunk that they share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers.utils import ModelOutput

from .modeling import FORWARD_OPTIONS, MetaTransformerForTask, MetaTransformerModel, MetaTransformerOutput
from .sequence import TokenSequence

__all__ = ["run_jointly"]


@dataclass
class _Call:
    """A call of a model up to the trunk.

    Attributes:
        model: The model.
        inputs: What its head takes beside the encoded parts.
        parts: What the trunk shall encode, as of `TaskHead.parts`.
    """

    model: Any
    inputs: dict[str, Any]
    parts: dict[str, TokenSequence]


def run_jointly(models: Mapping[str, Any], batches: Mapping[str, Mapping[str, Any]]) -> dict[str, ModelOutput]:
    """Run models of one trunk, the samples of all of them as rows of one batch where that is possible.

    Args:
        models: By name, with the same weights in their trunks.
        batches: The arguments of each.

    Returns:
        The output of each.
    """
    calls = {
        name: _begin(model, dict(batches[name])) for name, model in models.items() if _can_join(model, batches[name])
    }
    encoded = _encode(list(calls.values()))
    return {
        name: _finish(calls[name], encoded) if name in calls else model(**{**batches[name], "return_dict": True})
        for name, model in models.items()
    }


def _can_join(model: Any, batch: Mapping[str, Any]) -> bool:
    """Whether a model asks of the trunk what all do: encoded tokens of its last layer, by its own weights."""
    encoder = model.base_model.encoder
    return (
        type(model).forward in (MetaTransformerForTask.forward, MetaTransformerModel.forward)
        and not FORWARD_OPTIONS & set(batch)
        and not (model.config.output_hidden_states or model.config.output_attentions or model.config.token_merging)
        and encoder.frozen
        and len(encoder.trunk_parameters()) == len(list(encoder.parameters()))
        and not (isinstance(model, MetaTransformerForTask) and model.head.reads_hidden_states)
    )


def _begin(model: Any, inputs: dict[str, Any]) -> _Call:
    if isinstance(model, MetaTransformerModel):
        return _Call(model, {}, {"": model.tokenize(**inputs)})
    names = ("labels", "num_items_in_batch", *model.head.model_input_names)
    own = {name: value for name in names if (value := inputs.pop(name, None)) is not None}
    return _Call(model, own, model.head.parts(model.model.tokenize(**inputs)))


def _encode(calls: list[_Call]) -> dict[int, TokenSequence]:
    """The encoded parts of all calls, by the part's identity: once, even where a head reads it under several names."""
    parts = {id(part): (call.model.base_model, part) for call in calls for part in call.parts.values()}
    together = {key: part for key, (_, part) in parts.items() if not part.blocks}
    encoded = {
        key: part.replace_embeddings(base.encode(part).last_hidden_state)
        for key, (base, part) in parts.items()
        if key not in together
    }
    if together:
        base, _ = parts[next(iter(together))]
        states = base.encode(_stack(list(together.values()))).last_hidden_state
        rows = states.split([len(part.embeddings) for part in together.values()])
        encoded |= {
            key: part.replace_embeddings(own[:, : len(part)])
            for (key, part), own in zip(together.items(), rows, strict=True)
        }
    return encoded


def _stack(sequences: list[TokenSequence]) -> TokenSequence:
    """The samples of several sequences as rows of one, padded behind to the longest."""
    longest = max(len(each) for each in sequences)
    embeddings = [functional.pad(each.embeddings, (0, 0, 0, longest - len(each))) for each in sequences]
    masks = [functional.pad(each.full_mask(), (0, longest - len(each))) for each in sequences]
    whole = all(each.mask is None and len(each) == longest for each in sequences)
    return TokenSequence(torch.cat(embeddings), None if whole else torch.cat(masks))


def _finish(call: _Call, encoded: Mapping[int, TokenSequence]) -> ModelOutput:
    parts = {name: encoded[id(part)] for name, part in call.parts.items()}
    if isinstance(call.model, MetaTransformerForTask):
        return call.model.predict(parts, **call.inputs)
    sequence = parts[""]
    return MetaTransformerOutput(
        last_hidden_state=sequence.embeddings,
        pooler_output=call.model.pool(sequence),
        attention_mask=sequence.mask,
    )
