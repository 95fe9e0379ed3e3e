"""What every head is: a module from encoded tokens to a prediction and a loss, with a configuration of its own."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput

from ..sequence import Layout, Segment, TokenSequence
from .layers import LayerMixture
from .metrics import TaskMetrics

__all__ = ["IGNORED", "HeadConfig", "TaskHead", "count_labels", "stack_labels"]

IGNORED = -100  # labels of this value do not count, as in torch and transformers


def count_labels(model_config: PreTrainedConfig) -> int:
    """The number of classes, or of numbers, that a head predicts; transformers makes it 2 where nothing says it."""
    return len(model_config.id2label or ())


def stack_labels(labels: list[Any]) -> Tensor:
    """One tensor from labels of the same shape, one for each sample."""
    kinds = {type(label) for label in labels}
    if len(kinds) == 1 and kinds <= {bool, int, float}:
        return torch.tensor(labels)  # a tensor for each number would take most of a step from cached features
    return torch.stack([torch.as_tensor(label) for label in labels])


@strict
@dataclass(kw_only=True)
class HeadConfig:
    """Base of the heads' configurations: a `@strict` dataclass with defaults for every field, stored as JSON.

    Attributes:
        layers: What the head reads: `"last"`, what leaves the trunk, with its final norm; or a learned mixture of
            layers without it, `"all"`, or those of these numbers, 0 for what enters the first block, -1 for what leaves
            the last. One number is that layer alone.
        modalities: Whose tokens it reads, behind the class token; `None` for all. The trunk encodes all of them, so the
            tokens read know of the others.
    """

    layers: str | list[int] = "last"
    modalities: list[str] | None = None

    def validate_modalities(self) -> None:
        if self.modalities is not None and not self.modalities:
            raise ValueError("modalities must name one or more, or be None for all that are present, got [].")

    def validate_layers(self) -> None:
        """Refuse what names no layer; whether the trunk has it is seen when the head is built."""
        if self.layers not in ("last", "all") and (isinstance(self.layers, str) or not self.layers):
            raise ValueError(f"layers must be 'last', 'all' or a list of numbers, got {self.layers!r}.")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        return asdict(self)


class TaskHead(nn.Module):
    """Base of the heads.

    A subclass sets `config_class`, builds its modules and defines `forward`. Heads whose predictions belong to places
    in the raw sample set `layouts`; those whose labels are not of one shape, `label_collator`.

    Args:
        config: The head's own settings.
        model_config: Settings that heads share: `hidden_size`, `num_labels`, `problem_type`.
    """

    config_class: ClassVar[type[HeadConfig]] = HeadConfig

    #: Layouts of which the head needs one; none if any sequence will do.
    layouts: ClassVar[tuple[type[Layout], ...]] = ()

    #: Tensors beside the modalities' own that `forward` takes by name.
    model_input_names: tuple[str, ...] = ()

    #: Whether a sample is one sequence; if not, `forward` gets those that `parts` makes of it by name.
    joins_modalities: ClassVar[bool] = True

    #: Whether `config.pooling` makes all that the head reads of a sequence: then the pooled features may be cached.
    pools: ClassVar[bool] = False

    #: Whether the loss compares the samples of a batch with each other; then smaller batches are another task.
    couples_samples: bool = False

    def __init__(self, config: HeadConfig, model_config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config
        self.layer_mixture = None
        if config.layers != "last":
            self.layer_mixture = LayerMixture(
                config.layers, model_config.num_hidden_layers, model_config.layer_norm_eps
            )

    def forward(
        self,
        sequence: Any,
        labels: Any = None,
        num_items_in_batch: Tensor | int | None = None,
        **inputs: Tensor,
    ) -> ModelOutput:
        """Predict, and compare with labels where there are any.

        Args:
            sequence: `TokenSequence` of encoded tokens `(batch, tokens, hidden)`, the class token first; what `layers`
                asks for. A dict of them by name, if `joins_modalities` is false.
            labels: The task's labels.
            num_items_in_batch: Number of labels in the whole batch of which this is a part, when gradients are
                accumulated: the loss is then the sum over this part divided by that number.
            inputs: Those of `model_input_names` that were given.

        Returns:
            An output with `loss` first, `None` without labels.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no forward.")

    @property
    def reads_hidden_states(self) -> bool:
        """Whether `sequence.hidden_states` must hold those of all layers."""
        return self.layer_mixture is not None

    @property
    def needs_modalities(self) -> bool:
        """Whether the head refuses samples that lack a modality."""
        return bool(self.layouts) or self.config.modalities is not None or not self.joins_modalities

    def parts(self, sequence: TokenSequence) -> dict[str, TokenSequence]:
        """What the trunk encodes, each part alone; parts that are one object are encoded once.

        Args:
            sequence: Tokens that are not encoded yet, of all modalities present.

        Returns:
            One part, its name empty; if `joins_modalities` is false, one for each modality by its name.
        """
        if self.joins_modalities:
            return {"": sequence}
        return {name: sequence.select([name]) for name in sequence.modalities}

    def read(self, sequence: TokenSequence) -> TokenSequence:
        """The tokens and layers that the options ask for; the model calls this in front of `forward`.

        Raises:
            ValueError: `modalities` names one that the batch, or some of its samples, do not have.
        """
        return self.mix_layers(self.read_layers(sequence))

    def read_layers(self, sequence: TokenSequence) -> list[TokenSequence]:
        """What `read` mixes: the tokens that the options ask for, of each layer that they ask for."""
        sequence = self._choose(sequence)
        if self.layer_mixture is None:
            return [sequence]
        return [sequence.replace_embeddings(state) for state in self.layer_mixture.normalise(sequence.hidden_states)]

    def mix_layers(self, layers: list[TokenSequence]) -> TokenSequence:
        """One sequence from those of `read_layers`."""
        if self.layer_mixture is None:
            return layers[0]
        return layers[0].replace_embeddings(self.layer_mixture.mix([layer.embeddings for layer in layers]))

    def _choose(self, sequence: TokenSequence) -> TokenSequence:
        if self.config.modalities is None:
            return sequence
        if absent := set(self.config.modalities) - set(sequence.modalities):
            raise ValueError(f"The head reads {sorted(absent)}, but the batch has {list(sequence.modalities)} alone.")
        self.refuse_missing(sequence, self.config.modalities)
        return sequence.select(self.config.modalities)

    @classmethod
    def accepts(cls, layout: Layout | None) -> bool:
        """Whether the head can predict for tokens of this layout."""
        return not cls.layouts or isinstance(layout, cls.layouts)

    def segment_of(self, sequence: TokenSequence) -> Segment:
        """The one segment whose layout the head accepts.

        Raises:
            ValueError: There is none, or there are several.
        """
        found = [segment for segment in sequence.segments if self.accepts(segment.layout)]
        if len(found) != 1:
            present = [f"{segment.modality} ({type(segment.layout).__name__})" for segment in sequence.segments]
            raise ValueError(
                f"{type(self).__name__} needs exactly one segment with a layout of "
                f"{[layout.__name__ for layout in self.layouts]}, got {present}."
            )
        own = replace(sequence, segments=(found[0],))  # without the learned tokens that stand for what is absent
        self.refuse_missing(own, [found[0].modality])
        return found[0]

    def refuse_missing(self, sequence: TokenSequence, modalities: Iterable[str]) -> None:
        """Raise `ValueError` if some samples lack a modality that the head reads."""
        for modality in modalities:
            if missing := sequence.missing(modality):
                raise ValueError(
                    f"{type(self).__name__} reads {modality!r}, which the samples {missing} of the batch do not have; "
                    "leave them out."
                )

    def label_collator(self) -> Callable[[list[Any]], Any]:
        """What makes the `labels` of a batch from those of its samples; it is pickled without the head's weights."""
        return stack_labels

    def metrics(self) -> "TaskMetrics":
        """The task's usual metrics, as `Trainer` takes them for `compute_metrics`."""
        raise NotImplementedError(f"{type(self).__name__} defines no metrics.")

    def post_process(self, output: ModelOutput, **options: Any) -> list[Any]:
        """From an output of the model to what users work with, one for each sample."""
        raise NotImplementedError(f"{type(self).__name__} defines no post_process.")

    def init_parameters(self, std: float) -> None:
        """Initialise bare parameters and buffers; see `ModalityTokenizer.init_parameters`."""

    @classmethod
    def dummy_config(cls) -> HeadConfig:
        """Options with which the head can be built, for tests and dry runs."""
        return cls.config_class()

    def dummy_labels(self, sequence: TokenSequence) -> list[Any]:
        """Labels that the head accepts for the samples of a sequence, one for each, for tests and dry runs."""
        raise NotImplementedError(f"{type(self).__name__} defines no dummy_labels.")
