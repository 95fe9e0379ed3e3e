"""The example of the twelve modalities: its recipes train, and its results are those of what was asked for."""

import importlib
import json
import math
import os
import sys
from pathlib import Path

import pytest
import torch

from meta_transformer import list_modalities

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
DATA = os.environ.get("META_TRANSFORMER_DATA")
WORDS = sorted(path.stem for path in (EXAMPLES / "recipes").glob("*.py") if path.stem in list_modalities())


@pytest.fixture(autouse=True)
def examples_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in ("recipes", "03_twelve_modalities")]:
        del sys.modules[name]


def first(split, count: int):
    """Some samples of all parts of a split, which may be sorted by class."""
    places = range(0, len(split.labels), max(1, len(split.labels) // count))
    return type(split)([split.samples[place] for place in places], [split.labels[place] for place in places])


@pytest.mark.slow
@pytest.mark.parametrize("word", WORDS if DATA else [])
def test_a_recipe_trains_and_its_model_predicts_the_same_when_loaded(word: str, tmp_path: Path) -> None:
    base = importlib.import_module("recipes.base")
    recipe = importlib.import_module(f"recipes.{word}").recipe(Path(DATA))
    for name in ("train", "validation", "test"):
        setattr(recipe, name, first(getattr(recipe, name), 48))
    recipe.baseline = None
    row = base.train(recipe, base.nano_trunk(tmp_path / "trunk"), tmp_path / "model", epochs=1)
    assert math.isfinite(row["test"]) and 0 <= row["test"] <= 1
    model = base.MetaTransformerForClassification.from_pretrained(tmp_path / "model")
    processor = base.MetaTransformerProcessor.from_pretrained(tmp_path / "model")
    assert base.predict(recipe, model, processor) == row["predictions"]


@pytest.mark.slow
@pytest.mark.parametrize("word", WORDS if DATA else [])
def test_augmentation_keeps_shapes_and_changes_numbers(word: str) -> None:
    recipe = importlib.import_module(f"recipes.{word}").recipe(Path(DATA))
    if recipe.augment is None:
        return
    batch = dict(recipe.processor(first(recipe.train, 16).samples, **recipe.call))
    augmented = recipe.augment(dict(batch))
    assert augmented.keys() >= batch.keys()
    assert any(
        augmented[name].shape != value.shape or not torch.equal(augmented[name], value) for name, value in batch.items()
    )
    for name, value in batch.items():
        assert augmented[name].shape[0] == value.shape[0]
        assert augmented[name].dtype == value.dtype
        assert not value.is_floating_point() or augmented[name].isfinite().all()


@pytest.mark.parametrize(
    ("changed", "kept"), [({}, True), ({"encoder": "timm/other"}, False), ({"epochs": 2}, False)], ids=str
)
def test_results_of_other_settings_are_not_taken_up(changed: dict, kept: bool, tmp_path: Path) -> None:
    example = importlib.import_module("03_twelve_modalities")
    folder = tmp_path / "imu"
    options = {"encoder": None, "epochs": None}
    example.forget_other_settings(folder, example.settings("imu", **options))
    (folder / "row.json").write_text(json.dumps({"test": 0.5}))
    example.forget_other_settings(folder, example.settings("imu", **options | changed))
    assert (folder / "row.json").exists() == kept


def test_a_result_of_an_older_recipe_is_not_taken_up(tmp_path: Path) -> None:
    example = importlib.import_module("03_twelve_modalities")
    folder = tmp_path / "imu"
    example.forget_other_settings(folder, example.settings("imu", None, None) | {"recipe": "of another file"})
    (folder / "row.json").write_text("{}")
    example.forget_other_settings(folder, example.settings("imu", None, None))
    assert not (folder / "row.json").exists()
