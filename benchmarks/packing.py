"""Packed execution beside padded execution: samples of different length through blocks of the base width.

    python benchmarks/packing.py
    python benchmarks/packing.py --lengths 21 21 21 65 197 --repeats 15
    python benchmarks/packing.py --device cuda --dtype bfloat16

Lengths of 20 to 512 tokens, 1,257 together, 4,096 padded. Sections:

- `forward`: without gradients.
- `train`: forward and backward with gradients to the tokens alone, as with a frozen trunk.

Padded are timm's blocks with a mask, torch's `TransformerEncoder` with its key padding mask (in the forward without its
own packing, nested tensors, and with it), and our own blocks. `one by one` is our trunk on each sample alone. Packed
times hold laying out, packing and unpacking. The packed outputs are compared with those of samples alone first.

Candidates take turns, medians count; see `encoder.py`. The exit status is 1 if a bar is missed. In bf16 on a processor
without arithmetic for it, where the peers take minutes, give `--no-peers`.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial

import torch
from encoder import WIDTH, Bar, Setting, computes_bfloat16, describe_machine, measure, print_bars, print_table
from torch import Tensor, nn

from meta_transformer import MetaTransformerConfig
from meta_transformer.encoder import MetaTransformerEncoder
from meta_transformer.encoder.packing import Packing

LENGTHS = [196, 77, 32, 512, 20, 100, 256, 64]
NEEDED = 3.0  # times the fastest padded execution, at LENGTHS
Run = Callable[[Tensor], Tensor]


def timm_blocks(depth: int, mask: Tensor, setting: Setting) -> Run:
    import timm

    blocks = setting.to(timm.create_model("vit_base_patch16_224", num_classes=0, depth=depth).blocks).eval()
    blocks.requires_grad_(False)

    def run(tokens: Tensor) -> Tensor:
        for block in blocks:
            tokens = block(tokens, attn_mask=mask[:, None, None, :])
        return tokens

    return run


def torch_encoder(depth: int, mask: Tensor, setting: Setting, *, nested: bool) -> Run:
    layer = nn.TransformerEncoderLayer(
        WIDTH, 12, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=not nested
    )  # its nested tensors are for norms behind the sums alone
    encoder = setting.to(nn.TransformerEncoder(layer, depth, enable_nested_tensor=nested)).eval()
    encoder.requires_grad_(False)
    return lambda tokens: encoder(tokens, src_key_padding_mask=~mask)


def candidates(depth: int, mask: Tensor, setting: Setting, *, trains: bool) -> dict[str, Run]:
    """From padded tokens to encoded ones, by name."""
    config = MetaTransformerConfig.base_patch16(
        num_hidden_layers=depth, use_final_layernorm=False, attn_implementation="sdpa"
    )
    trunk = setting.to(MetaTransformerEncoder(config)).eval()
    trunk.freeze()

    def packed(tokens: Tensor) -> Tensor:
        packing = Packing.of(mask)
        return packing.unpack(trunk(packing.pack(tokens), packing=packing))

    def one_by_one(tokens: Tensor) -> Tensor:
        rows = [trunk(tokens[row : row + 1, : int(own.sum())])[0] for row, own in enumerate(mask)]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    found: dict[str, Run] = {
        "packed, ours": packed,
        "one by one, ours": one_by_one,
        "padded, ours": partial(trunk, mask=mask),
        "padded, timm": timm_blocks(depth, mask, setting),
        "padded, torch": torch_encoder(depth, mask, setting, nested=False),
    }
    if not trains:
        found["nested, torch"] = torch_encoder(depth, mask, setting, nested=True)
    return found


def check(runs: dict[str, Run], tokens: Tensor, mask: Tensor) -> None:
    """Refuse to measure what gives something else."""
    packed, alone = (runs[f"{name}, ours"](tokens)[mask] for name in ("packed", "one by one"))
    difference = (packed - alone).abs().max().item()
    print(f"Largest difference between packed and alone: {difference:.1e}")
    if difference > (1e-5 if tokens.dtype == torch.float32 else 0.1):
        raise ValueError(f"Packed execution differs from samples alone by {difference}.")


def training_step(run: Run, tokens: Tensor, mask: Tensor) -> None:
    tokens.grad = None
    output = run(tokens)
    output.backward(mask[..., None].expand_as(output).to(output.dtype))


def compare(section: str, depth: int, lengths: list[int], setting: Setting, *, peers: bool) -> list[Bar]:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).to(setting.device)
    tokens = setting.randn(*mask.shape, WIDTH)
    runs = candidates(depth, mask, setting, trains=section == "train")
    runs = {name: run for name, run in runs.items() if peers or name.endswith("ours")}
    if section == "train":
        tokens.requires_grad_()
        times = measure({name: partial(training_step, run, tokens, mask) for name, run in runs.items()}, setting)
    else:
        with torch.no_grad():
            check(runs, tokens, mask)
            times = measure({name: partial(run, tokens) for name, run in runs.items()}, setting)
    own = times["packed, ours"].median
    rows = [
        [name, *found.columns, f"{sum(lengths) / found.median:.0f}", f"{found.median / own:.2f}"]
        for name, found in times.items()
    ]
    title = f"{section.capitalize()}, {setting.label}, {len(lengths)} samples, {depth} blocks"
    print_table(title, ["execution", "median ms", "fastest ms", "real tokens / s", "times as long as packed"], rows)
    fastest = min(found.median for name, found in times.items() if name.startswith("padded"))
    return [Bar(f"packed / fastest padded, {section}, {setting.label}", fastest / own, NEEDED, "at least")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("forward", "train"), default=("forward", "train"))
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), help="both where the device can do both")
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS, help="tokens of each sample")
    parser.add_argument("--layers", type=int, default=4, help="blocks of the trunk")
    parser.add_argument("--no-peers", action="store_true", help="ours alone, where the others have no fast arithmetic")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of each measurement; at least 5 to count")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    device = torch.device(options.device)
    padded = len(options.lengths) * max(options.lengths)
    print(describe_machine(device))
    print(f"{sum(options.lengths):,} tokens, {padded:,} padded: {padded / sum(options.lengths):.2f} times as many")
    dtypes = options.dtype or (["float32", "bfloat16"] if device.type == "cuda" or computes_bfloat16() else ["float32"])
    if options.dtype is None and len(dtypes) == 1:
        print("bfloat16 is left out: this processor has no arithmetic for it. Ask for it with --dtype bfloat16.")
    bars = [
        bar
        for dtype in dtypes
        for section in options.only
        for bar in compare(
            section,
            options.layers,
            options.lengths,
            Setting(device, getattr(torch, dtype), options.repeats),
            peers=not options.no_peers,
        )
    ]
    return print_bars(bars)


if __name__ == "__main__":
    sys.exit(main())
