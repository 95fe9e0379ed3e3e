"""Saving and sharing of models: safetensors, processor and model card together."""

__all__ = ["SharingMixin"]


class SharingMixin:
    """`save_pretrained` and `push_to_hub` of all models."""
