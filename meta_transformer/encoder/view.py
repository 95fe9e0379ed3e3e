"""A second trunk around the same weights, for a task that puts something into it or sets its mode."""

import copy
from typing import Any

from torch import nn

__all__ = ["view_of"]

# What PEFT's layers keep the module under that they stand in for.
_WRAPPED = ("base_layer", "original_module")


def view_of(module: Any, config: Any) -> Any:
    """A module with the weights of another, and all else its own: parts inside, mode, hooks, adapters.

    Weights are neither copied nor moved: both hold the same parameters, now and whatever becomes of them. Adapters of
    PEFT's are left out, so that the view computes what the bare trunk does.

    Args:
        module: The trunk, or a part of it.
        config: The configuration that its parts read from now on.

    Raises:
        ValueError: Another library has replaced the `forward` of a part, which would lead back to the first trunk.
    """
    while wrapped := next((each for name in _WRAPPED if (each := module._modules.get(name)) is not None), None):
        module = wrapped
    if "forward" in vars(module):
        raise ValueError(
            f"The trunk is spread over devices or wrapped: {type(module).__name__} has another forward than its "
            "class. Load the trunk on one device, without device_map or with device_map={'': 'cuda:0'}."
        )
    twin = copy.copy(module)  # the dictionaries of parameters and buffers stay those of the other
    own = vars(twin)
    own.update({name: value for name, value in vars(nn.Module()).items() if "hooks" in name})
    own["_modules"] = {
        name: None if child is None else view_of(child, config) for name, child in module._modules.items()
    }
    for name in ("peft_config", "_compiled_call_impl"):
        own.pop(name, None)
    if "config" in own:
        own["config"] = config
    return twin
