"""transformers' `Trainer` with batches by tokens."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer

from .loaders import with_batches
from .token_budget import TokenBudgetBatchSampler, count_tokens

__all__ = ["TokenBudgetTrainer"]


class TokenBudgetTrainer(Trainer):
    """`Trainer` whose batches hold as many samples as fit `max_tokens`; it ignores `per_device_train_batch_size`.

    Evaluation and prediction take runs of samples in the data set's order by the same budget. On several processes
    they take `per_device_eval_batch_size` samples: accelerate gathers predictions from batches of one size alone.

    The tokens of a data set are, in this order: `lengths`, of the training data; its column
    `args.length_column_name`; or what `count_tokens` finds, once for each data set.

    Args:
        args: As of `Trainer`.
        max_tokens: Of a batch of one process.
        lengths: Tokens of each sample of `train_dataset`.
        sampler_kwargs: Further arguments of `TokenBudgetBatchSampler`, such as `{"padded": True}`.
        kwargs: As of `Trainer`.

    Raises:
        TypeError: A data set has no length.
        ValueError: `lengths` are not as many as samples, or accelerate is to split or dispatch batches.
    """

    def __init__(
        self,
        *args: Any,
        max_tokens: int,
        lengths: Sequence[int] | np.ndarray | Tensor | None = None,
        sampler_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        for option in ("split_batches", "dispatch_batches"):
            if getattr(self.args.accelerator_config, option):
                raise ValueError(
                    f"Batches by tokens differ in size, so accelerate cannot cut them; set accelerator_config="
                    f"{{{option!r}: False}} in TrainingArguments."
                )
        self.max_tokens = max_tokens
        self.sampler_kwargs = sampler_kwargs or {}
        # By identity, with the data set itself, so that no other can get its identity.
        self._lengths: dict[int, tuple[Any, Any]] = {}
        if lengths is not None:
            self._lengths[id(self.train_dataset)] = (self.train_dataset, lengths)
        self._batch_sizes: Iterator[int] = iter(())

    def get_train_dataloader(self) -> DataLoader:
        loader = super().get_train_dataloader()
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        shuffle = self.args.train_sampling_strategy != "sequential"
        options = {"shuffle": shuffle, "seed": seed, "drop_last": self.args.dataloader_drop_last}
        return self._by_tokens(loader, self.train_dataset, **{**options, **self.sampler_kwargs})

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        loader = super().get_eval_dataloader(eval_dataset)
        own: Any = self.eval_dataset
        dataset = own if eval_dataset is None else own[eval_dataset] if isinstance(eval_dataset, str) else eval_dataset
        return self._in_order(loader, dataset)

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        loader = super().get_test_dataloader(test_dataset)
        return self._in_order(loader, test_dataset)

    def _in_order(self, loader: DataLoader, dataset: Any) -> DataLoader:
        if self.args.world_size > 1:
            return loader
        return self._by_tokens(loader, dataset, **{**self.sampler_kwargs, "shuffle": False})

    def _by_tokens(self, loader: DataLoader, dataset: Any, **options: Any) -> DataLoader:
        """The loader that `Trainer` made for a data set, with other batches."""
        sampler = TokenBudgetBatchSampler(self._token_lengths(dataset, loader), self.max_tokens, **options)
        return with_batches(self, loader, sampler)

    def _token_lengths(self, dataset: Any, loader: DataLoader) -> Any:
        if not hasattr(dataset, "__len__"):
            raise TypeError(
                f"Batches by tokens need a data set with a length, got {type(dataset).__name__}; use Trainer for it."
            )
        if id(dataset) not in self._lengths:
            column = self.args.length_column_name
            known = column in (getattr(dataset, "column_names", None) or ())
            lengths = dataset[column][:] if known else self._count(loader)
            self._lengths[id(dataset)] = (dataset, lengths)
        lengths = self._lengths[id(dataset)][1]
        if len(lengths) != len(dataset):
            raise ValueError(f"lengths has {len(lengths)} entries for {len(dataset)} samples; give one for each.")
        return lengths

    def _count(self, loader: Any) -> np.ndarray:
        model: Any = self.model
        batch_size, progress = self.args.per_device_eval_batch_size, not self.args.disable_tqdm
        # The loader's, without the columns that Trainer removes.
        return count_tokens(model, loader.dataset, loader.collate_fn, batch_size=batch_size, progress=progress)

    def evaluation_loop(self, dataloader: DataLoader, *args: Any, **kwargs: Any) -> Any:
        sampler = dataloader.batch_sampler
        self._batch_sizes = map(len, sampler) if isinstance(sampler, TokenBudgetBatchSampler) else iter(())
        return super().evaluation_loop(dataloader, *args, **kwargs)

    def prediction_step(self, *args: Any, **kwargs: Any) -> tuple[Any, Any, Any]:
        loss, logits, labels = super().prediction_step(*args, **kwargs)
        size = next(self._batch_sizes, None)
        # Trainer takes all batches for equally large; as often as it has samples, each counts by its size.
        return (loss if loss is None or size is None else loss.expand(size)), logits, labels
