"""A small trunk, a finished run, and the command line in this process."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

from meta_transformer import MetaTransformerConfig, MetaTransformerModel
from meta_transformer.cli.app import app
from tests.support.sample_files import write_texts

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a command in this process: its text in one piece, its exit status."""
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(command: str, *, code: int = 0) -> str:
        result = CliRunner().invoke(app, shlex.split(command))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result.output

    return invoke


@pytest.fixture(scope="session")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a trunk for tests."""
    folder = tmp_path_factory.mktemp("trunk")
    MetaTransformerModel(MetaTransformerConfig(**TINY)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def timm_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of a small vision transformer of timm's, as they lie on the hub."""
    import timm

    folder = tmp_path_factory.mktemp("timm")
    options = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}
    preprocessing = {"input_size": [3, 32, 32], "mean": [0.4] * 3, "std": [0.2] * 3, "interpolation": "bicubic"}
    description = {"architecture": "vit_tiny_patch16_224", "num_classes": 1000, "model_args": options}
    (folder / "config.json").write_text(json.dumps({**description, "pretrained_cfg": preprocessing}))
    save_file(timm.create_model("vit_tiny_patch16_224", **options).state_dict(), folder / "model.safetensors")
    return str(folder)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "texts")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, trunk: str) -> Path:
    """A run of one epoch on `texts`, finished."""
    folder = tmp_path_factory.mktemp("trained")
    texts = write_texts(folder / "texts")
    command = ["train", str(texts), "-m", "text", "-o", str(folder / "run"), "--encoder", trunk, "--epochs", "1"]
    result = CliRunner().invoke(app, [*command, "--batch-size", "4"])
    assert result.exit_code == 0, result.output
    return folder / "run"
