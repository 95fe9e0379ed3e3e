"""Forecasting of series, and the reconstruction of hidden steps, in the units of the input.

Arrives: encoded tokens of a time series with a `SeriesLayout`. Leaves: values `(batch, horizon, channels)` of the steps
that follow, or `(batch, steps, channels)` of the steps that came in, and the mean loss.

- Forecasts: the last tokens of each series side by side through one linear layer, PatchTST's flatten head (Nie et al.
  2023, section 3.1); shared by all channels where each has tokens of its own, for all of them at once where tokens mix
  channels.
- Reconstruction: each token gives the steps of its patch, and patches that overlap are averaged.
- The loss is that of normalised values; predictions are brought back by what the tokenizer's instance normalisation
  took away (RevIN, Kim et al. 2022).

Different from PatchTST: series of any length, because tokens are counted from the end of each; quantiles; covariates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput

from ..sequence import SeriesLayout, TokenSequence
from .base import IGNORED, HeadConfig, TaskHead, stack_labels
from .metrics import TaskMetrics, mean_of
from .series_decoders import FutureCovariates, last_places, overlap_mean

__all__ = ["ForecastingHead", "ForecastingHeadConfig", "ForecastingOutput"]

# Labels further from the look-back than this many of its deviations do not count: it was constant, but for rounding.
_MAX_DEVIATIONS = 1e3


@strict
@dataclass(kw_only=True)
class ForecastingHeadConfig(HeadConfig):
    """Options of the forecasting head.

    Attributes:
        objective: `"forecasting"`, the steps that follow; or `"reconstruction"`, the steps of the input itself.
        horizon: Steps to forecast.
        num_channels: Channels of the series, where the tokenizer mixes them; `None` where each has tokens of its own,
            any number of them.
        num_tokens: Tokens at the end of each series that forecasts are read from. What lies before has an effect
            through attention alone.
        patch_length: The tokenizer's, for reconstruction; 1 if a token stands for one step.
        loss: `"mse"`, `"mae"` or `"huber"` (squared for errors below 1 deviation, absolute beyond), without
            `quantiles`.
        quantiles: Which to predict, in rising order, trained by the pinball loss (Koenker and Bassett 1978).
        num_future_features: Covariates of a future step that are known beforehand, such as its calendar.
        skip_steps: Last steps of the look-back that a linear layer without bias reads directly, beside the tokens
            (Zeng et al. 2023, section 4); 0 for none.
        skip_channels: Channels of the series, so that each has such a layer of its own; `None`: one for all.
        dropout: Dropout in front of the linear layer.
    """

    objective: Literal["forecasting", "reconstruction"] = "forecasting"
    horizon: int = 24
    num_channels: int | None = None
    num_tokens: int = 16
    patch_length: int = 16
    loss: Literal["mse", "mae", "huber"] = "mse"
    quantiles: list[float] | None = None
    num_future_features: int = 0
    skip_steps: int = 0
    skip_channels: int | None = None
    dropout: float | int = 0.0

    def validate_sizes(self) -> None:
        for name in ("horizon", "num_tokens", "patch_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("num_channels", "skip_channels"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, or None, got {getattr(self, name)}.")
        if self.skip_channels is not None and not self.skip_steps:
            raise ValueError(f"skip_channels needs skip_steps, which is 0, got {self.skip_channels}.")
        for name in ("num_future_features", "skip_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}.")
            if getattr(self, name) and self.objective == "reconstruction":
                raise ValueError(f"{name} are for forecasting, got {getattr(self, name)} for reconstruction.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}.")

    def validate_quantiles(self) -> None:
        given = self.quantiles
        if given is None:
            return
        rising = all(low < high for low, high in pairwise(given))
        if not given or not rising or not all(0 < each < 1 for each in given):
            raise ValueError(f"quantiles must be numbers above 0 and below 1 in rising order, got {given}.")


@dataclass
class ForecastingOutput(ModelOutput):
    """Output of the forecasting head, in float32 and in the units of the input.

    Attributes:
        loss: Of normalised values.
        logits: `(batch, horizon or steps, channels)`, the prediction; of quantiles, the one nearest to the median. Of
            steps that are padding it means nothing.
        quantiles: `(batch, horizon or steps, channels, quantiles)`, in rising order.
        imputed: `(batch, steps, channels)`, of `"reconstruction"`: what was observed as it came, the prediction where
            nothing was, and NaN in padding.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    quantiles: Tensor | None = None
    imputed: Tensor | None = None


class ForecastingHead(TaskHead):
    """From tokens to normalised values, and back to the units of the input; see the module's description."""

    config_class: ClassVar[type[HeadConfig]] = ForecastingHeadConfig
    layouts = (SeriesLayout,)
    model_input_names = ("future_time_features",)

    config: ForecastingHeadConfig

    def __init__(self, config: ForecastingHeadConfig, model_config: PreTrainedConfig) -> None:
        super().__init__(config, model_config)
        hidden, self.covariates = model_config.hidden_size, None
        levels = config.quantiles or [0.5]
        outputs = (config.num_channels or 1) * len(levels)
        self.middle = min(range(len(levels)), key=lambda place: abs(levels[place] - 0.5))
        self.dropout = nn.Dropout(config.dropout)
        if config.objective == "forecasting":
            self.decoder = nn.Linear(config.num_tokens * hidden, config.horizon * outputs)
        else:
            self.decoder = nn.Linear(hidden, config.patch_length * outputs)
        if config.num_future_features:
            self.covariates = FutureCovariates(config.num_future_features, hidden, outputs)
        self.skip = None
        if config.skip_steps:
            channels = config.skip_channels or 1
            self.skip = nn.Conv1d(channels, channels * config.horizon, config.skip_steps, groups=channels, bias=False)

    def forward(
        self,
        sequence: TokenSequence,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        future_time_features: Tensor | None = None,
        **inputs: Tensor,
    ) -> ForecastingOutput:
        """Predict.

        Args:
            sequence: Encoded tokens.
            labels: `(batch, horizon, channels)`, all of them known; or, for reconstruction, `(batch, steps, channels)`,
                NaN or -100 where a value is unknown or shall not count.
            num_items_in_batch: See `TaskHead.forward`.
            future_time_features: `(batch, horizon, features)`, if the head was made for some.
            inputs: None.

        Returns:
            See `ForecastingOutput`.

        Raises:
            ValueError: Labels or covariates of another shape, labels that are infinite, or NaN in a forecast; a
                tokenizer of another form or patch length than the head was made for.
        """
        segment = self.segment_of(sequence)
        layout: Any = segment.layout
        self._check(layout, future_time_features)
        place = slice(segment.start, segment.start + segment.length)
        groups = (-1, *layout.shape) if len(layout.shape) == 2 else (-1, 1, *layout.shape)
        tokens = sequence.embeddings[:, place].reshape(*groups, sequence.embeddings.shape[-1])
        real = tokens.new_ones(tokens.shape[:-1], dtype=torch.bool)
        if sequence.mask is not None:
            real = sequence.mask[:, place].bool().reshape(groups)
        if self.config.objective == "forecasting":
            values = self._forecast(tokens, real, future_time_features)
        else:
            cells = self.decoder(self.dropout(tokens)).float().unflatten(-1, (self.config.patch_length, -1))
            values = overlap_mean(cells, real, layout.stride[-1], layout.values.shape[1])
        # From (batch, groups, steps, channels of a group * quantiles) to (batch, steps, channels, quantiles).
        values = values.unflatten(-1, (-1, len(self.config.quantiles or [0.5]))).transpose(1, 2).flatten(2, 3)
        if self.skip is not None:
            window = last_places(layout.values, layout.lengths, self.config.skip_steps)
            window = window.mT.to(self.skip.weight.dtype)  # (batch, channels, steps)
            rows = window if self.config.skip_channels else window.flatten(0, 1)[:, None]
            skipped = self.skip(rows).float().reshape(*window.shape[:2], self.config.horizon)
            values = values + skipped.mT[..., None]
        values = values.sort(dim=-1).values if self.config.quantiles else values
        loc, scale = (each[:, None, :, None] for each in (layout.loc, layout.scale))
        predictions = values * scale + loc
        return self._output(values, predictions, layout, labels, num_items_in_batch)

    def _forecast(self, tokens: Tensor, real: Tensor, future: Tensor | None) -> Tensor:
        """Values `(batch, groups, horizon, outputs)` from tokens `(batch, groups, patches, hidden)`."""
        last = last_places(tokens, real.sum(dim=-1), self.config.num_tokens)
        values = self.decoder(self.dropout(last.flatten(2))).unflatten(-1, (self.config.horizon, -1))
        if self.covariates is not None and future is not None:
            values = values + self.covariates(future, last.mean(dim=2))
        return values.float()

    def _output(
        self, values: Tensor, predictions: Tensor, layout: Any, labels: Tensor | None, count: Tensor | int | None
    ) -> ForecastingOutput:
        logits, loss = predictions[..., self.middle], None
        if labels is not None:
            targets = self._checked(labels, tuple(values.shape[:-1])).to(values) - layout.loc[:, None]
            loss = self.loss(values, targets / layout.scale[:, None], count)
        quantiles = predictions if self.config.quantiles else None
        imputed = None
        if self.config.objective == "reconstruction":
            came = layout.values * layout.scale[:, None] + layout.loc[:, None]
            own = torch.arange(came.shape[1], device=came.device) < layout.lengths[:, None]
            imputed = came.where(layout.observed, logits).masked_fill(~own[:, :, None], torch.nan)
        return ForecastingOutput(loss=loss, logits=logits, quantiles=quantiles, imputed=imputed)

    def loss(self, values: Tensor, targets: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Mean loss over the targets that count, and over quantiles, in fp32.

        Args:
            values: `(batch, steps, channels, quantiles)`, normalised.
            targets: `(batch, steps, channels)`, normalised, NaN where they do not count.
            num_items_in_batch: See `TaskHead.forward`.
        """
        near = targets.abs() <= _MAX_DEVIATIONS  # false for NaN
        error = (targets[..., None] - values).masked_fill(~near[..., None], 0)
        if self.config.quantiles:
            each = _pinball(error, self.config.quantiles)
        else:
            losses = {"mse": functional.mse_loss, "mae": functional.l1_loss, "huber": functional.huber_loss}
            each = losses[self.config.loss](error, torch.zeros_like(error), reduction="none")
        return each.sum() / (
            (~targets.isnan()).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        )

    def _check(self, layout: SeriesLayout, future: Tensor | None) -> None:
        config = self.config
        if (len(layout.shape) == 2) != (config.num_channels is None):
            raise ValueError(
                f"the head's num_channels is {config.num_channels}, but the tokens lie in {len(layout.shape)} "
                "dimensions. Set it to the number of channels where the tokenizer mixes them, and to None where its "
                "form is 'channel_independent'."
            )
        if config.num_channels not in (None, layout.loc.shape[1]):
            raise ValueError(f"the head's num_channels is {config.num_channels}, got {layout.loc.shape[1]} channels.")
        if config.skip_channels not in (None, layout.loc.shape[1]):
            raise ValueError(f"the head's skip_channels is {config.skip_channels}, got {layout.loc.shape[1]} channels.")
        if config.objective == "reconstruction" and layout.patch_size[-1] != config.patch_length:
            raise ValueError(
                f"the head's patch_length is {config.patch_length}, but the tokenizer's is {layout.patch_size[-1]}; "
                "reconstruction needs them equal."
            )
        expected = (layout.loc.shape[0], config.horizon, config.num_future_features)
        found = None if future is None else tuple(future.shape)
        if (config.num_future_features or found is not None) and found != expected:
            raise ValueError(
                f"future_time_features must have shape {expected}, got {found}. Give the head num_future_features, "
                "their number, and one row for each step of its horizon."
            )

    def _checked(self, labels: Tensor, expected: tuple[int, ...]) -> Tensor:
        """Labels, NaN where they do not count."""
        forecasts = self.config.objective == "forecasting"
        if tuple(labels.shape) != expected:
            raise ValueError(
                f"labels must have shape {expected}, (batch, {'horizon' if forecasts else 'steps'}, channels), got "
                f"{tuple(labels.shape)}."
            )
        if not forecasts:
            labels = labels.masked_fill(labels == IGNORED, torch.nan)
        if torch.compiler.is_compiling():
            return labels  # values are unknown while a graph is traced
        wrong = ~labels.isfinite() if forecasts else labels.isinf()
        if wrong.any():
            raise ValueError(
                f"labels must be finite numbers, got {labels[wrong][0].item()}; leave out windows whose future is "
                "not known."
            )
        return labels

    def label_collator(self) -> Callable[[list[Any]], Any]:
        return stack_labels if self.config.objective == "forecasting" else _pad_labels

    def metrics(self) -> TaskMetrics:
        """MSE and MAE in the units of the input; with quantiles, also the mean pinball loss and the coverage.

        Coverage is the share of labels between the lowest and the highest quantile.
        """
        functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "mse": lambda values, labels: (values[:, self.middle] - labels) ** 2,
            "mae": lambda values, labels: (values[:, self.middle] - labels).abs(),
        }
        if levels := self.config.quantiles:
            functions["pinball"] = lambda values, labels: _pinball(labels[:, None] - values, levels)
            functions["coverage"] = lambda values, labels: (values[:, 0] <= labels) & (labels <= values[:, -1])
        return TaskMetrics({name: mean_of(function) for name, function in functions.items()}, self._read)

    def _read(self, predictions: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Known labels `(count,)`, and their predictions `(count, quantiles)`, from what `Trainer` has gathered."""
        place = 1 if self.config.quantiles else 0
        values = predictions[place] if isinstance(predictions, tuple | list) else predictions
        labels = labels.float().flatten()
        known = torch.ones_like(labels, dtype=torch.bool)
        if self.config.objective == "reconstruction":
            known = ~labels.isnan() & (labels != IGNORED)
        return values.float().reshape(len(labels), -1)[known], labels[known]

    def post_process(self, output: ModelOutput, **options: Any) -> list[dict[str, Any]]:
        """Arrays in the units of the input.

        Returns:
            For each sample `{"forecast": (horizon, channels)}`, and `{"quantiles": {level: (horizon, channels)}}` where
            they are predicted; or `{"imputed": (steps, channels)}`, without padding.
        """
        if self.config.objective == "reconstruction":
            imputed = output["imputed"].detach().cpu()
            own = ~imputed.isnan().all(dim=-1)
            return [{"imputed": series[real].numpy()} for series, real in zip(imputed, own, strict=True)]
        found = [{"forecast": forecast.numpy()} for forecast in output["logits"].detach().cpu()]
        if self.config.quantiles:
            for sample, values in zip(found, output["quantiles"].detach().cpu().numpy(), strict=True):
                sample["quantiles"] = {level: values[..., i] for i, level in enumerate(self.config.quantiles)}
        return found

    def dummy_labels(self, sequence: TokenSequence) -> list[Any]:
        layout: Any = self.segment_of(sequence).layout
        loc, scale = layout.loc[:, None], layout.scale[:, None]
        if self.config.objective == "reconstruction":
            return list(layout.values * scale + loc)
        return list((loc + 2 * scale).expand(-1, self.config.horizon, -1))


def _pinball(error: Tensor, quantiles: list[float]) -> Tensor:
    """Mean pinball loss over quantiles, from errors `(..., quantiles)`, labels minus predictions, to `(...)`."""
    levels = error.new_tensor(quantiles)
    return torch.maximum(levels * error, (levels - 1) * error).mean(dim=-1)


def _pad_labels(labels: list[Any]) -> Tensor:
    """Labels of series of different length, -100 where nothing is known, so that `Trainer` does not count it."""
    tensors = [torch.as_tensor(label, dtype=torch.float32) for label in labels]
    padded = nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=IGNORED)
    return padded.masked_fill(padded.isnan(), IGNORED)
