"""Going on where a run of `Trainer` was killed."""

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

if TYPE_CHECKING:
    from transformers import Trainer

__all__ = ["last_checkpoint", "resume"]

logger = logging.get_logger(__name__)

_ROUNDING = 1e-6  # of the share of an epoch


def resume(trainer: "Trainer", checkpoint: str | os.PathLike | None = None) -> dict[str, float]:
    """Train, from the last whole checkpoint if there is one, to the end that a run without a stop has.

    A run may be killed when it has learned all, before its results are written. From there `trainer.train` goes on
    learning: a step, where the run ends within an epoch; an epoch, where `EarlyStoppingCallback` had ended it. Here the
    model gets the weights of its end. Under FSDP and DeepSpeed, which load their own shards, it is `trainer.train`.

    Args:
        trainer: With its model, data and callbacks.
        checkpoint: To go on from; by default `last_checkpoint` of its `output_dir`.

    Returns:
        The metrics of `trainer.train`; none if there was nothing left to learn.

    Raises:
        ValueError: The checkpoint that was given is none, or was being written when a run was killed.
    """
    if checkpoint is not None and (missing := _missing(Path(checkpoint))):
        raise ValueError(f"{checkpoint} lacks {missing}; give a whole checkpoint, or none for the last whole one.")
    checkpoint = checkpoint or last_checkpoint(str(trainer.args.output_dir))
    sharded = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    state = None if checkpoint is None or sharded else _end(trainer, Path(checkpoint))
    if state is None:
        return trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint)).metrics
    trainer.state = state
    trainer._load_from_checkpoint(str(_best(trainer, Path(str(checkpoint)))))
    return {}


def _best(trainer: "Trainer", checkpoint: Path) -> Path:
    """The checkpoint that the run ends with, also if its folder was moved."""
    if not (trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint):
        return checkpoint
    best = Path(trainer.state.best_model_checkpoint)
    for place in (best, checkpoint.parent / best.name):
        if place.is_dir():
            return place
    logger.warning(f"The best checkpoint, {best}, is not there any more; the model gets the weights of {checkpoint}.")
    return checkpoint


def _end(trainer: "Trainer", checkpoint: Path) -> Any:
    """The state of a run that had learned all by this checkpoint, as the trainer is set now; else `None`."""
    from transformers import EarlyStoppingCallback, TrainerState

    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    waited: Any = state.stateful_callbacks.get("EarlyStoppingCallback", {})
    waited = waited[0] if isinstance(waited, list) else waited
    count = waited.get("attributes", {}).get("early_stopping_patience_counter", 0)
    patience = [
        each.early_stopping_patience
        for each in trainer.callback_handler.callbacks
        if isinstance(each, EarlyStoppingCallback)
    ]
    early = any(count >= each for each in patience)
    steps, epochs = trainer.args.max_steps, trainer.args.num_train_epochs
    all_of_it = state.global_step >= steps if steps > 0 else (state.epoch or 0) >= epochs - _ROUNDING
    return state if early or all_of_it else None


def last_checkpoint(folder: str | os.PathLike) -> str | None:
    """The newest checkpoint of a run that was not being written when the run was killed.

    `resume` goes on from it. With `trainer.train(resume_from_checkpoint=True)`, `Trainer` takes the newest folder,
    whatever is in it, and what is missing there starts anew.

    Args:
        folder: `output_dir` of the run.

    Returns:
        The checkpoint's folder, or `None` if there is no whole one: then training starts from the beginning. A warning
        names the checkpoints that are left out.
    """
    found = {int(path.name.partition("-")[2]): path for path in Path(folder).glob("checkpoint-*") if _is_named(path)}
    broken = []
    for step, path in sorted(found.items(), reverse=True):
        if missing := _missing(path):
            broken.append(f"{path.name} lacks {missing}")
            continue
        if broken:
            logger.warning(f"Killed while it was saved: {'; '.join(broken)}. Training goes on from step {step}.")
        return str(path)
    if broken:
        logger.warning(f"Killed while it was saved: {'; '.join(broken)}. Training starts from the beginning.")
    return None


def _is_named(path: Path) -> bool:
    return path.is_dir() and re.fullmatch(r"checkpoint-\d+", path.name) is not None


def _missing(path: Path) -> str | None:
    """A file that a checkpoint lacks; `Trainer` writes its own state after all else."""
    state = path / "trainer_state.json"
    try:
        json.loads(state.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return state.name
    # Only each process's own source of randomness may come later.
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and (path / "optimizer.pt").exists():
        names = (f"rng_state_{rank}.pth" for rank in range(processes))
        return next((name for name in names if not (path / name).exists()), None)
    return None
