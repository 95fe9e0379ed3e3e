"""Data loaders of `Trainer` whose batches come from a sampler of ours."""

from typing import Any

from torch.utils.data import DataLoader, Sampler
from transformers import Trainer

__all__ = ["with_batches"]

# What a data loader of Trainer keeps when its batches become others.
_KEPT = ("collate_fn", "num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context")
_KEPT += ("prefetch_factor", "persistent_workers", "in_order")


def with_batches(trainer: Trainer, loader: DataLoader, batch_sampler: Sampler[list[int]]) -> DataLoader:
    """The loader that `Trainer` made for a data set, with other batches, shared out among processes."""
    kept = {name: getattr(loader, name) for name in _KEPT}
    prepared: Any = trainer.accelerator.prepare(DataLoader(loader.dataset, batch_sampler=batch_sampler, **kept))
    if hasattr(batch_sampler, "set_epoch"):
        # Trainer looks one level below the loader's batch sampler for this. On several processes the sampler is two
        # levels below when a run is resumed within an epoch, and would stay at the order of epoch 0.
        prepared.batch_sampler.set_epoch = batch_sampler.set_epoch
    return prepared
