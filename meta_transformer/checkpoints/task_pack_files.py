"""The files of a task pack: what a task adds to the shared trunk, and which trunk that is.

    task_pack.safetensors   tokenizers, class token, modality embeddings, head, adapters: all but the trunk's weights
    task_pack.json          the model's class and configuration, the trunk's name and fingerprint, that of the tensors

Beside them `processor_config.json` and a model card, as beside a checkpoint.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ..configuration import MetaTransformerConfig
from ..encoder.fingerprint import fingerprint
from ..registry import HEADS, MODALITIES
from .adapters import describe_adapters
from .atomic import refuse_unfinished
from .foreign.files import HUB_OPTIONS, Location, read_tensors
from .model_card import is_hub_name

__all__ = ["check_trunk", "describe", "model_class", "own_tensors", "read_pack", "write_pack"]

_DESCRIPTION = "task_pack.json"
_TENSORS = "task_pack.safetensors"
_VERSION = 1
# Fields of the configuration that say what the trunk computes.
_TRUNK = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "layer_norm_eps",
    "qkv_bias",
    "layer_scale_init_value",
    "use_pre_layernorm",
    "use_final_layernorm",
)


def own_tensors(model: Any) -> dict[str, Tensor]:
    """What of a model's state is not the trunk's own weights, by name."""
    trunk = {id(parameter) for parameter in model.trunk_parameters().values()}
    return {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) not in trunk}


def describe(model: Any) -> dict[str, Any]:
    """What `task_pack.json` holds.

    Raises:
        ValueError: Weights of the trunk train, which the pack would lose; or it has adapters that are merged into them,
            or not all of which are active.
    """
    own = model.trunk_parameters()
    if trained := [name for name, parameter in own.items() if parameter.requires_grad]:
        raise ValueError(
            f"A task pack leaves out the trunk's own weights, but {len(trained)} of {len(own)} train, such as "
            f"{trained[0]!r}. Save the whole model by save_pretrained, or freeze_encoder() before you train."
        )
    config = json.loads(model.config.to_json_string())
    name = _trunk_name(model.config)
    config["encoder_name_or_path"] = name
    config["heads"] = {head: options for head, options in config["heads"].items() if head == _head(model)}
    return {
        "format": "meta_transformer task pack",
        "version": _VERSION,
        "architecture": type(model).__name__,
        "needs": _needs(model),
        "trunk": {
            "name": name,
            "revision": _revision(model.config),
            "fingerprint": model.encoder_fingerprint(),
            "dtype": _dtype(model),
        },
        "adapters": describe_adapters(model),
        "config": config,
    }


def write_pack(folder: Path, model: Any, description: dict[str, Any]) -> None:
    """Write the two files of a pack.

    Args:
        folder: Where to.
        model: The model whose own tensors are written.
        description: Of `describe`; gets the fingerprint of the tensors.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in own_tensors(model).items()}
    save_file(tensors, folder / _TENSORS, metadata={"format": "pt"})
    description["tensors"] = fingerprint(tensors)
    (folder / _DESCRIPTION).write_text(json.dumps(description, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_pack(source: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a pack and check that it is whole.

    Args:
        source: A folder, or a repository on the hub.
        options: Of `HUB_OPTIONS`.

    Returns:
        The description and the tensors.

    Raises:
        TypeError: An unknown option.
        ValueError: No pack, one of which a file is missing, damaged or changed, one of a newer version, or one of a
            modality or head that is not registered here.
        OSError: Neither a folder nor a repository that can be reached.
    """
    known = HUB_OPTIONS - {"variant"}
    if unknown := sorted(set(options) - known):
        raise TypeError(f"load_task_pack has no option {unknown}. Those beside its arguments are {sorted(known)}.")
    refuse_unfinished(source, options.get("subfolder"))
    location = Location(source, options)
    description = location.json(_DESCRIPTION)
    if description is None:
        raise _no_pack(location)
    if description.get("version") != _VERSION:
        raise ValueError(
            f"{source} is a task pack of version {description.get('version')!r}; this version of meta_transformer "
            f"reads version {_VERSION}. Install a newer one, or save the pack again."
        )
    _check_needs(source, description)
    path = location.file(_TENSORS)
    if path is None:
        raise location.absence(_TENSORS, f"{source} lacks {_TENSORS}, the weights of the task pack; get it too.")
    tensors = read_tensors([path])
    if fingerprint(tensors) != description.get("tensors"):
        raise ValueError(
            f"The tensors of {path} are not those that were saved with {_DESCRIPTION}: one of the files was changed, "
            "or is of another save. Get both again."
        )
    return description, tensors


def _no_pack(location: Location) -> Exception:
    if location.file("config.json") is not None:
        return ValueError(
            f"{location.name} is a whole checkpoint, not a task pack: load it by from_pretrained, and make a pack of "
            "it by save_task_pack."
        )
    if location.file("adapter_config.json") is not None:
        return ValueError(f"{location.name} is an adapter alone, not a task pack: load it by load_adapter.")
    return location.absence(_DESCRIPTION, f"{location.name} is no task pack: it has no {_DESCRIPTION}.")


def check_trunk(source: str, description: Mapping[str, Any], model: Any, *, check_fingerprint: bool) -> None:
    """Refuse a trunk that is not the one that the pack was trained on.

    Args:
        source: Of the pack, for errors.
        description: The pack's.
        model: Whose trunk it is.
        check_fingerprint: Whether it must have the same weights; else the same shape is enough.

    Raises:
        ValueError: It is another, or its weights train.
    """
    saved = MetaTransformerConfig.from_dict(description["config"])
    wrong = [
        f"{field} is {_shape(model.config, field)!r} here, but {_shape(saved, field)!r} in the pack"
        for field in _TRUNK
        if _shape(model.config, field) != _shape(saved, field)
    ]
    trunk = description["trunk"]
    its_name = trunk["name"] or "a trunk without a name"
    if wrong:
        raise ValueError(
            f"{source} belongs to a trunk of another shape, {its_name}: {'; '.join(wrong)}. Load that one."
        )
    if any(parameter.requires_grad for parameter in model.trunk_parameters().values()):
        raise ValueError(
            "The trunk is not frozen: what trains in it would change under its task packs. Call freeze_encoder() first."
        )
    found = model.encoder_fingerprint() if check_fingerprint else trunk["fingerprint"]
    if found == trunk["fingerprint"]:
        return
    remedy = f"Load the trunk that the pack belongs to, {its_name}"
    if _dtype(model) != trunk["dtype"]:
        remedy = (
            f"This one is in {_dtype(model)}, that one in {trunk['dtype']}, and the same weights in another type have "
            f"another fingerprint: load it with dtype=torch.{trunk['dtype']}"
        )
    raise ValueError(
        f"{source} was trained on another trunk: {its_name}, fingerprint {trunk['fingerprint'][:12]}; this is "
        f"{_trunk_name(model.config) or 'one without a name'}, fingerprint {found[:12]}. {remedy}, or say "
        "check_fingerprint=False to run the task on other weights than it has learned on."
    )


def _shape(config: Any, field: str) -> Any:
    value = getattr(config, field)
    return value is not None if field == "layer_scale_init_value" else value  # the value itself is a start only


def _trunk_name(config: Any) -> str | None:
    """Where the trunk came from: a repository of the hub, or the last part of a path, which is nobody's business."""
    name = config.encoder_name_or_path or config.name_or_path or None
    return name if name is None or is_hub_name(name) else Path(name).name


def _revision(config: Any) -> str | None:
    name = _trunk_name(config)
    return getattr(config, "_commit_hash", None) if name and name == config.name_or_path else None


def _dtype(model: Any) -> str:
    return str(next(iter(model.trunk_parameters().values())).dtype).removeprefix("torch.")


def _head(model: Any) -> str | None:
    return getattr(model, "head_name", None)


def _needs(model: Any) -> list[dict[str, str]]:
    """What a pack needs from outside this package, and the modules that bring it."""
    entries: list[tuple[str, str, type]] = [
        ("modality", name, MODALITIES[name].tokenizer_class) for name in model.config.modalities
    ]
    if head := _head(model):
        entries.append(("head", head, HEADS[head].head_class))
    entries.append(("model class", type(model).__name__, type(model)))
    return [
        {"kind": kind, "name": name, "module": owner.__module__}
        for kind, name, owner in entries
        if not owner.__module__.startswith("meta_transformer.")
    ]


def _check_needs(source: str, description: Mapping[str, Any]) -> None:
    for need in description["needs"]:
        registry = {"modality": MODALITIES, "head": HEADS}.get(need["kind"])
        known = need["name"] in registry if registry else model_class(need["name"]) is not None
        if not known:
            module = need["module"]
            remedy = "run the script that defines it" if module == "__main__" else f"import {module}"
            raise ValueError(
                f"{source} needs the {need['kind']} {need['name']!r}, which is not known here: {remedy} before the "
                "pack is loaded."
            )
    if model_class(description["architecture"]) is None:
        raise ValueError(
            f"{source} is of the model class {description['architecture']!r}, which this version of meta_transformer "
            "does not have; install a newer one."
        )


def model_class(name: str) -> Any:
    """The model class of a name, the latest if there are several; `None` if there is none."""
    from ..modeling import MetaTransformerPreTrainedModel  # it imports this module

    found: type | None = None
    queue: list[type] = [MetaTransformerPreTrainedModel]
    for each in queue:
        queue.extend(each.__subclasses__())
        found = each if each.__name__ == name else found
    return found
