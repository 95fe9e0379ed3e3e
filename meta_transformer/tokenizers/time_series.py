"""Time series to tokens: each series normalised by itself, cut into patches or steps, with learned positions.

Arrives: `past_values` `(batch, steps, channels)` with `past_observed_mask` of the same shape, true where a value was
observed; `past_time_features` `(batch, steps, features)`; and, for series of different length, `past_mask`
`(batch, steps)`. Leaves: `(batch, tokens, hidden)`, with a mask if anything is padded or missing.

- Normalisation over the observed steps of each channel, and the way back: RevIN (Kim et al. 2022, section 3), without
  its learned scale. Mean and deviation go along in `SeriesLayout`.
- Patches: PatchTST (Nie et al. 2023, section 3.1), one token for each channel and patch, or one over all channels.
- Steps: a convolution over three steps, as Meta-Transformer's code for time series has it from Informer. Theirs is
  circular and has no bias; this one has a bias, and what lies past both ends counts as missing.

Different from the originals: a series of any length, whose last patch is completed instead of dropped; what is missing
is marked, so that it cannot be taken for a value; and level and scale, which the normalisation takes away, can be seen.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization as init

from ..sequence import SeriesLayout, TokenSequence
from .base import ModalityTokenizer, TokenizerConfig
from .padding import first_places, read_mask
from .positions import InterpolatedPositions

__all__ = ["TimeSeriesTokenizer", "TimeSeriesTokenizerConfig"]

# Deviations below this share of the largest value are rounding errors of a constant channel, which stays constant.
_MIN_RELATIVE_SCALE = 1e-5


@strict
@dataclass(kw_only=True)
class TimeSeriesTokenizerConfig(TokenizerConfig):
    """Options of the time series tokenizer.

    Attributes:
        num_channels: Channels of every series; `None` takes any number, which only `channel_independent` can.
        num_time_features: Calendar features of a step, as the processor makes them.
        form: `channel_independent`: one token for each channel and patch, with a learned embedding of the channel if
            `num_channels` is given. `channel_mixing`: one token for each patch over all channels. `convolution`: one
            token for each step, from it and its two neighbours, over all channels.
        patch_length: Steps of a patch; not used by `convolution`.
        stride: Steps from one patch to the next, at most `patch_length`; not used by `convolution`.
        instance_norm: Whether each channel of each series is brought to mean 0 and deviation 1.
        level_features: Whether the mean and deviation that `instance_norm` takes away are added to the tokens. A task
            that must not depend on them, such as forecasting by the shape alone, turns this off.
        max_positions: Patches, or steps of `convolution`, for which positions are learned. Longer series get positions
            interpolated from these.
    """

    num_channels: int | None = None
    num_time_features: int = 0
    form: Literal["channel_independent", "channel_mixing", "convolution"] = "channel_independent"
    patch_length: int = 16
    stride: int = 8
    instance_norm: bool = True
    level_features: bool = True
    max_positions: int = 128

    def validate_sizes(self) -> None:
        for name in ("patch_length", "stride", "max_positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.stride > self.patch_length:
            raise ValueError(
                f"stride {self.stride} is larger than patch_length {self.patch_length}, which would leave out steps "
                "between the patches; use a stride of at most patch_length."
            )
        if self.num_time_features < 0:
            raise ValueError(f"num_time_features must be at least 0, got {self.num_time_features}.")
        if self.num_channels is not None and self.num_channels < 1:
            raise ValueError(f"num_channels must be at least 1, or None, got {self.num_channels}.")

    def validate_form(self) -> None:
        if self.num_channels is None and self.form != "channel_independent":
            raise ValueError(
                f"form {self.form!r} needs num_channels, the number of channels of every series: fit the processor, or "
                "give it num_channels. Only 'channel_independent' takes any number."
            )


class TimeSeriesTokenizer(ModalityTokenizer):
    """Normalisation, patches, projection, positions; see the module's description."""

    config_class: ClassVar[type[TokenizerConfig]] = TimeSeriesTokenizerConfig

    # Half precision rounds what varies little about a high level, such as air pressure, to one number.
    full_precision_inputs: ClassVar[frozenset[str]] = frozenset({"past_values"})

    config: TimeSeriesTokenizerConfig

    def __init__(self, config: TimeSeriesTokenizerConfig, hidden_size: int) -> None:
        super().__init__(config, hidden_size)
        self.independent = config.form == "channel_independent"
        steps = config.form == "convolution"
        # Steps of a token, from one token to the next, and in front of the first one.
        self.patch_length, self.stride, self.front = (3, 1, 1) if steps else (config.patch_length, config.stride, 0)
        mixed = 1 if self.independent else config.num_channels or 1
        self.projection = nn.Linear(2 * mixed * self.patch_length, hidden_size)
        self.positions = InterpolatedPositions(config.max_positions, hidden_size)
        self.level_projection = None
        if config.instance_norm and config.level_features:
            self.level_projection = nn.Linear(2 * mixed, hidden_size, bias=False)
        self.time_projection = None
        if config.num_time_features:
            width = config.num_time_features * (1 if steps else self.patch_length)
            self.time_projection = nn.Linear(width, hidden_size, bias=False)
        self.channel_embeddings = None
        if self.independent and config.num_channels is not None:
            self.channel_embeddings = nn.Parameter(torch.zeros(config.num_channels, hidden_size))

    def init_parameters(self, std: float) -> None:
        if self.channel_embeddings is not None:
            init.trunc_normal_(self.channel_embeddings, std=std)

    def forward(
        self,
        past_values: Tensor,
        past_observed_mask: Tensor | None = None,
        past_time_features: Tensor | None = None,
        past_mask: Tensor | None = None,
    ) -> TokenSequence:
        """Tokenize a batch of series.

        Args:
            past_values: `(batch, steps, channels)`, one step and one channel or more; they are taken in float32,
                whatever the type of the weights.
            past_observed_mask: `(batch, steps, channels)`, true where a value was observed; `None` when none is
                missing. What lies elsewhere has no effect.
            past_time_features: `(batch, steps, features)`, about -0.5..0.5; needed if the tokenizer was made for it.
            past_mask: `(batch, steps)`, true for the steps at the start that belong to the series, not reached by what
                lies after them; `None` when all series fill the tensor.

        Returns:
            Tokens with a `SeriesLayout` of the padded batch: `channels * patches` of them, channel by channel, if
            channels are independent, and otherwise `patches`. A token is real if its patch holds a step of the series;
            a channel of its own in which nothing was observed has no real token.

        Raises:
            ValueError: A tensor of another shape than described, another number of channels or features than the
                tokenizer was made for, no time features although it was made for some, or as `read_mask`.
        """
        self._check(past_values, past_observed_mask, past_time_features)
        real, (lengths,) = read_mask("past_mask", past_mask, past_values, [1])
        observed = torch.ones_like(past_values, dtype=torch.bool)
        if past_observed_mask is not None:
            observed = past_observed_mask.bool()
        if real is not None:
            observed = observed & real[:, :, None]
        # Not by a product: zero times NaN is NaN.
        values = past_values.float().masked_fill(~observed, 0)
        loc, scale = torch.zeros_like(values[:, 0]), torch.ones_like(values[:, 0])
        if self.config.instance_norm:
            values, loc, scale = _normalise(values, observed)
        patches = self._patches(values, 0.0)  # (batch, patches, channels, steps of a patch)
        missing = self._patches((~observed).to(values.dtype), 1.0)
        cells = torch.cat([patches, missing], dim=-1).to(self.projection.weight.dtype)
        tokens = self.projection(cells.transpose(1, 2) if self.independent else cells.flatten(2))
        size, own = tokens.shape[-2], self._own_patches(lengths)
        if self.level_projection is not None:
            level = torch.stack([loc.asinh(), scale.log()], dim=-1).to(tokens.dtype)  # (batch, channels, 2)
            level = self.level_projection(level if self.independent else level.flatten(1))
            tokens = tokens + level.unsqueeze(-2)
        common = self.positions(own, size)
        if self.time_projection is not None and past_time_features is not None:
            common = common + self.time_projection(self._calendar(past_time_features, real))
        tokens = tokens + (common[:, None] if self.independent else common)
        if self.channel_embeddings is not None:
            tokens = tokens + self.channel_embeddings[:, None]
        mask = None
        if real is not None or (self.independent and past_observed_mask is not None):
            mask = first_places([own], [size]).expand(len(tokens), -1)
            if self.independent:
                mask = (mask[:, None] & observed.any(dim=1)[:, :, None]).flatten(1)
        # A token of the convolution stands for the one step in its middle.
        length, channel = self.patch_length - 2 * self.front, (1,) if self.independent else ()
        layout = SeriesLayout(
            shape=tuple(tokens.shape[1:-1]),
            patch_size=(*channel, length),
            stride=(*channel, self.stride),
            loc=loc,
            scale=scale,
            values=values,
            observed=observed,
            lengths=lengths.expand(tokens.shape[0]),  # not len, which a graph would fix
        )
        return TokenSequence(tokens.flatten(1, -2), mask, layout)

    def _patches(self, signal: Tensor, fill: float) -> Tensor:
        """Patches `(batch, patches, channels, patch_length)` of `(batch, steps, channels)`, `fill` past both ends."""
        steps = signal.shape[1] + 2 * self.front
        # With stride - 1 steps more, the rounding down leaves no step out.
        end = max(self.patch_length - steps, self.stride - 1)
        signal = functional.pad(signal, (0, 0, self.front, self.front + end), value=fill)
        return signal.unfold(1, self.patch_length, self.stride)

    def _own_patches(self, lengths: Tensor) -> Tensor:
        """Number of patches of series of these numbers of steps."""
        beyond = (lengths + 2 * self.front - self.patch_length).clamp(min=0)
        return torch.where(lengths > 0, (beyond + self.stride - 1) // self.stride + 1, 0)

    def _calendar(self, past_time_features: Tensor, real: Tensor | None) -> Tensor:
        """Calendar features of each token's steps, `(batch, patches, features * steps)`."""
        features = past_time_features.to(self.projection.weight.dtype)
        if real is not None:
            features = features.masked_fill(~real[:, :, None], 0)
        return features if self.front else self._patches(features, 0.0).flatten(2)

    def _check(self, values: Tensor, observed: Tensor | None, features: Tensor | None) -> None:
        shape, channels = tuple(values.shape), self.config.num_channels
        if len(shape) != 3 or shape[1] == 0 or shape[2] == 0 or (channels is not None and channels != shape[2]):
            raise ValueError(
                f"past_values must have shape (batch, steps, {channels or 'channels'}), got {shape}. Make them with "
                f"TimeSeriesProcessor(num_channels={channels}), or make the tokenizer with your num_channels."
            )
        if observed is not None and tuple(observed.shape) != shape:
            raise ValueError(
                f"past_observed_mask must have shape {shape}, as past_values, got {tuple(observed.shape)}."
            )
        expected, found = self.config.num_time_features, None if features is None else tuple(features.shape)
        if (expected or found is not None) and found != (*shape[:2], expected):
            raise ValueError(
                f"past_time_features must have shape {(*shape[:2], expected)}, got {found}. Give the processor the "
                f"time_features, and the tokenizer num_time_features, their number; here it is {expected}."
            )


def _normalise(values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each channel of each series to mean 0 and deviation 1 over its observed steps, 0 elsewhere.

    Args:
        values: `(batch, steps, channels)`, 0 where nothing was observed.
        observed: Of the same shape.

    Returns:
        The normalised values, and `loc` and `scale` `(batch, channels)` such that `values * scale + loc` undoes it. A
        constant channel becomes 0; one without an observed step has 0 and 1.
    """
    count = observed.sum(dim=1)
    # In units of the largest value, so that squares neither overflow nor vanish. It cancels: no gradient through it.
    peak = values.detach().abs().amax(dim=1)
    peak = torch.where(peak > 1e-30, peak, 1.0)
    values = values / peak[:, None]
    mean = values.sum(dim=1) / count.clamp(min=1)
    centred = (values - mean[:, None]).masked_fill(~observed, 0)
    variance = centred.square().sum(dim=1) / count.clamp(min=1)
    # The smallest deviation inside the root, whose slope at 0 is infinite.
    deviation = variance.clamp(min=_MIN_RELATIVE_SCALE**2).sqrt()
    return centred / deviation[:, None], mean * peak, torch.where(count > 0, deviation * peak, 1.0)
