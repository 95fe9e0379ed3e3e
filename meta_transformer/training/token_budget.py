"""Batches by tokens: as many samples as fit a budget, rather than a fixed number of samples."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers.utils import logging

from ..modeling import MetaTransformerModel
from ..registry import HEADS

__all__ = ["TokenBudgetBatchSampler", "count_tokens"]


class TokenBudgetBatchSampler(Sampler[list[int]]):
    """Batches of indices, each as many samples as fit `max_tokens`; for `DataLoader(batch_sampler=...)`.

    Shuffled samples are sorted by length within pools of `bucket_size`, as transformers' group-by-length does, so that
    a batch holds similar lengths: it pads little, and its attention costs about the same for every sample. The batches
    are shuffled then. Every epoch has the same number of batches, because `Trainer` and schedules of the learning rate
    count the steps of an epoch once; a few batches are halved for that. Without shuffling, batches are
    runs of samples in the data set's order, so that predictions stay in it.

    Call `set_epoch` before each epoch of a plain loop, or all are alike; `Trainer` and accelerate do it themselves.
    accelerate shares whole batches among processes, and where they do not go round repeats the first ones.

    Args:
        lengths: Tokens of each sample, such as `count_tokens` gives.
        max_tokens: Of a batch.
        max_samples: Of a batch; no limit by default.
        shuffle: Whether samples come in an order of their own in every epoch.
        bucket_size: Samples that are sorted together. More pad less, fewer mix better; 1 does not sort.
        seed: Together with the epoch it fixes the order.
        drop_last: Whether accelerate leaves out the last batches where they do not suffice for all processes. For one
            process nothing is left out: no batch is less complete than others.
        padded: Whether a batch costs its longest sample times their number, as padded execution does, and not the sum
            of lengths, as packed execution does.

    Raises:
        TypeError: Lengths or limits that are no integers.
        ValueError: No length, one below 1 or beyond the budget, or another number out of range.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray | Tensor,
        max_tokens: int,
        *,
        max_samples: int | None = None,
        shuffle: bool = True,
        bucket_size: int = 1024,
        seed: int = 0,
        drop_last: bool = False,
        padded: bool = False,
    ) -> None:
        limits = {"max_tokens": (max_tokens, 1), "bucket_size": (bucket_size, 1), "seed": (seed, 0)}
        if max_samples is not None:
            limits["max_samples"] = (max_samples, 1)
        for name, (value, least) in limits.items():
            if not isinstance(value, int | np.integer) or isinstance(value, bool):
                raise TypeError(f"{name} must be an integer, got {value!r}.")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}.")
        self.lengths = _checked(lengths, max_tokens)
        self.max_tokens = max_tokens
        self.max_samples = max_samples
        self.shuffle = shuffle
        self.bucket_size = bucket_size
        self.seed = seed
        self.drop_last = drop_last
        self.padded = padded
        self.epoch = 0
        # The most of a few draws, so that few others have to be drawn again; see __iter__.
        self._count = max(len(self._draw(epoch)) for epoch in range(4 if shuffle else 1))

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the iterations that begin from now on."""
        self.epoch = epoch

    @property
    def sampler(self) -> "TokenBudgetBatchSampler":
        """Itself: accelerate looks here for `set_epoch` when it shares the batches among processes."""
        return self

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        draws = (self._draw(self.epoch, attempt) for attempt in itertools.count())
        batches = next(batches for batches in draws if len(batches) <= self._count)
        while len(batches) < self._count:
            place = max(range(len(batches)), key=lambda index: len(batches[index]))
            half = len(batches[place]) // 2
            batches[place : place + 1] = [batches[place][:half], batches[place][half:]]
        for batch in batches:
            yield batch.tolist()

    def _draw(self, epoch: int, attempt: int = 0) -> list[np.ndarray]:
        order = np.arange(len(self.lengths))
        if not self.shuffle:
            return self._fill(order)
        random = np.random.default_rng((self.seed, epoch, attempt))
        random.shuffle(order)
        pool = np.arange(len(order)) // self.bucket_size
        # Up and down by turns: a batch across the border of two pools holds similar lengths too.
        rank = np.where(pool % 2, -1, 1) * self.lengths[order]
        batches = self._fill(order[np.lexsort((rank, pool))])
        return [batches[index] for index in random.permutation(len(batches))]

    def _fill(self, order: np.ndarray) -> list[np.ndarray]:
        """Cut an order into batches, each as long as the limits let it."""
        lengths = self.lengths[order]
        total = np.cumsum(lengths)
        start, batches = 0, []
        while start < len(order):
            if self.padded:
                window = lengths[start : start + self.max_tokens // lengths[start]]
                cost = np.maximum.accumulate(window) * np.arange(1, len(window) + 1)
                end = start + np.searchsorted(cost, self.max_tokens, side="right")
            else:
                end = np.searchsorted(total, total[start] - lengths[start] + self.max_tokens, side="right")
            if self.max_samples is not None:
                end = min(end, start + self.max_samples)
            batches.append(order[start:end])
            start = end
        return batches


def count_tokens(
    model: nn.Module,
    dataset: Any,
    collator: Callable[[list[Any]], dict[str, Any]],
    *,
    batch_size: int = 32,
    progress: bool = True,
) -> np.ndarray:
    """Count the tokens that each sample of a data set becomes, by the model's tokenizers and without its trunk.

    Tokens that a head adds of its own, such as detection tokens, do not count.

    Args:
        model: Any of this package, wrapped or not; its training mode stays as it is.
        dataset: With a length, and samples that the collator takes.
        collator: As for training.
        batch_size: Samples to tokenize together.
        progress: Whether to show a progress bar.

    Returns:
        `(samples,)` integers, the class token included, in the data set's order.

    Raises:
        TypeError: The model has no tokenizers of this package.
    """
    base = next((module for module in model.modules() if isinstance(module, MetaTransformerModel)), None)
    if base is None:
        raise TypeError(f"count_tokens needs a model of meta_transformer, got {type(model).__name__}.")
    others = {"labels", *(name for head in HEADS for name in head.model_input_names)}
    loader: Any = DataLoader(dataset, batch_size, collate_fn=collator)
    modes = [(module, module.training) for module in base.modules()]
    base.eval()
    counts = []
    try:
        for batch in logging.tqdm(loader, desc="Counting tokens", disable=not progress):
            inputs = {
                name: value.to(base.device) if isinstance(value, Tensor) else value
                for name, value in batch.items()
                if name not in others
            }
            with torch.no_grad():
                sequence = base.tokenize(**inputs)
            samples, tokens, _ = sequence.embeddings.shape
            mask = sequence.mask
            counts.append(np.full(samples, tokens) if mask is None else mask.bool().sum(dim=1).cpu().numpy())
    finally:
        for module, mode in modes:
            module.training = mode
    return np.concatenate(counts)


def _checked(lengths: Sequence[int] | np.ndarray | Tensor, max_tokens: int) -> np.ndarray:
    values = np.asarray(lengths)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"lengths must hold one number for each sample, got an array of shape {values.shape}.")
    if not np.issubdtype(values.dtype, np.integer):
        raise TypeError(f"lengths must be integers, as count_tokens gives them, got {values.dtype}.")
    if values.min() < 1:
        index = int(values.argmin())
        raise ValueError(f"Sample {index} has {values[index]} tokens, less than 1; leave out empty samples.")
    if values.max() > max_tokens:
        index, beyond = int(values.argmax()), int((values > max_tokens).sum())
        raise ValueError(
            f"Sample {index} has {values[index]} tokens, more than max_tokens={max_tokens}, and so have {beyond} of "
            f"{len(values)}. Raise max_tokens to {values[index]}, or shorten these samples or leave them out."
        )
    return values.astype(np.int64)
