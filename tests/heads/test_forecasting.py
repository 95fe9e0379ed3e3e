"""The forecasting head: losses against torch and scikit-learn, the way back to the units, series of any length."""

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, mean_pinball_loss, mean_squared_error
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close
from transformers import EvalPrediction

from meta_transformer import MetaTransformerConfig, MetaTransformerForForecasting
from meta_transformer.heads.forecasting import ForecastingHeadConfig
from meta_transformer.heads.series_decoders import last_places

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
PAST = torch.randn(6, 24, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 0.5]) + 20
LABELS = torch.randn(6, 5, 2, generator=torch.Generator().manual_seed(1)) * 3 + 20
LEVELS = [0.1, 0.5, 0.8]


def make(tokenizer: dict | None = None, **options) -> MetaTransformerForForecasting:
    torch.manual_seed(0)
    tokenizer = {"patch_length": 8, "stride": 4, "level_features": False, **(tokenizer or {})}
    config = MetaTransformerConfig(
        **SHAPE,
        initializer_range=0.2,
        modalities={"time_series": tokenizer},
        heads={"forecasting": {"horizon": 5, "num_tokens": 4, **options}},
    )
    return MetaTransformerForForecasting(config).eval()


def normalise(values: Tensor) -> Tensor:
    return (values - PAST.mean(dim=1, keepdim=True)) / PAST.std(dim=1, keepdim=True, correction=0)


@pytest.mark.parametrize(
    ("loss", "reference"),
    [("mse", functional.mse_loss), ("mae", functional.l1_loss), ("huber", functional.huber_loss)],
)
def test_the_loss_is_that_of_torch_on_normalised_values(loss, reference) -> None:
    output = make(loss=loss)(past_values=PAST, labels=LABELS)
    assert_close(output.loss, reference(normalise(output.logits), normalise(LABELS)), rtol=1e-4, atol=1e-4)


def test_the_loss_of_quantiles_is_scikit_learns_pinball_loss() -> None:
    output = make(quantiles=LEVELS)(past_values=PAST, labels=LABELS)
    truth = normalise(LABELS).flatten()
    expected = np.mean(
        [
            mean_pinball_loss(truth, normalise(output.quantiles[..., place]).detach().flatten(), alpha=level)
            for place, level in enumerate(LEVELS)
        ]
    )
    assert output.loss.item() == pytest.approx(expected, rel=1e-4)


def test_quantiles_rise_and_the_forecast_is_their_median() -> None:
    output = make(quantiles=LEVELS)(past_values=PAST)
    assert output.quantiles.shape == (6, 5, 2, 3)
    assert (output.quantiles.diff(dim=-1) >= 0).all()
    assert torch.equal(output.logits, output.quantiles[..., 1])


def test_quantiles_of_noise_are_found() -> None:
    """All look-backs are alike, so that the best that can be said is the quantiles of the labels."""
    model = make(quantiles=LEVELS, horizon=1).train()
    past = PAST[:1, :, :1].expand(400, -1, -1)
    labels = torch.randn(400, 1, 1, generator=torch.Generator().manual_seed(0)) * 4 + 21
    optimizer = torch.optim.Adam(model.head.parameters(), lr=0.02)
    for step in range(150):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 150)
        model(past_values=past, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    found = model(past_values=past[:1]).quantiles[0, 0, 0]
    assert_close(found, labels.flatten().quantile(torch.tensor(LEVELS)), rtol=0, atol=0.4)


def test_the_loss_over_accumulated_batches_sums_to_that_of_the_whole() -> None:
    for options in ({}, {"quantiles": LEVELS}):
        model = make(**options)
        parts = [
            model(past_values=PAST[part], labels=LABELS[part], num_items_in_batch=LABELS.numel()).loss
            for part in (slice(0, 1), slice(1, 6))
        ]
        assert_close(sum(parts), model(past_values=PAST, labels=LABELS).loss)


@torch.no_grad()
def test_what_is_predicted_comes_back_by_mean_and_deviation_of_the_look_back() -> None:
    model = make()
    model.head.decoder.weight.zero_()
    model.head.decoder.bias.copy_(torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]))
    expected = PAST.mean(dim=1)[:, None] + torch.arange(-2, 3)[:, None] * PAST.std(dim=1, correction=0)[:, None]
    assert_close(model(past_values=PAST).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize(("scale", "level"), [(100.0, -7.0), (1e-3, 0.5)])
def test_forecasts_follow_the_level_and_scale_of_the_input(scale, level) -> None:
    model = make(quantiles=LEVELS)
    expected = model(past_values=PAST).quantiles * scale + level
    assert_close(model(past_values=PAST * scale + level).quantiles, expected, rtol=1e-3, atol=1e-3 * scale)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [2, 9])
def test_the_forecast_is_a_linear_layer_over_the_last_tokens(tokens) -> None:
    model = make(num_tokens=tokens)
    encoded = model.model(past_values=PAST).last_hidden_state[:, 1:].unflatten(1, (2, 5))  # 5 patches
    weight = model.head.decoder.weight.view(5, tokens, 32)
    expected = torch.einsum("bcpd,hpd->bhc", encoded[:, :, -tokens:], weight[:, -5:]) + model.head.decoder.bias[:, None]
    assert_close(normalise(model(past_values=PAST).logits), expected, rtol=1e-4, atol=1e-4)


def test_the_last_places_are_those_of_each_row() -> None:
    values = torch.arange(12.0).view(2, 6, 1)
    found = last_places(values, torch.tensor([4, 1]), 3)[..., 0]
    assert found.tolist() == [[1, 2, 3], [0, 0, 6]]


@pytest.mark.parametrize("horizon", [1, 720])
@pytest.mark.parametrize("channels", [1, 9])
@pytest.mark.parametrize("form", ["channel_independent", "channel_mixing", "convolution"])
def test_every_form_forecasts_any_horizon_and_number_of_channels(horizon, channels, form) -> None:
    mixed = None if form == "channel_independent" else channels
    model = make({"form": form, "num_channels": mixed}, horizon=horizon, num_channels=mixed, quantiles=LEVELS)
    output = model(past_values=torch.randn(2, 24, channels), labels=torch.randn(2, horizon, channels))
    assert output.logits.shape == (2, horizon, channels)
    output.loss.backward()
    assert model.head.decoder.weight.grad.abs().max() > 0


@torch.no_grad()
@pytest.mark.parametrize("own", [None, 2])
@pytest.mark.parametrize("form", ["channel_independent", "channel_mixing", "convolution"])
def test_a_series_has_the_same_forecast_alone_and_padded(form, own) -> None:
    mixed = None if form == "channel_independent" else 2
    model = make({"form": form, "num_channels": 2}, num_channels=mixed, skip_steps=6, skip_channels=own)
    lengths = [3, 11, 24]
    mask = torch.arange(24) < torch.tensor(lengths)[:, None]
    padded = PAST[:3].masked_fill(~mask[:, :, None], torch.nan)
    together = model(past_values=padded, past_mask=mask).logits
    for index, length in enumerate(lengths):
        alone = model(past_values=PAST[index : index + 1, :length]).logits
        assert_close(together[index : index + 1], alone, rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_covariates_of_a_step_change_the_forecast_of_that_step_alone() -> None:
    model = make(num_future_features=3)
    future = torch.zeros(6, 5, 3)
    before = model(past_values=PAST, future_time_features=future).logits
    future[:, 2] = 1
    moved = (model(past_values=PAST, future_time_features=future).logits - before).abs().amax(dim=(0, 2))
    assert (moved > 1e-3).tolist() == [False, False, True, False, False]


@torch.no_grad()
def test_a_constant_look_back_does_not_drown_the_others() -> None:
    model = make()
    past = PAST.clone()
    past[0, :, 0] = 5.0
    output = model(past_values=past, labels=LABELS)
    assert output.loss < 100
    assert_close(output.logits[0, :, 0], torch.full((5,), 5.0), rtol=0, atol=1e-2)


def test_metrics_equal_scikit_learn() -> None:
    random = np.random.default_rng(0)
    labels = random.normal(size=(40, 5, 2)).astype(np.float32)
    quantiles = np.sort(random.normal(size=(40, 5, 2, 3)), axis=-1).astype(np.float32)
    middle = quantiles[..., 1]
    found = make(quantiles=LEVELS).metrics()(EvalPrediction((middle, quantiles), labels))
    point = make().metrics()(EvalPrediction(middle, labels))
    pinball = [
        mean_pinball_loss(labels.ravel(), quantiles[..., i].ravel(), alpha=level) for i, level in enumerate(LEVELS)
    ]
    inside = (quantiles[..., 0] <= labels) & (labels <= quantiles[..., -1])
    for metrics in (found, point):
        assert metrics["mse"] == pytest.approx(mean_squared_error(labels.ravel(), middle.ravel()), rel=1e-5)
        assert metrics["mae"] == pytest.approx(mean_absolute_error(labels.ravel(), middle.ravel()), rel=1e-5)
    assert found["pinball"] == pytest.approx(np.mean(pinball), rel=1e-5)
    assert found["coverage"] == pytest.approx(inside.mean(), rel=1e-5)
    assert set(point) == {"mse", "mae"}


def test_metrics_that_are_equal_over_the_first_batch_stay_apart() -> None:
    metrics, zeros = make().metrics(), np.zeros((2, 5, 2), np.float32)
    metrics(EvalPrediction(zeros, zeros + 1), compute_result=False)
    assert metrics(EvalPrediction(zeros, zeros + 3)) == pytest.approx({"mse": 5.0, "mae": 2.0})


def test_post_processing_gives_arrays_by_quantile() -> None:
    model = make(quantiles=LEVELS)
    output = model(past_values=PAST)
    found = model.post_process(output)
    assert len(found) == 6
    np.testing.assert_array_equal(found[1]["forecast"], output.logits[1].detach())
    assert list(found[1]["quantiles"]) == LEVELS
    np.testing.assert_array_equal(found[1]["quantiles"][0.8], output.quantiles[1, ..., 2].detach())
    assert list(make().post_process(make()(past_values=PAST))[0]) == ["forecast"]


def test_forecasts_of_a_high_level_keep_their_digits_in_half_precision() -> None:
    model = make().bfloat16()
    output = model(past_values=PAST + 1000)
    assert output.logits.dtype == torch.float32
    assert output.logits.std() > 0.1


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:, :4], r"labels must have shape \(6, 5, 2\), \(batch, horizon, channels\), got \(6, 4, 2\)"),
        (LABELS[..., :1], r"got \(6, 5, 1\)"),
        (LABELS[:3], r"got \(3, 5, 2\)"),
        (LABELS * torch.nan, "must be finite numbers, got nan"),
        (LABELS * torch.inf, "must be finite numbers, got inf"),
    ],
)
def test_bad_labels_are_refused(labels, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()(past_values=PAST, labels=labels)


@pytest.mark.parametrize(
    ("features", "given", "message"),
    [
        (3, None, r"future_time_features must have shape \(6, 5, 3\), got None"),
        (3, torch.zeros(6, 4, 3), r"got \(6, 4, 3\)"),
        (3, torch.zeros(6, 5, 2), r"got \(6, 5, 2\)"),
        (0, torch.zeros(6, 5, 2), r"must have shape \(6, 5, 0\)"),
    ],
)
def test_bad_covariates_are_refused(features, given, message) -> None:
    with pytest.raises(ValueError, match=message):
        make(num_future_features=features)(past_values=PAST, future_time_features=given)


@pytest.mark.parametrize(
    ("form", "channels", "message"),
    [
        ("channel_independent", 2, "num_channels is 2, but the tokens lie in 2 dimensions"),
        ("channel_mixing", None, "num_channels is None, but the tokens lie in 1 dimensions"),
        ("convolution", 3, "num_channels is 3, got 2 channels"),
    ],
)
def test_a_head_for_another_form_is_refused(form, channels, message) -> None:
    with pytest.raises(ValueError, match=message):
        make({"form": form, "num_channels": 2}, num_channels=channels)(past_values=PAST)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
        ({"num_tokens": 0}, "num_tokens must be at least 1"),
        ({"skip_steps": -1}, "skip_steps must be at least 0"),
        ({"skip_steps": 4, "skip_channels": 0}, "skip_channels must be at least 1"),
        ({"skip_channels": 2}, "needs skip_steps"),
        ({"num_channels": 0}, "num_channels must be at least 1, or None"),
        ({"num_future_features": -1}, "num_future_features must be at least 0"),
        ({"quantiles": [0.0, 0.5]}, "above 0 and below 1 in rising order"),
        ({"quantiles": [0.5, 1.0]}, "above 0 and below 1 in rising order"),
        ({"quantiles": [0.9, 0.1]}, "above 0 and below 1 in rising order"),
        ({"quantiles": [0.5, 0.5]}, "above 0 and below 1 in rising order"),
        ({"quantiles": []}, "above 0 and below 1 in rising order"),
        ({"loss": "l2"}, "loss"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
        ({"objective": "reconstruction", "num_future_features": 2}, "are for forecasting"),
    ],
)
def test_bad_options_are_refused(options, message) -> None:
    with pytest.raises(Exception, match=message):
        ForecastingHeadConfig(**options)
