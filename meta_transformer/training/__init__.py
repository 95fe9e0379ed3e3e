"""Training on raw samples."""

from typing import Any

from .collator import DataCollatorForMetaTransformer
from .masked_series import anomaly_scores, hide_steps
from .token_budget import TokenBudgetBatchSampler, count_tokens

__all__ = ["DataCollatorForMetaTransformer", "TokenBudgetBatchSampler", "anomaly_scores", "count_tokens", "hide_steps"]


def __getattr__(name: str) -> Any:
    """`TokenBudgetTrainer`, on demand: plain loops need not wait for the import of transformers' `Trainer`."""
    if name != "TokenBudgetTrainer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .token_budget_trainer import TokenBudgetTrainer

    return TokenBudgetTrainer
