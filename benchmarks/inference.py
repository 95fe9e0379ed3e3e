"""Inference in bfloat16 and int8 beside float32: speed on the base trunk, and what it costs in accuracy.

    python benchmarks/inference.py
    python benchmarks/inference.py --layers 2 --repeats 3      # a look, in a minute

- `speed`: the base trunk's forward on 8 x 197 tokens without gradients, as often as float32 does it.
- `features`: what leaves that trunk, beside what leaves it in float32: cosine and relative distance.
- `accuracy`: a small model, trained here in float32 on the handwritten digits of scikit-learn, in each precision on the
  same test split.

The peer is our own trunk in float32, which `benchmarks/encoder.py` measures beside timm and transformers. Candidates
take turns, medians count; see `encoder.py`. The bars are for processors with instructions for the arithmetic (AVX512
BF16, VNNI); elsewhere the ratios are printed without a bar. The exit status is 1 if a bar is missed.
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

NEEDED = {"bfloat16": 1.9, "int8": 2.6}  # times as fast as float32
PRECISIONS = ("float32", *NEEDED)


def computes(precision: str) -> bool:
    """Whether this processor has instructions for a precision."""
    if precision == "bfloat16":
        return computes_bfloat16()
    flags = Path("/proc/cpuinfo").read_text() if platform.system() == "Linux" else ""
    return "vnni" in flags


def compare_speed(layers: int, repeats: int) -> list[Bar]:
    torch.manual_seed(0)
    model = MetaTransformerModel(MetaTransformerConfig.base_patch16(num_hidden_layers=layers, modalities=["image"]))
    encoders: dict[str, Any] = {each: set_precision(copy.deepcopy(model), each).encoder for each in PRECISIONS}
    setting = Setting(torch.device("cpu"), torch.float32, repeats)
    tokens = setting.randn(BATCH, TOKENS, WIDTH)
    inputs = {each: tokens.bfloat16() if each == "bfloat16" else tokens for each in PRECISIONS}
    with torch.no_grad():
        features = {each: encoder(inputs[each]).float().flatten(0, 1) for each, encoder in encoders.items()}
        times = measure({each: partial(encoder, inputs[each]) for each, encoder in encoders.items()}, setting)
    exact, bars, rows = features["float32"], [], []
    for precision, found in times.items():
        speed = times["float32"].median / found.median
        cosine = functional.cosine_similarity(features[precision], exact).min().item()
        distance = ((features[precision] - exact).norm() / exact.norm()).item()
        rows.append([precision, *found.columns, f"{speed:.2f}", f"{cosine:.5f}", f"{distance:.1e}"])
        if precision in NEEDED and computes(precision):
            bars.append(Bar(f"speed, {precision} / float32", speed, NEEDED[precision], "at least"))
    header = ["precision", "median ms", "fastest ms", "speed / float32", "least cosine", "relative distance"]
    table(f"Speed, {BATCH} x {TOKENS} tokens, {layers} blocks, width {WIDTH}", header, rows)
    for precision in NEEDED:
        if not computes(precision):
            print(f"No bar for {precision}: this processor has no instructions for it.")
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
        for precision in PRECISIONS:
            twin = set_precision(copy.deepcopy(model), precision)
            answers[precision] = twin(pixel_values=pixels[split:]).logits.argmax(dim=1)
    truth, exact = labels[split:], answers["float32"]
    rows = []
    for precision, found in answers.items():
        accuracy, own = (found == truth).float().mean().item(), (exact == truth).float().mean().item()
        same = (found == exact).float().mean().item()
        rows.append([precision, f"{accuracy:.4f}", f"{accuracy - own:+.4f}", f"{same:.4f}"])
    header = ["precision", "test accuracy", "against float32", "same answers as float32"]
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
