"""Several heads on one trunk, each with a name, a loss of its own and its share in the sum.

Arrives: encoded tokens of all modalities of a sample, or of those that a task reads, each choice encoded once for all
tasks that share it. Leaves: the output of each head by the name of its task, and the weighted sum of their losses.

A task is left out of a batch that lacks what its head reads, so batches may alternate between data sets.
"""

import copy
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput

from ..sequence import TokenSequence
from .base import HeadConfig, TaskHead
from .metrics import TaskMetrics

__all__ = ["MultiTaskHead", "MultiTaskHeadConfig", "MultiTaskOutput", "TaskConfig"]


def _registered(head: str) -> Any:
    from ..registry import HEADS  # the registry imports this module

    return HEADS[head]


@strict
@dataclass(kw_only=True)
class TaskConfig:
    """One of the tasks.

    Attributes:
        head: Which head solves it, by its registered name.
        options: The head's, as a dict or as its configuration.
        num_labels: How many classes it has, where they have no names.
        id2label: Names of its classes.
        problem_type: As of transformers' configurations, `"multi_label_classification"` for example.
        loss_weight: Of its loss in the sum.
        modalities: Which it reads; by default all that are present.
    """

    head: str
    options: Any = None
    num_labels: int | None = None
    id2label: dict[Any, str] | None = None
    problem_type: str | None = None
    loss_weight: float | int = 1.0
    modalities: list[str] | None = None

    def __post_init__(self) -> None:
        config_class = _registered(self.head).config_class
        if not isinstance(self.options, config_class):
            self.options = config_class(**(self.options or {}))
        if self.id2label is None and self.num_labels is not None:
            self.id2label = {number: f"LABEL_{number}" for number in range(self.num_labels)}
        if self.id2label is not None:
            self.id2label = {int(number): name for number, name in self.id2label.items()}  # JSON's keys are strings

    def validate_numbers(self) -> None:
        if self.num_labels is not None and self.num_labels != len(self.id2label or ()):
            raise ValueError(f"num_labels is {self.num_labels}, but id2label names {len(self.id2label or ())}.")
        if self.loss_weight < 0:
            raise ValueError(f"loss_weight must be at least 0, got {self.loss_weight}.")
        if self.modalities is not None and not self.modalities:
            raise ValueError("modalities must name one or more, or be None for all that are present, got [].")

    def model_config(self, shared: PreTrainedConfig) -> PreTrainedConfig:
        """The model's configuration as the head of this task sees it."""
        own: Any = copy.copy(shared)
        own.problem_type = self.problem_type
        if self.id2label is not None:
            own.id2label = self.id2label
        return own


@strict
@dataclass(kw_only=True)
class MultiTaskHeadConfig(HeadConfig):
    """Options of the multi-task head.

    Attributes:
        tasks: `TaskConfig` or a dict of its fields, by the name of the task.
    """

    tasks: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tasks = {
            name: task if isinstance(task, TaskConfig) else TaskConfig(**task) for name, task in self.tasks.items()
        }

    def validate_tasks(self) -> None:
        if self.layers != "last":
            raise ValueError(f"layers are chosen by each task's options, got {self.layers!r} for all of them.")
        for name, task in self.tasks.items():
            if not name.isidentifier():
                raise ValueError(f"the name of a task must be an identifier such as 'defect', got {name!r}.")
            if task.head == "multi_task":
                raise ValueError(f"task {name!r} is multi_task itself; put its tasks beside the others.")


@dataclass
class MultiTaskOutput(ModelOutput):
    """Output of the multi-task head.

    Attributes:
        loss: The weighted sum over the tasks that have labels.
        outputs: That of each head by task, without its loss; of the tasks whose input was there.
        losses: That of each task, not weighted.
    """

    loss: Tensor | None = None
    outputs: dict[str, ModelOutput] | None = None
    losses: dict[str, Tensor] | None = None


class MultiTaskHead(TaskHead):
    """Named heads; see the module's description."""

    config_class: ClassVar[type[HeadConfig]] = MultiTaskHeadConfig
    joins_modalities: ClassVar[bool] = False

    config: MultiTaskHeadConfig

    def __init__(self, config: MultiTaskHeadConfig, model_config: PreTrainedConfig) -> None:
        super().__init__(config, model_config)
        if not config.tasks:
            raise ValueError(
                "a multi-task head needs tasks, got none; give heads={'multi_task': {'tasks': {'quality': {'head': "
                "'regression'}}}}."
            )
        self.tasks = nn.ModuleDict()
        for name, task in config.tasks.items():
            unknown = [each for each in task.modalities or () if each not in model_config.modalities]
            if unknown:
                raise ValueError(
                    f"task {name!r} reads {unknown}, for which the model has no tokenizer; it has "
                    f"{list(model_config.modalities)}."
                )
            head = _registered(task.head).head_class(task.options, task.model_config(model_config))
            if head.model_input_names:
                self.model_input_names = (*self.model_input_names, *head.model_input_names)
            self.tasks[name] = head
        self.left_out = model_config.keys_to_ignore_at_inference
        self.couples_samples = any(head.couples_samples for head in self._heads().values())

    def _heads(self) -> dict[str, TaskHead]:
        heads: Any = self.tasks
        return dict(heads.items())

    @property
    def reads_hidden_states(self) -> bool:
        return any(head.reads_hidden_states for head in self._heads().values())

    @property
    def needs_modalities(self) -> bool:
        tasks = self.config.tasks.values()
        return any(task.modalities for task in tasks) or any(head.needs_modalities for head in self._heads().values())

    def parts(self, sequence: TokenSequence) -> dict[str, TokenSequence]:
        """Those of each head, by the names of the task and of the head's part, `"pairs/image"` for example."""
        selected: dict[tuple[str, ...], TokenSequence] = {}  # so that tasks that read the same get one object
        found = {}
        for name, head in self._heads().items():
            wanted = tuple(self.config.tasks[name].modalities or sequence.modalities)
            if not set(wanted) <= set(sequence.modalities):
                continue
            own = selected.setdefault(wanted, sequence.select(wanted))
            if any(head.accepts(segment.layout) for segment in own.segments):
                found |= {f"{name}/{part}": each for part, each in head.parts(own).items()}
        return found

    def forward(
        self,
        sequence: dict[str, TokenSequence],
        labels: dict[str, Any] | None = None,
        num_items_in_batch: dict[str, Tensor | int] | None = None,
        **inputs: Tensor,
    ) -> MultiTaskOutput:
        """Predict for every task whose input is there.

        Args:
            sequence: As of `parts`, encoded.
            labels: Those of each task by name. A task without labels adds nothing to the loss.
            num_items_in_batch: By task, see `TaskHead.forward`; from `MixtureTrainer`. Plain `Trainer` counts no labels
                in a dict, and takes the mean over the parts of a batch: exact where each has as many of a task.
            inputs: Those that the heads take.

        Returns:
            See `MultiTaskOutput`.

        Raises:
            TypeError: Labels that are no dict.
            ValueError: Labels of a task that the model does not have or whose input is missing, some samples that lack
                what `modalities` of a task names, and what the heads raise.
        """
        parts: dict[str, dict[str, TokenSequence]] = {}
        for place, part in sequence.items():
            task, _, own = place.partition("/")
            parts.setdefault(task, {})[own] = part
        self._check(labels, parts)
        outputs, losses, total = {}, {}, None
        for name, own in parts.items():
            head = self._heads()[name]
            if self.config.tasks[name].modalities:
                for part in own.values():
                    head.refuse_missing(part, part.modalities)
            read = {place: head.read(part) for place, part in own.items()}
            label, count = (labels or {}).get(name), (num_items_in_batch or {}).get(name)
            options = {each: inputs[each] for each in head.model_input_names if each in inputs}
            output = head(read[""] if head.joins_modalities else read, label, count, **options)
            outputs[name] = type(output)(**{key: value for key, value in output.items() if key != "loss"})
            if output.loss is not None:
                losses[name] = output.loss.detach()
                loss = self.config.tasks[name].loss_weight * output.loss
                total = loss if total is None else total + loss
        return MultiTaskOutput(loss=total, outputs=outputs, losses=losses or None)

    def _check(self, labels: Any, present: Collection[str]) -> None:
        if labels is None:
            return
        if not isinstance(labels, dict):
            raise TypeError(
                f"labels must be a dict of those of each task of {list(self.tasks)}, got {type(labels).__name__}."
            )
        for name in labels:
            if name not in self.tasks:
                raise ValueError(f"labels are of an unknown task {name!r}; the model has {list(self.tasks)}.")
            if name not in present:
                raise ValueError(
                    f"labels are of task {name!r}, but the batch lacks what its head reads: modalities "
                    f"{self.config.tasks[name].modalities or 'with a layout that it accepts'}."
                )

    def label_collator(self) -> Callable[[list[Any]], Any]:
        return _TaskLabels({name: head.label_collator() for name, head in self._heads().items()})

    def metrics(self) -> TaskMetrics:
        """Those of each task, its name in front: `quality_mae`."""
        each = {name: head.metrics() for name, head in self._heads().items()}
        return TaskMetrics(_EachTask(each, self.left_out), lambda outputs, labels: (outputs, labels))

    def post_process(self, output: ModelOutput, **options: Any) -> list[dict[str, Any]]:
        """What each head makes of its output.

        Args:
            output: Of the model.
            options: Those of a task's head by the name of the task: `defect={"top_k": 1}`.

        Returns:
            For each sample a dict by task.
        """
        found = {
            name: self._heads()[name].post_process(each, **options.get(name, {}))
            for name, each in output["outputs"].items()
        }
        return [dict(zip(found, sample, strict=True)) for sample in zip(*found.values(), strict=True)]

    @classmethod
    def dummy_config(cls) -> HeadConfig:
        return MultiTaskHeadConfig(
            tasks={
                "kind": {"head": "classification", "num_labels": 2},
                "size": {"head": "regression", "options": {"layers": "all"}, "loss_weight": 0.5},
            }
        )

    def dummy_labels(self, sequence: Any) -> list[Any]:
        found = {}
        for place, part in self.parts(sequence).items():
            name = place.partition("/")[0]
            found.setdefault(name, self._heads()[name].dummy_labels(part))
        return [dict(zip(found, sample, strict=True)) for sample in zip(*found.values(), strict=True)]


@dataclass
class _TaskLabels:
    """From the labels of samples, each a dict by task, to those of a batch."""

    collators: dict[str, Callable[[list[Any]], Any]]

    def __call__(self, labels: list[dict[str, Any]]) -> dict[str, Any]:
        for label in labels:
            if not isinstance(label, dict) or label.keys() != labels[0].keys():
                raise ValueError(
                    f"the labels of a sample must be a dict by task, of the same tasks in the whole batch, got "
                    f"{label!r} beside {labels[0]!r}. Give -100 where a class is unknown, and keep samples without a "
                    "task's label in batches of their own."
                )
            if unknown := label.keys() - self.collators.keys():
                raise ValueError(
                    f"labels are of unknown tasks {sorted(unknown)}; the model has {list(self.collators)}."
                )
        return {name: self.collators[name]([label[name] for label in labels]) for name in labels[0]}


class _EachTask:
    """The metrics of several tasks, with the methods of a `MetricCollection`."""

    def __init__(self, tasks: dict[str, TaskMetrics], left_out: list[str]) -> None:
        self.tasks, self.left_out, self.seen = tasks, left_out, set()

    def __iter__(self) -> Iterator[str]:
        return iter([f"{task}_{name}" for task, metrics in self.tasks.items() for name in metrics.metrics])

    def update(self, outputs: dict[str, Any], labels: dict[str, Any]) -> None:
        for name in labels:
            values = tuple(value for key, value in outputs[name].items() if key not in self.left_out)
            metrics = self.tasks[name]
            metrics.metrics.update(*metrics.read(values[0] if len(values) == 1 else values, labels[name]))
            self.seen.add(name)

    def compute(self) -> dict[str, Any]:
        return {
            f"{task}_{name}": value
            for task, metrics in self.tasks.items()
            if task in self.seen
            for name, value in metrics.metrics.compute().items()
        }

    def reset(self) -> None:
        for name in self.seen:
            self.tasks[name].metrics.reset()
        self.seen = set()
