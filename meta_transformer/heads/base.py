"""What every head is: a module from encoded tokens to a prediction and a loss, with a configuration of its own."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput

from ..sequence import TokenSequence

__all__ = ["HeadConfig", "TaskHead", "count_labels"]


def count_labels(model_config: PreTrainedConfig) -> int:
    """The number of classes, or of numbers, that a head predicts; transformers makes it 2 where nothing says it."""
    return len(model_config.id2label or ())


@strict
@dataclass(kw_only=True)
class HeadConfig:
    """Base of the heads' configurations: a `@strict` dataclass with defaults for every field, stored as JSON."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        return asdict(self)


class TaskHead(nn.Module):
    """Base of the heads.

    A subclass sets `config_class`, builds its modules and defines `forward`.

    Args:
        config: The head's own settings.
        model_config: Settings that heads share: `hidden_size`, `num_labels`, `problem_type`.
    """

    config_class: ClassVar[type[HeadConfig]] = HeadConfig

    def __init__(self, config: HeadConfig, model_config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self, sequence: TokenSequence, labels: Tensor | None = None, num_items_in_batch: Tensor | int | None = None
    ) -> ModelOutput:
        """Predict, and compare with labels where there are any.

        Args:
            sequence: Encoded tokens `(batch, tokens, hidden)`, the class token first.
            labels: The task's labels.
            num_items_in_batch: Number of labels in the whole batch of which this is a part, when gradients are
                accumulated: the loss is then the sum over this part divided by that number.

        Returns:
            An output with `loss` first, `None` without labels.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no forward.")

    def init_parameters(self, std: float) -> None:
        """Initialise bare parameters and buffers; see `ModalityTokenizer.init_parameters`."""

    @classmethod
    def dummy_labels(cls, batch_size: int, model_config: PreTrainedConfig) -> Tensor:
        """Labels that the head accepts for a batch of this size, for tests and dry runs."""
        raise NotImplementedError(f"{cls.__name__} defines no dummy_labels.")
