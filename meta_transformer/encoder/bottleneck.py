"""Bottleneck tokens, through which the modalities of a sample exchange what they know (Nagrani et al. 2021, MBT).

Each modality is encoded in a row of its own that ends in the same few learned tokens. After a layer, a sample's copies
of them are averaged (equations 8 and 9), so all that passes from one modality to another passes through them.
"""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Exchange"]


@dataclass(frozen=True, eq=False)
class Exchange:
    """Where the bottleneck tokens lie, and of which modalities there are any.

    Attributes:
        places: `(batch, modalities, bottleneck tokens)`, in the flattened tokens.
        present: `(batch, modalities)` boolean.
        first_layer: The first layer, counted from 0, behind which they are averaged.
    """

    places: Tensor
    present: Tensor
    first_layer: int = 0

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """Average the copies of each sample; tokens in, padded or packed, and tokens of the same shape out."""
        tokens = hidden_states.flatten(0, 1)
        present = self.present[..., None, None]
        copies = tokens[self.places].masked_fill(~present, 0)  # not by a product: zero times NaN is NaN
        mean = copies.sum(dim=1, keepdim=True) / present.sum(dim=1, keepdim=True)
        places = self.places[self.present]
        mean = mean.expand_as(copies)[self.present]
        return tokens.index_copy(0, places.flatten(), mean.flatten(0, 1).to(tokens.dtype)).view_as(hidden_states)
