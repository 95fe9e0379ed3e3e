"""Clocks, resampling and windows of recordings: against torchaudio, pandas and loops, on real ones."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torchaudio.functional import resample

from meta_transformer.processors.imu import ImuProcessor
from tests.support.recordings import COLUMNS, raw, values, waves

GOOD = np.ones((40, 6))
NAN = float("nan")


@pytest.mark.parametrize(("rate", "up", "down"), [(100, 1, 2), (25, 2, 1), (60, 5, 6), (200, 1, 4)])
def test_resampling_agrees_with_torchaudio(recording: pd.DataFrame, rate: int, up: int, down: int) -> None:
    array = np.cumsum(recording[COLUMNS].to_numpy(), axis=0)[::3] / 10  # smooth: the two filters differ at the limit
    mean = array.mean(axis=0)  # of which torchaudio would make a ramp at both ends
    ours = values(array, rate)[0]
    reference = resample(torch.from_numpy((array - mean).T.copy()), down, up).numpy().T + mean
    assert ours.shape == reference.shape
    scale = reference.std(axis=0)
    assert (np.abs(ours - reference)[20:-20] / scale).max() < 0.01


@pytest.mark.parametrize("rate", [25, 48, 51.2, 99.5, 100, 1000])
def test_a_sine_is_the_same_at_any_rate(rate: float) -> None:
    ours, expected = values(waves(4, rate), rate)[0], waves(4, 50)
    assert abs(len(ours) - len(expected)) <= 1
    steps = min(len(ours), len(expected))
    np.testing.assert_allclose(ours[10 : steps - 10], expected[10 : steps - 10], atol=0.02)


def test_an_offset_such_as_gravity_stays_at_both_ends() -> None:
    np.testing.assert_allclose(values(np.full((30, 6), 9.8), 120), 9.8, rtol=1e-6)


def test_what_the_lower_rate_cannot_hold_is_filtered_out() -> None:
    fast = waves(4, 200, hertz=40)  # would look like 10 Hz
    for sample in (fast, {"values": fast, "timestamps": np.arange(len(fast)) / 200}):
        assert np.ptp(values(sample, None if isinstance(sample, dict) else 200)[0, 10:-10]) < 0.05


def test_uneven_times_are_interpolated() -> None:
    random = np.random.default_rng(0)
    times = np.sort(random.uniform(0, 4, 400))
    times[[0, -1]] = 0, 4
    sample = {"values": 9.8 + np.sin(2 * np.pi * times[:, None] + np.arange(6)), "timestamps": times}
    ours = values(sample, max_gap=0.2)[0]
    assert ours.shape == (201, 6)
    np.testing.assert_allclose(ours[5:-5], waves(4.02, 50, hertz=1.0)[5:-5], atol=0.05)


def test_steps_at_the_times_of_the_grid_stay_as_they_are() -> None:
    sample = {"values": waves(1, 50), "timestamps": 1.6e9 + np.arange(50) / 50}
    np.testing.assert_allclose(values(sample)[0], waves(1, 50), atol=1e-4)


@pytest.mark.parametrize(
    ("times", "unit"),
    [
        (lambda seconds: seconds, "s"),
        (lambda seconds: (seconds * 1e3).tolist(), "ms"),
        (lambda seconds: np.round(seconds * 1e6).astype(int), "us"),
        (lambda seconds: np.round((seconds + 1.7e9) * 1e9).astype(int), "ns"),
        (lambda seconds: torch.from_numpy(seconds), "s"),
        (lambda seconds: pd.to_datetime(seconds, unit="s"), "ms"),
        (lambda seconds: pd.to_datetime(seconds, unit="s").tz_localize("Asia/Tokyo"), "s"),
        (lambda seconds: pd.to_datetime(seconds, unit="s").to_series(), "s"),
        (lambda seconds: [str(each) for each in pd.to_datetime(seconds, unit="s")], "s"),
        (lambda seconds: pd.to_timedelta(seconds, unit="s"), "s"),
    ],
)
def test_times_of_every_form_give_the_same_steps(times: Any, unit: str) -> None:
    seconds = 100 + np.arange(60) * 0.0125
    expected = values({"values": waves(0.75, 80), "timestamps": seconds})
    found = values({"values": waves(0.75, 80), "timestamps": times(seconds)}, time_unit=unit)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_steps_of_the_same_time_are_averaged() -> None:
    array = np.arange(12.0).reshape(2, 6).repeat(2, axis=0)
    array[1] += 2
    found = values({"values": array, "timestamps": [0, 0, 0.02, 0.02]})
    np.testing.assert_allclose(found[0], [np.arange(6) + 1, np.arange(6) + 6], atol=1e-5)


@pytest.mark.parametrize("rate", [55, 70, 74])
def test_uneven_times_a_little_faster_than_the_model_do_not_alias(rate: float) -> None:
    random = np.random.default_rng(0)
    times = np.arange(rate * 8) / rate + random.uniform(-1e-3, 1e-3, rate * 8)
    # 30 Hz, which 50 Hz cannot hold, would look like 20 Hz with a deviation of 0.4.
    if rate > 60:
        tone = np.sin(2 * np.pi * 30 * times)[:, None].repeat(6, axis=1)
        assert values({"values": tone, "timestamps": times})[0, 20:-20].std() < 0.1
    slow = np.sin(2 * np.pi * times)[:, None].repeat(6, axis=1)
    found = values({"values": slow, "timestamps": times})[0, :, 0]
    np.testing.assert_allclose(found, np.sin(2 * np.pi * (times[0] + np.arange(len(found)) / 50)), atol=0.03)


def test_a_gap_outside_the_time_that_sensors_share_does_not_matter() -> None:
    short = {"values": waves(2, 50)[:, :3], "timestamps": np.arange(100) / 50}
    late = {
        "values": np.r_[waves(2, 50), waves(0.2, 50)][:, :3],
        "timestamps": np.r_[np.arange(100), np.arange(10) + 900] / 50,
    }
    found = values({"accelerometer": short, "gyroscope": late})
    np.testing.assert_allclose(found[0, :, 3:], waves(2, 50)[:, :3], atol=1e-6)
    with pytest.raises(ValueError, match="gap of 16.02 s after 1.98 s"):
        values({"accelerometer": late, "gyroscope": late})


@pytest.mark.parametrize(("steps", "taken"), [(132, True), (131, True), (130, False), (135, False)])
def test_sensors_of_different_rates_may_differ_by_a_step_of_the_slower(steps: int, taken: bool) -> None:
    sample = {
        "accelerometer": {"values": waves(4, 51.2)[:steps, :3], "sampling_rate": 51.2},
        "gyroscope": {"values": waves(3, 100)[:256, 3:], "sampling_rate": 100},
    }
    if taken:
        assert values(sample).shape[1] == 128
    else:
        with pytest.raises(ValueError, match="the sensors last"):
            values(sample)


def test_text_across_the_end_of_summer_time_is_in_order() -> None:
    dates = pd.date_range("2024-10-27 00:59:59", periods=100, freq="20ms", tz="UTC").tz_convert("Europe/Berlin")
    sample = {"values": waves(2, 50), "timestamps": [each.isoformat() for each in dates]}
    np.testing.assert_allclose(values(sample)[0], waves(2, 50), atol=1e-3)


def test_windows_are_cut_as_a_loop_cuts_them(recording: pd.DataFrame) -> None:
    processor = raw(columns=COLUMNS, time_column="timestamp", time_unit="ms")
    whole = processor(recording)["imu_values"][0]
    windows = processor.windows(recording, length_seconds=1.0, overlap=0.75)
    starts = [start for start in range(0, len(whole), 12) if start + 50 <= len(whole)]
    assert len(windows) == len(starts)
    np.testing.assert_allclose(windows.starts, np.array(starts) / 50)
    batch = processor(windows)["imu_values"]
    for window, start in zip(batch, starts, strict=True):
        torch.testing.assert_close(window, whole[start : start + 50], atol=1e-5, rtol=0)


def test_windows_are_views_and_samples_whatever_the_units_and_rate() -> None:
    processor = ImuProcessor(units={"accelerometer": "g", "gyroscope": "deg/s"})
    array = waves(3, 100)
    windows = processor.windows(array, length_seconds=0.5, imu_sampling_rate=100)
    assert len(windows) == 6
    assert np.shares_memory(windows[0]["values"], windows[1]["values"].base)
    whole = processor(array, imu_sampling_rate=100)["imu_values"][0]
    torch.testing.assert_close(processor(windows[2])["imu_values"][0], whole[50:75])
    torch.testing.assert_close(processor(windows[2:4])["imu_values"][1], whole[75:100])
    torch.testing.assert_close(processor(windows[-1])["imu_values"][0], whole[-25:])


def test_majority_labels_are_those_of_a_count(recording: pd.DataFrame) -> None:
    processor = ImuProcessor(columns=COLUMNS, time_column="timestamp", time_unit="ms")
    windows = processor.windows(recording, length_seconds=0.8, overlap=0.5)
    labels, shares = windows.majority(recording["label"])
    seconds = (recording["timestamp"] - recording["timestamp"].iloc[0]).to_numpy() / 1000
    assert len(set(labels)) > 1
    for label, share, start in zip(labels, shares, windows.starts, strict=True):
        counts = recording["label"][(seconds >= start - 1e-6) & (seconds < start + 0.8 - 1e-6)].value_counts()
        assert counts[label] == counts.max()
        assert share == pytest.approx(counts.max() / counts.sum())


def test_a_window_that_no_row_falls_into_takes_the_next_ones_label() -> None:
    sample = {"values": np.ones((3, 6)), "timestamps": [0, 0.5, 1.0]}
    windows = ImuProcessor(sampling_rate=10).windows(sample, length_seconds=0.2)
    labels, shares = windows.majority([7, 8, 9])
    assert labels.tolist() == [7, 8, 8, 9, 9]
    assert shares.tolist() == [1.0] * 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length_seconds": 0.0}, "length_seconds must be"),
        ({"length_seconds": NAN}, "length_seconds must be"),
        ({"length_seconds": 0.2, "overlap": 1.0}, "overlap must be"),
        ({"length_seconds": 2.0}, "lasts 0.8 s, less than a window of 2 s"),
    ],
)
def test_windows_of_no_sense_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImuProcessor().windows(GOOD, imu_sampling_rate=50, **options)


def test_labels_of_another_number_are_refused() -> None:
    windows = ImuProcessor().windows(GOOD, imu_sampling_rate=50, length_seconds=0.2)
    with pytest.raises(ValueError, match=r"labels must have shape \(40,\).*got \(3,\)"):
        windows.majority([1, 2, 3])
