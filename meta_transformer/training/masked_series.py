"""Masked reconstruction of time series: what to train it on, and anomaly scores from it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..modeling import MetaTransformerForTask

__all__ = ["anomaly_scores", "hide_steps"]


def hide_steps(
    values: np.ndarray, share: float, *, run: int = 1, random: np.random.Generator | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Hide part of a series, so that a model can learn to rebuild it.

    Args:
        values: `(steps, channels)`, NaN where missing.
        share: Of the steps of each channel to hide, above 0 and below 1, on average.
        run: Steps in a row that are hidden together.
        random: Where the choice comes from.

    Returns:
        The series with NaN where it is hidden, for the processor; and labels, NaN everywhere else.

    Raises:
        ValueError: A share or run out of range, or another shape.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not 0 < share < 1 or run < 1:
        raise ValueError(
            "values must have shape (steps, channels), share lie between 0 and 1, and run be at least 1, got "
            f"{values.shape}, {share} and {run}."
        )
    random = random or np.random.default_rng()
    runs = random.random((-(-len(values) // run), values.shape[1])) < share
    hidden = runs.repeat(run, axis=0)[: len(values)]
    return np.where(hidden, np.nan, values), np.where(hidden, values, np.nan)


@torch.no_grad()
def anomaly_scores(
    model: MetaTransformerForTask,
    past_values: Tensor,
    past_observed_mask: Tensor | None = None,
    *,
    folds: int = 4,
    run: int = 1,
    **inputs: Tensor,
) -> Tensor:
    """How far each step is from what the others say: the error of its reconstruction while it is hidden.

    Each step is hidden once, a `folds`-th of them at a time.

    Args:
        model: A `MetaTransformerForForecasting` with the objective `"reconstruction"`, in evaluation mode.
        past_values: `(batch, steps, channels)`, as the processor makes them.
        past_observed_mask: Of the same shape.
        folds: Passes through the model.
        run: Steps in a row that are hidden together; longer than an anomaly, or its own steps explain it.
        inputs: What else the processor made.

    Returns:
        `(batch, steps)`, squared errors in units of each channel's variance, the mean over channels; NaN where nothing
        was observed.

    Raises:
        ValueError: A model that does not reconstruct, or fewer than 2 folds or 1 step.
    """
    objective = getattr(model.head.config, "objective", None)
    if objective != "reconstruction" or folds < 2 or run < 1:
        raise ValueError(
            "anomaly_scores needs a head with objective 'reconstruction', 2 folds or more, and runs of 1 step or more, "
            f"got {objective!r}, {folds} and {run}."
        )
    observed = torch.ones_like(past_values, dtype=torch.bool) if past_observed_mask is None else past_observed_mask
    fold = torch.arange(past_values.shape[1], device=past_values.device) // run % folds
    errors = torch.full_like(past_values, torch.nan)
    for number in range(folds):
        hidden = (fold == number)[:, None] & observed
        output: Any = model(past_values=past_values, past_observed_mask=observed & ~hidden, **inputs)
        errors = torch.where(hidden, (output.logits - past_values) ** 2, errors)
    seen = past_values.masked_fill(~observed, torch.nan)
    variance = (seen - seen.nanmean(dim=1, keepdim=True)).square().nanmean(dim=1, keepdim=True)
    return (errors / variance.clamp(min=torch.finfo(errors.dtype).tiny)).nanmean(dim=2)
