"""Retrieval: an embedding of unit length for each sample and modality, near those of what belongs together.

Arrives: encoded tokens of each modality on its own, `(batch, tokens, hidden)`. Leaves: embeddings
`(batch, modalities, embed_dim)` and the mean loss. Of two or more modalities, a sample's embeddings are to be near each
other (CLIP, Radford et al. 2021); of one, those of samples with the same label: two views of one thing, or several
pictures of one animal.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from typing import Any, ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.utils import ModelOutput

from ..sequence import TokenSequence
from .base import HeadConfig, TaskHead
from .metrics import TaskMetrics
from .pooling import Pooling, PoolingMode
from .retrieval_metrics import RetrievalMetrics

__all__ = ["RetrievalHead", "RetrievalHeadConfig", "RetrievalOutput"]

_MAX_LOG_SCALE = math.log(100)  # CLIP, section 2.5: larger ones make training unstable


@strict
@dataclass(kw_only=True)
class RetrievalHeadConfig(HeadConfig):
    """Options of the retrieval head.

    Attributes:
        embed_dim: Width of the embeddings.
        loss: `"contrastive"`: softmax over the similarities to all samples of the batch, of which those with the same
            label are right (InfoNCE; of several right ones, Khosla et al. 2020, equation 2). `"triplet"`: the farthest
            right and the nearest wrong one of the batch (batch-hard; Hermans et al. 2017, equation 5).
        temperature: That of the softmax at the start; it is learned.
        margin: By how much, in Euclidean distance, a wrong one is to be farther than a right one, of `"triplet"`.
        pooling: How the tokens of a sample become one vector.
        dropout: Dropout in front of the linear layer.
    """

    embed_dim: int = 256
    loss: Literal["contrastive", "triplet"] = "contrastive"
    temperature: float = 0.07
    margin: float = 0.3
    pooling: PoolingMode = "cls"
    dropout: float | int = 0.0

    def validate_numbers(self) -> None:
        if self.embed_dim < 1:
            raise ValueError(f"embed_dim must be at least 1, got {self.embed_dim}.")
        if not 0.01 <= self.temperature <= 1:
            raise ValueError(f"temperature must lie in 0.01..1, got {self.temperature}.")
        if not 0 < self.margin < 2:
            raise ValueError(f"margin must be positive and below 2, the largest distance, got {self.margin}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}.")


@dataclass
class RetrievalOutput(ModelOutput):
    """Output of the retrieval head.

    Attributes:
        loss: With labels.
        embeds: `(batch, modalities, embed_dim)`, of length 1, the modalities in the model's order; in float32.
    """

    loss: Tensor | None = None
    embeds: Tensor | None = None


class RetrievalHead(TaskHead):
    """Pool, normalise, one linear layer without bias for all modalities, and to length 1."""

    config_class: ClassVar[type[HeadConfig]] = RetrievalHeadConfig
    pools: ClassVar[bool] = True
    joins_modalities: ClassVar[bool] = False
    couples_samples: bool = True

    config: RetrievalHeadConfig

    def __init__(self, config: RetrievalHeadConfig, model_config: PreTrainedConfig) -> None:
        super().__init__(config, model_config)
        if model_config.absent_tokens:
            raise ValueError(
                "absent_tokens would give embeddings to modalities that a sample does not have; set it False."
            )
        hidden = model_config.hidden_size
        names = list(model_config.modalities)
        self.pooling = nn.ModuleDict(
            {name: Pooling(config.pooling, hidden, model_config.num_attention_heads) for name in names}
        )
        self.layernorm = nn.ModuleDict({name: nn.LayerNorm(hidden, eps=model_config.layer_norm_eps) for name in names})
        self.projection = nn.ModuleDict({name: nn.Linear(hidden, config.embed_dim, bias=False) for name in names})
        self.dropout = nn.Dropout(config.dropout)
        self.log_scale = nn.Parameter(torch.zeros(())) if config.loss == "contrastive" else None

    def init_parameters(self, std: float) -> None:
        if self.log_scale is not None:
            init.constant_(self.log_scale, -math.log(self.config.temperature))

    def forward(
        self,
        sequence: dict[str, TokenSequence],
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **inputs: Tensor,
    ) -> RetrievalOutput:
        """Embed.

        Args:
            sequence: Encoded tokens of each modality alone, by name.
            labels: `(batch,)` integers, equal for what belongs together. For pairs of modalities that have no labels,
                `torch.arange(batch)`: every sample belongs to itself.
            num_items_in_batch: See `TaskHead.forward`. A loss that compares samples sees those of its own part alone:
                accumulation does not give the gradients of the big batch. Several processes do compare all of theirs.
            inputs: None.

        Returns:
            `loss` and `embeds`.

        Raises:
            ValueError: Labels of another shape, or that are no integers; a sample without one of the modalities.
        """
        for name, part in sequence.items():
            self.refuse_missing(part, [name])
        embeds = torch.stack([self._embed(name, part) for name, part in sequence.items()], dim=1)
        loss = None
        if labels is not None:
            if tuple(labels.shape) != (len(embeds),) or labels.is_floating_point():
                raise ValueError(
                    f"labels must be {len(embeds)} integers, one a sample and equal for what belongs together, got "
                    f"{labels.dtype} of shape {tuple(labels.shape)}."
                )
            with torch.autocast(embeds.device.type, enabled=False):  # similarities need more digits than half precision
                loss = self.loss(embeds, labels.to(embeds.device), num_items_in_batch)
        return RetrievalOutput(loss=loss, embeds=embeds)

    def _embed(self, name: str, sequence: TokenSequence) -> Tensor:
        pooled = self.dropout(self.layernorm[name](self.pooling[name](sequence)))
        return functional.normalize(self.projection[name](pooled).float(), dim=-1)

    def loss(self, embeds: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Mean loss over samples and ordered pairs of modalities.

        Args:
            embeds: `(batch, modalities, embed_dim)` of length 1.
            labels: `(batch,)` integers.
            num_items_in_batch: As of `forward`.
        """
        others, other_labels, first = _gather(embeds, labels)
        right = labels[:, None] == other_labels
        counted = torch.ones_like(right)
        if embeds.shape[1] == 1:  # a sample is no answer to itself
            counted[torch.arange(len(labels)), first + torch.arange(len(labels))] = False
            right = right & counted
        pairs = list(permutations(range(embeds.shape[1]), 2)) or [(0, 0)]
        losses = [self._pair_loss(embeds[:, a] @ others[:, b].T, right, counted) for a, b in pairs]
        count = len(labels) if num_items_in_batch is None else num_items_in_batch
        return torch.stack(losses).mean(dim=0).sum() / count

    def _pair_loss(self, similarity: Tensor, right: Tensor, counted: Tensor) -> Tensor:
        """Loss of each sample `(batch,)`; 0 for one that nothing belongs to."""
        if self.log_scale is not None:
            logits = similarity * self.log_scale.float().clamp(max=_MAX_LOG_SCALE).exp()
            logits = logits.masked_fill(~counted, -torch.inf).log_softmax(dim=1)
            return -logits.masked_fill(~right, 0).sum(dim=1) / right.sum(dim=1).clamp(min=1)
        distance = (2 - 2 * similarity).clamp(min=1e-12).sqrt()
        farthest = distance.masked_fill(~right, -torch.inf).amax(dim=1)
        nearest = distance.masked_fill(right | ~counted, torch.inf).amin(dim=1)
        return functional.relu(farthest - nearest + self.config.margin)

    def metrics(self) -> TaskMetrics:
        """Recall at 1, 5 and 10 and mean average precision, every sample of the set searched among all others."""
        return TaskMetrics(RetrievalMetrics(), lambda embeds, labels: (embeds, labels))

    def post_process(self, output: ModelOutput, **options: Any) -> list[Any]:
        """Embeddings as arrays of numpy, `(modalities, embed_dim)` for each sample."""
        return list(output["embeds"].detach().cpu().numpy())

    def dummy_labels(self, sequence: TokenSequence) -> list[Any]:
        return (torch.arange(len(sequence.embeddings)) // 2).tolist()


def _gather(embeds: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, int]:
    """Embeddings and labels of all processes, with gradients, and the place of this one's first."""
    distributed: Any = torch.distributed
    if torch.compiler.is_compiling() or not distributed.is_available() or not distributed.is_initialized():
        return embeds, labels, 0
    from torch.distributed.nn.functional import all_gather

    gathered: Callable[[Tensor], tuple[Tensor, ...]] = all_gather
    return torch.cat(gathered(embeds)), torch.cat(gathered(labels)), distributed.get_rank() * len(labels)
