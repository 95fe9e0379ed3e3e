"""Dates of time series: their order and their calendar, against pandas and GluonTS's formulas."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from meta_transformer.processors.time_series import TimeSeriesProcessor

DATES = pd.date_range("2024-01-01", periods=3)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("second_of_minute", lambda date: date.second / 59),
        ("minute_of_hour", lambda date: date.minute / 59),
        ("hour_of_day", lambda date: date.hour / 23),
        ("day_of_week", lambda date: date.weekday() / 6),
        ("day_of_month", lambda date: (date.day - 1) / 30),
        ("day_of_year", lambda date: (date.timetuple().tm_yday - 1) / 365),
        ("week_of_year", lambda date: (date.isocalendar()[1] - 1) / 52),
        ("month_of_year", lambda date: (date.month - 1) / 11),
    ],
)
def test_calendar_features_are_those_of_gluonts(name: str, formula: Any) -> None:
    index = pd.date_range("2024-02-28 03:14:15", periods=900, freq="17h13min7s")
    frame = pd.DataFrame({"a": range(900)}, index=index)
    features = TimeSeriesProcessor(time_features=[name])(frame)["past_time_features"]
    expected = torch.tensor([formula(date) - 0.5 for date in index.to_pydatetime()])
    torch.testing.assert_close(features[0, :, 0], expected, atol=1e-6, rtol=0)
    assert features.abs().max() <= 0.5


@pytest.mark.parametrize(
    "times",
    [
        lambda index: index,
        lambda index: index.to_series(),
        lambda index: index.to_numpy(),
        lambda index: list(index),
        lambda index: list(index.to_pydatetime()),
        lambda index: [str(each) for each in index],
        lambda index: index.tz_localize("Asia/Tokyo"),
        lambda index: index.to_period("h"),
    ],
)
def test_dates_of_every_form_give_the_same_calendar(times: Any, hourly: pd.DataFrame) -> None:
    processor = TimeSeriesProcessor(time_features=["hour_of_day", "day_of_week"])
    expected = processor(hourly)["past_time_features"]
    sample = {"values": hourly.to_numpy(), "timestamps": times(hourly.index)}
    assert torch.equal(processor(sample)["past_time_features"], expected)


def test_calendar_features_are_padded_with_zeros(hourly: pd.DataFrame) -> None:
    features = TimeSeriesProcessor(time_features=["month_of_year"])([hourly, hourly[:5]])["past_time_features"]
    assert features.shape == (2, 30, 1)
    assert features[1, :5].abs().min() > 0
    assert not features[1, 5:].any()


def test_a_series_takes_its_dates_from_its_index(hourly: pd.DataFrame) -> None:
    processor = TimeSeriesProcessor(time_features=["hour_of_day"])
    assert torch.equal(processor(hourly["oil"])["past_time_features"], processor(hourly)["past_time_features"])


def test_a_time_column_is_no_channel_and_wins_over_the_index(hourly: pd.DataFrame) -> None:
    later = hourly.assign(when=hourly.index + pd.Timedelta(hours=1))
    processor = TimeSeriesProcessor(time_column="when", time_features=["hour_of_day"])
    batch = processor(later)
    assert batch["past_values"].shape == (1, 30, 2)
    shifted = hourly.set_index(hourly.index + pd.Timedelta(hours=1))
    assert torch.equal(batch["past_time_features"], processor(shifted)["past_time_features"])


@pytest.mark.parametrize(
    ("times", "error", "message"),
    [
        (None, ValueError, "need dates"),
        ([1, 2, 3], TypeError, "must be dates, got int64"),
        (["01.02.2024", "02.02.2024", "03.02.2024"], ValueError, "such as 2024-01-31"),
        (DATES - DATES[0], TypeError, "must be dates"),
    ],
)
def test_a_calendar_needs_dates_that_cannot_be_misread(times: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TimeSeriesProcessor(time_features=["day_of_month"])({"values": [1.0, 2.0, 3.0], "timestamps": times})


SUMMER_ENDS = pd.date_range("2024-10-27 00:30", periods=4, freq="h", tz="Europe/Berlin")


@pytest.mark.parametrize("form", [lambda date: date.isoformat(), lambda date: date.to_pydatetime(), str])
def test_the_end_of_summer_time_is_in_order_and_has_the_local_clock(form: Any) -> None:
    times = [form(date) for date in SUMMER_ENDS]  # 00:30, 01:30, 02:30 and 02:30 again
    processor = TimeSeriesProcessor(time_features=["hour_of_day"])
    hours = processor({"values": [1.0] * 4, "timestamps": times})["past_time_features"][0, :, 0]
    torch.testing.assert_close(hours, torch.tensor([0, 1, 2, 2]) / 23 - 0.5)
    with pytest.raises(ValueError, match="must rise"):
        processor({"values": [1.0] * 4, "timestamps": times[::-1]})


@pytest.mark.parametrize(
    "times",
    [
        ["01/02/2024", "02/01/2024", "03/01/2023"],  # in order as text
        ["1", "2", "3"],
        ["monday", "tuesday", "wednesday"],
    ],
)
def test_text_that_is_no_iso_date_is_refused_even_where_dates_are_not_needed(times: list[str]) -> None:
    with pytest.raises(ValueError, match="timestamps as text must be dates such as 2024-01-31"):
        TimeSeriesProcessor()({"values": [1.0, 2.0, 3.0], "timestamps": times})


@pytest.mark.parametrize("times", [5, "2024", np.array(5), [[1], [2], [3]]])
def test_what_is_no_list_of_times_is_refused(times: Any) -> None:
    with pytest.raises(TypeError, match="timestamps must be a list of dates"):
        TimeSeriesProcessor()({"values": [1.0, 2.0, 3.0], "timestamps": times})


@pytest.mark.parametrize("freq", ["h", "15min", "D", "MS", "W-TUE", "B"])
@pytest.mark.parametrize("form", [lambda i: i, lambda i: [str(each) for each in i], lambda i: list(i.to_pydatetime())])
def test_the_calendar_of_the_future_goes_on_where_the_series_ends(freq: str, form: Any) -> None:
    index = pd.date_range("2024-02-27", periods=40, freq=freq)
    processor = TimeSeriesProcessor(time_features=["hour_of_day", "day_of_week", "day_of_month", "month_of_year"])
    whole = processor({"values": np.ones(40), "timestamps": index})["past_time_features"]
    past = {"values": np.ones(30), "timestamps": form(index[:30])}
    assert torch.equal(processor(past, horizon=10)["future_time_features"], whole[:, 30:])
    assert "future_time_features" not in processor(past)


def test_periods_and_two_dates_have_a_future() -> None:
    processor = TimeSeriesProcessor(time_features=["month_of_year"])
    months = {"values": [1.0, 2.0], "timestamps": pd.period_range("2024-11", periods=2, freq="M")}
    days = {"values": [1.0, 2.0], "timestamps": ["2024-01-31", "2024-02-29"]}
    assert processor([months, days], horizon=2)["future_time_features"][..., 0].tolist() == [
        pytest.approx([-0.5, 1 / 11 - 0.5]),
        pytest.approx([2 / 11 - 0.5, 3 / 11 - 0.5]),
    ]


@pytest.mark.parametrize(
    ("features", "times", "horizon", "message"),
    [
        (["day_of_week"], pd.DatetimeIndex(["2024-01-01", "2024-01-02", "2024-01-07"]), 2, "not evenly spaced"),
        (["day_of_week"], DATES, 0, "horizon must be at least 1"),
        ([], DATES, 2, "needs time_features"),
        (["day_of_week"], None, 2, "need dates"),
    ],
)
def test_a_future_without_calendar_is_refused(features: list[str], times: Any, horizon: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimeSeriesProcessor(time_features=features)({"values": [1.0, 2.0, 3.0], "timestamps": times}, horizon=horizon)
