"""Loading what `train` and others have saved: the model of a task, its processor, and how it was trained."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from .. import MetaTransformerModel, MetaTransformerProcessor
from ..modeling import MetaTransformerForTask
from .runs import RUN_FILE, quiet

__all__ = ["is_pack", "load_model", "load_task", "only_modality", "use_device"]


def load_task(name: str, encoder: str | None = None) -> tuple[Any, MetaTransformerProcessor, dict[str, Any]]:
    """A saved model of a task, or a task pack on its trunk.

    Args:
        name: Folder or repository of the model, or of the pack.
        encoder: Of a pack, the trunk that it belongs to; whatever `from_pretrained` takes.

    Returns:
        The model in evaluation mode, its processor, and the settings of its run, empty if it has none.

    Raises:
        ValueError: There is no model of a task.
    """
    if encoder is None:
        model = load_model(name)
        if not hasattr(model, "head_name"):
            raise ValueError(f"{name} holds a trunk without a task; name a model that was trained.")
    else:
        quiet()
        trunk: Any = MetaTransformerModel.from_pretrained(encoder, ignore_mismatched_sizes=True)
        model = trunk.load_task_pack(name)
    settings = Path(name) / RUN_FILE
    run = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    return use_device(model.eval()), MetaTransformerProcessor.from_pretrained(name), run


def load_model(name: str) -> Any:
    """A saved model of any class, the one that it was saved as.

    Args:
        name: Folder or repository.

    Raises:
        ValueError: It is no model of this package.
    """
    quiet()
    if is_pack(name):
        raise ValueError(f"{name} is a task pack; name its trunk by --encoder.")
    try:
        config = AutoConfig.from_pretrained(name)
    except OSError as error:
        raise ValueError(f"{name} is no folder with a model, and no repository that can be loaded: {error}") from error
    word = (config.architectures or [""])[0]
    classes: Any = [MetaTransformerModel, *MetaTransformerForTask.__subclasses__()]
    found = next((each for each in classes if each.__name__ == word), None)
    if found is None:
        raise ValueError(f"{name} holds {word or 'no model'}, not one of {[each.__name__ for each in classes]}.")
    return found.from_pretrained(name).eval()


def is_pack(name: str) -> bool:
    """Whether a folder holds a task pack."""
    return (Path(name) / "task_pack.json").is_file()


def use_device(model: Any) -> Any:
    """The model on a GPU if there is one."""
    import torch

    return model.to("cuda") if torch.cuda.is_available() else model


def only_modality(processor: MetaTransformerProcessor, asked: str | None = None) -> str:
    """The one modality of a processor, or that which was asked for.

    Raises:
        ValueError: It has another one, or several.
    """
    known = list(processor.processors)
    if asked is None and len(known) > 1:
        raise ValueError(f"the model takes {known}; say which one by --modality.")
    if asked is not None and asked not in known:
        raise ValueError(f"the model takes {known}, not {asked!r}.")
    return asked or known[0]
