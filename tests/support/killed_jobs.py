"""Jobs that tests kill: `python -m tests.support.killed_jobs <once|train|extract|everything> <folder> [<preset>]`.

Prints how their processes ended as one line of JSON; see `kills.py`.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainingArguments

from meta_transformer import MetaTransformerConfig, MetaTransformerForClassification, MetaTransformerProcessor
from meta_transformer.checkpoints.atomic import finish_save
from meta_transformer.training import (
    DataCollatorForMetaTransformer,
    FeatureCache,
    HeadModel,
    feature_files,
    last_checkpoint,
    resume,
)
from meta_transformer.training.feature_files import FeatureFile, index_features
from tests.support.kills import ended, forked, kill_ten_times

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
ROWS = [{"text": f"number {number}", "labels": number % 2} for number in range(400)]
PROCESSOR = MetaTransformerProcessor(text=True)


class KillAt(TrainerCallback):
    """Kills its own process at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def make(modalities: Any, preset: str = "all") -> MetaTransformerForClassification:
    torch.manual_seed(0)
    heads = {"classification": {"dropout": 0.5}}
    return MetaTransformerForClassification(
        MetaTransformerConfig(**SHAPE, modalities=modalities, heads=heads, freeze_encoder=preset)
    )


def run_trainer(model: Any, rows: Any, folder: Path, *callbacks: TrainerCallback, **options: Any) -> None:
    """Train in random order, with dropout, from the last checkpoint if there is one."""
    collate = options.pop("collate", None)
    arguments = TrainingArguments(
        folder, learning_rate=1e-3, save_strategy="steps", report_to=[], use_cpu=True, disable_tqdm=True,
        remove_unused_columns=collate is None, **options,
    )  # fmt: skip
    trainer = Trainer(model, arguments, data_collator=collate, train_dataset=rows, callbacks=list(callbacks))
    resume(trainer)


def train(
    preset: str, epochs: int, save_steps: int, folder: Path, say: Callable[[str], Any], *callbacks: TrainerCallback
) -> None:
    """The whole model, epochs of 5 steps."""
    model = make(["image"], preset)
    pictures = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rows = [{"pixel_values": picture, "labels": number % 2} for number, picture in enumerate(pictures)]
    say("training")
    options = {"per_device_train_batch_size": 4, "num_train_epochs": epochs, "save_steps": save_steps}
    run_trainer(model, rows, folder, *callbacks, **options)
    model.save_pretrained(folder / "end")


def extract(folder: Path, say: Callable[[str], Any]) -> Any:
    """Features of texts to a cache, in files of a few samples; the model and its features."""
    model = make(PROCESSOR.tokenizer_configs())
    feature_files._FILE_BYTES = 1000
    say("caching")
    cache, collator = FeatureCache(folder / "cache"), DataCollatorForMetaTransformer(PROCESSOR)
    return model, cache.features(model, ROWS, collator, batch_size=2, progress=False)


def everything(folder: Path, say: Callable[[str], Any]) -> None:
    """Features, then a head that learns from them, then model and task pack, several times over earlier ones."""
    model, features = extract(folder, say)
    untrained = {name: tensor.clone() for name, tensor in model.head.state_dict().items()}
    say("training")
    options = {"per_device_train_batch_size": 16, "max_steps": 40, "save_steps": 1, "collate": features.collate}
    run_trainer(HeadModel(model), features, folder / "trainer", **options)
    trained = {name: tensor.clone() for name, tensor in model.head.state_dict().items()}
    say("saving")
    for number in range(10):
        model.head.load_state_dict((untrained, trained)[number % 2])
        size = ("1MB", "30KB")[number % 2]  # one file, and several
        model.save_pretrained(folder / "end", processor=PROCESSOR, max_shard_size=size)
        model.save_task_pack(folder / "pack", processor=PROCESSOR)


def examine_training(folder: Path, whole: Path) -> None:
    """Every checkpoint holds what that of the uninterrupted run holds, or is refused."""
    for path in folder.glob("checkpoint-*"):
        try:
            found = MetaTransformerForClassification.from_pretrained(path).state_dict()
        except (OSError, ValueError):
            assert str(path) != last_checkpoint(folder), path
            continue
        check_equal(found, MetaTransformerForClassification.from_pretrained(whole / path.name).state_dict(), path)


def examine_extraction(folder: Path, whole: Path) -> None:
    """Every feature that was kept is that of the uninterrupted run, and none that was kept before is gone."""
    keys = FeatureCache(folder / "cache").sizes()
    for key in keys:
        expected = index_features(whole / "cache" / key)
        for sample, (path, row) in index_features(folder / "cache" / key).items():
            for name, part in FeatureFile(path).sample(row).items():
                other = FeatureFile(expected[sample][0]).sample(expected[sample][1])[name]
                assert torch.equal(part.tokens, other.tokens), path
                assert torch.equal(part.places, other.places), path
    count(folder, "samples", sum(each["samples"] for each in keys.values()))


def examine_everything(folder: Path, whole: Path) -> None:
    """What can be loaded is whole: features, checkpoints, and model and pack with the one head or the other."""
    examine_extraction(folder, whole)
    for path in (folder / "trainer").glob("checkpoint-*"):
        try:
            found = load_file(path / "model.safetensors")
        except (FileNotFoundError, SafetensorError):
            assert str(path) != last_checkpoint(folder / "trainer"), path
            continue
        check_equal(found, load_file(whole / "trainer" / path.name / "model.safetensors"), path)
    last = last_checkpoint(folder / "trainer")
    count(folder, "steps", 0 if last is None else int(last.rpartition("-")[2]))
    untrained = make(PROCESSOR.tokenizer_configs()).state_dict()
    trained = MetaTransformerForClassification.from_pretrained(whole / "end").state_dict()
    load_pack = make(PROCESSOR.tokenizer_configs()).load_task_pack
    for name, load in (("end", MetaTransformerForClassification.from_pretrained), ("pack", load_pack)):
        found = load_saved(load, folder / name)
        if found is not None:
            head = found["head.classifier.weight"]
            expected = untrained if torch.equal(head, untrained["head.classifier.weight"]) else trained
            check_equal(found, expected, folder / name)


def load_saved(load: Callable[[Path], Any], folder: Path) -> dict[str, torch.Tensor] | None:
    """The weights of what was saved, also where a save has to be completed first; `None` if none was saved."""
    try:
        weights = load(folder).state_dict()
        assert MetaTransformerProcessor.from_pretrained(folder).to_dict() == PROCESSOR.to_dict()
        return weights
    except ValueError as error:
        if "was interrupted while its files were replaced" not in str(error):
            assert is_empty(folder), error
            return None
    except OSError:
        assert is_empty(folder), folder
        return None
    with TemporaryDirectory() as place:  # as the error says; the run itself goes on with what the kill left
        copy = shutil.copytree(folder, Path(place) / folder.name)
        finish_save(copy)
        return load_saved(load, copy)


def is_empty(folder: Path) -> bool:
    """Whether nothing was saved yet; what was being written has hidden names."""
    return not folder.exists() or all(path.name.startswith(".") for path in folder.iterdir())


def check_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], place: Path) -> None:
    assert found.keys() == expected.keys(), place
    assert all(torch.equal(found[name], expected[name]) for name in expected), place


def count(folder: Path, what: str, number: int) -> None:
    """Keep how much there is, which no kill may lessen."""
    path = folder / f"{what}.txt"
    before = int(path.read_text()) if path.exists() else 0
    assert number >= before, f"{what}: {before} before, {number} now"
    path.write_text(str(number))


def once(folder: Path, preset: str) -> list[int]:
    """A whole run; one that is killed in its second epoch; and that one again."""
    runs: list[Any] = [(folder / "whole",), (folder / "killed", KillAt(8)), (folder / "killed",)]
    return [ended(forked(train, preset, 3, 3, place, print, *callbacks)) for place, *callbacks in runs]


if __name__ == "__main__":
    _, kind, place, *rest = sys.argv
    jobs: dict[str, Any] = {
        "train": (partial(train, *rest, 8, 1), examine_training),
        "extract": (extract, examine_extraction),
        "everything": (everything, examine_everything),
    }
    codes = once(Path(place), *rest) if kind == "once" else kill_ten_times(*jobs[kind], Path(place))
    print(json.dumps(codes))
