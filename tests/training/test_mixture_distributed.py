"""Two processes with a batch each give the step of one that accumulates both, and go on where they stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

# One step of SGD: process 0 has three pictures of one task, of which one has no class, process 1 two of the other; then
# one with both processes at the first task.
STEP = """
import os
import sys
import torch
from transformers import TrainingArguments
from meta_transformer import MetaTransformerConfig, MetaTransformerForMultiTask
from meta_transformer.training import MixtureTrainer, TaskMixture

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TASKS = {"kind": {"head": "classification", "num_labels": 2}, "size": {"head": "regression", "loss_weight": 0.25}}
folder, accumulate = sys.argv[1], int(sys.argv[2])
generator = torch.Generator().manual_seed(0)
pictures = torch.rand(9, 3, 32, 32, generator=generator)
rows = [{"pixel_values": picture, "labels": label} for picture, label in zip(pictures, [0, -100, 1, 1, 0, 1])]
numbers = [{"pixel_values": picture, "labels": [float(label)]} for label, picture in enumerate(pictures[6:])]

def collate(samples):
    task = next(iter(samples[0]["labels"]))
    return {
        "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
        "labels": {task: torch.tensor([sample["labels"][task] for sample in samples])},
    }

torch.manual_seed(0)
model = MetaTransformerForMultiTask(
    MetaTransformerConfig(**SHAPE, modalities=["image"], heads={"multi_task": {"tasks": TASKS}})
)
if os.environ.get("RANK", "0") == "0":  # two savers of one folder would take each other's files
    model.save_pretrained(f"{folder}/start")
arguments = TrainingArguments(
    folder, gradient_accumulation_steps=accumulate, max_steps=2, learning_rate=1.0, lr_scheduler_type="constant",
    max_grad_norm=0, optim="sgd", remove_unused_columns=False, report_to=[], save_strategy="no", use_cpu=True,
    disable_tqdm=True, logging_steps=1,
)
trainer = MixtureTrainer(
    model, arguments, train_dataset=TaskMixture({"kind": rows, "size": numbers}), data_collator=collate,
    batch_sampler=[[0, 1, 2], [6, 7], [3, 4], [5]],
)
trainer.train()
trainer.save_model(f"{folder}/end")
if os.environ.get("RANK", "0") == "0":
    print([log[name] for log in trainer.state.log_history[:2] for name in sorted(log) if name.startswith("loss_")])
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()  # else its threads may outlive the interpreter, and abort
"""


@pytest.mark.slow
def test_two_processes_take_the_step_of_both_batches(tmp_path: Path) -> None:
    script = tmp_path / "step.py"
    script.write_text(STEP)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    logs = {}
    for command, folder, accumulate in ((launch, "two", 1), ([sys.executable], "one", 2)):
        arguments = [*command, str(script), str(tmp_path / folder), str(accumulate)]
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        logs[folder] = [float(value) for value in done.stdout.strip().splitlines()[-1].strip("[]").split(",")]
    assert len(logs["one"]) == 3
    assert logs["two"] == pytest.approx(logs["one"], rel=1e-4)
    start, one, two = (
        load_file(tmp_path / place / "model.safetensors") for place in ("one/start", "one/end", "two/end")
    )
    assert max((one[name] - start[name]).abs().max() for name in one) > 1e-3
    for name, weights in one.items():
        assert_close(two[name], weights, rtol=1e-3, atol=1e-5)


# What each process sees of two epochs of training that goes through, and of training resumed within the second epoch.
RESUME = """
import json
import os
import sys
import torch
from transformers import TrainingArguments
from meta_transformer import MetaTransformerConfig, MetaTransformerForMultiTask
from meta_transformer.training import MixtureTrainer, TaskMixture

SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
TASKS = {"kind": {"head": "classification", "num_labels": 2}, "size": {"head": "regression"}}
folder = sys.argv[1]
pictures = torch.rand(30, 3, 32, 32, generator=torch.Generator().manual_seed(0))
rows = [{"number": n, "pixel_values": picture, "labels": n % 2} for n, picture in enumerate(pictures[:20])]
sizes = [{"number": 20 + n, "pixel_values": picture, "labels": [float(n)]} for n, picture in enumerate(pictures[20:])]
seen = {}
for name, checkpoint in (("whole", None), ("resumed", f"{folder}/whole/checkpoint-7")):
    batches = seen[name] = []

    def collate(samples):
        batches.append([sample["number"] for sample in samples])
        task = next(iter(samples[0]["labels"]))
        return {
            "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
            "labels": {task: torch.tensor([sample["labels"][task] for sample in samples])},
        }

    torch.manual_seed(0)
    model = MetaTransformerForMultiTask(
        MetaTransformerConfig(**SHAPE, modalities=["image"], heads={"multi_task": {"tasks": TASKS}})
    )
    arguments = TrainingArguments(
        f"{folder}/{name}", per_device_train_batch_size=3, num_train_epochs=2, learning_rate=1e-2,
        save_strategy="steps", save_steps=7, report_to=[], remove_unused_columns=False, use_cpu=True, disable_tqdm=True,
    )
    trainer = MixtureTrainer(
        model, arguments, train_dataset=TaskMixture({"kind": rows, "size": sizes}), data_collator=collate
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(f"{folder}/{name}/end")
with open(f"{folder}/{os.environ['RANK']}.json", "w") as file:
    json.dump(seen, file)
torch.distributed.destroy_process_group()  # else its threads may outlive the interpreter, and abort
"""


@pytest.mark.slow
def test_two_processes_go_on_within_an_epoch(tmp_path: Path) -> None:
    (tmp_path / "resume.py").write_text(RESUME)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = [*command, str(tmp_path / "resume.py"), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(2):
        seen = json.loads((tmp_path / f"{rank}.json").read_text())
        steps = len(seen["whole"]) // 2
        assert steps < 7 < 2 * steps, "the premise: stopped within the second epoch"
        assert seen["whole"][:steps] != seen["whole"][steps:]
        assert seen["resumed"][: len(seen["whole"]) - 7] == seen["whole"][7:]
    whole, resumed = (load_file(tmp_path / name / "end/model.safetensors") for name in ("whole", "resumed"))
    for name, weights in whole.items():
        assert torch.equal(resumed[name], weights), name
