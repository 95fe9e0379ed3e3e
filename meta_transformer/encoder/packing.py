"""Packed execution: the real tokens of a batch laid end to end, so that nothing is computed for padding.

    (batch, tokens, hidden) and a mask  ->  (1, real tokens, hidden)  ->  blocks  ->  back

Norms and linear layers see each token alone: they run over all tokens at once. Attention alone keeps rows apart, and
each row gets what it would get alone:

- flash attention takes the borders of the rows, as transformers' `FlashAttentionKwargs`;
- on CUDA in half precision, torch's own variable-length attention does;
- everywhere else, rows of equal length are attended to together, one length after the other. Rows are laid out by
  length, so that these are views. On a CPU nothing is faster: torch has no variable-length attention there, and its
  nested tensors take five times as long.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Packing"]


@dataclass(frozen=True, eq=False)
class Packing:
    """Where the real tokens of a batch lie when they are laid end to end, row by row, short rows first.

    Attributes:
        shape: `(batch, tokens)` of the padded form.
        places: `(real tokens,)`, where each token lies in the flattened padded form.
        rows: `(real tokens,)`, the number of the row that each token belongs to, rising from 0.
        lengths: Tokens of each row, never falling.
    """

    shape: tuple[int, int]
    places: Tensor
    rows: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, mask: Tensor, blocks: Tensor | None = None) -> "Packing":
        """Lay out the tokens that a mask names.

        Args:
            mask: `(batch, tokens)`, true for real tokens.
            blocks: `(tokens,)`, numbers from 0. A token's row are those of its sample and its block; `None` if samples
                are rows.
        """
        samples, columns = mask.nonzero(as_tuple=True)
        rows, count = samples, len(mask)
        if blocks is not None:
            width = int(blocks.max()) + 1
            rows, count = samples * width + blocks[columns], count * width
        sizes = torch.bincount(rows, minlength=count)
        by_size = sizes.sort(stable=True)
        number = by_size.indices.argsort() - (sizes == 0).sum()  # of each row in the layout; empty rows come first
        order = number[rows].argsort(stable=True)
        lengths = by_size.values[by_size.values > 0].tolist()
        places = (samples * mask.shape[1] + columns)[order]
        return cls((mask.shape[0], mask.shape[1]), places, number[rows][order], tuple(lengths))

    def pack(self, tokens: Tensor) -> Tensor:
        """From `(batch, tokens, hidden)` to `(1, real tokens, hidden)`."""
        return tokens.flatten(0, 1).index_select(0, self.places)[None]

    def unpack(self, packed: Tensor) -> Tensor:
        """From `(1, real tokens, hidden)` to `(batch, tokens, hidden)`, 0 in padding."""
        batch, tokens = self.shape
        padded = packed.new_zeros(batch * tokens, packed.shape[-1]).index_copy(0, self.places, packed[0])
        return padded.unflatten(0, (batch, tokens))

    def packed_places(self, places: Tensor) -> Tensor:
        """Where tokens at places of the flattened padded form lie in the packed one; any place for padding."""
        found = self.places.new_zeros(self.shape[0] * self.shape[1])
        found[self.places] = torch.arange(len(self.places), device=found.device)
        return found[places]

    @cached_property
    def groups(self) -> list[tuple[int, int]]:
        """Rows of equal length: how many, and how long."""
        return [(len(list(rows)), length) for length, rows in groupby(self.lengths)]

    @cached_property
    def borders(self) -> Tensor:
        """`(rows + 1,)`, where each row begins, and where the last one ends, as flash attention takes it."""
        borders = [0, *accumulate(self.lengths)]
        return torch.tensor(borders, dtype=torch.int32, device=self.places.device)

    def attend(
        self, attention: Callable, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any
    ) -> tuple[Tensor, None]:
        """Attention within each row.

        Args:
            attention: A function of transformers' attention interface.
            module: The attention module.
            query: `(1, heads, real tokens, head_dim)`, as `key` and `value`.
            options: `scaling`, `dropout`, and what else the function takes.

        Returns:
            Values `(1, real tokens, heads, head_dim)`; no weights.
        """
        config: Any = module.config
        implementation: str = config._attn_implementation
        longest = self.lengths[-1]
        if "flash" in implementation:
            borders = {"cu_seq_lens_q": self.borders, "cu_seq_lens_k": self.borders}
            longest_row = {"max_length_q": longest, "max_length_k": longest}
            return attention(module, query, key, value, None, **borders, **longest_row, **options)[0], None
        if implementation == "sdpa" and has_variable_length(query) and not options.get("dropout"):
            from torch.nn.attention.varlen import varlen_attn

            tokens = (each[0].transpose(0, 1) for each in (query, key, value))
            borders = (self.borders, self.borders, longest, longest)
            values: Any = varlen_attn(*tokens, *borders, scale=options["scaling"])
            return values[None], None
        sizes = [count * length for count, length in self.groups]
        values = []
        for (count, length), *tensors in zip(
            self.groups, *(each[0].split(sizes, dim=1) for each in (query, key, value)), strict=True
        ):
            rows = (each.unflatten(1, (count, length)).transpose(0, 1) for each in tensors)
            values.append(attention(module, *rows, None, **options)[0].flatten(0, 1))
        return torch.cat(values)[None], None


def has_variable_length(tensor: Tensor) -> bool:
    """Whether torch itself has attention for rows of different length on such tensors, as autocast makes them."""
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else tensor.dtype
    return tensor.is_cuda and dtype in (torch.float16, torch.bfloat16)
