"""Going on where a run of `Trainer` was killed."""

import json
import os
import re
from pathlib import Path

from transformers.utils import logging

__all__ = ["last_checkpoint"]

logger = logging.get_logger(__name__)


def last_checkpoint(folder: str | os.PathLike) -> str | None:
    """The newest checkpoint of a run that was not being written when the run was killed.

    For `trainer.train(resume_from_checkpoint=last_checkpoint(folder))`. With `True` in its place, `Trainer` takes the
    newest folder, whatever is in it, and what is missing there starts anew.

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
