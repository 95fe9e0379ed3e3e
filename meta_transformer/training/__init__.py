"""Training on raw samples."""

from .collator import DataCollatorForMetaTransformer

__all__ = ["DataCollatorForMetaTransformer"]
