"""Runs that were killed end as those that were not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments

from meta_transformer.training import last_checkpoint, resume, resuming
from tests.support.kills import outcomes


def same_end(folder: Path) -> bool:
    """Whether all that both runs saved at their ends is equal."""
    whole, killed = (
        {
            (each, path.name): load_file(path)
            for each in ("end", "pack")
            for path in (folder / name / each).glob("*.safetensors")
        }
        for name in ("whole", "killed")
    )
    assert whole
    return whole.keys() == killed.keys() and all(
        found.keys() == killed[path].keys() and all(torch.equal(killed[path][name], found[name]) for name in found)
        for path, found in whole.items()
    )


def killed_ten_times(codes: list[int]) -> bool:
    """Whether the runs were killed before they ended, with two exceptions at most, and all else went well."""
    whole, *pairs = codes
    runs, examinations = pairs[::2], pairs[1::2]
    return (whole, runs[-1], set(examinations)) == (0, 0, {0}) and len(runs) == 11 and runs.count(-9) >= 8


def checkpoint(folder: Path, step: int, state: str = '{"global_step": 1}') -> Path:
    """A checkpoint as far as it matters here."""
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "trainer_state.json").write_text(state)
    return path


@pytest.mark.parametrize("preset", ["lora", pytest.param("none", marks=pytest.mark.slow)])
def test_a_run_killed_within_an_epoch_ends_as_one_that_was_not(preset: str, tmp_path: Path) -> None:
    assert outcomes("once", tmp_path, preset) == [0, -9, 0]
    checkpoints = sorted(path.name for path in (tmp_path / "killed").glob("checkpoint-*"))
    assert "checkpoint-6" in checkpoints, "the premise: saved within the second epoch of 5 steps"
    assert same_end(tmp_path)


@pytest.mark.slow
def test_ten_kills_at_any_moment_lose_nothing_but_steps_that_are_trained_again(tmp_path: Path) -> None:
    assert killed_ten_times(outcomes("train", tmp_path, "last_1"))
    assert same_end(tmp_path)


@pytest.mark.slow
def test_ten_kills_while_features_are_cached_lose_nothing_that_was_written(tmp_path: Path) -> None:
    assert killed_ten_times(outcomes("extract", tmp_path))
    assert (tmp_path / "killed/samples.txt").read_text() == "400"


@pytest.mark.slow
def test_ten_kills_of_caching_training_and_saving_leave_nothing_that_loads_by_halves(tmp_path: Path) -> None:
    assert killed_ten_times(outcomes("everything", tmp_path))
    assert same_end(tmp_path)


class Line(torch.nn.Module):
    """One weight that learns 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.weight - labels).square().mean(), "logits": self.weight.expand(len(labels))}


def trainer_in(folder: Path, **options: Any) -> Trainer:
    """Epochs of 4 steps; each makes the loss worse that is evaluated."""
    arguments = TrainingArguments(
        folder, per_device_train_batch_size=1, learning_rate=0.1, save_strategy="epoch", eval_strategy="epoch",
        load_best_model_at_end=True, use_cpu=True, report_to=[], disable_tqdm=True, label_names=["labels"],
        restore_callback_states_from_checkpoint=True, **options,
    )  # fmt: skip
    rows, others = ([{"labels": value}] * 4 for value in (1.0, -1.0))
    callbacks: Any = [EarlyStoppingCallback(2)]
    return Trainer(Line(), arguments, train_dataset=rows, eval_dataset=others, callbacks=callbacks)


ENDS = [({"num_train_epochs": 6}, 12), ({"num_train_epochs": 1.5}, 6), ({"max_steps": 6}, 6)]


@pytest.mark.parametrize(("option", "last"), ENDS, ids=["stopped early", "half an epoch", "steps"])
def test_a_run_killed_after_its_last_step_learns_nothing_more(option: Any, last: int, tmp_path: Path) -> None:
    whole, again = trainer_in(tmp_path, **option), trainer_in(tmp_path, **option)
    assert resume(whole)
    assert whole.state.global_step == last, "the premise: stopped early, or within an epoch"
    assert resume(again) == {}
    assert again.state.global_step == last
    assert torch.equal(again.model.weight, whole.model.weight)
    assert last_checkpoint(tmp_path) == str(tmp_path / f"checkpoint-{last}")


def test_the_best_checkpoint_is_found_where_the_run_was_moved(tmp_path: Path) -> None:
    whole = trainer_in(tmp_path / "old", num_train_epochs=6)
    resume(whole)
    (tmp_path / "old").rename(tmp_path / "new")
    again = trainer_in(tmp_path / "new", num_train_epochs=6)
    assert resume(again) == {}
    assert torch.equal(again.model.weight, whole.model.weight)


def test_a_checkpoint_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere lacks trainer_state.json"):
        resume(trainer_in(tmp_path), tmp_path / "nowhere")


def test_a_run_that_had_ended_goes_on_where_more_steps_are_asked_for(tmp_path: Path) -> None:
    resume(trainer_in(tmp_path, max_steps=4))
    longer = trainer_in(tmp_path, max_steps=8)
    resume(longer)
    assert longer.state.global_step == 8


def test_the_newest_whole_checkpoint_is_found_and_the_others_are_named(tmp_path: Path, monkeypatch) -> None:
    warnings = []
    monkeypatch.setattr(resuming.logger, "warning", warnings.append)
    assert last_checkpoint(tmp_path / "nowhere") is None
    for step in (2, 10):
        checkpoint(tmp_path, step)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert not warnings
    checkpoint(tmp_path, 12, '{"global_st')
    (tmp_path / "checkpoint-14").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert "checkpoint-14 lacks trainer_state.json; checkpoint-12 lacks" in warnings[0]
    assert "goes on from step 10" in warnings[0]


def test_a_checkpoint_without_the_randomness_of_every_process_is_not_whole(tmp_path: Path, monkeypatch) -> None:
    (checkpoint(tmp_path, 2) / "optimizer.pt").touch()
    (tmp_path / "checkpoint-2/rng_state_0.pth").touch()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert last_checkpoint(tmp_path) is None
    (tmp_path / "checkpoint-2/rng_state_1.pth").touch()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
