"""Training in child processes, some of which are killed: `python killed_training.py <once|often> <folder> <preset>`.

Prints what became of it as one line of JSON. Children are forked, so that the libraries are imported once.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from meta_transformer import MetaTransformerConfig, MetaTransformerForClassification
from meta_transformer.training import last_checkpoint

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


class KillAt(TrainerCallback):
    """Kills its own process at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder: Path, preset: str, epochs: int, save_steps: int, *callbacks: TrainerCallback) -> None:
    """Epochs of 5 steps in random order, with dropout, from the last checkpoint if there is one."""
    torch.manual_seed(0)
    heads = {"classification": {"dropout": 0.5}}
    config = MetaTransformerConfig(**SHAPE, modalities=["image"], heads=heads, freeze_encoder=preset)
    model = MetaTransformerForClassification(config)
    pictures = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rows = [{"pixel_values": picture, "labels": number % 2} for number, picture in enumerate(pictures)]
    arguments = TrainingArguments(
        folder, per_device_train_batch_size=4, num_train_epochs=epochs, learning_rate=1e-3, save_strategy="steps",
        save_steps=save_steps, report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    trainer.save_model(folder / "end")


def forked(function: Callable[..., None], *arguments: object) -> int:
    """The number of a new process that calls the function."""
    if child := os.fork():
        return child
    code = 1
    try:
        function(*arguments)
        code = 0
    finally:
        sys.stdout.flush()
        os._exit(code)


def ended(child: int) -> int:
    """0, or the signal or code that a child ended with."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def examine(folder: Path, whole: Path) -> None:
    """Every checkpoint holds what that of the uninterrupted run holds, or is refused."""
    for path in folder.glob("checkpoint-*"):
        try:
            found = MetaTransformerForClassification.from_pretrained(path).state_dict()
        except (OSError, ValueError):
            assert str(path) != last_checkpoint(folder), path
            continue
        expected = MetaTransformerForClassification.from_pretrained(whole / path.name).state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected), path


def once(folder: Path, preset: str) -> list[int]:
    """A whole run; one that is killed in its second epoch; and that one again."""
    runs = [(folder / "whole",), (folder / "killed", KillAt(8)), (folder / "killed",)]
    return [ended(forked(train, place, preset, 3, 3, *callbacks)) for place, *callbacks in runs]


def often(folder: Path, preset: str) -> list[int]:
    """A whole run; ten times one that is killed at any moment, what it left being looked at; and that one again."""
    moments, start = random.Random(0), time.monotonic()
    codes = [ended(forked(train, folder / "whole", preset, 8, 1))]
    duration = time.monotonic() - start
    for _ in range(10):
        child = forked(train, folder / "killed", preset, 8, 1)
        time.sleep(moments.uniform(0.05, 0.3) * duration)
        os.kill(child, signal.SIGKILL)
        codes += [ended(child), ended(forked(examine, folder / "killed", folder / "whole"))]
    return [*codes, ended(forked(train, folder / "killed", preset, 8, 1))]


if __name__ == "__main__":
    print(json.dumps({"once": once, "often": often}[sys.argv[1]](Path(sys.argv[2]), sys.argv[3])))
