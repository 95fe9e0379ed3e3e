"""`embed`: features of any number of samples, in parts."""

import numpy as np
import pandas as pd
import pytest
import torch

from meta_transformer import MetaTransformerConfig, MetaTransformerModel, MetaTransformerProcessor
from meta_transformer.checkpoints.dataset_card import generate_dataset_card, read_description
from tests.cli.conftest import TINY
from tests.support.sample_files import write_samples, write_texts


def read(path):
    """Features by path."""
    table = pd.read_parquet(path)
    return dict(zip(table["path"], np.stack(table["features"]), strict=True))


def test_features_are_those_of_the_model(run, trained, texts, tmp_path):
    run(f"embed {texts} --model {trained} -o {tmp_path / 'f.parquet'} --batch-size 3 --part-size 5")
    found = read(tmp_path / "f.parquet")
    assert sorted(found) == sorted(str(path) for path in texts.rglob("*.txt"))
    model, processor = MetaTransformerModel.from_pretrained(trained), MetaTransformerProcessor.from_pretrained(trained)
    for path in (texts / "cat" / "0.txt", texts / "dog" / "2.txt"):
        expected = model.eval().get_features(**processor(text=[path.read_text()]))[0]
        torch.testing.assert_close(torch.from_numpy(found[str(path)].copy()), expected, atol=1e-5, rtol=1e-5)
    assert not (tmp_path / "f.parquet.parts").exists()


@pytest.mark.parametrize("modality", ["audio", "image", "time_series"])
def test_without_a_model_weights_are_random_and_the_same_for_a_seed(modality, run, tmp_path):
    data, _ = write_samples(modality, tmp_path, 4)
    for name in ("one", "two"):
        assert "random weights" in run(f"embed {data} -m {modality} -o {tmp_path / name}.parquet")
    first, second = (read(tmp_path / f"{name}.parquet") for name in ("one", "two"))
    assert sorted(first) == sorted(second)
    for path, features in first.items():
        np.testing.assert_array_equal(features, second[path])


def test_a_random_tokenizer_is_told_with_its_seed(run, trunk, texts, tmp_path):
    output = tmp_path / "f.parquet"
    assert "random weights" in run(f"embed {texts} -m text --model {trunk} -o {output}")
    first = read_description(output)
    text = generate_dataset_card(output, "you/x").text
    assert "| Tokenizer | random weights" in text
    assert " --seed 0\n" in text
    run(f"embed {texts} -m text --model {trunk} -o {output} --seed 1 --fresh")
    second = read_description(output)
    assert second["fingerprint"] == first["fingerprint"]  # of the trunk
    assert second["model_and_processor"] != first["model_and_processor"]


def test_a_tokenizer_that_was_saved_without_a_processor_is_not_called_random(run, texts, tmp_path):
    processor = MetaTransformerProcessor(text=True)
    model = MetaTransformerModel(MetaTransformerConfig(**TINY, modalities=processor.tokenizer_configs())).eval()
    model.save_pretrained(tmp_path / "model")
    assert "random" not in run(f"embed {texts} -m text --model {tmp_path / 'model'} -o {tmp_path / 'f.parquet'}")
    assert not read_description(tmp_path / "f.parquet")["random_tokenizer"]
    sample = texts / "cat" / "0.txt"
    found = read(tmp_path / "f.parquet")[str(sample)].copy()
    expected = model.get_features(**processor(text=[sample.read_text()]))[0]
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=1e-5)


def test_rows_of_a_table_are_samples(run, trained, tmp_path):
    pd.DataFrame({"text": ["a", "b", "c"]}).to_csv(tmp_path / "t.csv", index=False)
    run(f"embed {tmp_path / 't.csv'} --model {trained} -o {tmp_path / 'f.parquet'}")
    assert list(read(tmp_path / "f.parquet")) == [f"row {row} of {tmp_path / 't.csv'}" for row in (1, 2, 3)]


def test_unreadable_files_are_listed_and_the_rest_is_there(run, tmp_path):
    data, _ = write_samples("image", tmp_path, 6)
    (data / "a" / "broken.png").write_bytes(b"no picture")
    said = run(f"embed {data} -m image -o {tmp_path / 'f.parquet'}", code=1)
    assert "1 could not be read" in said
    assert len(read(tmp_path / "f.parquet")) == 6
    listed = pd.read_csv(tmp_path / "f.parquet.errors.csv")
    assert listed["path"].tolist() == [str(data / "a" / "broken.png")]


def test_what_is_finished_is_not_computed_again(run, trained, texts, tmp_path):
    command = f"embed {texts} --model {trained} -o {tmp_path / 'f.parquet'}"
    run(command)
    before = (tmp_path / "f.parquet").stat().st_mtime_ns
    assert "is finished" in run(command)
    assert (tmp_path / "f.parquet").stat().st_mtime_ns == before


@pytest.mark.parametrize("other", ["data", "model"])
def test_a_finished_table_of_other_data_or_another_model_is_refused(other, run, trained, trunk, texts, tmp_path):
    output = tmp_path / "f.parquet"
    run(f"embed {texts} --model {trained} -o {output}")
    before = output.read_bytes()
    data = write_texts(tmp_path / "others") if other == "data" else texts
    model = trunk if other == "model" else trained
    said = run(f"embed {data} -m text --model {model} -o {output}", code=1)
    assert "holds other features" in said
    assert "--fresh" in said
    assert output.read_bytes() == before
    run(f"embed {data} -m text --model {model} -o {output} --fresh")
    assert output.read_bytes() != before


def test_a_file_that_does_not_say_what_it_holds_is_kept(run, trained, texts, tmp_path):
    (tmp_path / "f.parquet").write_text("mine")
    assert "does not say which" in run(f"embed {texts} --model {trained} -o {tmp_path / 'f.parquet'}", code=1)
    assert (tmp_path / "f.parquet").read_text() == "mine"


def test_fresh_deletes_nothing_if_the_model_cannot_be_loaded(run, trained, texts, tmp_path):
    output = tmp_path / "f.parquet"
    run(f"embed {texts} --model {trained} -o {output}")
    run(f"embed {texts} -m text --model {tmp_path / 'absent'} -o {output} --fresh", code=1)
    assert output.exists()


def test_parts_of_another_model_are_refused(run, trained, texts, tmp_path):
    parts = tmp_path / "f.parquet.parts"
    parts.mkdir()
    (parts / "settings.json").write_text('{"model": "another"}')
    assert "parts of other features" in run(f"embed {texts} --model {trained} -o {tmp_path / 'f.parquet'}", code=1)


def test_a_modality_has_to_be_known(run, texts, tmp_path):
    assert "--modality" in run(f"embed {texts} -o {tmp_path / 'f.parquet'}", code=1)
