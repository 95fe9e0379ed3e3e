"""Front ends beside the published way of doing the same, and beside the trunk that they feed.

    python benchmarks/frontends.py
    python benchmarks/frontends.py --only graph share --repeats 15

Sections: one for each file of `frontends/`, which measures a front end and a named peer in turns and asserts that
both give the same; and `share`, the time of processor and tokenizer of every modality as a share of the base trunk's
(768 wide, 12 deep, random weights, fp32) on the same samples. Ratios of medians; the bars that they must reach are
printed beside them, and the exit code says whether all did.
"""

import argparse
import sys
import time
from importlib import import_module
from pathlib import Path
from statistics import median

import torch
from frontends.bars import Bar
from frontends.samples import SAMPLES

from meta_transformer import MetaTransformerConfig, MetaTransformerModel, MetaTransformerProcessor

PARTS = sorted(
    path.stem
    for path in (Path(__file__).parent / "frontends").glob("*.py")
    if path.stem not in ("__init__", "bars", "samples")
)


@torch.no_grad()
def share(repeats: int) -> list[Bar]:
    """Front end and trunk in turns, for typical samples of every modality."""
    bars, trunk = [], None
    for modality, make in SAMPLES.items():
        processor, samples, call = make()
        processor = MetaTransformerProcessor(**{modality: processor})
        config = MetaTransformerConfig.base_patch16(modalities=processor.tokenizer_configs())
        if trunk is None:
            trunk = MetaTransformerModel(config).eval()
        config.num_hidden_layers = 1  # for its tokenizer; the trunk is made once
        model = MetaTransformerModel(config).eval()
        times: dict[str, list[float]] = {"front end": [], "trunk": []}
        for turn in range(repeats + 1):  # the first is a warm-up
            start = time.perf_counter()
            sequence = model.tokenize(**processor(**{modality: samples}, **call))
            middle = time.perf_counter()
            trunk.encode(sequence)
            end = time.perf_counter()
            if turn:
                times["front end"].append(middle - start)
                times["trunk"].append(end - middle)
        tokens = sequence.embeddings.shape[1] - 1
        note = f"{len(samples)} samples, {tokens} tokens each; at most 5 %"
        bars.append(Bar(f"{modality}: trunk / front end", "base trunk", times["front end"], times["trunk"], 20.0, note))
    return bars


def report(bars: list[Bar]) -> bool:
    """Print the table; whether all bars are reached."""
    header = ["bar", "peer", "ours", "peer's", "ratio", "needed", "result", "note"]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    passed = []
    for bar in bars:
        ours, peer = median(bar.ours_seconds), median(bar.peer_seconds)
        passed.append(bar.needed is None or peer / ours >= bar.needed)
        scale = 1e3 if bar.unit == "ms" else 1e-6
        cells = [
            *(f"{scale * each:.2f} {bar.unit}" for each in (ours, peer)),
            f"{peer / ours:.2f}",
            *(("-", "-") if bar.needed is None else (f"at least {bar.needed:g}", "PASS" if passed[-1] else "FAIL")),
        ]
        print(f"| {' | '.join([bar.name, bar.peer, *cells, bar.note])} |", flush=True)
    return all(passed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*PARTS, "share"], default=[*PARTS, "share"], metavar="SECTION")
    parser.add_argument("--repeats", type=int, default=9, help="rounds of each measurement; at least 5 to count")
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, medians of {options.repeats}", flush=True)
    passed = True
    for name in options.only:
        print(f"\n### {name}\n", flush=True)
        measure = share if name == "share" else import_module(f"frontends.{name}").measure
        passed &= report(measure(options.repeats))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
