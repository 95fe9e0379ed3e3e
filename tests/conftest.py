"""What all tests share: no network, the same examples in every run, and GPU tests only where there is a GPU."""

import gc
import os
from collections.abc import Iterator

# Before transformers is imported, which reads these once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
import transformers
from hypothesis import settings

# The same examples in every run, so that a commit is not judged by a draw; HYPOTHESIS_PROFILE=default draws others.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where torch sees none."""
    without_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(without_gpu)


@pytest.fixture(autouse=True, scope="module")
def settled() -> None:
    """What is there before a file's tests stays: else each run of `Trainer` looks through all libraries for garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def talkative() -> Iterator[None]:
    """The command line and the scripts silence transformers in this process; other tests want to hear it."""
    yield
    transformers.logging.enable_progress_bar()
    transformers.logging.set_verbosity_warning()
