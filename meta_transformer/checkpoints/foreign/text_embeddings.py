"""Tables of word embeddings out of the checkpoints of other text models."""

from os import PathLike
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from .files import Location, check_safetensors

__all__ = ["read_text_embeddings"]


def read_text_embeddings(source: str | PathLike | PreTrainedModel) -> Tensor:
    """The table that a text model of transformers looks token ids up in, `(vocabulary, width)`.

    Of a model with a text part it is that part's, of an encoder with a decoder the encoder's.
    Of a checkpoint this one tensor is read, and nothing else: which one it is says a model built without memory.

    Args:
        source: A folder or a repository on the hub with weights in safetensors format; or a model in memory.

    Raises:
        ValueError: It is no text model, or its files hold no such table.
        OSError: Neither a folder nor a repository that can be reached.
    """
    if isinstance(source, PreTrainedModel):
        return _table(source).detach()
    model = _skeleton(AutoConfig.from_pretrained(str(source), trust_remote_code=False))
    table = _table(model)
    name = next(name for name, parameter in model.named_parameters() if parameter is table)
    paths = Location(str(source), {}).weights("model.safetensors")
    check_safetensors(paths)
    tensor = _find(paths, name.split("."), table.shape)
    if tensor is None:
        raise ValueError(f"{source} holds no tensor {name} of shape {tuple(table.shape)}, as its config.json has it.")
    return tensor


def _skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """The model that was saved with `config`, built without memory; not every part of one is known to `AutoModel`."""
    named = [getattr(transformers, name, None) for name in config.architectures or []]
    classes = [each for each in named if isinstance(each, type) and issubclass(each, PreTrainedModel)]
    with torch.device("meta"):
        return classes[0](config) if classes else AutoModel.from_config(config, trust_remote_code=False)


def _table(model: PreTrainedModel) -> Tensor:
    text: Any = getattr(model, "text_model", model)  # of a model of pictures and their captions
    try:
        embedding = text.get_input_embeddings()
    except NotImplementedError:
        embedding = None
    if not isinstance(embedding, nn.Embedding):
        raise ValueError(f"{type(model).__name__} has no table of word embeddings; name a text model.")
    return embedding.weight


def _find(paths: list[Path], name: list[str], shape: torch.Size) -> Tensor | None:
    """The tensor of that shape with most of that name, counted from its end.

    The same weights carry prefixes that differ between model classes, such as `bert.` in front.
    """
    best, found = 1, None  # more than the last word, which is "weight"
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                words = key.split(".")
                common = next(
                    (i for i, (a, b) in enumerate(zip(words[::-1], name[::-1], strict=False)) if a != b),
                    min(len(words), len(name)),
                )
                if common > best and tuple(file.get_slice(key).get_shape()) == tuple(shape):
                    best, found = common, file.get_tensor(key)
    return found
