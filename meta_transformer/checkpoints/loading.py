"""Loading of models: our own checkpoints and foreign ones."""

from os import PathLike
from typing import Any

__all__ = ["LoadingMixin"]


class LoadingMixin:
    """`from_pretrained` of all models."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike | None, *args: Any, **kwargs: Any) -> Any:
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._apply_freezing()
        return loaded
