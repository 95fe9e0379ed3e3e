"""What every tokenizer is: a module from one modality's tensors to a `TokenSequence`, with its own configuration."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from ..sequence import TokenSequence

__all__ = ["ModalityTokenizer", "TokenizerConfig", "pair"]


def pair(value: int | list[int]) -> tuple[int, int]:
    """One number for both of two axes, or one for each."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


@strict
@dataclass(kw_only=True)
class TokenizerConfig:
    """Base of the tokenizers' configurations: a `@strict` dataclass with defaults for every field, stored as JSON."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        return asdict(self)

    def skip_widths(self, hidden_size: int) -> list[int]:
        """Channels of what a layout keeps beside the tokens for dense heads, from the raw sample on; none by default.

        Args:
            hidden_size: Width of the tokens.
        """
        return []


class ModalityTokenizer(nn.Module):
    """Base of the tokenizers.

    A subclass sets `config_class`, builds its modules from `config` and `hidden_size`, and defines `forward`, whose
    parameters are tensors with names that no other modality uses. Position information is added in `forward`.

    Args:
        config: The modality's own settings.
        hidden_size: Width of the encoder, and so of the tokens.
    """

    config_class: ClassVar[type[TokenizerConfig]] = TokenizerConfig

    # Inputs of `forward` that a model in half precision does not cast to its own type, such as coordinates.
    full_precision_inputs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: TokenizerConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.hidden_size = hidden_size

    def forward(self, *args: Any, **kwargs: Any) -> TokenSequence:
        raise NotImplementedError(f"{type(self).__name__} defines no forward.")

    @classmethod
    def inherit_image_weights(cls, weights: dict[str, Tensor], source: Any, target: Any) -> dict[str, Tensor]:
        """Weights that this tokenizer takes over from a pretrained model of images, where its patches are alike.

        Args:
            weights: Those of an `ImageTokenizer`: `projection.weight` `(hidden, channels, height, width)`,
                `projection.bias` if it has one, and `positions` `(1, rows * columns, hidden)`.
            source: The `ImageTokenizerConfig` that they belong to.
            target: This tokenizer's configuration.

        Returns:
            Some of this tokenizer's own weights by name; none, unless a subclass says otherwise.

        Raises:
            ValueError: They cannot be adapted to `target`.
        """
        return {}

    def apply_freezing(self) -> None:
        """Freeze the parameters that the configuration says are not trained; called after loading too."""

    def init_parameters(self, std: float) -> None:
        """Initialise the parameters and buffers that are this module's own, not those of modules inside it.

        The modules inside (linear, convolution, embedding, norm) are initialised by transformers. Bare parameters and
        buffers must be filled here, with the functions of `transformers.initialization`: those leave loaded weights
        alone, and `from_pretrained` builds models on the meta device, where whatever `__init__` wrote is lost.

        Args:
            std: The model's `initializer_range`.
        """
