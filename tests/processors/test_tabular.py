"""The tabular processor against scikit-learn, rtdl_num_embeddings and counting by hand."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from rtdl_num_embeddings import compute_bins
from sklearn.datasets import load_wine
from sklearn.preprocessing import StandardScaler

from meta_transformer.processing import MetaTransformerProcessor
from meta_transformer.processors.tabular import TabularProcessor
from tests.support.fuzz import finite_or_refused, measurements

ADULT_NUMBERS = ["age", "fnlwgt", "education_num", "capital_gain", "capital_loss", "hours_per_week"]


@pytest.fixture(scope="module")
def adult() -> pd.DataFrame:
    """2,000 rows of UCI Adult, in which "?" is missing; made up where the data is not at hand."""
    if folder := os.environ.get("META_TRANSFORMER_DATA"):
        return pd.read_csv(Path(folder) / "tabular" / "adult" / "adult.csv", nrows=2000)
    random = np.random.default_rng(0)
    table = pd.DataFrame({name: random.integers(0, 90, 2000) for name in ADULT_NUMBERS})
    table["workclass"] = random.choice(["Private", "State-gov", "?"], 2000)
    table["sex"] = random.choice(["Female", "Male"], 2000)
    table["income"] = random.choice(["<=50K", ">50K"], 2000)
    return table.assign(split="train")


@pytest.fixture
def table() -> pd.DataFrame:
    """Numbers, whole numbers, text and truth values, each with something missing."""
    return pd.DataFrame(
        {
            "weight": [70.5, np.nan, 81.0, 60.25],
            "city": ["Cork", "Aarhus", None, "Cork"],
            "rooms": [3, 4, 1, 2],
            "member": [True, None, False, True],
        }
    )


@pytest.fixture
def processor(table: pd.DataFrame) -> TabularProcessor:
    return TabularProcessor().fit(table)


def test_numbers_are_standardised_as_scikit_learn_does_with_gaps():
    values = load_wine(as_frame=True).data
    values = values.mask(np.random.default_rng(0).random(values.shape) < 0.2)
    processor = TabularProcessor().fit(values)
    scaler = StandardScaler().fit(values.to_numpy())
    np.testing.assert_allclose(processor.means, scaler.mean_)
    np.testing.assert_allclose(processor.stds, scaler.scale_)
    batch = processor(values)
    expected = scaler.transform(values.to_numpy())
    observed = ~np.isnan(expected)
    np.testing.assert_array_equal(batch["numerical_mask"], observed)
    np.testing.assert_allclose(batch["numerical_features"].numpy()[observed], expected[observed], rtol=1e-5, atol=1e-6)
    assert (batch["numerical_features"][~batch["numerical_mask"]] == 0).all()


def test_bins_are_the_quantiles_of_the_reference():
    values = load_wine(as_frame=True).data
    processor = TabularProcessor(num_bins=7).fit(values)
    expected = compute_bins(torch.from_numpy(StandardScaler().fit_transform(values.to_numpy())), n_bins=7)
    for edges, reference in zip(processor.bin_edges, expected, strict=True):
        np.testing.assert_allclose(edges, reference.numpy(), atol=1e-6)


def test_equal_quantiles_are_merged():
    processor = TabularProcessor(num_bins=10).fit(pd.DataFrame({"mostly_zero": [0.0] * 95 + [1, 2, 3, 4, 5]}))
    edges = processor.bin_edges[0]
    assert 2 <= len(edges) < 11
    assert all(np.diff(edges) > 0)


def test_a_constant_column_has_standard_deviation_one_and_one_bin():
    # 0.1 has no exact mean: std computed from it is not exactly zero
    processor = TabularProcessor().fit(pd.DataFrame({"same": [0.1] * 7, "other": range(7)}))
    assert processor.stds[0] == 1
    assert len(processor.bin_edges[0]) == 2
    assert processor({"same": 1.1, "other": 0})["numerical_features"][0, 0].item() == pytest.approx(1)


def test_ids_count_sorted_categories_from_two(processor: TabularProcessor, table: pd.DataFrame):
    assert processor.categorical_columns == ["city", "member"]
    assert processor.categories == [["Aarhus", "Cork"], [False, True]]
    assert processor(table)["categorical_ids"].tolist() == [[3, 3], [2, 1], [1, 2], [3, 3]]


def test_categories_that_fit_did_not_see_get_id_zero(processor: TabularProcessor):
    row = {"weight": 1, "rooms": 1, "member": True, "city": "Bergen"}
    assert processor(row)["categorical_ids"].tolist() == [[0, 3]]


def test_adult_columns_are_told_by_type_and_question_marks_are_missing(adult: pd.DataFrame):
    processor = TabularProcessor().fit(adult, exclude_columns=["income", "split"])
    assert processor.numerical_columns == ADULT_NUMBERS
    ids = processor(adult)["categorical_ids"]
    for index, name in enumerate(processor.categorical_columns):
        known = sorted(set(adult[name]) - {"?"})
        expected = [1 if cell == "?" else 2 + known.index(cell) for cell in adult[name]]
        assert ids[:, index].tolist() == expected
    assert (ids == 1).any()


@pytest.mark.parametrize(
    "form",
    [
        lambda table: table[["city", "rooms", "member", "weight"]],
        lambda table: table.set_index(pd.Index(["a", "b", "a", "c"])),
        lambda table: table.to_dict("list"),
        lambda table: {name: table[name].to_numpy() for name in table},
        lambda table: table.to_dict("records"),
        lambda table: [row for _, row in table.iterrows()],
        lambda table: Dataset.from_pandas(table),
        lambda table: Dataset.from_pandas(table)[:],
        lambda table: {**table.to_dict("list"), "rooms": torch.tensor(table["rooms"].to_numpy())},
        lambda table: table.astype({"city": "category", "rooms": "Int64", "member": "boolean", "weight": "Float32"}),
        lambda table: table.fillna({"city": "?"}).astype(object),
    ],
)
def test_every_form_of_a_table_gives_the_same_tensors(form, processor: TabularProcessor, table: pd.DataFrame):
    expected, batch = processor(table), processor(form(table))
    assert batch.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(batch[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("form", [lambda row: row, lambda row: dict(row), lambda row: [dict(row)]])
def test_a_row_alone_gives_what_it_gives_in_a_table(form, processor: TabularProcessor, table: pd.DataFrame):
    batch = processor(table)
    for index in range(len(table)):
        alone = processor(form(table.iloc[index]))
        for name, value in alone.items():
            torch.testing.assert_close(value, batch[name][index : index + 1], rtol=0, atol=0)


def test_a_table_with_one_kind_of_columns_gives_the_tensors_of_that_kind(table: pd.DataFrame):
    numbers, categories = table[["weight", "rooms"]], table[["city", "member"]]
    assert set(TabularProcessor().fit(numbers)(numbers)) == {"numerical_features", "numerical_mask"}
    assert set(TabularProcessor().fit(categories)(categories)) == {"categorical_ids"}


def test_tensors_have_the_types_that_the_tokenizer_takes(processor: TabularProcessor, table: pd.DataFrame):
    batch = processor(table)
    types = {"numerical_features": torch.float32, "numerical_mask": torch.bool, "categorical_ids": torch.int64}
    assert {name: value.dtype for name, value in batch.items()} == types
    assert all(isinstance(value, np.ndarray) for value in processor(table, return_tensors="np").values())


def test_types_of_columns_can_be_chosen():
    table = pd.DataFrame({"zip": [8000, 5003, 8000], "age": ["31", "?", "40"], "code": ["1", "2", "3"]})
    processor = TabularProcessor().fit(table, numerical_columns=["age"], categorical_columns="zip")
    assert processor.numerical_columns == ["age"]
    assert processor.categorical_columns == ["zip", "code"]
    assert processor.categories == [[5003, 8000], ["1", "2", "3"]]
    assert processor.means == [35.5]
    batch = processor(table.astype({"zip": float}))
    assert batch["categorical_ids"].tolist() == [[3, 2], [2, 3], [3, 4]]
    assert batch["numerical_mask"].tolist() == [[True], [False], [True]]


def test_missing_values_can_be_numbers():
    table = pd.DataFrame({"distance": [1, -999, 3], "grade": ["a", "n/a", "b"]})
    processor = TabularProcessor(missing_values=[-999, "n/a"]).fit(table)
    assert processor.means == [2]
    batch = processor(table)
    assert batch["numerical_mask"].flatten().tolist() == [True, False, True]
    assert batch["categorical_ids"].flatten().tolist() == [2, 1, 3]


def test_excluded_columns_may_stay_in_the_table(table: pd.DataFrame):
    processor = TabularProcessor().fit(table, exclude_columns="city")
    assert processor.categorical_columns == ["member"]
    torch.testing.assert_close(processor(table).data, processor(table.drop(columns="city")).data)


def test_extra_columns_are_dropped_on_request(table: pd.DataFrame):
    processor = TabularProcessor(ignore_extra_columns=True).fit(table)
    torch.testing.assert_close(processor(table.assign(extra=1)).data, processor(table).data)


def test_a_second_fit_forgets_the_first(processor: TabularProcessor):
    other = pd.DataFrame({"length": [1.0, 2.0]})
    assert processor.fit(other).to_dict() == TabularProcessor().fit(other).to_dict()


def test_a_saved_processor_does_the_same_after_loading(
    processor: TabularProcessor, table: pd.DataFrame, tmp_path: Path
):
    table = table.assign(floor=[1, 2, 1, 2])
    processor.fit(table, categorical_columns=["floor"])
    processor.save_pretrained(tmp_path)
    loaded = TabularProcessor.from_pretrained(tmp_path)
    assert [list(map(type, known)) for known in loaded.categories] == [[str, str], [bool, bool], [int, int]]
    assert loaded.tokenizer_config() == processor.tokenizer_config()
    torch.testing.assert_close(loaded(table).data, processor(table).data, rtol=0, atol=0)


def test_the_composite_processor_saves_what_was_learned(
    processor: TabularProcessor, table: pd.DataFrame, tmp_path: Path
):
    MetaTransformerProcessor(tabular=processor).save_pretrained(tmp_path)
    loaded = MetaTransformerProcessor.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(tabular=table).data, processor(table).data, rtol=0, atol=0)


def test_the_tokenizer_config_says_what_fit_learned_in_json_types(processor: TabularProcessor):
    config = processor.tokenizer_config()
    assert config["numerical_columns"] == ["weight", "rooms"]
    assert config["cardinalities"] == [4, 4]
    assert len(config["bin_edges"]) == 2
    assert json.loads(json.dumps(config)) == config


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_dummy_samples_can_be_learned_from_and_have_gaps(batch_size: int):
    samples = TabularProcessor().dummy_samples(batch_size)
    processor = TabularProcessor().fit(samples)
    assert len(processor.numerical_columns) == len(processor.categorical_columns) == 2
    assert samples.isna().to_numpy().any() == (batch_size > 1)
    pd.testing.assert_frame_equal(samples, TabularProcessor().dummy_samples(batch_size))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns="city"), r"lacks columns \['city'\]"),
        (lambda table: table.assign(label=1), r"columns \['label'\] that fit did not see.*exclude_columns"),
        (lambda table: table.assign(rooms=[1, 2, np.inf, 3]), "'rooms' has inf in row 2"),
        (lambda table: table.assign(rooms=[1, 2, 1e300, 3]), "'rooms' has 1e.300 in row 2"),
        (lambda table: table.assign(rooms=[1, "two", 3, 4]), "'rooms' holds numbers, but row 1 has 'two'"),
        (lambda table: table.assign(city=[1, 2, 3, 4]), "'city' was fitted on text, got 1"),
        (lambda table: table.iloc[:0], "empty"),
        (lambda table: {}, "empty"),
        (lambda table: [], "empty"),
        (lambda table: {**table.to_dict("list"), "city": "Cork"}, r"only \['city'\] are cells"),
        (lambda table: {**table.to_dict("list"), "city": ["Cork"]}, "'city': 1"),
        (lambda table: [*table.to_dict("records"), {"city": "Cork"}], "Rows 0 and 4 differ in columns"),
        (lambda table: pd.concat([table, table], axis=1), "occur twice"),
    ],
)
def test_a_table_unlike_that_of_fit_is_refused(change, message: str, processor: TabularProcessor, table: pd.DataFrame):
    with pytest.raises(ValueError, match=message):
        processor(change(table))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.to_numpy(), "got ndarray.*pandas.DataFrame"),
        (lambda table: [1, 2], "Row 0 must be a dict"),
        (lambda table: table.assign(city=[["Cork"], ["Bonn"], [], []]), "'city' has cells that are no categories"),
        (lambda table: table.assign(city=[b"Cork", b"Bonn", b"a", b"b"]), "'city' has b'Cork' of type bytes"),
        (lambda table: table.assign(weight=pd.Timestamp("2020-01-01")), "'weight' is of type datetime64"),
    ],
)
def test_what_is_no_table_is_refused(change, message: str, processor: TabularProcessor, table: pd.DataFrame):
    with pytest.raises(TypeError, match=message):
        processor(change(table))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda table: table.iloc[:0], {}, "empty"),
        (lambda table: table.assign(nothing=None), {}, r"\['nothing'\] have no observed cell"),
        (lambda table: table.assign(rooms=[1, 2, -np.inf, 3]), {}, "'rooms' has -inf in row 2"),
        (lambda table: table, {"numerical_columns": ["city"]}, "'city' holds numbers, but row 0 has 'Cork'"),
        (lambda table: table, {"exclude_columns": ["price"]}, r"columns \['price'\], but the table has"),
        (lambda table: table, {"numerical_columns": "rooms", "exclude_columns": "rooms"}, "name them once"),
        (lambda table: table, {"exclude_columns": ["weight", "city", "rooms", "member"]}, "All columns are excluded"),
    ],
)
def test_fit_refuses_what_it_cannot_learn_from(change, options, message: str, table: pd.DataFrame):
    with pytest.raises(ValueError, match=message):
        TabularProcessor().fit(change(table), **options)


def test_fit_refuses_dates(table: pd.DataFrame):
    with pytest.raises(TypeError, match=r"'since' is of type datetime64.*days since"):
        TabularProcessor().fit(table.assign(since=pd.Timestamp("2020-01-01")))


@pytest.mark.parametrize(
    "use", [lambda processor, table: processor(table), lambda processor, _: processor.tokenizer_config()]
)
def test_use_before_fit_says_to_call_fit(use, table: pd.DataFrame):
    with pytest.raises(ValueError, match="call fit"):
        use(TabularProcessor(), table)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"categorical_columns": ["city"]}, ValueError, "call fit, which takes"),
        ({"num_bins": 0}, ValueError, "num_bins must be at least 1, got 0"),
        ({"missing_values": "?"}, TypeError, "missing_values must be a list"),
        ({"bins": 3}, TypeError, r"no setting \['bins'\]"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        TabularProcessor(**settings)


def test_masked_cells_and_tensors_are_columns() -> None:
    columns = {"a": torch.tensor([1.0, 2.0, 4.0]).bfloat16(), "b": np.ma.masked_array([1, 2, 3], mask=[0, 1, 0])}
    batch = TabularProcessor().fit(columns)(columns)
    assert batch["numerical_mask"].tolist() == [[True, True], [True, False], [True, True]]


def test_numbers_too_large_for_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match="Column 'a' has values too large for float64 statistics"):
        TabularProcessor().fit({"a": [1e200, -1e200]})


CELLS = st.one_of(
    st.floats(), st.integers(), st.booleans(), st.none(), st.text(max_size=3), st.complex_numbers(), st.just(pd.NaT)
)
COLUMNS = st.lists(CELLS, max_size=4) | st.lists(st.floats(), min_size=3, max_size=3) | CELLS
TABLES = st.one_of(
    st.dictionaries(st.sampled_from(["a", "b", 3]), COLUMNS, max_size=3),
    st.lists(st.fixed_dictionaries({"a": st.floats(), "b": CELLS}), max_size=4),
    st.lists(st.dictionaries(st.sampled_from("ab"), CELLS) | CELLS, max_size=3),
    st.builds(pd.DataFrame, st.fixed_dictionaries({"a": st.lists(CELLS, min_size=2, max_size=2)})),
    CELLS,
)


@settings(max_examples=40, deadline=None)
@given(TABLES, TABLES)
def test_any_table_gives_finite_features_or_a_sentence(table: Any, another: Any) -> None:
    processor = TabularProcessor()
    if finite_or_refused(lambda: processor.fit(table)(table)):
        finite_or_refused(lambda: processor(another))


@settings(max_examples=40, deadline=None)
@given(measurements(st.tuples(st.integers(1, 9))), st.sampled_from(["Cork", "Rome", None]))
def test_a_table_is_taken_if_float32_holds_its_numbers(numbers: np.ndarray, city: str | None) -> None:
    processor = TabularProcessor().fit({"x": [0.0, 1.0, 2.0], "city": ["Cork", "Bergen", None]})
    taken = finite_or_refused(lambda: processor({"x": numbers, "city": [city] * len(numbers)}))
    assert taken == bool((np.isnan(numbers) | (np.abs(numbers.astype(np.float64)) <= 1e38)).all())
