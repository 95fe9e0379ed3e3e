"""A hub on this machine, and Python processes that take it for huggingface.co."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from meta_transformer import MetaTransformerConfig, MetaTransformerForClassification, MetaTransformerProcessor
from meta_transformer.registry import MODALITIES

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def _load(path: Path) -> ModuleType:
    """A module that is no part of a package, as no folder of the tests is."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


hub_stand_in = _load(Path(__file__).parents[1] / "support" / "hub_stand_in.py")


@pytest.fixture(scope="module")
def hub() -> Iterator[Any]:
    """A running `HubStandIn` without repositories; `hub.serve(name, folder)` adds one."""
    with hub_stand_in.HubStandIn() as stand_in:
        yield stand_in


@pytest.fixture(scope="module")
def run_python(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Run code in a fresh process and return what it assigns to `result`, through JSON.

    huggingface_hub reads its endpoint when it is imported, so that only a fresh process can be sent to another one.
    """

    def run(code: str, *, hub: Any = None, cwd: Path | None = None) -> Any:
        folder = tmp_path_factory.mktemp("process")
        variables = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        variables |= {"HF_HOME": str(folder / "hf_home"), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
        if hub is None:
            variables["HF_HUB_OFFLINE"] = "1"
        else:
            variables |= {
                "HF_ENDPOINT": hub.endpoint,
                "HF_TOKEN": hub_stand_in.TOKEN,
                "NO_PROXY": "127.0.0.1,localhost",
            }
        output = folder / "result.json"
        code = f"import json\nresult = None\n{code}\njson.dump(result, open({str(output)!r}, 'w'))\n"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=cwd or folder, env=variables, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return json.loads(output.read_text())

    return run


@pytest.fixture(scope="module")
def make_pair() -> Callable[..., tuple[MetaTransformerForClassification, MetaTransformerProcessor]]:
    """Make a tiny classifier for one modality with weights of noise, and the processor that belongs to it."""

    def make(modality: str = "image", seed: int = 0, **options: Any) -> Any:
        processor_class = MODALITIES[modality].processor_class
        part = processor_class().fit(processor_class().dummy_samples(16), **processor_class.dummy_call_kwargs)
        processor = MetaTransformerProcessor(**{modality: part})
        config = MetaTransformerConfig(**{**TINY, "modalities": processor.tokenizer_configs(), **options})
        model = MetaTransformerForClassification(config).eval()
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.1)
        return model, processor

    return make


@pytest.fixture(scope="module")
def make_on(make_pair: Callable) -> Callable[..., MetaTransformerForClassification]:
    """Make a classifier as `make_pair` does, whose trunk has the weights of another model's."""

    def make(trunk: Any, modality: str = "image", seed: int = 1, **options: Any) -> Any:
        model, _ = make_pair(modality, seed, **options)
        weights = trunk.trunk_parameters()
        with torch.no_grad():
            for name, parameter in model.trunk_parameters().items():
                parameter.copy_(weights[name])
        return model

    return make
