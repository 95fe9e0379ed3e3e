"""The example of forecasting: its windows, its linear baseline, and the model that starts from it."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import Ridge

from meta_transformer import MetaTransformerConfig, MetaTransformerForForecasting, MetaTransformerProcessor
from meta_transformer.processors.time_series import TimeSeriesProcessor

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
BORDERS = {"train": (0, 120), "validation": (120, 160), "test": (160, 200)}
LOOK_BACK, HORIZON = 12, 4


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    module = importlib.import_module("04_forecasting")
    monkeypatch.setattr(module, "BORDERS", BORDERS)
    yield module
    for name in [name for name in sys.modules if name.split(".")[0] in ("recipes", "task_runs", "04_forecasting")]:
        del sys.modules[name]


@pytest.fixture
def series() -> tuple[pd.DataFrame, TimeSeriesProcessor]:
    walks = np.random.default_rng(0).normal(size=(200, 2)).cumsum(axis=0) * [1.0, 30.0]
    table = pd.DataFrame(walks, columns=["load", "oil"], index=pd.date_range("2020-01-01", periods=200, freq="h"))
    return table, TimeSeriesProcessor().fit(table[:120])


def windows(example, series, part: str, **options):
    return example.Windows(*series, part, LOOK_BACK, HORIZON, **options)


def test_windows_are_all_whose_future_lies_in_the_part(example, series) -> None:
    assert [len(windows(example, series, part)) for part in BORDERS] == [120 - 12 - 4 + 1, 40 - 4 + 1, 40 - 4 + 1]
    first = windows(example, series, "test")[0]
    table, processor = series
    np.testing.assert_allclose(first["time_series"], table[148:160])
    np.testing.assert_allclose(first["labels"], processor.standardize(table[160:164]))


def test_a_moved_window_has_one_step_up_or_down_in_past_and_future_for_each_series(example, series) -> None:
    still, moved = windows(example, series, "train")[3], windows(example, series, "train", shift=0.5)
    torch.manual_seed(0)
    moves = []
    for window in (moved[3] for _ in range(400)):
        past = series[1].standardize(window["time_series"]) - series[1].standardize(still["time_series"])
        both = np.concatenate([past.numpy(), window["labels"] - still["labels"]])
        np.testing.assert_allclose(both, np.broadcast_to(both[0], (LOOK_BACK + HORIZON, 2)), atol=1e-5)
        moves.append(both[0])
    np.testing.assert_allclose(np.mean(moves, axis=0), 0, atol=0.1)
    np.testing.assert_allclose(np.cov(np.transpose(moves)), 0.25 * np.eye(2), atol=0.05)


def test_the_linear_layer_of_moved_windows_is_the_ridge_regression_of_windows_moved_both_ways(
    example, series, monkeypatch
) -> None:
    monkeypatch.setattr(example, "RIDGE", [3.0])
    train = windows(example, series, "train", shift=0.5)
    past, future = (each.reshape(-1, each.shape[-1]) for each in train.arrays())
    inputs = np.concatenate([past + 0.5, past - 0.5])
    inputs = np.column_stack([inputs, np.ones(len(inputs))])
    reference = Ridge(2 * 3.0, fit_intercept=False).fit(inputs, np.concatenate([future + 0.5, future - 0.5]))
    linear = example.Linear(train, windows(example, series, "validation"))
    np.testing.assert_allclose(linear.weights[0], reference.coef_.T, atol=1e-8)


@pytest.mark.parametrize("normalised", [False, True])
def test_the_linear_baseline_is_the_ridge_regression_of_scikit_learn(example, series, normalised, monkeypatch) -> None:
    monkeypatch.setattr(example, "RIDGE", [3.0])
    train, validation = (windows(example, series, part) for part in ("train", "validation"))
    linear = example.Linear(train, validation, normalised=normalised)
    whole = train.arrays()[0]
    past, future = (each.reshape(-1, each.shape[-1]) for each in train.arrays())
    mean, std = past.mean(axis=1, keepdims=True), past.std(axis=1, keepdims=True)
    if not normalised:
        mean, std = 0.0, 1.0
    inputs = np.column_stack([(past - mean) / std, np.ones(len(past))])
    reference = Ridge(3.0, fit_intercept=False).fit(inputs, (future - mean) / std)
    expected = reference.predict(inputs) * std + mean
    np.testing.assert_allclose(linear.predict(whole).reshape(expected.shape), expected, atol=1e-8)


def test_a_series_of_its_own_weights_is_fitted_to_what_the_shared_ones_leave(example, series, monkeypatch) -> None:
    monkeypatch.setattr(example, "RIDGE", [3.0])
    train, validation = (windows(example, series, part) for part in ("train", "validation"))
    shared, own = (example.Linear(train, validation, own=own) for own in (False, True))
    past, future = train.arrays()
    left = future - shared.predict(past)
    for place in range(2):
        ridge = Ridge(3.0, fit_intercept=False).fit(past[:, place], left[:, place])
        found = own.weights[place] - shared.weights[place]
        if own.validation < shared.validation:
            np.testing.assert_allclose(found[:-1], ridge.coef_.T, atol=1e-8)
        np.testing.assert_allclose(found[-1], 0)
    assert own.validation <= shared.validation


@pytest.mark.parametrize("own", [False, True])
def test_a_model_that_starts_from_the_linear_layer_forecasts_the_same(example, series, own) -> None:
    train, test = (windows(example, series, part) for part in ("train", "test"))
    linear = example.Linear(train, windows(example, series, "validation"), own=own)
    processor = MetaTransformerProcessor(time_series=series[1])
    torch.manual_seed(0)
    tokenizer = {"patch_length": LOOK_BACK, "stride": LOOK_BACK, "instance_norm": False}
    config = MetaTransformerConfig.tiny(
        num_hidden_layers=1,
        modalities={"time_series": {**tokenizer, "num_channels": 2}},
        heads={"forecasting": {"horizon": HORIZON, "num_tokens": 1, "skip_steps": LOOK_BACK, "skip_channels": 2}},
    )
    model = MetaTransformerForForecasting(config).eval()
    expected = linear.predict(test.arrays()[0])
    assert not np.allclose(example.predict(model, processor, test), expected, atol=1e-2), "the premise: they differ"
    linear.start(model)
    np.testing.assert_allclose(example.predict(model, processor, test), expected, atol=1e-4)
