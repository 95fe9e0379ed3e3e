"""`meta-transformer train`, in this process."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import ModelCard

from meta_transformer import (
    MetaTransformerForClassification,
    MetaTransformerForForecasting,
    MetaTransformerModel,
    MetaTransformerProcessor,
)
from meta_transformer.registry import list_modalities
from tests.support.sample_files import write_samples


@pytest.mark.parametrize("modality", list_modalities())
def test_every_modality_trains_on_files_or_rows(modality, run, trunk, tmp_path):
    data, options = write_samples(modality, tmp_path)
    told = " ".join(options)
    run(f"train {data} -m {modality} -o {tmp_path / 'run'} --encoder {trunk} --epochs 1 --batch-size 4 {told}")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["split"] == "test"
    assert results["samples"] == 2  # one of each class
    assert 0 <= results["metrics"]["accuracy"] <= 1


def test_leaves_a_model_that_loads_and_tells_its_classes(trained):
    model = MetaTransformerForClassification.from_pretrained(trained)
    processor = MetaTransformerProcessor.from_pretrained(trained)
    found = model.post_process(model(**processor(text=["meow"])))[0]
    assert {each["label"] for each in found} == {"cat", "dog"}
    assert sum(each["score"] for each in found) == pytest.approx(1, abs=1e-6)


def test_leaves_results_a_picture_and_a_card_with_the_metrics(trained):
    results = json.loads((trained / "results.json").read_text())
    assert results["baseline"] == {"accuracy of the most frequent class": 0.5}
    assert (trained / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")
    assert f"{results['metrics']['accuracy']:.4g}" in (trained / "README.md").read_text()
    assert not (trained / "trainer").exists()
    assert ModelCard.load(trained / "README.md").data.datasets is None  # a folder is nothing that the hub knows


def test_learns_what_can_be_learned(run, texts, tmp_path):
    run(f"train {texts} -m text -o {tmp_path / 'run'} --epochs 6 --batch-size 4 --lr 3e-3")
    assert json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]["accuracy"] == 1


def test_a_finished_run_is_said_to_be_finished(run, trained):
    before = (trained / "model.safetensors").stat().st_mtime_ns
    settings = json.loads((trained / "run.json").read_text())
    command = f"train {settings['data']} -m text -o {trained} --encoder {settings['encoder']} --epochs 1 --batch-size 4"
    assert "is finished" in run(command)
    assert (trained / "model.safetensors").stat().st_mtime_ns == before


def test_another_run_in_the_same_folder_is_refused_by_name(run, trained):
    settings = json.loads((trained / "run.json").read_text())
    assert "epochs 1" in run(f"train {settings['data']} -m text -o {trained} --epochs 2", code=1)


def test_a_sample_that_stops_a_run_can_be_taken_away(run, trunk, tmp_path):
    data, _ = write_samples("image", tmp_path)
    broken = next(data.rglob("*.png"))
    broken.write_bytes(b"nothing")
    command = f"train {data} -m image -o {tmp_path / 'run'} --encoder {trunk} --epochs 1 --batch-size 4"
    assert broken.name in run(command, code=1)
    broken.unlink()
    run(command)
    assert (tmp_path / "run" / "results.json").exists()


def test_a_modality_of_which_no_sample_is_is_questioned(run, texts, tmp_path):
    assert "is --modality right?" in run(f"train {texts} -m image -o {tmp_path / 'run'}", code=1)


def test_fresh_starts_over(run, texts, trunk, tmp_path):
    command = f"train {texts} -m text -o {tmp_path / 'run'} --encoder {trunk} --batch-size 4"
    run(f"{command} --epochs 1")
    run(f"{command} --epochs 2 --fresh")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["epochs"] == 2


def test_yaml_gives_options_and_flags_win(run, texts, trunk, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"data: {texts}\nmodality: text\nencoder: {trunk}\nepochs: 9\nbatch-size: 4\nhead: {{dropout: 0.25}}\n"
    )
    run(f"train --config {config} -o {tmp_path / 'run'} --epochs 1")
    settings = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (settings["epochs"], settings["batch_size"]) == (1, 4)
    model = MetaTransformerForClassification.from_pretrained(tmp_path / "run")
    assert model.config.heads["classification"].dropout == 0.25


def test_an_unknown_key_of_the_yaml_is_an_error(run, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("learning_rate: 0.1\n")
    assert "learning_rate" in run(f"train data -m text --config {config}", code=2)


def test_every_file_that_cannot_be_read_is_named_before_training(run, trunk, tmp_path):
    data, _ = write_samples("image", tmp_path)
    for name in ("x", "y"):
        (data / "a" / f"{name}.png").write_bytes(b"no picture")
    said = run(f"train {data} -m image -o {tmp_path / 'run'} --encoder {trunk} --epochs 1", code=1)
    assert "a/x.png" in said
    assert "a/y.png" in said
    assert not (tmp_path / "run" / "trainer").exists()


def test_balanced_weights_are_inverse_to_the_frequency_of_classes(run, trunk, tmp_path):
    words = ["a"] * 12 + ["b"] * 4
    table = pd.DataFrame({"text": words, "label": words, "split": ["train"] * 16})
    table = pd.concat([table, table.assign(split="val"), table.assign(split="test")])
    table.to_csv(tmp_path / "table.csv", index=False)
    options = f"--encoder {trunk} --epochs 1 --class-weights balanced"
    run(f"train {tmp_path / 'table.csv'} -m text -o {tmp_path / 'run'} {options}")
    config = MetaTransformerForClassification.from_pretrained(tmp_path / "run").config
    assert config.heads["classification"].class_weights == pytest.approx([16 / 24, 16 / 8])


def test_presets_of_freezing_reach_the_trunk(run, texts, tmp_path):
    said = run(f"train {texts} -m text -o {tmp_path / 'run'} --epochs 1 --freeze layernorm --batch-size 8")
    (encoder,) = [line.split() for line in said.splitlines() if line.strip().startswith("encoder")]
    assert encoder[1] == f"{(4 * 2 + 1) * 2 * 192:,}"  # of two norms in each of four blocks, and the last one


@pytest.mark.parametrize("modality", ["image", "xray"])
def test_pictures_keep_the_patches_of_a_pretrained_trunk(modality, run, timm_folder, tmp_path):
    data, _ = write_samples(modality, tmp_path)
    run(f"train {data} -m {modality} -o {tmp_path / 'run'} --encoder {timm_folder} --epochs 1 --batch-size 4")
    config = MetaTransformerForClassification.from_pretrained(tmp_path / "run").config
    assert config.modalities[modality].patch_embedding == "linear"
    expected = MetaTransformerModel.from_pretrained(timm_folder).encoder_fingerprint()
    assert json.loads((tmp_path / "run" / "results.json").read_text())["encoder_fingerprint"] == expected
    if modality == "image":
        assert MetaTransformerProcessor.from_pretrained(tmp_path / "run").image.image_mean == [0.4] * 3


def test_regression_is_measured_in_the_units_of_the_table(run, trunk, tmp_path):
    random = np.random.default_rng(0)
    table = pd.DataFrame(random.normal(size=(60, 2)), columns=["x", "y"])
    table.assign(grams=1000 + 10 * table["x"]).to_csv(tmp_path / "table.csv", index=False)
    options = f"--encoder {trunk} --task regression --label grams --epochs 1"
    run(f"train {tmp_path / 'table.csv'} -m tabular -o {tmp_path / 'run'} {options}")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert 1 < results["metrics"]["rmse"] < 100
    assert (tmp_path / "run" / "predictions.png").exists()


def test_forecasting_goes_from_a_table_to_steps_in_its_units(run, trunk, tmp_path):
    steps = np.arange(240)
    table = pd.DataFrame(
        {"date": pd.date_range("2024-01-01", periods=240, freq="h"), "load": 500 + 50 * np.sin(2 * np.pi * steps / 24)}
    )
    table.to_csv(tmp_path / "series.csv", index=False)
    options = f"--encoder {trunk} --task forecasting --look-back 24 --horizon 6 --epochs 2 --lr 1e-2"
    run(f"train {tmp_path / 'series.csv'} -m time_series -o {tmp_path / 'run'} {options}")
    assert (tmp_path / "run" / "forecast.png").exists()
    assert MetaTransformerForForecasting.from_pretrained(tmp_path / "run").head.config.horizon == 6
    run(f"predict {tmp_path / 'run'} {tmp_path / 'series.csv'} -o {tmp_path / 'out.csv'}")
    found = pd.read_csv(tmp_path / "out.csv")
    assert list(found.columns) == ["path", "step", "load"]
    assert len(found) == 6
    assert found["load"].between(400, 600).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("-m smell", "--modality must be one of"),
        ("-m text --task detection", "--task must be one of"),
        ("-m text --size huge", "--size must be one of"),
        ("-m text --task forecasting", "is for --modality time_series"),
        ("-m text --class-weights rare", "must be 'balanced'"),
        ("-m text --head dropout", "name=value"),
    ],
)
def test_wrong_options_are_told_in_a_sentence(options, message, run, texts, tmp_path):
    assert message in run(f"train {texts} -o {tmp_path / 'run'} {options}", code=1)


def test_data_that_is_not_there_is_told(run, tmp_path: Path):
    assert "no folder, no table" in run(f"train {tmp_path / 'nothing'} -m text -o {tmp_path / 'run'}", code=1)
