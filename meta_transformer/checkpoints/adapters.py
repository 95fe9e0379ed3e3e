"""Adapters of PEFT's that travel in a task pack, however they came into the model."""

from typing import Any

from ..extras import needs

__all__ = ["add_adapters", "describe_adapters"]


def describe_adapters(model: Any) -> dict[str, dict[str, Any]]:
    """The configurations of a model's adapters.

    Args:
        model: With adapters by `model.add_adapter`, by `peft.get_peft_model`, or with none. Those of
            `model.freeze_encoder("lora")` do not count: `config.lora` makes them with the model.

    Returns:
        By the path of the part that they were put into, empty for the whole model, and by their names.

    Raises:
        ValueError: An adapter is merged into the weights beside it, or one is not active.
    """
    for name, module in model.named_modules():
        if hasattr(module, "adapter_layer_names"):
            _check_active(name, module)
    found = {path: vars(part)["peft_config"] for path, part in model.named_modules() if "peft_config" in vars(part)}
    return {
        path: {name: _plain(config) for name, config in configs.items()}
        for path, configs in found.items()
        if model.config.lora is None or model.get_submodule(path) is not model.base_model.encoder
    }


def _check_active(name: str, layer: Any) -> None:
    if getattr(layer, "merged", False):
        raise ValueError(
            f"The adapters of {name!r} are merged into the weights of the trunk, which a task pack leaves out; unmerge "
            "them first."
        )
    present = sorted(layer._get_available_adapters())
    active = [] if layer.disable_adapters else sorted(layer.active_adapters)
    if present != active:
        raise ValueError(
            f"{name!r} has the adapters {present}, of which {active} are active. A task pack holds what the model "
            "computes with: activate the others by set_adapter or enable_adapters, or delete them by delete_adapter."
        )


def _plain(config: Any) -> dict[str, Any]:
    """A configuration as JSON types, without the path of the model that it was made for."""
    values = {name: getattr(value, "value", value) for name, value in config.to_dict().items()}  # enumerations
    values["base_model_name_or_path"] = None
    return {name: sorted(value) if isinstance(value, set) else value for name, value in values.items()}


def add_adapters(model: Any, described: dict[str, dict[str, Any]]) -> None:
    """Put adapters into a model as they were described, their weights at random.

    Args:
        model: The model; its own weights stay as they are, and so does what trains.
        described: Of `describe_adapters`.

    Raises:
        ImportError: peft is not installed.
    """
    if not described:
        return
    with needs("peft for adapters", extra="lora"):
        from peft import PeftConfig, inject_adapter_in_model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for path, configs in described.items():
        part = model.get_submodule(path)
        for name, values in configs.items():
            # Some ways to start an adapter change the weights beside it.
            config = PeftConfig.from_peft_type(**{**values, "inference_mode": False})
            if hasattr(config, "init_lora_weights"):
                config.init_lora_weights = False
            inject_adapter_in_model(config, part, name)
        if hasattr(part, "_hf_peft_config_loaded"):
            part._hf_peft_config_loaded = True
    for parameter in trained:
        parameter.requires_grad_()  # PEFT lets adapters alone train
