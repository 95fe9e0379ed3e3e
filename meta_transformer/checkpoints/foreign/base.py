"""What every source of foreign weights is: one table of names, read in both directions.

A table says which of their tensors is which of ours. `{}` stands for the number of the block, a final `*` for `weight`
and `bias`. Where a source stacks several of our tensors in one, the table gives all our names for it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...configuration import MetaTransformerConfig
from ...encoder import MetaTransformerEncoder, fingerprint
from ...registry import MODALITIES

__all__ = ["QKV", "ForeignCheckpoint", "Source", "features", "one_or_two", "whole_patches"]

Names = str | tuple[str, ...]

# Query, key and value projection in one, in this order, stacked along the first dimension.
QKV = ("attention.q_proj.*", "attention.k_proj.*", "attention.v_proj.*")

_POSITIONS = "tokenizers.image.positions"


@dataclass(frozen=True)
class Source:
    """A layout of weights that somebody else's library writes.

    Attributes:
        name: The word for it in `export_foreign`.
        block: Prefix of the tensors of one block.
        inside: Names within a block, theirs to ours.
        outside: Names of the other tensors, theirs to ours.
        features: Which optional parts its models always have (true) or never have (false); see `features`.
        ignored: Patterns of the tensors that are no part of an image encoder, and stay behind.
        spellings: Other spellings of their names: pattern and replacement, applied in this order.
        class_token: Their name of the class token; `None` if the source has blocks alone.
        positions: Their name of the position table, whose first row belongs to the class token.
        flat: Whether class token and positions come without a batch dimension.
    """

    name: str
    block: str
    inside: Mapping[str, Names]
    outside: Mapping[str, Names]
    features: Mapping[str, bool]
    ignored: tuple[str, ...] = ()
    spellings: tuple[tuple[str, str], ...] = ()
    class_token: str | None = None
    positions: str | None = None
    flat: bool = False

    def spell(self, name: str) -> str:
        """One of their names in the spelling of the table."""
        for pattern, replacement in self.spellings:
            name = re.sub(pattern, replacement, name)
        return name

    def ignores(self, name: str) -> bool:
        """Whether the tensor of this name stays behind."""
        return any(re.fullmatch(pattern, self.spell(name)) for pattern in self.ignored)

    def names(self, depth: int) -> dict[str, tuple[str, ...]]:
        """The whole table for a number of blocks, except for class token and positions."""
        table = {theirs: (ours,) if isinstance(ours, str) else ours for theirs, ours in self.outside.items()}
        for number in range(depth):
            for theirs, ours in self.inside.items():
                ours = (ours,) if isinstance(ours, str) else ours
                table[self.block.format(number) + theirs] = tuple(f"encoder.layers.{number}.{name}" for name in ours)
        return {
            theirs.replace("*", kind): tuple(name.replace("*", kind) for name in ours)
            for theirs, ours in table.items()
            for kind in (("weight", "bias") if "*" in theirs else ("",))
        }

    def to_ours(self, tensors: Mapping[str, Tensor], depth: int, has_class_position: bool = True) -> dict[str, Tensor]:
        """Rename and split.

        Args:
            tensors: Theirs by name.
            depth: Number of blocks.
            has_class_position: Whether the first row of the position table is the class token's.

        Returns:
            Ours by name. The position of the class token is added to the class token.

        Raises:
            ValueError: A tensor that the table does not know.
        """
        rest = {self.spell(name): tensor for name, tensor in tensors.items() if not self.ignores(name)}
        converted: dict[str, Tensor] = {}
        for theirs, ours in self.names(depth).items():
            if theirs in rest:
                pieces = rest.pop(theirs).tensor_split(len(ours))
                # Copies, because safetensors saves no tensors that share memory.
                converted |= {name: piece.clone() for name, piece in zip(ours, pieces, strict=True)}
        class_token, positions = (rest.pop(name or "", None) for name in (self.class_token, self.positions))
        if rest:
            raise ValueError(f"the {self.name!r} layout has no place for the tensors {sorted(rest)}")
        if class_token is not None and positions is not None:
            class_token = class_token.reshape(1, 1, -1)
            positions = positions.reshape(1, -1, class_token.shape[-1])
            prefix = int(has_class_position)
            converted["cls_token"] = class_token + positions[:, :1] if prefix else class_token.clone()
            converted[_POSITIONS] = positions[:, prefix:].clone()
        return converted

    def to_theirs(self, tensors: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
        """Join and rename: undo `to_ours`. The class token's own position is zero.

        Raises:
            ValueError: One of our tensors has no place in the table.
        """
        rest = dict(tensors)
        converted: dict[str, Tensor] = {}
        for theirs, ours in self.names(depth).items():
            if all(name in rest for name in ours):
                converted[theirs] = torch.cat([rest.pop(name) for name in ours])
        class_token, positions = rest.pop("cls_token", None), rest.pop(_POSITIONS, None)
        if rest:
            raise ValueError(f"The {self.name!r} layout has no place for {sorted(rest)}.")
        if self.class_token and self.positions and class_token is not None and positions is not None:
            positions = torch.cat([torch.zeros_like(class_token), positions], dim=1)
            converted[self.class_token] = class_token.flatten() if self.flat else class_token.clone()
            converted[self.positions] = positions[0] if self.flat else positions
        return converted


@dataclass(frozen=True)
class ForeignCheckpoint:
    """Weights of somebody else's library, described in our terms; nothing of them is read until it is asked for.

    Attributes:
        source: The layout.
        name: Where the weights came from: a path, a repository or a timm architecture.
        config: The fields of `MetaTransformerConfig` that follow from the weights; `modalities` holds the options of
            the image tokenizer, if there are weights for one.
        read_weights: Reads their tensors, except for those whose names its argument is true of.
        read_preprocessing: Reads the settings for `image_processor`.
        has_class_position: Whether their position table has a row for the class token.
    """

    source: Source
    name: str
    config: dict[str, Any]
    read_weights: Callable[[Callable[[str], bool]], dict[str, Tensor]] = field(repr=False)
    read_preprocessing: Callable[[], dict[str, Any]] = field(default=dict, repr=False)
    has_class_position: bool = True

    @cached_property
    def image_processor(self) -> dict[str, Any]:
        """Arguments for `ImageProcessor` that prepare images as the source does; empty where it does not say."""
        return self.read_preprocessing()

    @cached_property
    def state_dict(self) -> dict[str, Tensor]:
        """The tensors by the names of `MetaTransformerModel`: the whole trunk, class token and image tokenizer.

        Raises:
            ValueError: A tensor is missing, unexpected, or of another shape than the source's configuration says.
        """
        try:
            tensors = self.read_weights(self.source.ignores)
            tensors = self.source.to_ours(tensors, self.config["num_hidden_layers"], self.has_class_position)
        except (ValueError, RuntimeError) as error:  # the latter for a class token and positions of different width
            raise ValueError(f"Cannot load the weights of {self.name}: {error}") from error
        self._check(tensors)
        return tensors

    def encoder_fingerprint(self) -> str:
        """What `encoder_fingerprint()` of a model must be that was loaded from here in the same data type."""
        prefix = "encoder."
        return fingerprint({k.removeprefix(prefix): v for k, v in self.state_dict.items() if k.startswith(prefix)})

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        config = MetaTransformerConfig(**self.config)
        with torch.device("meta"):
            parts: dict[str, Any] = {"encoder": MetaTransformerEncoder(config)}
            if self.source.positions:
                tokenizer_class = MODALITIES["image"].tokenizer_class
                modalities: Any = config.modalities
                parts["tokenizers.image"] = tokenizer_class(modalities["image"], config.hidden_size)
        shapes = {
            f"{prefix}.{name}": tuple(value.shape)
            for prefix, part in parts.items()
            for name, value in part.state_dict().items()
        }
        if self.source.positions:
            shapes["cls_token"] = (1, 1, config.hidden_size)
        problems = [f"{name} is missing" for name in shapes if name not in tensors]
        problems += [
            f"{name} has shape {tuple(tensor.shape)}, not {shapes.get(name, 'in use')}"
            for name, tensor in tensors.items()
            if tuple(tensor.shape) != shapes.get(name)
        ]
        if problems:
            raise ValueError(
                f"The weights of {self.name} do not fit their own configuration, in our names: {'; '.join(problems)}. "
                "Take weights and configuration from the same checkpoint."
            )


def features(config: MetaTransformerConfig) -> dict[str, bool]:
    """Which of the parts a model has that some sources have and others lack."""
    modalities: Any = config.modalities
    image = modalities.get("image")
    return {
        "use_pre_layernorm": config.use_pre_layernorm,
        "use_final_layernorm": config.use_final_layernorm,
        "qkv_bias": config.qkv_bias,
        "layer_scale": config.layer_scale_init_value is not None,
        **({} if image is None else {"patch_bias": image.patch_bias}),
    }


def one_or_two(sizes: int | list[int] | tuple[int, ...]) -> int | list[int]:
    """Height and width as the image tokenizer stores them: one number if they are equal."""
    if isinstance(sizes, int):
        return sizes
    height, width = sizes
    return height if height == width else [height, width]


def whole_patches(
    image_size: int | list[int] | tuple[int, ...], patch_size: int | list[int] | tuple[int, ...]
) -> int | list[int]:
    """The part of an image that the sources see: they leave out what is less than a patch at its end."""
    sizes, patches = ([each] * 2 if isinstance(each, int) else list(each) for each in (image_size, patch_size))
    return one_or_two([size // patch * patch for size, patch in zip(sizes, patches, strict=True)])
