"""Training on raw samples."""

from .collator import DataCollatorForMetaTransformer
from .masked_series import anomaly_scores, hide_steps

__all__ = ["DataCollatorForMetaTransformer", "anomaly_scores", "hide_steps"]
