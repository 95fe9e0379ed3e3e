"""Inference in bfloat16 and int8, or with merged tokens, beside float32: speed of the base trunk, and what it costs.

    python benchmarks/inference.py
    python benchmarks/inference.py --layers 2 --repeats 3      # a look, in a minute

- `speed`: the base trunk's forward on 8 x 197 tokens without gradients, as often as float32 does it.
- `features`: what leaves that trunk, beside what leaves it in float32: cosine and relative distance.
- `accuracy`: a small model, trained here in float32 on the handwritten digits of scikit-learn, in each precision on the
  same test split.

`merged` is float32 with token merging: 13 of 197 tokens in each block, and in the small model the same share, 1 of 17.

The peer is our own trunk in float32, which `benchmarks/encoder.py` measures beside timm and transformers. Candidates
take turns, medians count; see `encoder.py`. The bars are for processors with instructions for the arithmetic (AVX512
BF16, VNNI); elsewhere their ratios are printed without a bar. The exit status is 1 if a bar is missed.
"""

import argparse
import copy
import platform
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from encoder import BATCH, TOKENS, WIDTH, Bar, Setting, computes_bfloat16, describe_machine, measure, print_bars
from encoder import print_table as table
from torch import Tensor
from torch.nn import functional

from meta_transformer import (
    MetaTransformerConfig,
    MetaTransformerForClassification,
    MetaTransformerModel,
    MetaTransformerProcessor,
)
from meta_transformer.precision import set_precision
from meta_transformer.processors.image import ImageProcessor
from meta_transformer.sequence import Segment, TokenSequence

NEEDED = {"bfloat16": 1.9, "int8": 2.6, "merged": 1.4}  # times as fast as float32
WAYS = ("float32", *NEEDED)
MERGED = 13  # tokens of each block


def computes(way: str) -> bool:
    """Whether this processor has instructions for it."""
    if way == "bfloat16":
        return computes_bfloat16()
    if way == "merged":
        return True
    flags = Path("/proc/cpuinfo").read_text() if platform.system() == "Linux" else ""
    return "vnni" in flags


def made(model: Any, way: str, merged: int) -> Any:
    """A copy of a model that computes in one of the ways."""
    model = copy.deepcopy(model)
    model.config.token_merging = merged if way == "merged" else 0
    return set_precision(model, "float32" if way == "merged" else way)


def compare_speed(layers: int, repeats: int) -> list[Bar]:
    torch.manual_seed(0)
    model = MetaTransformerModel(MetaTransformerConfig.base_patch16(num_hidden_layers=layers, modalities=["image"]))
    models = {each: made(model, each, MERGED) for each in WAYS}
    setting = Setting(torch.device("cpu"), torch.float32, repeats)
    tokens = setting.randn(BATCH, TOKENS, WIDTH)
    segments = (Segment("image", 1, TOKENS - 1),)
    inputs = {
        each: TokenSequence(tokens.bfloat16() if each == "bfloat16" else tokens, segments=segments) for each in WAYS
    }
    steps = {each: partial(own.encode, inputs[each]) for each, own in models.items()}
    with torch.no_grad():
        features = {each: step().last_hidden_state.float().flatten(0, 1) for each, step in steps.items()}
        times = measure(steps, setting)
    exact, bars, rows = features["float32"], [], []
    for way, found in times.items():
        speed = times["float32"].median / found.median
        cosine = functional.cosine_similarity(features[way], exact).min().item()
        distance = ((features[way] - exact).norm() / exact.norm()).item()
        rows.append([way, *found.columns, f"{speed:.2f}", f"{cosine:.5f}", f"{distance:.1e}"])
        if way in NEEDED and computes(way):
            bars.append(Bar(f"speed, {way} / float32", speed, NEEDED[way], "at least"))
    header = ["way", "median ms", "fastest ms", "speed / float32", "least cosine", "relative distance"]
    table(f"Speed, {BATCH} x {TOKENS} tokens, {layers} blocks, width {WIDTH}", header, rows)
    for way in NEEDED:
        if not computes(way):
            print(f"No bar for {way}: this processor has no instructions for it.")
    return bars


def digits() -> tuple[MetaTransformerProcessor, list[Any], Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    pictures = (data.images / 16).astype("float32")[order.numpy()]
    return (
        MetaTransformerProcessor(image=ImageProcessor(num_channels=1)),
        list(pictures),
        torch.tensor(data.target)[order],
    )


def compare_accuracy(steps: int) -> None:
    processor, pictures, labels = digits()
    pixels = processor(image=pictures)["pixel_values"]
    config = MetaTransformerConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        modalities={"image": {"num_channels": 1, "image_size": 8, "patch_size": 2}},
        num_labels=10,
        freeze_encoder=False,
    )
    torch.manual_seed(0)
    model = MetaTransformerForClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    split = 1_297
    for _ in range(steps):
        rows = torch.randint(split, (64,))
        model(pixel_values=pixels[rows], labels=labels[rows]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    answers = {}
    with torch.no_grad():
        for way in WAYS:
            twin = made(model, way, 1)
            answers[way] = twin(pixel_values=pixels[split:]).logits.argmax(dim=1)
    truth, exact = labels[split:], answers["float32"]
    rows = []
    for way, found in answers.items():
        accuracy, own = (found == truth).float().mean().item(), (exact == truth).float().mean().item()
        same = (found == exact).float().mean().item()
        rows.append([way, f"{accuracy:.4f}", f"{accuracy - own:+.4f}", f"{same:.4f}"])
    header = ["way", "test accuracy", "against float32", "same answers as float32"]
    table(f"Accuracy, digits, {len(truth)} test pictures, {steps} steps", header, rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12, help="blocks of the trunk")
    parser.add_argument("--repeats", type=int, default=7, help="rounds; at least 5 to count")
    parser.add_argument("--steps", type=int, default=400, help="of training the small model")
    options = parser.parse_args()
    print(describe_machine(torch.device("cpu")))
    bars = compare_speed(options.layers, options.repeats)
    compare_accuracy(options.steps)
    return print_bars(bars)


if __name__ == "__main__":
    sys.exit(main())
