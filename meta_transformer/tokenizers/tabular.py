"""Rows of a table to tokens: one token for each column.

Arrives: `numerical_features` `(batch, numerical columns)`, standardised, with `numerical_mask` of the same shape, true
where a number was observed; and `categorical_ids` `(batch, categorical columns)`. Leaves: `(batch, columns, hidden)`,
the numerical columns first, without a mask: a missing cell has a token too.

FT-Transformer's feature tokenizer (Gorishniy et al. 2021, section 3.3): a number is `x_j * W_j + b_j`, a category
`embedding_j[id] + b_j`; the bias tells which column a token belongs to. In place of `x_j` a number may be given as
periodic or piecewise-linear features (Gorishniy et al. 2022, "On Embeddings for Numerical Features in Tabular Deep
Learning"). Different from the originals: a missing number is a learned vector of its column plus `b_j`.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from math import pi
from typing import ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init

from ..sequence import ColumnLayout, TokenSequence
from .base import ModalityTokenizer, TokenizerConfig

__all__ = ["TabularTokenizer", "TabularTokenizerConfig"]


@strict
@dataclass(kw_only=True)
class TabularTokenizerConfig(TokenizerConfig):
    """Options of the tabular tokenizer; the first four come from `TabularProcessor.tokenizer_config`.

    Attributes:
        numerical_columns: Names of the columns of numbers, in the order of the tensors.
        categorical_columns: Names of the columns of categories, in the order of the tensors.
        cardinalities: For each categorical column, how many ids it has, those for unseen and missing included.
        bin_edges: For each numerical column, the rising borders of its bins, in standard deviations from the mean.
        numerical_embedding: What a number is before the linear layer of its column: `"linear"` itself, `"periodic"`
            sines and cosines of learned frequencies (then a ReLU follows), `"piecewise_linear"` its place in the bins.
        num_frequencies: Frequencies of each column; there are twice as many periodic features.
        frequency_scale: Standard deviation of the frequencies at the start, in periods per standard deviation of the
            column. It matters much: the paper tunes it between 0.01 and 100.
    """

    numerical_columns: list[str] = field(default_factory=list)
    categorical_columns: list[str] = field(default_factory=list)
    cardinalities: list[int] = field(default_factory=list)
    bin_edges: list[list[float | int]] | None = None
    numerical_embedding: Literal["linear", "periodic", "piecewise_linear"] = "linear"
    num_frequencies: int = 48
    frequency_scale: float | int = 0.01

    def validate_columns(self) -> None:
        names = self.numerical_columns + self.categorical_columns
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"Columns {twice} are named twice in numerical_columns and categorical_columns.")
        if len(self.cardinalities) != len(self.categorical_columns) or min(self.cardinalities, default=1) < 1:
            raise ValueError(
                f"cardinalities must hold one positive number for each of categorical_columns "
                f"{self.categorical_columns}, got {self.cardinalities}."
            )

    def validate_numerical_embedding(self) -> None:
        if self.num_frequencies < 1 or self.frequency_scale <= 0:
            raise ValueError(
                "num_frequencies and frequency_scale must be positive, got "
                f"{self.num_frequencies} and {self.frequency_scale}."
            )
        if self.bin_edges is None:
            if self.numerical_embedding == "piecewise_linear" and self.numerical_columns:
                raise ValueError(
                    "numerical_embedding 'piecewise_linear' needs bin_edges; take processor.tokenizer_config()."
                )
            return
        if len(self.bin_edges) != len(self.numerical_columns):
            raise ValueError(
                f"bin_edges must hold one list for each of the {len(self.numerical_columns)} numerical_columns, "
                f"got {len(self.bin_edges)}."
            )
        for name, edges in zip(self.numerical_columns, self.bin_edges, strict=True):
            if len(edges) < 2 or any(left >= right for left, right in pairwise(edges)):
                raise ValueError(f"bin_edges of column {name!r} must be at least two rising numbers, got {edges}.")


class _Identity(nn.Module):
    """The number itself as its one feature: `(batch, columns)` to `(batch, columns, 1)`."""

    num_features = 1

    def forward(self, values: Tensor) -> Tensor:
        return values[..., None]


class _Periodic(nn.Module):
    """`cos(2 pi c x), sin(2 pi c x)` with learned `c` (Gorishniy et al. 2022, section 3.3).

    `(batch, columns)` to `(batch, columns, 2 * num_frequencies)`.
    """

    def __init__(self, num_columns: int, num_frequencies: int, scale: float) -> None:
        super().__init__()
        self.num_features = 2 * num_frequencies
        self.scale = scale
        self.frequencies = nn.Parameter(torch.zeros(num_columns, num_frequencies))

    def init_parameters(self, std: float) -> None:
        init.normal_(self.frequencies, std=self.scale)

    def forward(self, values: Tensor) -> Tensor:
        phases = 2 * pi * values[..., None] * self.frequencies.float()
        return torch.cat([phases.cos(), phases.sin()], dim=-1)


class _PiecewiseLinear(nn.Module):
    """For each bin, the part of it that lies below the number (Gorishniy et al. 2022, section 3.2, equation 1).

    1 for bins wholly below, 0 for bins wholly above, but the first bin reaches down and the last one up without end.
    `(batch, columns)` to `(batch, columns, most bins of any column)`, zero for bins that a column does not have.
    """

    def __init__(self, bin_edges: list[list[float | int]]) -> None:
        super().__init__()
        self.bin_edges = bin_edges
        self.num_features = max(len(edges) for edges in bin_edges) - 1

    def _constants(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Borders `(columns, bins + 1)`, and lowest and highest value of each feature `(columns, bins)`.

        No buffers, because those would be rounded in a model in half precision, and neighbouring borders become equal.
        """
        edges, lowest, highest = [], [], []
        for own in self.bin_edges:
            num_bins, absent = len(own) - 1, self.num_features - len(own) + 1
            edges.append([float(edge) for edge in (*own, *own[-1:] * absent)])
            lowest.append([-torch.inf, *[0.0] * (self.num_features - 1)])
            highest.append([*[1.0] * (num_bins - 1), torch.inf, *[0.0] * absent])
        first, second, third = (
            torch.tensor(rows, dtype=torch.float32, device=device) for rows in (edges, lowest, highest)
        )
        return first, second, third

    def forward(self, values: Tensor) -> Tensor:
        edges, lowest, highest = self._constants(values.device)
        widths = (edges[:, 1:] - edges[:, :-1]).clamp_min(torch.finfo(edges.dtype).eps)
        return ((values[..., None] - edges[:, :-1]) / widths).clamp(lowest, highest)


class _NumericalEmbedding(nn.Module):
    """Numbers `(batch, columns)` and their mask to tokens `(batch, columns, hidden)`."""

    def __init__(self, config: TabularTokenizerConfig, hidden_size: int) -> None:
        super().__init__()
        num_columns = len(config.numerical_columns)
        self.features: _Identity | _Periodic | _PiecewiseLinear = _Identity()
        if config.numerical_embedding == "periodic":
            self.features = _Periodic(num_columns, config.num_frequencies, config.frequency_scale)
        elif config.numerical_embedding == "piecewise_linear":
            self.features = _PiecewiseLinear(config.bin_edges or [])
        self.activation = nn.ReLU() if config.numerical_embedding == "periodic" else nn.Identity()
        self.weight = nn.Parameter(torch.zeros(num_columns, self.features.num_features, hidden_size))
        self.bias = nn.Parameter(torch.zeros(num_columns, hidden_size))
        self.missing = nn.Parameter(torch.zeros(num_columns, hidden_size))

    def init_parameters(self, std: float) -> None:
        for parameter in (self.weight, self.bias, self.missing):
            init.trunc_normal_(parameter, std=std)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        # What stands in missing cells must not matter, and NaN would reach the gradients even from behind `where`.
        # Features are computed in fp32: phases and places in narrow bins lose their meaning below it.
        features = self.features(values.float().masked_fill(~mask, 0)).to(self.weight.dtype)
        tokens = self.activation(torch.einsum("bcf,cfh->bch", features, self.weight) + self.bias)
        return torch.where(mask[..., None], tokens, self.missing + self.bias)


class _CategoricalEmbedding(nn.Module):
    """Ids `(batch, columns)` to tokens `(batch, columns, hidden)`, from one table in which each column has its rows."""

    offsets: Tensor

    def __init__(self, cardinalities: list[int], hidden_size: int) -> None:
        super().__init__()
        self.cardinalities = cardinalities
        self.embedding = nn.Embedding(sum(cardinalities), hidden_size)
        self.bias = nn.Parameter(torch.zeros(len(cardinalities), hidden_size))
        self.register_buffer("offsets", self._offsets(), persistent=False)

    def _offsets(self) -> Tensor:
        return torch.tensor([0, *self.cardinalities[:-1]]).cumsum(dim=0)

    def init_parameters(self, std: float) -> None:
        init.trunc_normal_(self.bias, std=std)
        init.copy_(self.offsets, self._offsets())

    def forward(self, ids: Tensor) -> Tensor:
        return self.embedding(ids + self.offsets) + self.bias


class TabularTokenizer(ModalityTokenizer):
    """One token for each column; see the module's description."""

    config: TabularTokenizerConfig
    config_class: ClassVar[type[TokenizerConfig]] = TabularTokenizerConfig

    # Half precision rounds numbers into the wrong one of two narrow bins.
    full_precision_inputs: ClassVar[frozenset[str]] = frozenset({"numerical_features"})

    def __init__(self, config: TabularTokenizerConfig, hidden_size: int) -> None:
        super().__init__(config, hidden_size)
        self.layout = ColumnLayout((*config.numerical_columns, *config.categorical_columns))
        if not self.layout.names:
            raise ValueError(
                "A model for tables must know their columns: fit a TabularProcessor and pass "
                "modalities={'tabular': processor.tokenizer_config()}."
            )
        self.numerical = _NumericalEmbedding(config, hidden_size) if config.numerical_columns else None
        self.categorical = _CategoricalEmbedding(config.cardinalities, hidden_size) if config.cardinalities else None

    def forward(
        self,
        numerical_features: Tensor | None = None,
        categorical_ids: Tensor | None = None,
        numerical_mask: Tensor | None = None,
    ) -> TokenSequence:
        """Tokenize a batch of rows.

        Args:
            numerical_features: `(batch, numerical columns)` in standard deviations from the mean; anything where
                missing. `None` if the table has no such columns, as the others.
            categorical_ids: `(batch, categorical columns)` integers below the column's cardinality.
            numerical_mask: `(batch, numerical columns)`, true where a number was observed; `None` if all were.

        Returns:
            `(batch, columns, hidden)`, numerical columns first, with a `ColumnLayout`; no mask.

        Raises:
            ValueError: A tensor that is missing, superfluous, of another shape or type, or ids out of range.
        """
        self._check_shape("numerical_features", numerical_features, self.config.numerical_columns)
        self._check_shape("categorical_ids", categorical_ids, self.config.categorical_columns)
        self._check_mask(numerical_mask, numerical_features)
        parts = []
        if self.numerical is not None and numerical_features is not None:
            # Not to leave `missing` out where nothing is: parameters must take part in every step of parallel training.
            mask = torch.ones_like(numerical_features) if numerical_mask is None else numerical_mask
            parts.append(self.numerical(numerical_features, mask.bool()))
        if self.categorical is not None and categorical_ids is not None:
            self._check_ids(categorical_ids)
            parts.append(self.categorical(categorical_ids.long()))
        if parts[0].shape[0] != parts[-1].shape[0]:
            raise ValueError(f"numerical_features and categorical_ids differ in rows: {[len(part) for part in parts]}.")
        return TokenSequence(torch.cat(parts, dim=1), layout=self.layout)

    def _check_shape(self, name: str, value: Tensor | None, columns: list[str]) -> None:
        given = None if value is None else tuple(value.shape)
        if given is None and not columns:
            return
        if given is None or len(given) != 2 or given[1] != len(columns):
            raise ValueError(
                f"{name} must have shape (batch, {len(columns)}) for columns {columns}, got {given}; process the table "
                "with the processor whose tokenizer_config() this model was made with."
            )

    def _check_mask(self, mask: Tensor | None, features: Tensor | None) -> None:
        expected = None if features is None else tuple(features.shape)
        if mask is not None and tuple(mask.shape) != expected:
            raise ValueError(f"numerical_mask has shape {tuple(mask.shape)}, but numerical_features {expected}.")

    def _check_ids(self, ids: Tensor) -> None:
        if ids.is_floating_point():
            raise ValueError(f"categorical_ids must be integers, got {ids.dtype}.")
        if torch.compiler.is_compiling():
            return  # values are unknown while a graph is traced
        # An id too high would silently be a category of the next column.
        wrong = (ids < 0) | (ids >= ids.new_tensor(self.config.cardinalities))
        if wrong.any():
            row, column = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"categorical_ids of column {self.config.categorical_columns[column]!r} must lie in "
                f"0..{self.config.cardinalities[column] - 1}, got {ids[row, column].item()}; process the table with "
                "the processor whose tokenizer_config() this model was made with."
            )
