"""The time series processor against pandas, numpy, GluonTS's formulas and counting by hand, on real series."""

import json
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
from sklearn.preprocessing import StandardScaler

from meta_transformer import MetaTransformerProcessor
from meta_transformer.processors.time_series import TimeSeriesProcessor
from tests.support.fuzz import finite_or_refused, measurements

NAN = float("nan")


@pytest.fixture(scope="module")
def vowels() -> list[np.ndarray]:
    """20 utterances of 12 channels and different length, `(steps, channels)`; made up where the data is not at hand."""
    folder = os.environ.get("META_TRANSFORMER_DATA")
    if not folder:
        random = np.random.default_rng(0)
        return [random.normal(size=(steps, 12)).cumsum(axis=0) for steps in random.integers(7, 30, size=20)]
    text = (Path(folder) / "ts_classification/JapaneseVowels/JapaneseVowels_TRAIN.ts").read_text()
    rows = [line.split(":")[:-1] for line in text.partition("@data")[2].split()[:20]]
    return [np.array([channel.split(",") for channel in row], np.float64).T for row in rows]


def values(samples: Any, **options: Any) -> torch.Tensor:
    return TimeSeriesProcessor(**options)(samples)["past_values"]


def test_series_of_different_length_are_padded_unobserved_and_masked(vowels: list[np.ndarray]) -> None:
    batch = TimeSeriesProcessor()(vowels)
    assert batch["past_mask"].sum(dim=1).tolist() == [len(each) for each in vowels]
    for index, each in enumerate(vowels):
        assert torch.equal(batch["past_values"][index, : len(each)], torch.from_numpy(each).float())
        assert not batch["past_values"][index, len(each) :].any()
        assert torch.equal(batch["past_observed_mask"][index].all(dim=1), batch["past_mask"][index])
    assert [batch[name].dtype for name in batch] == [torch.float32, torch.bool, torch.bool]


def test_complete_series_of_equal_length_have_no_mask() -> None:
    assert list(TimeSeriesProcessor()(np.zeros((3, 5, 2)))) == ["past_values"]


def test_missing_values_are_marked_and_not_padding() -> None:
    batch = TimeSeriesProcessor()([[1.0, NAN, 3.0], [4.0, 5.0, None]])
    assert batch["past_values"].tolist() == [[[1], [0], [3]], [[4], [5], [0]]]
    assert batch["past_observed_mask"].tolist() == [[[True], [False], [True]], [[True], [True], [False]]]
    assert "past_mask" not in batch


@pytest.mark.parametrize("missing", [None, NAN, pd.NA, pd.NaT])
def test_all_that_pandas_calls_missing_is_missing(missing: Any) -> None:
    for sample in ([1.0, missing, 2.0], [missing, 1.0, 2.0]):
        found = TimeSeriesProcessor()(sample)["past_observed_mask"][0, :, 0].tolist()
        assert found == [cell is not missing for cell in sample]


def test_a_column_of_lists_is_a_list_of_series() -> None:
    column = pd.Series([[1.0, 2.0], [3.0, 4.0, 5.0]])
    batch = TimeSeriesProcessor()(column)
    assert batch["past_mask"].tolist() == [[True, True, False], [True, True, True]]
    assert TimeSeriesProcessor()(pd.Series([np.ones((4, 2))]))["past_values"].shape == (1, 4, 2)


def test_a_list_that_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises((ValueError, TypeError), match="time_series"):
        TimeSeriesProcessor()([endless])


def test_a_zero_is_observed() -> None:
    assert TimeSeriesProcessor()([0.0, NAN])["past_observed_mask"].tolist() == [[[True], [False]]]


@pytest.mark.parametrize(
    "form",
    [
        lambda frame: frame,
        lambda frame: frame.reset_index(drop=True),
        lambda frame: frame.to_numpy(),
        lambda frame: frame.to_numpy(np.float32),
        lambda frame: torch.from_numpy(frame.to_numpy(copy=True)),
        lambda frame: np.asfortranarray(frame.to_numpy()),
        lambda frame: np.ma.masked_invalid(frame.to_numpy()),
        lambda frame: {"values": frame.to_numpy().tolist(), "timestamps": frame.index},
        lambda frame: {"values": frame},
        lambda frame: frame.to_dict("list"),
        lambda frame: frame.astype("Float64"),
        lambda frame: frame.astype(object).where(frame.notna(), None),
        lambda frame: frame.set_index(frame.index.tz_localize("Europe/Dublin")),
        lambda frame: frame.set_index(frame.index.to_period("h")),
    ],
)
def test_every_form_of_a_series_gives_the_same_tensors(form: Any, hourly: pd.DataFrame) -> None:
    expected = TimeSeriesProcessor()([hourly])
    for samples in ([form(hourly)], form(hourly)):
        batch = TimeSeriesProcessor()(samples)
        assert batch.keys() == expected.keys() == {"past_values", "past_observed_mask"}
        for name, value in expected.items():
            torch.testing.assert_close(batch[name], value, rtol=0, atol=1e-7)


def test_a_csv_file_is_a_table(hourly: pd.DataFrame, tmp_path: Path) -> None:
    hourly.to_csv(tmp_path / "series.csv", index_label="date")
    processor = TimeSeriesProcessor(time_column="date", time_features=["hour_of_day"])
    expected = TimeSeriesProcessor(time_features=["hour_of_day"])(hourly)
    for path in (tmp_path / "series.csv", str(tmp_path / "series.csv")):
        for name, value in processor(path).items():
            torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize(
    "samples",
    [
        [1.0, 2.0, 3.0],
        (1, 2, 3),
        [[1.0, 2.0, 3.0]],
        np.array([1, 2, 3]),
        torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16),
        pd.Series([1.0, 2.0, 3.0]),
        pd.Series([1, 2, 3], dtype="Int64"),
        [[[1.0], [2.0], [3.0]]],
        np.array([[[1.0], [2.0], [3.0]]]),
        iter([[1.0, 2.0, 3.0]]),
    ],
    ids=lambda samples: type(samples).__name__,
)
def test_one_channel_may_do_without_its_dimension(samples: Any) -> None:
    assert values(samples).tolist() == [[[1], [2], [3]]]


def test_a_datasets_column_is_a_list_of_series() -> None:
    data = Dataset.from_dict({"short": [[1.0, 2.0], [3.0, None, 5.0]], "wide": [[[1.0, 2.0]], [[3.0, 4.0]]]})
    assert TimeSeriesProcessor()(data["short"])["past_mask"].tolist() == [[True, True, False], [True, True, True]]
    assert values(data["wide"]).tolist() == [[[1, 2]], [[3, 4]]]


def test_series_with_fewer_channels_get_further_ones_that_are_not_observed() -> None:
    batch = TimeSeriesProcessor()([np.ones((2, 1)), np.ones((2, 3))])
    assert batch["past_values"][0].tolist() == [[1, 0, 0], [1, 0, 0]]
    assert batch["past_observed_mask"][0].tolist() == [[True, False, False], [True, False, False]]


def test_fit_standardises_as_scikit_learn_does_with_gaps(vowels: list[np.ndarray]) -> None:
    random = np.random.default_rng(0)
    gappy = [np.where(random.random(each.shape) < 0.2, np.nan, each * 3 + 1000) for each in vowels]
    processor = TimeSeriesProcessor().fit(iter(gappy))
    scaler = StandardScaler().fit(np.concatenate(gappy))
    np.testing.assert_allclose(processor.means, scaler.mean_)
    np.testing.assert_allclose(processor.stds, scaler.scale_)
    expected = np.nan_to_num(scaler.transform(gappy[0]))
    np.testing.assert_allclose(processor([gappy[0]])["past_values"][0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(processor.restore(processor.standardize(gappy[0])), gappy[0], rtol=1e-6)


def test_statistics_are_exact_far_from_zero() -> None:
    """A sum of squares in one pass would lose all digits here, and float32 the series itself."""
    wave = np.sin(np.arange(200) / 5)
    processor = TimeSeriesProcessor().fit([1e9 + wave[:100], 1e9 + wave[100:]])
    assert processor.stds[0] == pytest.approx(wave.std(), rel=1e-6)
    np.testing.assert_allclose(
        processor([1e9 + wave])["past_values"][0, :, 0], (wave - wave.mean()) / wave.std(), atol=1e-5
    )


def test_a_constant_channel_has_deviation_one() -> None:
    assert TimeSeriesProcessor().fit([[0.1] * 7, [0.1] * 3]).stds == [1.0]


def test_fit_learns_the_names_and_their_order(hourly: pd.DataFrame) -> None:
    processor = TimeSeriesProcessor().fit(hourly)
    assert (processor.num_channels, processor.channels) == (2, ["load", "oil"])
    swapped = hourly[["oil", "load"]].assign(another=1.0)
    assert torch.equal(processor(swapped)["past_values"], processor(hourly)["past_values"])


def test_fit_forgets_what_it_learned_before(hourly: pd.DataFrame) -> None:
    again = TimeSeriesProcessor().fit(hourly).fit({"gas": [1.0, 2.0], "wind": [0.0, 1.0], "sun": [3.0, 5.0]})
    assert (again.num_channels, again.channels) == (3, ["gas", "wind", "sun"])
    assert again.fit(np.ones((5, 1))).to_dict() == TimeSeriesProcessor().fit(np.ones((5, 1))).to_dict()


def test_fit_keeps_to_the_channels_of_the_settings(hourly: pd.DataFrame) -> None:
    processor = TimeSeriesProcessor(channels=["oil"]).fit(hourly).fit(hourly[:20])
    assert processor.channels == ["oil"]
    with pytest.raises(ValueError, match="3 channels, but this processor is set to 1"):
        processor.fit(np.zeros((4, 3)))


def test_tables_with_another_order_of_columns_are_refused_unless_the_order_is_known(hourly: pd.DataFrame) -> None:
    swapped = hourly[["oil", "load"]]
    with pytest.raises(ValueError, match=r"time_series\[1\]: column 'oil' is channel 0 here, but channel 1"):
        TimeSeriesProcessor()([hourly, swapped])
    known = values([hourly, swapped], channels=["load", "oil"])
    assert torch.equal(known[0], known[1])
    assert values([hourly[["oil"]], hourly[["load"]]]).shape == (2, 30, 1)


def test_channels_choose_columns() -> None:
    table = {"a": [1, 2], "b": [3, 4], "name": ["x", "y"]}
    assert values(table, channels=["b", "a"]).tolist() == [[[3, 1], [4, 2]]]


def test_settings_and_statistics_survive_json(hourly: pd.DataFrame, tmp_path: Path) -> None:
    processor = TimeSeriesProcessor(time_features=["hour_of_day"]).fit(hourly)
    MetaTransformerProcessor(time_series=processor).save_pretrained(tmp_path)
    restored = MetaTransformerProcessor.from_pretrained(tmp_path)
    assert json.loads(restored.time_series.to_json_string()) == json.loads(processor.to_json_string())
    for name, value in processor(hourly).items():
        assert torch.equal(restored(time_series=hourly)[name], value)


def test_the_tokenizer_gets_the_numbers_of_channels_and_features(hourly: pd.DataFrame) -> None:
    processor = TimeSeriesProcessor(time_features=["hour_of_day", "day_of_week"])
    assert processor.tokenizer_config() == {"num_channels": None, "num_time_features": 2}
    assert processor.fit(hourly).tokenizer_config() == {"num_channels": 2, "num_time_features": 2}


def test_the_input_is_left_alone(hourly: pd.DataFrame) -> None:
    copy = hourly.copy()
    TimeSeriesProcessor().fit(hourly)(hourly)
    pd.testing.assert_frame_equal(hourly, copy)


DATES = pd.date_range("2024-01-01", periods=3)
BAD_SAMPLES = {
    "no steps": (np.zeros((0, 1)), ValueError, "must have shape"),
    "no channels": (np.zeros((3, 0)), ValueError, "must have shape"),
    "number": (np.array(1.0), ValueError, "must have shape"),
    "nothing observed": ([NAN, NAN], ValueError, "no observed value; leave it out"),
    "infinity": ([1.0, float("inf")], ValueError, r"infinity at \[1\]"),
    "too large": ([1e200, 1.0], ValueError, "too large for float32"),
    "channels": (np.ones((3, 2)), ValueError, "2 channels, but this processor is set to 1"),
    "ragged": ([[1.0, 2.0], [3.0]], ValueError, "differ in length"),
    "text": (["a", "b"], TypeError, "real numbers"),
    "mixed": ([1.0, None, "b"], TypeError, "'b' of type str"),
    "complex": (np.ones(3, np.complex64), TypeError, "complex64"),
    "dates": (DATES.to_numpy(), TypeError, "datetime64"),
    "column of dates": (pd.DataFrame({"a": DATES}), TypeError, "'a'.*datetime64"),
    "column of text": (pd.DataFrame({"a": ["x", "y"]}), TypeError, "column 'a'"),
    "two columns of a name": (pd.DataFrame(np.ones((2, 2)), columns=["a", "a"]), ValueError, "several columns"),
    "columns of two lengths": ({"a": [1, 2], "b": [1]}, ValueError, "same length"),
    "empty dict": ({}, ValueError, "one column or more"),
    "another key": ({"values": [1.0], "date": ["2024"]}, ValueError, r"no \['date'\]"),
    "times of another number": ({"values": [1.0], "timestamps": DATES}, ValueError, "3 timestamps for 1 steps"),
    "times that fall": (pd.Series([1, 2, 3.0], index=DATES[::-1]), ValueError, "must rise"),
    "times twice": (pd.Series([1, 2.0], index=DATES[[0, 0]]), ValueError, "must rise"),
    "a time missing": ({"values": [1.0, 2.0], "timestamps": ["2024-01-01", None]}, ValueError, "not be missing"),
    "missing file": ("no/such.csv", ValueError, "no/such.csv"),
    "bytes": (b"1,2", TypeError, "got bytes"),
    "none": (None, TypeError, "got NoneType"),
    "object": (object(), TypeError, "got object"),
}


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_a_bad_sample_is_named_with_its_index_and_the_remedy(case: str) -> None:
    sample, error, message = BAD_SAMPLES[case]
    with pytest.raises(error, match=rf"time_series\[1\]: .*{message}"):
        TimeSeriesProcessor(num_channels=1)([[1.0, 2.0], sample])


def test_columns_that_are_absent_are_named(hourly: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"no column \['gas'\], only \['load', 'oil'\]"):
        TimeSeriesProcessor(channels=["gas"])(hourly)
    with pytest.raises(ValueError, match="no time_column 'when'"):
        TimeSeriesProcessor(time_column="when")(hourly.reset_index(drop=True))


def test_what_cannot_be_fitted_is_refused(hourly: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"time_series\[1\]: it has 1 channels.*do not fit"):
        TimeSeriesProcessor().fit([np.ones((3, 2)), np.ones((3, 1))])
    with pytest.raises(ValueError, match=r"Channels \[1\] have no observed value"):
        TimeSeriesProcessor().fit([[[1.0, NAN], [2.0, NAN]]])
    with pytest.raises(ValueError, match=r"'oil', 'load'"):
        TimeSeriesProcessor().fit([hourly, hourly[["oil", "load"]]])


def test_nothing_and_no_series_are_refused() -> None:
    with pytest.raises(ValueError, match="time_series is an empty list"):
        TimeSeriesProcessor()([])
    with pytest.raises(TypeError, match="got float"):
        TimeSeriesProcessor()(1.5)


@pytest.mark.parametrize(
    "options",
    [
        {"time_features": "hour_of_day"},
        {"time_features": ["hour"]},
        {"channels": []},
        {"channels": ["a", "a"]},
        {"num_channels": 0},
        {"num_channels": 2.5},
        {"num_channels": 3, "channels": ["a"]},
        {"means": [0.0]},
        {"means": [0.0], "stds": [0.0]},
        {"means": [0.0], "stds": [1.0, 1.0]},
        {"means": [NAN], "stds": [1.0]},
    ],
)
def test_settings_of_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}"):
        TimeSeriesProcessor(**options)


def test_a_missing_pandas_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("a\n1\n")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r'pip install "meta_transformer\[time_series\]"'):
        TimeSeriesProcessor()(str(tmp_path / "a.csv"))


def test_arrays_need_no_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert values([np.ones(3), np.ones(2)]).shape == (2, 3, 1)


NUMBERS = st.one_of(st.floats(), st.integers(), st.booleans(), st.none(), st.text(max_size=3), st.complex_numbers())
ARRAYS = hnp.arrays(
    st.one_of(hnp.integer_dtypes(), hnp.datetime64_dtypes(), hnp.complex_number_dtypes()),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)
SAMPLES = st.one_of(
    ARRAYS,
    st.lists(st.lists(NUMBERS, max_size=3), max_size=3),
    st.dictionaries(st.sampled_from(["values", "timestamps", "a"]), st.one_of(ARRAYS, st.lists(NUMBERS, max_size=4))),
    st.text(max_size=5),
    st.binary(max_size=3),
    NUMBERS,
)
SERIES = measurements(
    st.tuples(st.integers(1, 40)) | st.tuples(st.integers(1, 20), st.integers(1, 4)), ["f2", "f4", "f8"]
)


@settings(max_examples=40, deadline=None)
@given(st.one_of(SAMPLES, st.lists(SAMPLES, max_size=3)), st.booleans())
def test_any_input_is_taken_or_refused_with_a_sentence(samples: Any, calendar: bool) -> None:
    processor = TimeSeriesProcessor(time_features=["day_of_year"] if calendar else [])
    finite_or_refused(lambda: processor(samples))


@settings(max_examples=40, deadline=None)
@given(SERIES)
def test_a_series_is_taken_if_something_is_observed_and_float32_holds_it(series: np.ndarray) -> None:
    observed = np.abs(series.astype(np.float64)[~np.isnan(series)])
    taken = finite_or_refused(lambda: TimeSeriesProcessor()(series))
    assert taken == bool(len(observed) and (observed <= np.finfo(np.float32).max).all())
