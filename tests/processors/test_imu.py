"""The IMU processor against scipy, numpy and counting by hand, on real recordings of a phone."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.signal import resample_poly

from meta_transformer import MetaTransformerProcessor
from meta_transformer.processors.imu import ImuProcessor
from tests.support.fuzz import finite_or_refused

COLUMNS = ["x_acc", "y_acc", "z_acc", "x_gyro", "y_gyro", "z_gyro"]
NAN = float("nan")


@pytest.fixture(scope="module")
def recording() -> pd.DataFrame:
    """A walk of 10 seconds or more at about 100 Hz, with times in ms and labels; made up where there is no data."""
    if folder := os.environ.get("META_TRANSFORMER_DATA"):
        return pd.read_csv(Path(folder) / "imu/sp_sw_har/recordings/s01_01_sp.csv")
    random = np.random.default_rng(0)
    steps = np.arange(1200)
    values = np.sin(steps[:, None] / random.uniform(5, 30, 6))
    values[:, 2] -= 9.8
    table = pd.DataFrame(values, columns=COLUMNS)
    times = 1657533977813 + (steps * 9.76).astype(int) + random.integers(-8, 9, len(steps))
    return table.assign(timestamp=np.sort(times), label=np.where(steps < 400, "SEATED", "WALKING"))


def raw(**options: Any) -> ImuProcessor:
    """A processor that leaves values in SI units as they are."""
    count = 3 * len(options.get("sensors", ("accelerometer", "gyroscope")))
    return ImuProcessor(means=[0.0] * count, stds=[1.0] * count, **options)


def values(samples: Any, rate: float | None = None, **options: Any) -> np.ndarray:
    return raw(**options)(samples, imu_sampling_rate=rate)["imu_values"].numpy()


def waves(seconds: float, rate: float, hertz: float = 2.0) -> np.ndarray:
    """Six sines of different phase on an offset, `(steps, 6)`."""
    time = np.arange(round(seconds * rate)) / rate
    return 9.8 + np.sin(2 * np.pi * hertz * time[:, None] + np.arange(6))


def test_values_at_the_processors_rate_are_only_normalised(recording: pd.DataFrame) -> None:
    array = recording[COLUMNS].to_numpy()
    np.testing.assert_allclose(values(array, 50)[0], array, rtol=1e-6)
    usual = np.array([9.80665] * 3 + [1.0] * 3)
    found = ImuProcessor()(array, imu_sampling_rate=50)["imu_values"][0]
    np.testing.assert_allclose(found, array / usual, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rate", "up", "down"), [(100, 1, 2), (25, 2, 1), (60, 5, 6), (200, 1, 4)])
def test_resampling_agrees_with_scipy(recording: pd.DataFrame, rate: int, up: int, down: int) -> None:
    array = np.cumsum(recording[COLUMNS].to_numpy(), axis=0)[::3] / 10  # smooth: the two filters differ at the limit
    ours = values(array, rate)[0]
    reference = resample_poly(array, up, down, axis=0, padtype="edge")
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


def test_units_become_si() -> None:
    sensors = ["accelerometer", "gyroscope", "magnetometer"]
    array = np.tile([1.0] * 3 + [180.0] * 3 + [0.5] * 3, (4, 1))
    units = {"accelerometer": "g", "gyroscope": "deg/s", "magnetometer": "G"}
    expected = np.tile([9.80665] * 3 + [np.pi] * 3 + [50] * 3, (4, 1))
    np.testing.assert_allclose(values(array, 50, sensors=sensors, units=units)[0], expected, rtol=1e-6)
    own = {"values": array, "units": units, "sampling_rate": 50}
    np.testing.assert_allclose(values(own, sensors=sensors)[0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    "form",
    [
        lambda array: array,
        lambda array: torch.from_numpy(array),
        lambda array: array.tolist(),
        lambda array: array[None],
        lambda array: [array],
        lambda array: iter([array]),
        lambda array: {"values": array},
        lambda array: {"accelerometer": array[:, :3], "gyroscope": array[:, 3:].tolist()},
        lambda array: {"gyroscope": array[:, 3:], "accelerometer": {"values": array[:, :3], "sampling_rate": 50}},
        lambda array: pd.DataFrame(array, columns=COLUMNS).assign(label="x")[["label", *reversed(COLUMNS)]],
        lambda array: pd.DataFrame(array, columns=COLUMNS).to_dict("list"),
        lambda array: Dataset.from_dict({"imu": [array.tolist()]})["imu"],
    ],
)
def test_every_form_of_a_recording_gives_the_same_tensors(form: Any, recording: pd.DataFrame) -> None:
    array = recording[COLUMNS].to_numpy(copy=True)[:40]
    np.testing.assert_allclose(values(form(array), 50, columns=COLUMNS)[0], array, rtol=1e-6)


def test_a_file_is_read_with_its_times(recording: pd.DataFrame, tmp_path: Path) -> None:
    recording.to_csv(tmp_path / "walk.csv", index=False)
    options = {"columns": COLUMNS, "time_column": "timestamp", "time_unit": "ms"}
    expected = values({"values": recording[COLUMNS].to_numpy(), "timestamps": recording["timestamp"]}, time_unit="ms")
    for sample in (tmp_path / "walk.csv", str(tmp_path / "walk.csv"), recording):
        np.testing.assert_allclose(values(sample, **options), expected)
    seconds = (recording["timestamp"].iloc[-1] - recording["timestamp"].iloc[0]) / 1000
    assert expected.shape[1] == pytest.approx(seconds * 50, abs=1)


def test_a_frame_indexed_by_dates_needs_no_time_column(recording: pd.DataFrame) -> None:
    first = recording.drop_duplicates("timestamp")
    dated = first[COLUMNS].set_index(pd.to_datetime(first["timestamp"], unit="ms"))
    options = {"columns": COLUMNS, "time_unit": "ms"}
    expected = values(first, time_column="timestamp", **options)
    np.testing.assert_allclose(values(dated, **options), expected, atol=1e-3)  # of a quarter of a microsecond


def test_sensors_with_clocks_of_their_own_meet_on_what_they_share() -> None:
    def stream(start: float, rate: float) -> dict[str, np.ndarray]:
        times = start + np.arange(round(3 * rate)) / rate
        return {"values": 9.8 + np.sin(2 * np.pi * times[:, None] + np.arange(3)), "timestamps": times}

    sample = {"accelerometer": stream(7.0, 200), "gyroscope": stream(7.5, 52)}
    found = values(sample)[0]
    times = 7.5 + np.arange(len(found)) / 50
    assert len(found) == pytest.approx(2.5 * 50, abs=2)
    expected = 9.8 + np.sin(2 * np.pi * times[:, None] + np.tile(np.arange(3), 2))
    np.testing.assert_allclose(found[5:-5], expected[5:-5], atol=0.02)


def test_sensors_with_rates_of_their_own_start_together() -> None:
    sample = {
        "accelerometer": {"values": waves(2, 100)[:, :3], "sampling_rate": 100},
        "gyroscope": {"values": waves(2, 50)[:, 3:], "sampling_rate": 50},
    }
    np.testing.assert_allclose(values(sample)[0][10:-10], waves(2, 50)[10:-10], atol=0.01)


def test_recordings_of_different_length_are_padded_with_zeros_and_masked() -> None:
    batch = ImuProcessor()([np.ones((5, 6)), np.ones((3, 6))], imu_sampling_rate=50)
    assert [batch[name].dtype for name in ("imu_values", "imu_mask")] == [torch.float32, torch.bool]
    assert batch["imu_mask"].tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert not batch["imu_values"][1, 3:].any()
    assert list(ImuProcessor()(np.ones((2, 5, 6)), imu_sampling_rate=50)) == ["imu_values"]


def test_fit_learns_statistics_of_resampled_si_values(recording: pd.DataFrame) -> None:
    parts = [recording[COLUMNS].to_numpy()[:500], recording[COLUMNS].to_numpy()[500:]]
    units = {"accelerometer": "g"}
    processor = ImuProcessor(units=units).fit(iter(parts), imu_sampling_rate=100)
    expected = np.concatenate([values(part, 100, units=units)[0] for part in parts])
    np.testing.assert_allclose(processor.means, expected.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(processor.stds, expected.std(axis=0), rtol=1e-4)


def test_settings_and_statistics_survive_json(recording: pd.DataFrame, tmp_path: Path) -> None:
    options = {"columns": COLUMNS, "time_column": "timestamp", "time_unit": "ms", "units": {"gyroscope": "deg/s"}}
    processor = ImuProcessor(sampling_rate=40, **options).fit(recording)
    MetaTransformerProcessor(imu=processor).save_pretrained(tmp_path)
    restored = MetaTransformerProcessor.from_pretrained(tmp_path)
    assert restored.imu.to_dict() == processor.to_dict()
    assert torch.equal(restored(imu=recording)["imu_values"], processor(recording)["imu_values"])


def test_the_tokenizer_gets_three_channels_for_each_sensor() -> None:
    sensors = ["pocket_accelerometer", "wrist_accelerometer", "wrist_gyroscope"]
    assert ImuProcessor(sensors=sensors).tokenizer_config() == {"num_channels": 9}
    assert ImuProcessor.for_tokenizer({"num_channels": 12}).tokenizer_config() == {"num_channels": 12}


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


GOOD = np.ones((40, 6))
TIMES = np.arange(40) / 50
BAD_SAMPLES = {
    "empty": (GOOD[:0], ValueError, "recording is empty"),
    "one dimension": (GOOD[:, 0], ValueError, r"shape \(steps, 6\), got \(40,\)"),
    "transposed": (GOOD.T, ValueError, "transpose it"),
    "channels": (GOOD[:, :3], ValueError, r"got \(40, 3\)"),
    "nan": (np.where(np.eye(40, 6), NAN, 1.0), ValueError, "NaN in step 0; drop such steps and give timestamps"),
    "infinity": (np.where(np.eye(40, 6), np.inf, 1.0), ValueError, "infinity"),
    "too large": (GOOD * 1e300, ValueError, "too large for float32"),
    "text": ([["a"] * 6], TypeError, "real numbers"),
    "no gyroscope": ({"accelerometer": GOOD[:, :3]}, ValueError, r"no \['gyroscope'\] in the sample"),
    "lengths of sensors": ({"accelerometer": GOOD[:, :3], "gyroscope": GOOD[:9, :3]}, ValueError, "sensors last"),
    "two kinds of clock": (
        {"accelerometer": {"values": GOOD[:, :3], "timestamps": TIMES}, "gyroscope": GOOD[:, :3]},
        ValueError,
        "give timestamps to all",
    ),
    "clocks apart": (
        {
            "accelerometer": {"values": GOOD[:, :3], "timestamps": TIMES},
            "gyroscope": {"values": GOOD[:, :3], "timestamps": TIMES + 9},
        },
        ValueError,
        "do not overlap",
    ),
    "rate that contradicts": ({"values": GOOD, "sampling_rate": 100}, ValueError, "has 100 Hz, but"),
    "rate and times": ({"values": GOOD, "sampling_rate": 50, "timestamps": TIMES}, ValueError, "not both"),
    "times of another number": ({"values": GOOD, "timestamps": TIMES[:9]}, ValueError, "9 timestamps for 40 steps"),
    "times that fall": ({"values": GOOD, "timestamps": -TIMES}, ValueError, "must not fall, but that of step 1"),
    "a time missing": ({"values": GOOD, "timestamps": np.where(TIMES, TIMES, NAN)}, ValueError, "not be missing"),
    "times in ms": ({"values": GOOD, "timestamps": TIMES * 1000}, ValueError, "time_unit"),
    "times in minutes": ({"values": GOOD, "timestamps": TIMES / 6e4}, ValueError, "time_unit"),
    "gap": ({"values": GOOD, "timestamps": TIMES + 3 * (TIMES > 0.5)}, ValueError, r"gap of 3.02 s after 0.5 s"),
    "times of text": ({"values": GOOD[:1], "timestamps": ["noon"]}, ValueError, "numbers or dates"),
    "unit": ({"values": GOOD, "units": {"gyroscope": "rpm"}}, ValueError, "'rpm' for 'gyroscope'"),
    "one unit for all": ({"values": GOOD, "units": "g"}, TypeError, "a dict from sensor to unit, got 'g'"),
    "another key": ({"values": GOOD, "rate": 50}, ValueError, r"no \['rate'\]"),
    "columns": (pd.DataFrame(GOOD, columns=COLUMNS), ValueError, r"no column \['accelerometer_x'"),
    "missing file": ("no/such.csv", ValueError, "no/such.csv"),
    "none": (None, TypeError, "got NoneType"),
    "object": (object(), TypeError, "got object"),
}


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_a_bad_sample_is_named_with_its_index_and_the_remedy(case: str) -> None:
    sample, error, message = BAD_SAMPLES[case]
    with pytest.raises(error, match=rf"imu.*: .*{message}"):
        ImuProcessor()([GOOD, sample], imu_sampling_rate=50)


@pytest.mark.parametrize("rate", [0, -50, NAN, "50", True, 1e6, 0.1])
def test_a_rate_of_no_sense_is_refused(rate: Any) -> None:
    with pytest.raises(ValueError, match="rate"):
        ImuProcessor()(GOOD, imu_sampling_rate=rate)


def test_a_recording_without_clock_is_refused() -> None:
    with pytest.raises(ValueError, match="pass imu_sampling_rate=<Hz>"):
        ImuProcessor()(GOOD)


def test_nothing_and_no_recording_are_refused() -> None:
    with pytest.raises(ValueError, match="imu is an empty list"):
        ImuProcessor()([])
    with pytest.raises(TypeError, match="got int"):
        ImuProcessor()(3)


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


@pytest.mark.parametrize(
    "options",
    [
        {"sensors": []},
        {"sensors": "gyroscope"},
        {"sensors": ["thermometer"]},
        {"sampling_rate": 0},
        {"max_gap": NAN},
        {"time_unit": "min"},
        {"units": {"gyroscope": "g"}},
        {"columns": ["x", "y", "z"]},
        {"means": [0.0] * 6},
        {"means": [0.0] * 3, "stds": [1.0] * 3},
    ],
)
def test_settings_of_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options)).removesuffix("s")):
        ImuProcessor(**options)


def test_a_missing_torchaudio_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchaudio.functional", None)
    with pytest.raises(ImportError, match=r'pip install "meta_transformer\[audio\]"'):
        ImuProcessor()(GOOD, imu_sampling_rate=100)
    ImuProcessor()(GOOD, imu_sampling_rate=50)


SIDES = {"min_dims": 0, "max_dims": 3, "min_side": 0, "max_side": 6}
ARRAYS = hnp.arrays(
    st.one_of(hnp.floating_dtypes(), hnp.integer_dtypes(), hnp.complex_number_dtypes()), hnp.array_shapes(**SIDES)
)
CLOCKS = st.one_of(st.none(), st.floats(), st.lists(st.floats(), max_size=5), st.text(max_size=3), ARRAYS)
KEYS = st.sampled_from(["values", "timestamps", "sampling_rate", "units", "accelerometer", "gyroscope", "x"])
SAMPLES = st.one_of(
    ARRAYS,
    st.builds(lambda array: np.resize(array, (4, 6)), ARRAYS.filter(lambda array: array.size)),
    st.dictionaries(KEYS, st.one_of(ARRAYS, CLOCKS), max_size=4),
    st.builds(lambda times: {"values": np.ones((3, 6)), "timestamps": times}, CLOCKS),
    CLOCKS,
)


@settings(max_examples=40, deadline=None)
@given(st.one_of(SAMPLES, st.lists(SAMPLES, max_size=3)), st.one_of(st.none(), st.just(50), st.floats()))
def test_any_input_is_taken_or_refused_with_a_sentence(samples: Any, rate: float | None) -> None:
    finite_or_refused(lambda: ImuProcessor()(samples, imu_sampling_rate=rate))
