"""What every processor owes to any input at all."""

from collections.abc import Callable
from typing import Any

import torch


def finite_or_refused(process: Callable[[], Any]) -> bool:
    """Whether an input was taken; it must then give finite tensors, and else a sentence that says why not.

    Args:
        process: Calls a processor.

    Raises:
        AssertionError: The tensors are not finite, or the error is no sentence.
        Exception: Whatever else than `ValueError` and `TypeError` the processor raised.
    """
    try:
        batch = process()
    except (ValueError, TypeError) as error:
        assert len(str(error).split()) > 3, f"no sentence: {error!r}"
        return False
    for name, value in batch.items():
        tensor = torch.as_tensor(value)
        assert tensor.isfinite().all() if tensor.is_floating_point() else True, f"{name} is not finite"
    return True
