"""`evaluate` and `predict` of a saved run."""

import json

import pandas as pd
import pytest
import torch

from meta_transformer import MetaTransformerForClassification, MetaTransformerProcessor
from tests.support.sample_files import write_texts


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.csv"
    pd.DataFrame({"text": ["meow", "woof", "meow meow"], "label": ["cat", "dog", "cat"], "split": "test"}).to_csv(path)
    return path


def test_evaluate_measures_the_split_that_training_reported(run, trained):
    settings, told = (json.loads((trained / name).read_text()) for name in ("run.json", "results.json"))
    assert "drawn as in training" in run(f"evaluate {trained} {settings['data']}")
    found = json.loads((trained / "test" / "results.json").read_text())
    assert found["metrics"] == pytest.approx(told["metrics"], abs=1e-5)
    assert (trained / "test" / "confusion_matrix.png").exists()


def test_evaluate_writes_where_it_is_told(run, trained, tmp_path):
    settings = json.loads((trained / "run.json").read_text())
    run(f"evaluate {trained} {settings['data']} --split validation -o {tmp_path / 'out'}")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["split"] == "validation"


def test_evaluate_measures_all_of_data_that_was_kept_apart(run, trained, tmp_path):
    write_texts(tmp_path / "other", count=3)
    assert "drawn" not in run(f"evaluate {trained} {tmp_path / 'other'}")
    found = json.loads((trained / "other" / "results.json").read_text())
    assert (found["samples"], found["split"]) == (6, "test")


def test_evaluate_takes_the_split_that_other_data_names(run, trained, table):
    run(f"evaluate {trained} {table} --column text")
    assert json.loads((trained / "table" / "results.json").read_text())["samples"] == 3


def test_evaluate_refuses_splits_of_data_that_has_changed(run, texts, trunk, tmp_path):
    run(f"train {texts} -m text -o {tmp_path / 'run'} --encoder {trunk} --epochs 1 --batch-size 4")
    (texts / "cat" / "new.txt").write_text("meow")
    assert "has changed since" in run(f"evaluate {tmp_path / 'run'} {texts}", code=1)


def test_a_model_that_is_not_there_is_said_to_be_missing(run, table):
    assert "no folder with a model" in run(f"predict runs/nothing {table}", code=1)


def test_an_output_that_cannot_be_written_is_refused_before_the_work(run, trained, table):
    assert "choose another --output" in run(f"predict {trained} meow -o {table / 'out.csv'}", code=1)


def test_evaluate_refuses_a_class_that_the_model_does_not_know(run, trained, tmp_path):
    write_texts(tmp_path / "data")
    (tmp_path / "data" / "dog").rename(tmp_path / "data" / "cow")
    assert "no class 'cow'" in run(f"evaluate {trained} {tmp_path / 'data'}", code=1)


def test_predict_gives_what_the_model_gives(run, trained, tmp_path):
    run(f"predict {trained} 'meow meow' woof -o {tmp_path / 'out.jsonl'}")
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    model = MetaTransformerForClassification.from_pretrained(trained)
    processor = MetaTransformerProcessor.from_pretrained(trained)
    with torch.no_grad():
        found = model(**processor(text=["meow meow", "woof"])).logits.softmax(dim=-1)
    for record, row in zip(records, found.tolist(), strict=True):
        assert [record["probability of cat"], record["probability of dog"]] == pytest.approx(row, abs=1e-5)
        assert record["prediction"] == ("cat" if row[0] > row[1] else "dog")
    assert [record["path"] for record in records] == ["meow meow", "woof"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_predict_writes_a_row_for_each_row_of_a_table(ending, run, trained, table, tmp_path):
    output = tmp_path / f"out.{ending}"
    run(f"predict {trained} {table} --column text -o {output}")
    read = {"csv": pd.read_csv, "jsonl": lambda path: pd.read_json(path, lines=True), "parquet": pd.read_parquet}
    found = read[ending](output)
    assert found["path"].tolist() == [f"row {row} of {table}" for row in (1, 2, 3)]
    assert found["probability"].between(0.5, 1).all()


def test_predict_takes_a_folder_of_files(run, trained, texts, tmp_path):
    run(f"predict {trained} {texts} -o {tmp_path / 'out.csv'}")
    assert pd.read_csv(tmp_path / "out.csv")["path"].tolist() == sorted(str(path) for path in texts.rglob("*.txt"))


def test_predict_goes_on_behind_what_it_cannot_read(run, trained, texts, tmp_path):
    (texts / "cat" / "0.txt").write_bytes(b"\xff\xfe\xfa")
    said = run(f"predict {trained} {texts} -o {tmp_path / 'out.csv'}", code=1)
    assert f"Not predicted: {texts / 'cat' / '0.txt'}" in said
    assert "1 of 16" in said
    assert len(pd.read_csv(tmp_path / "out.csv")) == 15


def test_predict_refuses_an_ending_that_it_does_not_know(run, trained, tmp_path):
    assert "must end in" in run(f"predict {trained} meow -o {tmp_path / 'out.xlsx'}", code=1)


def test_predict_names_what_is_no_model(run, texts):
    run(f"predict {texts} meow", code=1)
