"""Text to tokens: one embedding for each token id, plus positions learned for their places, normalised.

Arrives: `input_ids` `(batch, length)` and, for texts of different length, `attention_mask` `(batch, length)`. Leaves:
`(batch, length, hidden)` in the order of the text, with a mask if there was one.

As in BERT (Devlin et al. 2019, section 3), without segments; its LayerNorm brings a table of any scale, learned or
loaded, to that of the trunk, which is frozen and cannot adapt. Different from it: any length, because positions are
stretched for texts longer than their table, each to its own length; a table of another width than the trunk's, which a
linear layer projects (ALBERT, Lan et al. 2020, section 3.1); and, on request, a convolution over neighbouring ids that
makes tokens of n-grams (Kim 2014, equation 2), fewer of them than ids if it is strided (CANINE, Clark et al. 2022,
section 3.1). That is what makes words of bytes before a frozen trunk, which cannot learn to, sees them.
"""

from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.utils import logging

from ..sequence import StepLayout, TokenSequence
from .base import ModalityTokenizer, TokenizerConfig
from .padding import first_places, read_mask
from .positions import InterpolatedPositions

__all__ = ["TextTokenizer", "TextTokenizerConfig"]

logger = logging.get_logger(__name__)


@strict
@dataclass(kw_only=True)
class TextTokenizerConfig(TokenizerConfig):
    """Options of the text tokenizer.

    Attributes:
        vocab_size: Number of token ids, as of the processor; 384 for bytes.
        embedding_size: Width of the table of embeddings, by default the encoder's; another width is projected to it.
        freeze_embeddings: Whether the table is never trained, as for one that `load_embeddings` filled.
        ngram_size: Neighbouring ids that the convolution sees for one token; 1 for no convolution.
        downsampling_rate: Ids from one token to the next, at most `ngram_size`: 4 makes one token of 4 ids.
        max_positions: Tokens for which positions are learned. Longer texts get positions interpolated from these.
    """

    vocab_size: int = 384
    embedding_size: int | None = None
    freeze_embeddings: bool = False
    ngram_size: int = 1
    downsampling_rate: int = 1
    max_positions: int = 512

    def validate_sizes(self) -> None:
        for name in ("vocab_size", "embedding_size", "ngram_size", "downsampling_rate", "max_positions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if self.downsampling_rate > self.ngram_size:
            raise ValueError(
                f"downsampling_rate {self.downsampling_rate} is larger than ngram_size {self.ngram_size}, which would "
                f"leave out what lies between the n-grams; set ngram_size to {self.downsampling_rate} or more."
            )

    @classmethod
    def from_embeddings_of(cls, source: str | PathLike | PreTrainedModel, **options: Any) -> "TextTokenizerConfig":
        """A configuration into whose tokenizer `TextTokenizer.load_embeddings` can load the table of `source`.

        Args:
            source: As of `load_embeddings`.
            options: Any other option.
        """
        from ..checkpoints.foreign.text_embeddings import read_text_embeddings

        rows, width = read_text_embeddings(source).shape
        return cls(vocab_size=rows, embedding_size=width, **options)


class _Table(nn.Embedding):
    """A table of embeddings that knows whether nothing but chance has filled it."""

    is_random = False

    def init_parameters(self, std: float) -> None:
        self.is_random = True  # not called if weights were loaded

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.is_random = False
        super()._load_from_state_dict(*args, **kwargs)


class NgramConvolution(nn.Module):
    """One token for each `stride` ids, made of `size` ids around: convolution and GELU, as CANINE's.

    Args:
        width: Of the embeddings.
        hidden_size: Of the tokens.
        size: Ids that the convolution sees.
        stride: Ids from one token to the next.
    """

    def __init__(self, width: int, hidden_size: int, size: int, stride: int) -> None:
        super().__init__()
        self.size, self.stride = size, stride
        self.convolution = nn.Conv1d(width, hidden_size, size, stride=stride)

    def forward(self, embeddings: Tensor) -> Tensor:
        """From `(batch, length, width)`, zero where there is no text, to `(batch, ceil(length / stride), hidden)`."""
        length = embeddings.shape[1]
        before = (self.size - self.stride) // 2
        after = (length + self.stride - 1) // self.stride * self.stride - self.stride + self.size - length - before
        tokens = self.convolution(functional.pad(embeddings.transpose(1, 2), (before, after)))
        return functional.gelu(tokens).transpose(1, 2)


class TextTokenizer(ModalityTokenizer):
    """Embeddings, projected or convolved if asked for, plus positions, normalised; see the module's description."""

    config_class: ClassVar[type[TokenizerConfig]] = TextTokenizerConfig

    config: TextTokenizerConfig

    def __init__(self, config: TextTokenizerConfig, hidden_size: int) -> None:
        super().__init__(config, hidden_size)
        width = config.embedding_size or hidden_size
        self.embeddings = _Table(config.vocab_size, width)
        self.projection: nn.Module = nn.Identity()
        if config.ngram_size > 1:
            self.projection = NgramConvolution(width, hidden_size, config.ngram_size, config.downsampling_rate)
        elif width != hidden_size:
            self.projection = nn.Linear(width, hidden_size)
        self.positions = InterpolatedPositions(config.max_positions, hidden_size)
        self.layernorm = nn.LayerNorm(hidden_size)
        self.apply_freezing()

    def apply_freezing(self) -> None:
        if self.config.freeze_embeddings:
            self.embeddings.requires_grad_(False)

    @torch.no_grad()
    def load_embeddings(self, source: str | PathLike | PreTrainedModel) -> None:
        """Fill the table of embeddings with that of a text model, whose tokenizer the processor then has to use.

        Args:
            source: The name or folder of a checkpoint of transformers in safetensors format, such as of BERT or CLIP,
                or a model in memory.

        Raises:
            ValueError: Its table has another shape than this one, or there is none.
            OSError: Neither a folder nor a repository that can be reached.
        """
        from ..checkpoints.foreign.text_embeddings import read_text_embeddings

        table = read_text_embeddings(source)
        if table.shape != self.embeddings.weight.shape:
            raise ValueError(
                f"The source's table has shape {tuple(table.shape)}, this tokenizer's "
                f"{tuple(self.embeddings.weight.shape)}; make it with TextTokenizerConfig.from_embeddings_of(source)."
            )
        self.embeddings.weight.copy_(table)
        self.embeddings.is_random = False

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> TokenSequence:
        """Tokenize a batch of texts.

        Args:
            input_ids: `(batch, length)` integers below `vocab_size`, one column or more.
            attention_mask: `(batch, length)`, true or 1 for the ids at the start that belong to the text, not reached
                by what lies after them; `None` when all texts fill the tensor. A text without any true id gets no real
                token.

        Returns:
            `(batch, ceil(length / downsampling_rate), hidden)` with a `StepLayout` of the padded batch.

        Raises:
            ValueError: Not two dimensions, no column, ids that are no integers or out of range, or as `read_mask`.
        """
        self._check(input_ids)
        rate = self.config.downsampling_rate
        mask, (lengths,) = read_mask("attention_mask", attention_mask, input_ids, [1])
        if mask is not None:
            input_ids = input_ids.masked_fill(~mask, 0)
        self._check_range(input_ids)
        if self.training and self.embeddings.is_random and self.config.freeze_embeddings:
            self._warn()
        tokens = self.embeddings(input_ids.long())
        if mask is not None and self.config.ngram_size > 1:
            tokens = tokens.masked_fill(~mask[:, :, None], 0)
        tokens = self.projection(tokens)
        size = tokens.shape[1]
        layout = StepLayout((size,), (rate,), (rate,), 0, input_ids.shape[1], lengths.expand(tokens.shape[0]))
        lengths = (lengths + rate - 1) // rate
        if mask is not None:
            mask = first_places([lengths], [size])
        tokens = self.layernorm(tokens + self.positions(lengths, size))
        return TokenSequence(tokens, mask, layout)

    def _check(self, input_ids: Tensor) -> None:
        shape = tuple(input_ids.shape)
        integers = not (input_ids.is_floating_point() or input_ids.is_complex() or input_ids.dtype == torch.bool)
        if len(shape) != 2 or shape[1] == 0 or not integers:
            raise ValueError(f"input_ids must be integers of shape (batch, length), got {input_ids.dtype} of {shape}.")

    def _warn(self) -> None:
        if not torch.compiler.is_compiling():
            logger.warning_once(
                "freeze_embeddings=True keeps a table of random embeddings from learning; fill it with load_embeddings "
                "first, or set freeze_embeddings=False."
            )

    def _check_range(self, input_ids: Tensor) -> None:
        if torch.compiler.is_compiling():
            return  # values are unknown while a graph is traced
        wrong = (input_ids < 0) | (input_ids >= self.config.vocab_size)
        if wrong.any():
            raise ValueError(
                f"input_ids must lie in 0..{self.config.vocab_size - 1}, got {input_ids[wrong][0].item()}; make the "
                "tokenizer with processor.tokenizer_configs()."
            )
