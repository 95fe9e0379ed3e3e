"""What fine-tuning costs: the head from cached features, behind the frozen trunk, LoRA, and the whole base trunk.

    python benchmarks/finetune.py
    python benchmarks/finetune.py --batch-size 2 --repeats 3
    python benchmarks/finetune.py --device cuda --dtype bfloat16 --batch-size 64

Pictures of 224 x 224, 197 tokens each, ten classes; forward, backward and a step of AdamW. What trains:

- `head, from cache`: the head alone, on features that were computed before (`FeatureCache`, `HeadModel`);
- `head`: the head alone, tokenizer and trunk computed in every step, without gradients;
- `head and tokenizer`: behind and in front of the frozen trunk;
- `LoRA, head and tokenizer`: adapters of rank 8 at queries and values besides;
- `everything`.

Memory is the peak of one step beyond model and batch, in a fresh process each, as in `encoder.py`; states of the
optimiser are in it. Candidates take turns, medians count. The exit status is 1 if a bar is missed.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from encoder import Bar, Setting, describe_machine, in_fresh_process, measure, peak_of, print_bars, print_table

from meta_transformer import MetaTransformerConfig, MetaTransformerForClassification, MetaTransformerProcessor
from meta_transformer.training import DataCollatorForMetaTransformer, FeatureCache, HeadModel

VARIANTS = ("head, from cache", "head", "head and tokenizer", "LoRA, head and tokenizer", "everything")
NEEDED = 300.0  # times the step of the head behind the frozen trunk


def prepare(name: str, setting: Setting, batch_size: int) -> Callable[[], None]:
    """A training step."""
    torch.manual_seed(0)
    processor = MetaTransformerProcessor(image=True)
    config = MetaTransformerConfig.base_patch16(num_labels=10, modalities=processor.tokenizer_configs())
    model: Any = setting.to(MetaTransformerForClassification(config)).train()
    pictures = torch.randint(0, 256, (batch_size, 224, 224, 3), dtype=torch.uint8).numpy()
    rows = [{"image": picture, "labels": number % 10} for number, picture in enumerate(pictures)]
    collator = DataCollatorForMetaTransformer(processor)
    if name.startswith("head,"):
        with tempfile.TemporaryDirectory() as folder:
            features = FeatureCache(folder).features(model, rows, collator, progress=False)
            batch = features.collate([features[number] for number in range(batch_size)])
        model = HeadModel(model)
    else:
        batch = collator(rows)
    if name == "head":
        model.model.requires_grad_(False)
    elif name.startswith("LoRA"):
        model.freeze_encoder("lora", r=8)
        setting.to(model)
    elif name == "everything":
        model.unfreeze_encoder()
    batch = torch.utils._pytree.tree_map(
        lambda each: each.to(setting.device) if isinstance(each, torch.Tensor) else each, batch
    )
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()

    return step


def peak_memory(name: str, setting: Setting, batch_size: int) -> float:
    """Bytes by which the peak of a step exceeds what was in use before it."""
    return peak_of(prepare(name, setting, batch_size), setting)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    setting = Setting(torch.device(options.device), getattr(torch, options.dtype), options.repeats)
    batch_size = options.batch_size
    print(f"{describe_machine(setting.device)}; base trunk, {batch_size} x 197 tokens, medians of {options.repeats}")
    memory = {name: in_fresh_process(peak_memory, name, setting, batch_size) for name in VARIANTS}
    times = measure({name: prepare(name, setting, batch_size) for name in VARIANTS}, setting)
    whole, alone = times["everything"].median, times["head"].median
    rows = [
        [
            name,
            f"{own.median:.4f}",
            f"{own.median / whole:.4f}",
            f"{memory[name] / 1e6:.0f}",
            f"{memory[name] / memory['everything']:.3f}",
        ]
        for name, own in times.items()
    ]
    header = ["what trains", "seconds a step", "/ everything", "peak MB", "/ everything"]
    print_table(f"Training step, {setting.label}", header, rows)
    return print_bars([Bar("head / head, from cache", alone / times["head, from cache"].median, NEEDED, "at least")])


if __name__ == "__main__":
    sys.exit(main())
