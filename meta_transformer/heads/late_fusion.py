"""One vector from the modalities of a sample, each of which went through the trunk alone: late fusion.

Arrives: encoded tokens with a class token for each modality. Leaves: one vector for each sample. Each modality is
pooled alone, normalised, and combined with the others that the sample has:

- `"concat"`: concatenation and one linear layer; a learned vector stands for a modality that is missing.
- `"gated"`: a weighted sum whose weights, a softmax over those present, each modality's vector gives itself
  (after the gated multimodal unit, Arevalo et al. 2017, section 3.1). It starts as the mean.
- `"attention"`: a learned query attends to them, each with a learned embedding of its modality.
- `"bottleneck"`: their mean; they have exchanged what they know before (Nagrani et al. 2021, MBT, averages the logits
  of a linear classifier, which is the same).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig
from transformers import initialization as init

from ..sequence import TokenSequence
from .pooling import Pooling, PoolingMode

__all__ = ["LateFusion", "make_pooling"]


class LateFusion(nn.Module):
    """Pool each modality, and combine what is there.

    Args:
        mode: How the tokens of a modality are pooled.
        config: The model's; reads `fusion`, `modalities`, `hidden_size`, `num_attention_heads`, `layer_norm_eps`.
    """

    def __init__(self, mode: PoolingMode, config: PreTrainedConfig) -> None:
        super().__init__()
        self.fusion, self.eps, hidden = config.fusion, config.layer_norm_eps, config.hidden_size
        self.places = {modality: place for place, modality in enumerate(config.modalities)}
        count = len(self.places)
        self.pooling = Pooling(mode, hidden, config.num_attention_heads)
        if self.fusion == "concat":
            self.absent = nn.Parameter(torch.zeros(count, hidden))
            self.projection = nn.Linear(count * hidden, hidden)
        elif self.fusion == "gated":
            self.gates = nn.Parameter(torch.zeros(count, hidden))
        elif self.fusion == "attention":
            self.embeddings = nn.Parameter(torch.zeros(count, hidden))
            self.attention = Pooling("attention", hidden, config.num_attention_heads)

    def init_parameters(self, std: float) -> None:
        for name, parameter in self.named_parameters(recurse=False):
            init.zeros_(parameter) if name != "embeddings" else init.trunc_normal_(parameter, std=std)

    def forward(self, sequence: TokenSequence) -> Tensor:
        """From tokens `(batch, tokens, hidden)` to `(batch, hidden)`; absent modalities have no influence."""
        tokens = sequence.embeddings
        features = tokens.new_zeros(tokens.shape[0], len(self.places), tokens.shape[2])
        present = torch.zeros(features.shape[:2], dtype=torch.bool, device=tokens.device)
        pooled, found = [], []
        for modality in sequence.modalities:
            own = sequence.select([modality])
            vector = functional.layer_norm(self.pooling(own), tokens.shape[2:], eps=self.eps)
            there = present.new_ones(len(tokens)) if own.mask is None else own.mask[:, own.class_tokens[0]].bool()
            if own.mask is not None and not own.blocks:
                there = own.mask[:, own.prefix :].any(dim=1)
            pooled.append(vector.masked_fill(~there[:, None], 0))
            found.append(there)
        places = torch.tensor([self.places[modality] for modality in sequence.modalities], device=tokens.device)
        features = features.index_copy(1, places, torch.stack(pooled, dim=1).to(features.dtype))
        present = present.index_copy(1, places, torch.stack(found, dim=1))
        return self._combine(features, present)

    def _combine(self, features: Tensor, present: Tensor) -> Tensor:
        """From `(batch, modalities, hidden)` and `(batch, modalities)` to `(batch, hidden)`."""
        there = present[..., None]
        if self.fusion == "concat":
            return self.projection(torch.where(there, features, self.absent.to(features)).flatten(1))
        if self.fusion == "gated":
            scores = (features * self.gates.to(features)).sum(dim=-1).masked_fill(~present, -torch.inf)
            return (scores.softmax(dim=1)[..., None] * features).sum(dim=1)
        if self.fusion == "attention":
            return self.attention(TokenSequence(features + self.embeddings.to(features), present))
        return features.sum(dim=1) / there.sum(dim=1)


def make_pooling(mode: PoolingMode, config: PreTrainedConfig) -> nn.Module:
    """From tokens to one vector a sample, as the configuration's `fusion` asks for."""
    if config.fusion == "early":
        return Pooling(mode, config.hidden_size, config.num_attention_heads)
    return LateFusion(mode, config)
