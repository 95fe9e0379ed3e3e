"""What every processor owes to any input at all."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

EXTREMES = (1e-45, 1e-310, 1e19, 1e38, -1e38, 1.7e308, -1.7e308, float("nan"), float("inf"))


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


@st.composite
def measurements(
    draw: st.DrawFn, shapes: st.SearchStrategy[tuple[int, ...]], dtypes: Sequence[str] = ("f4", "f8")
) -> np.ndarray:
    """Arrays of floats in 0..1, at random or constant; one in two has an extreme value in one place or throughout."""
    array = np.random.default_rng(draw(st.integers(0, 99))).random(draw(shapes))
    kind = draw(st.sampled_from(["random", "random", "constant", "one extreme", "all extreme"]))
    value = draw(st.sampled_from(EXTREMES))
    if kind == "constant":
        array[:] = array.flat[0]
    elif kind == "one extreme":
        array.flat[draw(st.integers(0, array.size - 1))] = value
    elif kind == "all extreme":
        array[:] = value
    with np.errstate(over="ignore"):
        return array.astype(draw(st.sampled_from(dtypes)))
