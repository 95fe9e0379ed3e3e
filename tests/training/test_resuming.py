"""Runs that were killed end as those that were not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from meta_transformer.training import last_checkpoint, resuming

SCRIPT = Path(__file__).parents[1] / "support/killed_training.py"


def outcomes(kind: str, folder: Path, preset: str) -> list[int]:
    """How the processes of the script ended; see there."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), kind, str(folder), preset],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def same_end(folder: Path) -> bool:
    whole, killed = (load_file(folder / name / "end/model.safetensors") for name in ("whole", "killed"))
    return whole.keys() == killed.keys() and all(torch.equal(killed[name], whole[name]) for name in whole)


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
    whole, *pairs, last = outcomes("often", tmp_path, "last_1")
    killed, examined = pairs[::2], pairs[1::2]
    assert (whole, last, set(examined)) == (0, 0, {0})
    assert len(killed) == 10
    assert killed.count(-9) >= 8, "the premise: killed before the end"
    assert same_end(tmp_path)


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
