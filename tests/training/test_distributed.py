"""Two processes give the step of one that has the whole batch."""

import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

# One step of SGD by `Trainer` for each head: rows of different label counts, so that a mean of means would differ.
STEP = """
import os
import sys
import torch
from transformers import Trainer, TrainingArguments
from meta_transformer import (
    MetaTransformerConfig, MetaTransformerForClassification, MetaTransformerForRetrieval, MetaTransformerForSegmentation
)

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
generator = torch.Generator().manual_seed(0)
PICTURES = torch.rand(4, 3, 32, 32, generator=generator)
MAPS = torch.randint(0, 2, (4, 32, 32), generator=generator)
MAPS[0, :20] = -100
HEADS = {
    "classification": (MetaTransformerForClassification, torch.tensor([0, -100, 1, 1]), {}),
    "segmentation": (MetaTransformerForSegmentation, MAPS, {}),
    "contrastive": (MetaTransformerForRetrieval, torch.tensor([0, 1, 0, 1]), {"retrieval": {"temperature": 0.5}}),
    "triplet": (
        MetaTransformerForRetrieval, torch.tensor([0, 1, 0, 1]), {"retrieval": {"loss": "triplet", "margin": 1.0}}
    ),
}
folder, batch_size = sys.argv[1], int(sys.argv[2])
for name, (model_class, labels, heads) in HEADS.items():
    torch.manual_seed(0)
    model = model_class(MetaTransformerConfig(**SHAPE, modalities=["image"], heads=heads))
    if os.environ.get("RANK", "0") == "0":  # as Trainer does: two savers of one folder would take each other's files
        model.save_pretrained(f"{folder}/{name}/start")
    arguments = TrainingArguments(
        f"{folder}/{name}", per_device_train_batch_size=batch_size, max_steps=1, learning_rate=1.0,
        lr_scheduler_type="constant", max_grad_norm=0, optim="sgd", remove_unused_columns=False, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True, seed=0, data_seed=0,
    )
    rows = [{"pixel_values": picture, "labels": label} for picture, label in zip(PICTURES, labels)]
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    trainer.save_model(f"{folder}/{name}/end")
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()  # else its threads may outlive the interpreter, and abort
"""


@pytest.mark.slow
def test_two_processes_take_the_step_of_the_big_batch(tmp_path):
    script = tmp_path / "step.py"
    script.write_text(STEP)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for command, folder, batch_size in ((launch, "two", 2), ([sys.executable], "one", 4)):
        arguments = [*command, str(script), str(tmp_path / folder), str(batch_size)]
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    for head in ("classification", "segmentation", "contrastive", "triplet"):
        start, one, two = (
            load_file(tmp_path / place / "model.safetensors")
            for place in (f"one/{head}/start", f"one/{head}/end", f"two/{head}/end")
        )
        moved = max((one[name] - start[name]).abs().max() for name in one)
        assert moved > 1e-3, head
        for name, weights in one.items():
            assert_close(two[name], weights, rtol=1e-3, atol=1e-5)
