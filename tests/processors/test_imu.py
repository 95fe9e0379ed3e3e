"""The IMU processor against scipy, numpy and counting by hand, on real recordings of a phone."""

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

from meta_transformer import MetaTransformerProcessor
from meta_transformer.processors.imu import ImuProcessor
from tests.support.fuzz import finite_or_refused, measurements
from tests.support.recordings import COLUMNS, values, waves

NAN = float("nan")


def test_values_at_the_processors_rate_are_only_normalised(recording: pd.DataFrame) -> None:
    array = recording[COLUMNS].to_numpy()
    np.testing.assert_allclose(values(array, 50)[0], array, rtol=1e-6)
    usual = np.array([9.80665] * 3 + [1.0] * 3)
    found = ImuProcessor()(array, imu_sampling_rate=50)["imu_values"][0]
    np.testing.assert_allclose(found, array / usual, rtol=1e-5, atol=1e-6)


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
    "too large to filter": ({"values": GOOD * 1.7e308, "timestamps": TIMES / 2}, ValueError, "too large"),
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
    "a unit without hash": ({"values": GOOD, "units": {"gyroscope": []}}, ValueError, r"got \[\] for 'gyroscope'"),
    "one time for all": ({"values": GOOD, "timestamps": 5}, ValueError, "1 timestamps for 40 steps"),
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


def test_a_missing_scipy_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.signal", None)
    with pytest.raises(ImportError, match=r'pip install "meta_transformer\[imu\]"'):
        ImuProcessor()(GOOD, imu_sampling_rate=100)
    ImuProcessor()(GOOD, imu_sampling_rate=50)


SIDES = {"min_dims": 0, "max_dims": 3, "min_side": 0, "max_side": 6}
ARRAYS = hnp.arrays(st.one_of(hnp.integer_dtypes(), hnp.complex_number_dtypes()), hnp.array_shapes(**SIDES))
CLOCKS = st.one_of(st.none(), st.floats(), st.lists(st.floats(), max_size=5), st.text(max_size=3), ARRAYS)
KEYS = st.sampled_from(["values", "timestamps", "sampling_rate", "units", "accelerometer", "gyroscope", "x"])
SAMPLES = st.one_of(
    ARRAYS,
    st.dictionaries(KEYS, st.one_of(ARRAYS, CLOCKS), max_size=4),
    st.builds(lambda times: {"values": np.ones((3, 6)), "timestamps": times}, CLOCKS),
    CLOCKS,
)
RECORDINGS = measurements(st.tuples(st.integers(1, 40), st.just(6)))


@settings(max_examples=40, deadline=None)
@given(st.one_of(SAMPLES, st.lists(SAMPLES, max_size=3)), st.one_of(st.none(), st.just(50), st.floats()))
def test_any_input_is_taken_or_refused_with_a_sentence(samples: Any, rate: float | None) -> None:
    finite_or_refused(lambda: ImuProcessor()(samples, imu_sampling_rate=rate))


@settings(max_examples=40, deadline=None)
@given(RECORDINGS, st.sampled_from([50, 20, 51.2, 100]), st.booleans())
def test_a_recording_is_taken_if_float32_holds_it(array: np.ndarray, rate: float, uneven: bool) -> None:
    times = np.arange(len(array)) / rate + 1e-3 * (np.arange(len(array)) % 3)
    sample = {"values": array, "timestamps": times} if uneven else {"values": array, "sampling_rate": rate}
    taken = finite_or_refused(lambda: ImuProcessor()(sample))
    assert taken == bool((np.abs(array.astype(np.float64)) <= 1e38).all())
