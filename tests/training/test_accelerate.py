"""Training on two processes, of pictures on one and of sounds on the other, takes the steps of one process."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from torch.testing import assert_close

from meta_transformer import MetaTransformerModel

CONFIGS = Path(__file__).parents[2] / "examples/accelerate"
SCRIPT = Path(__file__).parents[1] / "support/distributed_steps.py"


def run(folder: Path, *launcher: str) -> None:
    folder.mkdir()
    command = [sys.executable, *launcher, str(SCRIPT), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_loop_trainer_and_shards_take_the_steps_of_one_process(tmp_path: Path) -> None:
    run(tmp_path / "one")
    config = str(CONFIGS / "ddp_cpu.yaml")
    run(tmp_path / "two", "-m", "accelerate.commands.launch", "--config_file", config, "--main_process_port", "0")
    start, expected = (load_file(tmp_path / f"one/{kind}.safetensors") for kind in ("start", "loop"))
    for part in ("tokenizers.image", "tokenizers.audio", "encoder.layers.1", "head"):
        moved = max((expected[name] - start[name]).abs().max() for name in expected if part in name)
        assert moved > 1e-3, f"the premise: {part} learns"
    for kind in ("one/trainer", "two/loop", "two/trainer", "two/shards"):
        found = load_file(tmp_path / f"{kind}.safetensors")
        assert found.keys() == expected.keys()
        for name, weights in expected.items():
            assert_close(found[name], weights, rtol=1e-4, atol=1e-6, msg=f"{kind}: {name}")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_configuration_files(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.num_processes >= 2


def test_fsdp_wraps_the_blocks_of_the_trunk() -> None:
    config = load_config_from_file(str(CONFIGS / "fsdp2.yaml"))
    wrapped = config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"]
    assert MetaTransformerModel._no_split_modules == [wrapped]
    assert hasattr(importlib.import_module("meta_transformer.encoder.layer"), wrapped)
