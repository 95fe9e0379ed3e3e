"""Training on raw samples."""

from importlib import import_module
from typing import Any

from ..heads.class_weights import balanced_class_weights
from .collator import DataCollatorForMetaTransformer
from .feature_cache import CachedFeatures, FeatureCache
from .head_model import HeadModel
from .layerwise import layerwise_learning_rates
from .masked_series import anomaly_scores, hide_steps
from .mixture import TaskMixture, TemperatureBatchSampler
from .resuming import last_checkpoint, resume
from .token_budget import TokenBudgetBatchSampler, count_tokens

__all__ = [
    "CachedFeatures",
    "DataCollatorForMetaTransformer",
    "FeatureCache",
    "HeadModel",
    "TaskMixture",
    "TemperatureBatchSampler",
    "TokenBudgetBatchSampler",
    "anomaly_scores",
    "balanced_class_weights",
    "count_tokens",
    "hide_steps",
    "last_checkpoint",
    "layerwise_learning_rates",
    "resume",
]

_TRAINERS = {"MixtureTrainer": "mixture_trainer", "TokenBudgetTrainer": "token_budget_trainer"}


def __getattr__(name: str) -> Any:
    """The trainers, on demand: plain loops need not wait for the import of transformers' `Trainer`."""
    if name not in _TRAINERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_TRAINERS[name]}", __name__), name)
