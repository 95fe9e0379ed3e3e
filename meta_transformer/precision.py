"""Cheaper arithmetic for inference: bfloat16, or int8 in the trunk's matrix products.

In bfloat16 all weights are rounded. In int8 those of the trunk's linear layers are, one scale for each output channel,
and what enters such a layer is quantised as it comes, with one scale for each call (dynamic quantisation); everything
else stays float32. Which is faster is the processor's matter: int8 takes VNNI or AMX, bfloat16 its own instructions.
"""

from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.ao.nn.quantized.dynamic import Linear as QuantizedLinear
from torch.ao.quantization import per_channel_dynamic_qconfig

from .modeling import MetaTransformerPreTrainedModel

__all__ = ["Precision", "set_precision"]

Precision = Literal["float32", "bfloat16", "int8"]

_WRITING = ("save_pretrained", "push_to_hub", "save_task_pack", "push_task_pack")


def set_precision(model: MetaTransformerPreTrainedModel, precision: Precision) -> MetaTransformerPreTrainedModel:
    """Change the precision of a model for inference, in place.

    In int8 an answer may depend on its neighbours in the batch by as much as the precision: they share a scale. Such a
    model is not trained, saved or exported; keep the checkpoint, and set the precision after loading.

    Args:
        model: A model in float32 or bfloat16.
        precision: `"float32"`, `"bfloat16"` or `"int8"`; the last for CPUs alone.

    Returns:
        The same model, in evaluation mode.

    Raises:
        ValueError: An unknown precision, int8 on another device than a CPU, or a model that is in int8 already.
        RuntimeError: torch has no arithmetic for int8 on this processor.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be one of {list(get_args(Precision))}, got {precision!r}.")
    encoder: Any = model.base_model.encoder
    if any(isinstance(each, QuantizedLinear) for each in encoder.modules()):
        raise ValueError("The model is in int8 already, where its weights are rounded; load it again.")
    model.eval()
    if precision != "int8":
        return model.to(getattr(torch, precision))
    if model.device.type != "cpu":
        raise ValueError(f"int8 runs on CPUs alone, but the model is on {model.device}; use 'bfloat16' there.")
    model.float()
    for path, module in list(encoder.named_modules()):
        if isinstance(module, nn.Linear):
            owner, _, name = path.rpartition(".")
            setattr(encoder.get_submodule(owner), name, _quantized(module))
    for name in _WRITING:
        if hasattr(model, name):
            setattr(model, name, _refuse)
    return model


def _quantized(linear: nn.Linear) -> nn.Module:
    """A layer that gives nearly the same, its weights in int8."""
    plain = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
    plain.weight, plain.bias = linear.weight, linear.bias  # torch quantises this class alone, and none below it
    observed: Any = plain
    observed.qconfig = per_channel_dynamic_qconfig
    return QuantizedLinear.from_float(observed)


def _refuse(*args: Any, **options: Any) -> None:
    raise ValueError("A model in int8 is not saved: its weights are rounded. Save it before set_precision.")
