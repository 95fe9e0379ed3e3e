"""Low-rank adapters inside the trunk (Hu et al. 2021), by peft.

`W x` becomes `W x + (alpha / r) B A x`: `A: (r, in)` and `B: (out, r)` train, `W` does not. `B` starts at zero, so that
the trunk starts as it was.
"""

import copy
from typing import Any

from torch import nn

from ..extras import needs

__all__ = ["add_lora", "init_lora", "lora_layers", "merge_lora"]

_TARGETS = ["q_proj", "v_proj"]
# Options of LoraConfig that train or change weights of the trunk itself, which is shared.
_BEYOND = ("bias", "modules_to_save", "layer_replication", "trainable_token_indices", "target_parameters")


def add_lora(encoder: nn.Module, options: dict[str, Any]) -> None:
    """Put adapters into the trunk.

    Args:
        encoder: The trunk.
        options: Of `peft.LoraConfig`, as JSON types.

    Raises:
        ImportError: peft is not installed.
        TypeError: Options that `LoraConfig` does not know.
        ValueError: Options that reach beyond the adapters, or targets that the trunk has not.
    """
    beyond = [name for name in _BEYOND if options.get(name) not in (None, "none")]
    if options.get("init_lora_weights", True) not in (True, False, "gaussian"):
        beyond.append(f"init_lora_weights={options['init_lora_weights']!r}")
    if beyond:
        raise ValueError(
            f"freeze_encoder('lora') takes no {' and no '.join(beyond)}: the trunk's own weights stay as they are. Use "
            "peft.get_peft_model for it."
        )
    with needs("peft for adapters", extra="lora"):
        from peft import LoraConfig, inject_adapter_in_model
    settings: dict[str, Any] = {"target_modules": _TARGETS, **options}
    inject_adapter_in_model(LoraConfig(**settings), encoder)
    for layer in lora_layers(encoder).values():
        for part in (layer.lora_A, layer.lora_B):
            for module in part.modules():
                module.is_lora_part = True


def init_lora(module: Any, options: dict[str, Any]) -> bool:
    """Initialise adapters as peft does; whether the module is one, or a part of one, which needs nothing more."""
    if _has_adapter(module):
        for adapter in module.lora_A:
            module.reset_lora_parameters(adapter, options.get("init_lora_weights", True))
        return True
    return getattr(module, "is_lora_part", False)


def _has_adapter(module: nn.Module) -> bool:
    return hasattr(module, "reset_lora_parameters") and hasattr(module, "base_layer")


def lora_layers(encoder: nn.Module) -> dict[str, Any]:
    """The layers that have adapters, by name."""
    return {name: module for name, module in encoder.named_modules() if _has_adapter(module)}


def merge_lora(encoder: nn.Module) -> None:
    """Add the adapters to the weights that they stand beside, and take them away."""
    for name, layer in lora_layers(encoder).items():
        layer.base_layer = copy.deepcopy(layer.base_layer)  # other tasks may run on the same weights
        layer.merge(safe_merge=True)
        encoder.set_submodule(name, layer.get_base_layer())
    del encoder.peft_config
