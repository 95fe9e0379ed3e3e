"""`Trainer` for several tasks at once: batches by temperature, losses and metrics of each task."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from ..heads.base import IGNORED
from .loaders import with_batches
from .mixture import TaskMixture, TemperatureBatchSampler, tasks_of

__all__ = ["MixtureTrainer"]


class MixtureTrainer(Trainer):
    """Trains a `MetaTransformerForMultiTask` on a `TaskMixture`.

    Training takes its batches from `batch_sampler`. With gradient accumulation the loss of a step is the sum over tasks
    of `loss_weight`, times the share of the task among the step's batches, times the mean over all its labels in them.
    The log has the mean over each task's labels since the last one, `loss_<task>`, beside `loss`.

    `evaluate` and `predict` take a `TaskMixture` task by task. Their metrics are those of each task, `eval_<task>_...`,
    its loss among them, and `eval_loss`, the sum weighted by `loss_weight`; predictions and labels are dicts by task.

    Args:
        args: As of `Trainer`; `TrainingArguments` need `remove_unused_columns=False`.
        batch_sampler: Of the training batches; by default a `TemperatureBatchSampler` of temperature 1, with batch size
            and seed of the arguments. Its `set_epoch`, if there is one, is called in front of every epoch.
        kwargs: As of `Trainer`. `compute_metrics=model.metrics()` gives the metrics of all tasks.

    Raises:
        TypeError: A model of one task, or, when training starts, data that are no `TaskMixture`.
        ValueError: Data of a task that the model does not have, or `remove_unused_columns`.
    """

    def __init__(self, *args: Any, batch_sampler: Sampler[list[int]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        model: Any = self.model
        self.tasks = tasks_of(model)
        self._batch_sampler = batch_sampler
        self._running = torch.zeros(len(self.tasks), 2)  # sum of losses and number of labels since the last log
        if self.args.remove_unused_columns:
            raise ValueError("set remove_unused_columns=False in the arguments: columns are modalities here.")
        for mixture in (self.train_dataset, self.eval_dataset):
            if isinstance(mixture, TaskMixture):
                mixture.check(model)

    def get_train_dataloader(self) -> DataLoader:
        args, mixture = self.args, self.train_dataset
        if not isinstance(mixture, TaskMixture):
            raise TypeError(f"training needs train_dataset, a TaskMixture, got {type(mixture).__name__}.")
        if self._batch_sampler is None:
            self._batch_sampler = TemperatureBatchSampler(
                mixture,
                self._train_batch_size,
                drop_last=args.dataloader_drop_last,
                seed=args.seed if args.data_seed is None else args.data_seed,
            )
        return with_batches(self, super().get_train_dataloader(), self._batch_sampler)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Any:
        """By task, the number by which the sum of its losses is divided; `None` if labels cannot be counted."""
        count: Any = super()._get_num_items_in_batch  # of labels that are not -100, over all processes
        if not all(isinstance(batch.get("labels"), dict) for batch in batch_samples):
            return None
        batches = count([{"labels": torch.zeros(len(batch_samples))}], device)
        divisors = {}
        for task in self.tasks:
            own = [batch["labels"][task] for batch in batch_samples if task in batch["labels"]]
            # Also if there is none: other processes may have some, and wait for this one's count.
            labels = count([{"labels": each} for each in own or [torch.tensor([IGNORED])]], device)
            own_batches = count([{"labels": torch.zeros(len(own))}], device)
            if labels is None or own_batches is None:
                return None
            divisors[task] = labels.clamp(min=1) * batches / own_batches
        return divisors

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            self._running = self._running.to(loss.device)
            for row, task in enumerate(self.tasks):
                if task in (outputs["losses"] or {}):
                    divisor, number = 1, 1
                    if num_items_in_batch is not None:
                        divisor, number = num_items_in_batch[task], (inputs["labels"][task] != IGNORED).sum()
                    self._running[row, 0] += outputs["losses"][task] * divisor
                    self._running[row, 1] += number
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            running: Tensor = self.accelerator.reduce(self._running, "sum")
            for task, (total, number) in zip(self.tasks, running.tolist(), strict=True):
                if number:
                    logs[f"loss_{task}"] = total / number
            self._running = torch.zeros_like(self._running)
        super().log(logs, start_time)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        options = (description, prediction_loss_only, ignore_keys, metric_key_prefix)
        mixture = dataloader.dataset
        if not isinstance(mixture, TaskMixture):
            return super().evaluation_loop(dataloader, *options)
        predictions, labels, metrics, total = {}, {}, {}, 0.0
        for task in mixture.ranges:
            found: Any = super().evaluation_loop(self.get_test_dataloader(mixture.part(task)), *options)
            loss, weight = found.metrics.pop(f"{metric_key_prefix}_loss"), self.tasks[task].loss_weight
            total += loss
            metrics |= found.metrics | {f"{metric_key_prefix}_{task}_loss": loss / weight if weight else 0.0}
            if found.predictions is not None:
                predictions[task], labels[task] = found.predictions[task], found.label_ids[task]
        metrics[f"{metric_key_prefix}_loss"] = total
        by_task: Any = (predictions or None, labels or None)
        return EvalLoopOutput(*by_task, metrics, len(mixture))
