"""Token merging: alike tokens become one, block after block, so that later blocks have less to do.

Bolya et al. 2023, Token Merging: Your ViT But Faster, section 3. In every block, between attention and feed-forward:

1. tokens are divided by turns into two sets, A and B;
2. each token of A is tied to the token of B whose key is most alike (cosine, keys averaged over heads);
3. the `count` strongest ties are merged: the mean of the two, weighted by how many tokens each stands for already;
4. attention adds the logarithm of that size to its scores ("proportional attention", equation 1).

Class tokens and others that belong to no place are left out. Behind the last block every place gets the token that it
was merged into, so that heads see as many tokens as came. Each sample is merged as it would be alone: its tokens are
moved together in front of its padding first, and again after every merge.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["TokenMerging"]


class TokenMerging:
    """The merging of one pass through the trunk.

    Args:
        count: Most tokens that go in each block; a sample never loses more than half of those that may go.
        mask: `(batch, tokens)`, true for real tokens; `None` when nothing is padded.
        protected: Columns of tokens that are never merged, real in every sample.
    """

    def __init__(self, count: int, mask: Tensor | None, protected: Sequence[int]) -> None:
        self.count, self.mask, self.protected = count, mask, list(protected)
        self.keys: Tensor | None = None

    def begin(self, tokens: Tensor) -> Tensor:
        """Order the tokens `(batch, tokens, hidden)`: protected ones, real ones, padding."""
        batch, length = tokens.shape[:2]
        kind = torch.ones(batch, length, dtype=torch.int8, device=tokens.device)
        if self.mask is not None:
            kind = kind.masked_fill(~self.mask.bool(), 2)
        kind[:, self.protected] = 0
        self.order = kind.argsort(dim=1, stable=True)
        self.sizes = (kind.gather(1, self.order) < 2).float()
        self.places = torch.arange(length, device=tokens.device).expand(batch, -1)  # where each token is now
        return _pick(tokens, self.order)

    def bias(self, dtype: torch.dtype) -> Tensor:
        """What attention adds to its scores, `(batch, 1, 1, tokens)`."""
        return self.sizes.log().to(dtype)[:, None, None]

    def merge(self, tokens: Tensor) -> Tensor:
        """Merge by the keys of this block, which attention has left in `keys`, `(batch, heads, tokens, head_dim)`."""
        first = len(self.protected)
        number = min(self.count, (tokens.shape[1] - first) // 2)
        if number < 1 or self.keys is None:
            return tokens
        keys = functional.normalize(self.keys.float().mean(dim=1)[:, first:], dim=-1)
        weighted = tokens[:, first:] * self.sizes[:, first:, None].to(tokens.dtype)
        sizes = self.sizes[:, first:]
        if self.mask is not None:
            weighted = weighted.masked_fill(sizes[..., None] == 0, 0)
        ties = keys[:, 1::2] @ keys[:, ::2].transpose(1, 2)
        if self.mask is not None:
            ties = ties.masked_fill((sizes[:, 1::2, None] == 0) | (sizes[:, None, ::2] == 0), -torch.inf)
        strength, partner = ties.max(dim=-1)
        ranked = strength.argsort(dim=-1, descending=True, stable=True)
        gone, kept = ranked[:, :number], ranked[:, number:].sort(dim=-1).values
        into = partner.gather(1, gone)

        places = torch.empty_like(partner).scatter(
            1, kept, torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
        )
        places = places.scatter(1, gone, kept.shape[1] + into)
        places = _interleave(
            kept.shape[1] + torch.arange(ties.shape[2], device=kept.device).expand(len(kept), -1), places
        )
        merged = weighted[:, ::2].scatter_add(
            1, into[..., None].expand(-1, -1, tokens.shape[2]), _pick(weighted[:, 1::2], gone)
        )
        merged = torch.cat([_pick(weighted[:, 1::2], kept), merged], dim=1)
        grown = sizes[:, ::2].scatter_add(1, into, sizes[:, 1::2].gather(1, gone))
        grown = torch.cat([sizes[:, 1::2].gather(1, kept), grown], dim=1)
        merged = merged / grown.clamp(min=1)[..., None].to(merged.dtype)
        if self.mask is not None:  # padding to the end again
            order = (grown == 0).to(torch.int8).argsort(dim=1, stable=True)
            merged, grown = _pick(merged, order), grown.gather(1, order)
            places = order.argsort(dim=1).gather(1, places)

        front = torch.arange(first, device=tokens.device).expand(len(tokens), -1)
        self.places = torch.cat([front, first + places], dim=1).gather(1, self.places)
        self.sizes = torch.cat([self.sizes[:, :first], grown], dim=1)
        return torch.cat([tokens[:, :first], merged], dim=1)

    def restore(self, tokens: Tensor) -> Tensor:
        """Give every token that came, in its own column, the one that it has become."""
        return _pick(_pick(tokens, self.places), self.order.argsort(dim=1))


def _pick(tokens: Tensor, places: Tensor) -> Tensor:
    """Tokens `(batch, places, hidden)` by their places `(batch, places)`."""
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[2]))


def _interleave(even: Tensor, odd: Tensor) -> Tensor:
    """One `(batch, even + odd)` from two, by turns; `even` has as many columns as `odd`, or one more."""
    whole = even.new_empty(len(even), even.shape[1] + odd.shape[1])
    whole[:, ::2], whole[:, 1::2] = even, odd
    return whole
