"""Training a head from cached features beside training it behind the frozen base trunk: time of a step, and accuracy.

    META_TRANSFORMER_DATA=<folder of the data sets> python benchmarks/feature_cache.py
    python benchmarks/feature_cache.py --only digits

Handwritten digits of scikit-learn (8 x 8) and CIFAR-10 (`image/cifar10_small`, 32 x 32), 16 tokens each, the base trunk
with random weights. Both ways take the same 16 batches in the same order, and must have the same accuracy on the test
split then. A step is a batch of 32: collated, forward, backward, AdamW. Last, the head trains from the cache. What
filling the cache took is printed besides: it is paid once.

Both ways take turns, one step behind the trunk and 50 from the cache, which follow each other in training too; medians
count. The exit status is 1 if a bar is missed.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoder import Bar, Setting, Times, describe_machine, measure, print_bars, print_table
from torch import nn
from torch.utils.data import DataLoader, Subset

from meta_transformer import MetaTransformerConfig, MetaTransformerForClassification, MetaTransformerProcessor
from meta_transformer.processors.image import ImageProcessor
from meta_transformer.training import DataCollatorForMetaTransformer, FeatureCache, HeadModel

NEEDED = 300.0
BATCH, COMPARED, EPOCHS = 32, 512, 30  # samples of a step, samples that both ways learn from, epochs from the cache
CALLS = 50  # steps from the cache between two behind the trunk
Rows = list[dict[str, Any]]


def digits() -> tuple[Rows, Rows, int]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    pictures = (data.images * 15.9).astype(np.uint8)
    rows = [{"image": image, "labels": int(label)} for image, label in zip(pictures, data.target, strict=True)]
    train, test = train_test_split(rows, test_size=360, random_state=0, stratify=data.target)
    return train, test, 8


def cifar() -> tuple[Rows, Rows, int]:
    import pandas as pd

    folder = Path(os.environ["META_TRANSFORMER_DATA"]) / "image/cifar10_small"
    table = pd.read_csv(folder / "labels.csv")
    table["number"] = table["label"].astype("category").cat.codes

    def rows(split: str) -> Rows:
        own = table[table["split"] == split]
        return [
            {"image": str(folder / path), "labels": label}
            for path, label in zip(own["path"], own["number"], strict=True)
        ]

    return rows("train"), rows("test"), 32


SETS: dict[str, Callable[[], tuple[Rows, Rows, int]]] = {"digits": digits, "CIFAR": cifar}


def loader(rows: Any, collate: Callable[[list[Any]], Any], epoch: int | None = None) -> Any:
    """Batches in the data set's order; with an epoch, in an order that follows from it."""
    order = torch.Generator().manual_seed(epoch or 0)
    return DataLoader(rows, BATCH, shuffle=epoch is not None, generator=order, collate_fn=collate)


def train_step(model: nn.Module) -> Callable[[Any], None]:
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-2)

    def step(batch: Any) -> None:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()

    return step


@torch.no_grad()
def accuracy(model: nn.Module, rows: Any, collate: Callable[[list[Any]], Any]) -> float:
    model.eval()
    right = [(model(**batch).logits.argmax(-1) == batch["labels"]).float() for batch in loader(rows, collate)]
    model.train()
    return float(torch.cat(right).mean())


def run(name: str, repeats: int) -> list[Bar]:
    train, test, size = SETS[name]()
    processor = MetaTransformerProcessor(image=ImageProcessor(size=size))
    tokenizer = {**processor.tokenizer_configs()["image"], "image_size": size, "patch_size": size // 4}
    config = MetaTransformerConfig.base_patch16(
        num_labels=10, modalities={"image": tokenizer}, heads={"classification": {"pooling": "mean"}}
    )
    torch.manual_seed(0)
    model = MetaTransformerForClassification(config)
    model.model.requires_grad_(False)
    collator = DataCollatorForMetaTransformer(processor)
    start = {key: value.clone() for key, value in model.head.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        cached, cached_test = (FeatureCache(folder).features(model, rows, collator) for rows in (train, test))
        filled = time.perf_counter() - begun
        head = HeadModel(model)

        few, cached_few = Subset(train, range(COMPARED)), Subset(cached, range(COMPARED))
        scores = []
        for trained, rows, collate, last in (
            (model, few, collator, (test, collator)),
            (head, cached_few, cached.collate, (cached_test, cached.collate)),
        ):
            model.head.load_state_dict(start)
            step = train_step(trained)
            for batch in loader(rows, collate, epoch=0):
                step(batch)
            scores.append(accuracy(trained, *last))

        def endless(trained: nn.Module, rows: Any, collate: Any, calls: int) -> Callable[[], None]:
            step, batches = train_step(trained), cycle(range(len(rows) // BATCH))

            def next_steps() -> None:
                for _ in range(calls):
                    first = BATCH * next(batches)
                    step(collate([rows[number] for number in range(first, first + BATCH)]))

            return next_steps

        steps = {
            "behind the trunk": endless(model, train, collator, 1),
            "from the cache": endless(head, cached, cached.collate, CALLS),
        }
        times = measure(steps, Setting(torch.device("cpu"), torch.float32, repeats))
        times["from the cache"] = Times(value / CALLS for value in times["from the cache"])

        model.head.load_state_dict(start)
        step, begun = train_step(head), time.perf_counter()
        for epoch in range(EPOCHS):
            for batch in loader(cached, cached.collate, epoch):
                step(batch)
        trained_for = time.perf_counter() - begun
        final = accuracy(model, test, collator)
    ratio = times["behind the trunk"].median / times["from the cache"].median
    print_table(
        f"{name}: a step of {BATCH}", ["way", "median ms", "fastest ms"], [[k, *v.columns] for k, v in times.items()]
    )
    print(
        f"\nFilling the cache: {filled:.0f} s, {cached.bytes / 1e6:.1f} MB. After {COMPARED // BATCH} steps: accuracy"
    )
    print(
        f"{scores[0]:.4f} behind the trunk, {scores[1]:.4f} from the cache. After {EPOCHS} epochs from the cache, which"
    )
    print(f"took {trained_for:.1f} s, the whole model has {final:.4f} on the test split.")
    return [
        Bar(f"{name}: step behind the trunk / from the cache", ratio, NEEDED, "at least"),
        Bar(f"{name}: difference of accuracy", abs(scores[0] - scores[1]), 0.0, "at most"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(describe_machine(torch.device("cpu")))
    return print_bars([bar for name in options.only for bar in run(name, options.repeats)])


if __name__ == "__main__":
    sys.exit(main())
