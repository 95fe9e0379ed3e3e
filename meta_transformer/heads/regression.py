"""Regression: one or several numbers for each whole sample, in the units of the labels.

Arrives: encoded tokens `(batch, tokens, hidden)`. Leaves: predictions `(batch, num_targets)` and the mean loss.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput

from ..sequence import TokenSequence
from .base import HeadConfig, TaskHead
from .late_fusion import make_pooling
from .metrics import TaskMetrics, torchmetrics
from .pooling import PoolingMode

__all__ = ["RegressionHead", "RegressionHeadConfig", "RegressionOutput"]

_MIN_VARIANCE = 1e-6  # of standardised targets, as torch's gaussian_nll_loss


@strict
@dataclass(kw_only=True)
class RegressionHeadConfig(HeadConfig):
    """Options of the regression head.

    Attributes:
        num_targets: Numbers to predict for each sample.
        target_names: What they are called, if they have names; `post_process` uses them.
        loss: `"mse"`, `"mae"`, `"huber"` (squared for standardised errors below 1, absolute beyond), or
            `"gaussian_nll"`, which predicts a variance for each number as well (Nix and Weigend 1994).
        pooling: How the tokens of a sample become one vector.
        dropout: Dropout in front of the linear layer.
        target_mean: Mean of each target in the training set, by which targets are standardised; `standardize` sets it.
        target_std: Standard deviation, likewise.
    """

    num_targets: int = 1
    target_names: list[str] | None = None
    loss: Literal["mse", "mae", "huber", "gaussian_nll"] = "mse"
    pooling: PoolingMode = "cls"
    dropout: float | int = 0.0
    target_mean: list[float] | None = None
    target_std: list[float] | None = None

    def validate_targets(self) -> None:
        if self.num_targets < 1:
            raise ValueError(f"num_targets must be at least 1, got {self.num_targets}.")
        if self.target_names is not None and len(self.target_names) != self.num_targets:
            raise ValueError(f"target_names must be {self.num_targets} names, one a target, got {self.target_names}.")
        for name in ("target_mean", "target_std"):
            numbers = getattr(self, name)
            if numbers is not None and (len(numbers) != self.num_targets or not all(map(isfinite, numbers))):
                raise ValueError(f"{name} must be {self.num_targets} finite numbers, one a target, got {numbers}.")
        if self.target_std is not None and min(self.target_std) <= 0:
            raise ValueError(f"target_std must be positive, got {self.target_std}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}.")


@dataclass
class RegressionOutput(ModelOutput):
    """Output of the regression head.

    Attributes:
        loss: Of standardised targets.
        logits: `(batch, num_targets)`, predictions in the units of the labels, in float32 whatever the model's type:
            half precision would round a year to a multiple of 8.
        variance: `(batch, num_targets)`, in their squares; with `"gaussian_nll"`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    variance: Tensor | None = None


class RegressionHead(TaskHead):
    """Pool, normalise, one linear layer, and back from standardised targets to the labels' units.

    `standardize(labels)` stores mean and deviation of the training labels; before that they are 0 and 1.
    """

    config_class: ClassVar[type[HeadConfig]] = RegressionHeadConfig
    pools: ClassVar[bool] = True

    config: RegressionHeadConfig

    def __init__(self, config: RegressionHeadConfig, model_config: PreTrainedConfig) -> None:
        super().__init__(config, model_config)
        self.pooling = make_pooling(config.pooling, model_config)
        self.layernorm = nn.LayerNorm(model_config.hidden_size, eps=model_config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        outputs = config.num_targets * (2 if config.loss == "gaussian_nll" else 1)
        self.regressor = nn.Linear(model_config.hidden_size, outputs)

    def standardize(self, labels: Any) -> None:
        """Store mean and standard deviation of the training labels, by which targets are standardised.

        Args:
            labels: `(samples,)` or `(samples, num_targets)` numbers, of the training set alone.

        Raises:
            ValueError: Another shape, no sample, or NaN or infinite numbers.
        """
        labels = torch.as_tensor(labels, dtype=torch.float64)
        labels = self._checked(labels, len(labels) if labels.dim() else 0)
        if not len(labels):
            raise ValueError("labels is empty; give those of the training set.")
        std = labels.std(dim=0, correction=0)
        self.config.target_mean = labels.mean(dim=0).tolist()
        self.config.target_std = torch.where(std > 0, std, 1).tolist()

    def forward(
        self,
        sequence: TokenSequence,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **inputs: Tensor,
    ) -> RegressionOutput:
        """Predict.

        Args:
            sequence: Encoded tokens.
            labels: `(batch, num_targets)`, or `(batch,)` for one target.
            num_items_in_batch: See `TaskHead.forward`.
            inputs: None.

        Returns:
            `loss`, `logits`, and `variance` with `"gaussian_nll"`.

        Raises:
            ValueError: Labels of another shape, NaN or infinite.
        """
        raw = self.regressor(self.dropout(self.layernorm(self.pooling(sequence)))).float()
        mean = raw.new_tensor(self.config.target_mean or [0.0])
        std = raw.new_tensor(self.config.target_std or [1.0])
        value, variance = raw, None
        if self.config.loss == "gaussian_nll":
            value, spread = raw.chunk(2, dim=-1)
            variance = functional.softplus(spread) + _MIN_VARIANCE
        loss = None
        if labels is not None:
            targets = (self._checked(labels, len(value)).to(value) - mean) / std
            loss = self.loss(value, variance, targets, num_items_in_batch)
        return RegressionOutput(
            loss=loss,
            logits=value * std + mean,
            variance=None if variance is None else variance * std**2,
        )

    def loss(
        self,
        value: Tensor,
        variance: Tensor | None,
        targets: Tensor,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Mean loss over samples and targets, in fp32, from standardised predictions and targets of one shape."""
        if variance is not None:
            each = functional.gaussian_nll_loss(value, targets, variance, reduction="none", eps=_MIN_VARIANCE)
        else:
            losses = {"mse": functional.mse_loss, "mae": functional.l1_loss, "huber": functional.huber_loss}
            each = losses[self.config.loss](value, targets, reduction="none")
        return each.sum() / (each.numel() if num_items_in_batch is None else num_items_in_batch)

    def _checked(self, labels: Tensor, count: int) -> Tensor:
        """Labels as `(count, num_targets)`."""
        expected = (count, self.config.num_targets)
        if labels.dim() == 1 and self.config.num_targets == 1:
            labels = labels[:, None]
        if tuple(labels.shape) != expected:
            raise ValueError(f"labels must have shape {expected}, one number a target, got {tuple(labels.shape)}.")
        if not torch.compiler.is_compiling() and not labels.isfinite().all():
            wrong = labels[~labels.isfinite()][0].item()
            raise ValueError(f"labels must be finite numbers, got {wrong}; leave out samples without a target.")
        return labels

    def metrics(self) -> TaskMetrics:
        """RMSE, MAE and R2 in the units of the labels, the mean over targets."""
        regression = torchmetrics("regression")
        metrics = {
            "rmse": regression.MeanSquaredError(squared=False, num_outputs=self.config.num_targets),
            "mae": regression.MeanAbsoluteError(num_outputs=self.config.num_targets),
            "r2": regression.R2Score(),
        }
        return TaskMetrics(metrics, self._read)

    def _read(self, predictions: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
        values = predictions[0] if isinstance(predictions, tuple | list) else predictions
        values, labels = (each.float().reshape(-1, self.config.num_targets) for each in (values, labels))
        return (values[:, 0], labels[:, 0]) if self.config.num_targets == 1 else (values, labels)

    def post_process(self, output: ModelOutput, **options: Any) -> list[dict[str, Any]]:
        """Numbers by name.

        Returns:
            For each sample `{name: number}`, or `{name: {"value", "std"}}` where variances are predicted. Targets
            without a name are `"target_0"`, `"target_1"` and so on.
        """
        names = self.config.target_names or [f"target_{index}" for index in range(self.config.num_targets)]
        rows: list[list[Any]] = output["logits"].detach().float().tolist()
        if output.get("variance") is not None:
            deviations = output["variance"].detach().float().sqrt().tolist()
            rows = [
                [{"value": value, "std": std} for value, std in zip(*row, strict=True)]
                for row in zip(rows, deviations, strict=True)
            ]
        return [dict(zip(names, row, strict=True)) for row in rows]

    def dummy_labels(self, sequence: TokenSequence) -> list[Any]:
        numbers = torch.arange(len(sequence.embeddings))[:, None] + torch.arange(self.config.num_targets)
        return list((numbers % 2).float() + 2)
