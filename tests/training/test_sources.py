"""Folders, tables and data sets, to splits of rows."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from meta_transformer.training.sources import files_below, read_collection
from meta_transformer.training.splits import read_source
from tests.support.sample_files import write_samples, write_texts


def names(rows):
    return [rows.name(index) for index in range(len(rows))]


def write_table(path: Path, /, **columns: list) -> Path:
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def test_folders_are_classes(tmp_path):
    source = read_source(write_texts(tmp_path / "data", 10), "text")
    assert source.classes == ["cat", "dog"]
    assert source.id2label == {0: "cat", 1: "dog"}
    for rows in source.splits.values():
        for index in range(len(rows)):
            assert source.classes[rows[index]["labels"]] == Path(rows.name(index)).parent.name
            assert rows[index]["text"] == Path(rows.name(index)).read_text()


def test_classes_that_are_numbers_come_in_their_order(tmp_path):
    for name in ("0", "2", "10"):
        (tmp_path / "root" / name).mkdir(parents=True)
        for number in range(4):
            (tmp_path / "root" / name / f"{number}.txt").write_text("x")
    assert read_source(tmp_path / "root", "text").classes == ["0", "2", "10"]


def test_what_systems_leave_in_folders_is_no_sample(tmp_path):
    folder = write_texts(tmp_path / "data", 4)
    expected = sorted(files_below(folder))
    for name in (".DS_Store", "Thumbs.db", "Desktop.ini", ".cache/x.txt"):
        (folder / "cat" / name).parent.mkdir(exist_ok=True)
        (folder / "cat" / name).write_text("no sample")
    assert sorted(name for rows in read_source(folder, "text").splits.values() for name in names(rows)) == expected


def test_a_drawn_split_has_the_same_share_of_each_class(tmp_path):
    source = read_source(write_texts(tmp_path / "data", 20), "text")
    assert source.drawn
    counts = {name: np.bincount(rows.labels).tolist() for name, rows in source.splits.items()}
    assert counts == {"train": [14, 14], "validation": [3, 3], "test": [3, 3]}
    everything = sorted(name for rows in source.splits.values() for name in names(rows))
    assert everything == sorted(files_below(tmp_path / "data"))


def test_a_drawn_split_follows_from_the_seed_alone(tmp_path):
    folder = write_texts(tmp_path / "data", 20)
    first, again, other = (names(read_source(folder, "text", seed=seed).splits["test"]) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_folders_of_splits_are_kept(tmp_path):
    for split in ("train", "val", "test"):
        write_texts(tmp_path / "data" / split, 3)
    source = read_source(tmp_path / "data", "text")
    assert not source.drawn
    for split, word in (("train", "train"), ("validation", "val"), ("test", "test")):
        assert all(Path(name).parts[-3] == word for name in names(source.splits[split]))


def test_validation_is_drawn_from_train_where_there_is_none(tmp_path):
    for split in ("train", "test"):
        write_texts(tmp_path / "data" / split, 10)
    source = read_source(tmp_path / "data", "text")
    assert {name: len(rows) for name, rows in source.splits.items()} == {"train": 16, "validation": 4, "test": 20}


def test_a_table_of_paths_is_read_beside_it(tmp_path):
    write_texts(tmp_path / "data", 2)
    write_table(
        tmp_path / "data" / "labels.csv",
        path=["cat/0.txt", "dog/0.txt", "cat/1.txt", "dog/1.txt"],
        label=["x", "y", "x", "y"],
        split=["train", "train", "dev", "test"],
    )
    source = read_source(tmp_path / "data", "text")
    assert source.classes == ["x", "y"]
    assert names(source.splits["validation"]) == [str(tmp_path / "data" / "cat" / "1.txt")]
    assert source.splits["test"][0] == {"text": "woof woof ", "labels": 1}


def test_rows_of_a_table_are_samples_without_label_and_split(tmp_path):
    path = write_table(tmp_path / "t.csv", x=[1, 2, 3, 4], label=list("abab"), split=["train", "train", "val", "test"])
    source = read_source(path, "tabular")
    assert source.splits["train"][1] == {"tabular": {"x": 2}, "labels": 1}


def test_parquet_is_read_as_csv_is(tmp_path):
    path = write_table(tmp_path / "t.csv", text=list("abcd") * 3, label=list("xy") * 6)
    pd.read_csv(path).to_parquet(tmp_path / "t.parquet")
    ours, theirs = (read_source(tmp_path / name, "text").splits["test"] for name in ("t.csv", "t.parquet"))
    assert [ours[i] for i in range(len(ours))] == [theirs[i] for i in range(len(theirs))]


def test_words_that_pandas_takes_for_gaps_are_text(tmp_path):
    path = write_table(tmp_path / "t.csv", text=["NA", "null", "?", "x"] * 3, label=list("ab") * 6)
    assert set(read_collection(path, "text").values) == {"NA", "null", "?", "x"}


def test_question_marks_in_a_table_of_numbers_are_gaps(tmp_path):
    path = write_table(tmp_path / "t.csv", x=["1", "?"], label=["a", "b"])
    assert np.isnan(read_collection(path, "tabular").values[1]["x"])


def test_several_columns_are_several_targets(tmp_path):
    path = write_table(tmp_path / "t.csv", x=range(10), kg=range(10), cm=range(10, 20))
    source = read_source(path, "tabular", task="regression", label="kg,cm")
    assert source.targets == ["kg", "cm"]
    row = source.splits["train"][0]
    assert row["labels"] == [row["tabular"]["x"], row["tabular"]["x"] + 10]


def test_limit_draws_so_many_of_each_split(tmp_path):
    source = read_source(write_texts(tmp_path / "data", 20), "text", limit=5)
    assert [len(rows) for rows in source.splits.values()] == [5, 5, 5]


def test_wavelengths_come_from_the_names_of_columns(tmp_path):
    path = write_table(tmp_path / "t.csv", **{"400": [1.0, 2], "500.5": [3.0, 4]}, label=["a", "b"])
    collection = read_collection(path, "hyperspectral")
    sample = collection.read(collection.values[1])
    assert sample["wavelengths"] == [400, 500.5]
    np.testing.assert_array_equal(sample["array"], [2, 4])


def test_a_saved_data_set_keeps_its_classes_and_splits(tmp_path):
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    parts = {
        name: Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
        for name in ("train", "validation", "test")
    }
    DatasetDict(parts).save_to_disk(tmp_path / "saved")
    source = read_source(tmp_path / "saved", "text")
    assert source.classes == ["no", "yes"]
    assert source.splits["test"][0] == {"text": "a", "labels": 1}


def test_sound_in_a_data_set_comes_as_bytes(tmp_path):
    from datasets import Audio, Dataset

    data, _ = write_samples("audio", tmp_path, 2)
    paths = sorted(files_below(data))
    Dataset.from_dict({"audio": paths, "label": ["a", "b"]}).cast_column("audio", Audio()).save_to_disk(tmp_path / "s")
    collection = read_collection(tmp_path / "s", "audio")
    assert set(collection.read(collection.values[0])) == {"bytes", "path"}


def test_windows_of_a_series_forecast_inside_their_split(tmp_path):
    path = write_table(tmp_path / "s.csv", time=pd.date_range("2024", periods=100), x=range(100), y=range(100))
    source = read_source(path, "time_series", task="forecasting", look_back=10, horizon=5)
    assert source.targets == ["x", "y"]
    last = {name: rows[len(rows) - 1]["labels"][-1, 0] for name, rows in source.splits.items()}
    assert last == {"train": 69, "validation": 84, "test": 99}
    first = {name: rows[0]["labels"][0, 0] for name, rows in source.splits.items()}
    assert first == {"train": 10, "validation": 70, "test": 85}
    row = source.splits["test"][0]
    np.testing.assert_array_equal(row["time_series"][:, 0], range(75, 85))


def test_windows_whose_future_is_unknown_are_left_out(tmp_path):
    values = np.arange(100.0)
    values[20] = np.nan
    path = write_table(tmp_path / "s.csv", x=values)
    rows = read_source(path, "time_series", task="forecasting", look_back=10, horizon=5).splits["train"]
    assert all(np.isfinite(rows[index]["labels"]).all() for index in range(len(rows)))
    assert len(rows) == 70 - 10 - 5 + 1 - 5


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"text": ["a"] * 9, "label": ["x"] * 9}, {}, "one class only"),
        ({"text": ["a"], "kind": ["x"]}, {}, r"no column 'label'.*'kind'"),
        ({"text": ["a"], "kind": ["x"]}, {"label": "sort"}, r"no column 'sort'.*'kind'"),
        ({"words": ["a"], "more": ["b"], "label": ["x"]}, {}, r"no column 'text'.*'words'"),
        ({"text": ["a", "b"], "label": ["x", ""]}, {}, "row 2 of .* has no label"),
        ({"text": ["a"], "label": ["x"], "split": ["later"]}, {}, "row 1 of .* unknown split 'later'"),
        ({"text": ["a", "b"], "label": ["x", "y"], "split": ["test", "val"]}, {}, "no sample is in the split 'train'"),
        ({"path": ["gone.txt"], "label": ["x"]}, {}, "row 1 of .* there is no file .*gone.txt"),
        ({"text": ["a", "b"], "label": ["x", "y"]}, {}, "too few"),
        ({"text": ["a"], "label": ["x"]}, {"task": "regression"}, "must be numbers"),
        ({"text": ["a"], "label": ["z"]}, {"classes": ["x", "y"]}, "no class 'z'"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_words(columns, options, message, tmp_path):
    path = write_table(tmp_path / "t.csv", **columns)
    with pytest.raises(ValueError, match=message):
        read_source(path, "text", **options)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no samples"):
        read_source(tmp_path, "audio")


def test_a_name_that_is_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no folder, no table, and no data set"):
        read_source(tmp_path / "nothing", "audio")
