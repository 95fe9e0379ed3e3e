"""The scripts `examples/run_*.py`: on files as people have them they train, write results, and a model that loads."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from meta_transformer import MetaTransformerConfig, MetaTransformerModel, MetaTransformerProcessor
from meta_transformer.cli.models import load_model
from tests.support.sample_files import write_samples, write_texts

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SCRIPTS = sorted(path for path in EXAMPLES.glob("run_*.py") if path.stem != "run_shared")
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
FEW = "--max_steps 2 --per_device_train_batch_size 4 --eval_strategy steps --eval_steps 2 --save_strategy steps "
FEW += "--save_steps 2 --disable_tqdm True"
random = np.random.default_rng(0)


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a trunk for tests."""
    folder = tmp_path_factory.mktemp("trunk")
    MetaTransformerModel(MetaTransformerConfig(**TINY)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trunk: str) -> Callable[..., dict[str, float]]:
    """Run a script in this process on a tiny trunk; what it writes as results."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def invoke(name: str, options: str, few: str = FEW) -> dict[str, float]:
        command = [f"run_{name}.py", *options.split(), "--encoder", trunk, "--output_dir", str(tmp_path / "run")]
        monkeypatch.setattr(sys, "argv", [*command, *few.split()])
        runpy.run_path(str(EXAMPLES / command[0]), run_name="__main__")
        return json.loads((tmp_path / "run" / "all_results.json").read_text())

    yield invoke
    for name in [name for name in sys.modules if name.startswith("run_")]:
        del sys.modules[name]


def loaded(folder: Path) -> tuple[Any, MetaTransformerProcessor]:
    """The model that a script wrote, and its processor."""
    assert "test_" in (folder / "README.md").read_text()
    return load_model(str(folder)), MetaTransformerProcessor.from_pretrained(folder)


def write_pictures(folder: Path, count: int = 12) -> list[str]:
    """Pictures of 24 x 16 pixels."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(random.integers(0, 256, (24, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return [f"{number}.png" for number in range(count)]


def write_coco(folder: Path) -> Path:
    """Pictures with two boxes each, of categories that are not numbered from 0 on; one has no inside."""
    names = write_pictures(folder / "pictures")
    images = [{"id": 7 + number, "file_name": name, "width": 16, "height": 24} for number, name in enumerate(names)]
    boxes = [{"image_id": each["id"], "bbox": [2, 3, 8, 9], "category_id": 5} for each in images]
    boxes += [{"image_id": each["id"], "bbox": [4, 4, 4, 4], "category_id": 9, "iscrowd": 0} for each in images]
    boxes[0]["bbox"] = [2, 3, 0, 9]
    categories = [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (folder / "boxes.json").write_text(json.dumps(content))
    return folder / "boxes.json"


def write_graph(folder: Path) -> Path:
    """A ring of 40 nodes with names; some have no split."""
    names = [f"node {number}" for number in range(40)]
    splits = (["train"] * 4 + ["val"] * 2 + ["test"] * 2 + ["none"] * 2) * 4
    words = [f"w{number % 2} w{number % 5}" for number in range(40)]
    nodes = pd.DataFrame({"id": names, "label": ["a", "b"] * 20, "split": splits, "words": words})
    nodes.to_csv(folder / "nodes.csv", index=False)
    pd.DataFrame({"source": names, "target": np.roll(names, 1)}).to_csv(folder / "edges.csv", index=False)
    return folder


def write_series(folder: Path) -> Path:
    """Two channels of 200 hours."""
    steps = np.arange(200)
    table = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=200, freq="h"), "load": np.sin(steps / 4)})
    table.assign(heat=np.cos(steps / 4)).to_csv(folder / "series.csv", index=False)
    return folder / "series.csv"


def write_masks(folder: Path) -> Path:
    """Pictures and masks of 0 and 255."""
    for name in write_pictures(folder / "images"):
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(255 * random.integers(0, 2, (24, 16), dtype=np.uint8)).save(folder / "masks" / name)
    return folder


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_tells_what_the_data_look_like(script, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", [script.name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(script), run_name="__main__")
    assert f"python examples/{script.name} --data" in capsys.readouterr().out


def test_classification_goes_from_a_folder_to_a_model(run, tmp_path):
    results = run("classification", f"--data {write_texts(tmp_path / 'data')} --modality text --freeze last_1")
    assert 0 <= results["test_accuracy"] <= 1
    model, processor = loaded(tmp_path / "run")
    assert model.config.freeze_encoder == "last_1"
    assert model(**processor(text=["meow"])).logits.shape == (1, 2)


def test_regression_is_measured_in_units_of_the_table(run, tmp_path):
    table = pd.DataFrame(random.normal(size=(60, 2)), columns=["x", "y"])
    table.assign(grams=1000 + 10 * table["x"]).to_csv(tmp_path / "table.csv", index=False)
    options = f"--data {tmp_path / 'table.csv'} --modality tabular --task regression --label grams"
    assert 1 < run("classification", options)["test_rmse"] < 100


def test_balanced_class_weights_reach_the_head(run, tmp_path):
    words = ["a"] * 12 + ["b"] * 4
    table = pd.DataFrame({"text": words, "label": words, "split": ["train"] * 16})
    table = pd.concat([table, table.assign(split="val"), table.assign(split="test")])
    table.to_csv(tmp_path / "table.csv", index=False)
    run("classification", f"--data {tmp_path / 'table.csv'} --modality text --class_weights balanced")
    weights = load_model(str(tmp_path / "run")).config.heads["classification"].class_weights
    assert weights == pytest.approx([16 / 24, 16 / 8])


def test_settings_may_come_from_a_file(run, tmp_path, trunk, monkeypatch):
    settings = {"data": str(write_texts(tmp_path / "data")), "modality": "text", "encoder": trunk, "max_steps": 1}
    settings |= {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    settings |= {"output_dir": str(tmp_path / "run"), "head": ["dropout=0.25"], "disable_tqdm": True}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    monkeypatch.setattr(sys, "argv", ["run_classification.py", str(tmp_path / "settings.json")])
    runpy.run_path(str(EXAMPLES / "run_classification.py"), run_name="__main__")
    assert load_model(str(tmp_path / "run")).config.heads["classification"].dropout == 0.25


def test_a_folder_of_another_run_is_refused(run, tmp_path):
    data = write_texts(tmp_path / "data")
    run("classification", f"--data {data} --modality text")
    with pytest.raises(ValueError, match="holds a run with .*dropout=0.25|holds a run with .*head"):
        run("classification", f"--data {data} --modality text --head dropout=0.25")


def test_a_finished_run_is_measured_again_and_not_trained_again(run, tmp_path):
    options = f"--data {write_texts(tmp_path / 'data')} --modality text"
    first = run("classification", options)
    again = run("classification", options)
    assert {name: first[name] for name in ("test_accuracy", "test_loss")} == pytest.approx(
        {name: again[name] for name in ("test_accuracy", "test_loss")}
    )


def test_forecasting_goes_from_a_table_to_a_plot(run, tmp_path):
    results = run("forecasting", f"--data {write_series(tmp_path)} --look_back 24 --horizon 6")
    assert results["test_mae"] > 0 and results["test_mse"] > 0
    assert Image.open(tmp_path / "run" / "forecast.png").size[0] > 100
    model, processor = loaded(tmp_path / "run")
    assert model(**processor(time_series=np.zeros((24, 2)))).logits.shape == (1, 6, 2)


def test_segmentation_takes_folders_of_pictures_and_masks(run, tmp_path):
    results = run("segmentation", f"--data {write_masks(tmp_path / 'data')} --image_size 32 --classes sky cell")
    assert 0 <= results["test_mean_iou"] <= 1
    assert (tmp_path / "run" / "predictions.png").stat().st_size
    model, processor = loaded(tmp_path / "run")
    assert model.config.id2label == {0: "sky", 1: "cell"}
    assert model(**processor(image=np.zeros((24, 16, 3), np.uint8))).logits.shape == (1, 2, 32, 32)


@pytest.mark.slow
def test_segmentation_takes_a_table_with_splits(run, tmp_path):
    folder = write_masks(tmp_path / "data")
    table = pd.DataFrame({"image": [f"images/{number}.png" for number in range(12)]})
    table["mask"] = table["image"].str.replace("images", "masks")
    table["split"] = ["train"] * 6 + ["val"] * 2 + ["test"] * 4
    table.to_csv(folder / "labels.csv", index=False)
    assert run("segmentation", f"--data {folder} --image_size 32")["test_samples"] == 4


def test_segmentation_names_pictures_without_mask(run, tmp_path):
    folder = write_masks(tmp_path / "data")
    (folder / "masks" / "3.png").unlink()
    with pytest.raises(ValueError, match=r"1 pictures have no mask.*3\.png"):
        run("segmentation", f"--data {folder}")


def test_detection_goes_from_coco_to_boxes(run, tmp_path):
    options = f"--data {write_coco(tmp_path)} --images {tmp_path / 'pictures'} --image_size 32"
    results = run("detection", options)
    assert {"test_map", "test_map_50"} <= set(results)
    assert (tmp_path / "run" / "predictions.png").stat().st_size
    model, processor = loaded(tmp_path / "run")
    assert model.config.id2label == {0: "cat", 1: "dog"}
    output = model(**processor(image=np.zeros((24, 16, 3), np.uint8)), original_sizes=torch.tensor([[24, 16]]))
    assert output.boxes[:, [0, 2]].max() <= 16


def test_detection_names_a_picture_that_is_not_there(run, tmp_path):
    path = write_coco(tmp_path)
    with pytest.raises(ValueError, match=r"0\.png, which is not there; give the folder by --images"):
        run("detection", f"--data {path}")


def test_retrieval_goes_from_pairs_to_one_space(run, tmp_path):
    names = write_pictures(tmp_path / "pictures")
    table = pd.DataFrame({"image": [f"pictures/{name}" for name in names], "text": [f"no {name}" for name in names]})
    table.to_csv(tmp_path / "pairs.csv", index=False)
    results = run("retrieval", f"--data {tmp_path / 'pairs.csv'} --modalities image text --tokenizer text.ngram_size=1")
    assert 0 <= results["test_recall_at_1"] <= 1
    model, processor = loaded(tmp_path / "run")
    batch = processor(image=[np.zeros((24, 16, 3), np.uint8)], text=["no 1"])
    assert set(model.get_embeds(**batch)) == {"image", "text"}


@pytest.mark.slow
def test_retrieval_within_a_modality_takes_classes(run, tmp_path):
    results = run("retrieval", f"--data {write_texts(tmp_path / 'data', 12)} --modalities text")
    assert 0 <= results["test_map"] <= 1


def test_node_classification_goes_from_two_tables_to_classes(run, tmp_path, capsys):
    results = run("node_classification", f"--data {write_graph(tmp_path)} --words words --draws 2 --directions 4")
    assert results["test_samples"] == 8
    assert "commonest class" in capsys.readouterr().out
    assert loaded(tmp_path / "run")[0].config.id2label == {0: "a", 1: "b"}


def test_node_classification_names_an_edge_to_nowhere(run, tmp_path):
    folder = write_graph(tmp_path)
    edges = pd.read_csv(folder / "edges.csv")
    edges.loc[4, "target"] = "nowhere"
    edges.to_csv(folder / "edges.csv", index=False)
    with pytest.raises(ValueError, match="row 5 of .*edges.csv names a node"):
        run("node_classification", f"--data {folder} --words words")


LOOP = "--per_device_train_batch_size 2 --gradient_accumulation_steps 2"


def test_the_plain_loop_writes_what_trainer_writes(run, tmp_path):
    options = f"--data {write_texts(tmp_path / 'data')} --modality text"
    results = run("classification_no_trainer", options, f"{LOOP} --num_train_epochs 2")
    assert 0 <= results["test_accuracy"] <= 1
    loaded(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").glob("epoch-*")] == ["epoch-2"]


# The slow ones, in processes of their own

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES)}


def start(name: str, options: str, *launcher: str) -> subprocess.Popen:
    command = [sys.executable, *launcher, str(EXAMPLES / f"run_{name}.py"), *options.split()]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(name: str, options: str, *launcher: str) -> str:
    process = start(name, options, *launcher)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "checkpoint", "options"),
    [
        ("classification", "checkpoint-*/trainer_state.json", "--save_steps 4 --save_strategy steps --eval_strategy no "
         "--load_best_model_at_end False --disable_tqdm True"),
        ("classification_no_trainer", "epoch-*", ""),
    ],
)  # fmt: skip
def test_the_same_command_goes_on_where_a_run_was_killed(script, checkpoint, options, trunk, tmp_path):
    data = write_texts(tmp_path / "data", 24)
    options += f" --data {data} --modality text --encoder {trunk} --num_train_epochs 12 --per_device_train_batch_size 4"
    finish(script, f"{options} --output_dir {tmp_path / 'whole'}")
    own = f"{options} --output_dir {tmp_path / 'killed'}"
    process = start(script, own)
    while not list((tmp_path / "killed").glob(checkpoint)):
        assert process.poll() is None, "the run ended before it wrote a checkpoint"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "all_results.json").exists(), "the run was over before it was killed"
    finish(script, own)
    whole, killed = (load_model(str(tmp_path / name)).state_dict() for name in ("whole", "killed"))
    assert all(torch.allclose(whole[name], killed[name], atol=1e-6) for name in whole)


@pytest.mark.slow
def test_the_plain_loop_runs_on_two_processes_as_on_one(trunk, tmp_path):
    data = write_texts(tmp_path / "data", 24)
    # 32 samples, so that the last batch of an epoch is whole on both.
    options = f"--data {data} --modality text --encoder {trunk} --num_train_epochs 2 --max_train_samples 32"
    finish("classification_no_trainer", f"{options} --per_device_train_batch_size 8 --output_dir {tmp_path / 'one'}")
    launcher = f"-m accelerate.commands.launch --config_file {EXAMPLES / 'accelerate' / 'ddp_cpu.yaml'}"
    two = f"{options} --per_device_train_batch_size 4 --output_dir {tmp_path / 'two'}"
    finish("classification_no_trainer", two, *launcher.split())
    results = [json.loads((tmp_path / name / "all_results.json").read_text()) for name in ("one", "two")]
    assert results[0]["test_samples"] == results[1]["test_samples"]
    one, both = (load_model(str(tmp_path / name)).state_dict() for name in ("one", "two"))
    assert all(torch.allclose(one[name], both[name], atol=1e-4) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["audio", "video", "point_cloud", "imu", "hyperspectral", "xray", "graph"])
def test_classification_takes_files_of_every_kind(run, modality, tmp_path):
    data, options = write_samples(modality, tmp_path)
    call = "--call imu_sampling_rate=50" if options else ""
    assert 0 <= run("classification", f"--data {data} --modality {modality} {call}")["test_accuracy"] <= 1
