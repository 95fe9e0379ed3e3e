"""The trunk beside timm's blocks and transformers' ViT: speed, cost of freezing, share of the machine's own limit.

    python benchmarks/encoder.py                                   # everything, about ten minutes on two cores
    python benchmarks/encoder.py --only forward gemm --dtype float32 --repeats 15
    python benchmarks/encoder.py --device cuda --only forward train frozen gemm

Sections:

- `forward`: blocks and final norm of the base shape on the same tokens, 8 x 197 x 768, no gradients.
- `train`: forward and backward with gradients to all weights and to the tokens, no optimiser.
- `frozen`: a linear tokenizer and our trunk, everything trained beside the tokenizer alone; and the peak memory of one
  such step in a fresh process each: growth of the resident set over what it was with model and input in place (CPU), or
  of the allocated memory (CUDA). Weights and optimiser states are not in it, gradients are. The process gives freed
  tensors back to the system at once (MALLOC_MMAP_THRESHOLD_), as holes in glibc's heap differ by 30 % from run to run.
- `gemm`: the trunk's forward beside nothing but its 72 matrix products, as a share of their rate.
- `import`: fresh interpreters, alternately, after a first one that fills the file cache.

Candidates take turns within each round, each round starts with another one, and medians over the rounds count: load on
the machine then hits all alike. The exit status is 1 if a bar is missed. Run it on a machine that does nothing else.
bf16 is left out where the processor has no arithmetic for it, but when asked for: there the peers multiply element by
element, many times slower than fp32, while our trunk takes its products in fp32.
"""

import argparse
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from meta_transformer import MetaTransformerConfig
from meta_transformer.encoder import MetaTransformerEncoder
from meta_transformer.encoder.linear import computes_bfloat16

BATCH, TOKENS, WIDTH = 8, 197, 768
PARAMETERS = 85_054_464 + 2 * WIDTH  # blocks and final norm
SECTIONS = ("forward", "train", "frozen", "gemm", "import")
IMPORTS = {"transformers": "from transformers import PreTrainedModel", "ours": "import meta_transformer"}


@dataclass(frozen=True)
class Bar:
    """One measured ratio and the limit that it is held against."""

    name: str
    measured: float
    needed: float
    kind: Literal["at least", "at most"]

    @property
    def passed(self) -> bool:
        return self.measured >= self.needed if self.kind == "at least" else self.measured <= self.needed


@dataclass(frozen=True)
class Setting:
    """On what and how often a section measures."""

    device: torch.device
    dtype: torch.dtype
    repeats: int

    @property
    def label(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def to(self, module: nn.Module) -> nn.Module:
        return module.to(self.device, self.dtype)

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.device, self.dtype)


class Times(list[float]):
    """Seconds of each round; the fastest is printed beside the median, as it tells how much other load there was."""

    @property
    def median(self) -> float:
        return statistics.median(self)

    @property
    def columns(self) -> list[str]:
        return [f"{self.median * 1e3:.1f}", f"{min(self) * 1e3:.1f}"]


class TransformersTrunk(nn.Module):
    """Blocks and final norm of transformers' `ViTModel`, without its patch embedding."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import ViTConfig, ViTModel

        vit = ViTModel(ViTConfig(attn_implementation="sdpa"), add_pooling_layer=False)
        self.layers, self.layernorm = vit.layers, vit.layernorm

    def forward(self, hidden_states: Tensor) -> Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return self.layernorm(hidden_states)


def our_trunk() -> MetaTransformerEncoder:
    return MetaTransformerEncoder(MetaTransformerConfig.base_patch16(attn_implementation="sdpa"))


def timm_trunk() -> nn.Module:
    import timm

    vit = timm.create_model("vit_base_patch16_224", num_classes=0)
    return nn.Sequential(vit.blocks, vit.norm)


def all_trunks(setting: Setting) -> dict[str, nn.Module]:
    """Ours and the peers; refuses to compare models of different size."""
    trunks = {"ours": our_trunk(), "timm": timm_trunk(), "transformers": TransformersTrunk()}
    for name, trunk in trunks.items():
        count = sum(parameter.numel() for parameter in trunk.parameters())
        if count != PARAMETERS:
            raise ValueError(f"The trunk of {name} has {count:,} parameters instead of {PARAMETERS:,}.")
    return {name: setting.to(trunk) for name, trunk in trunks.items()}


def measure(candidates: dict[str, Callable[[], object]], setting: Setting) -> dict[str, Times]:
    """Time each candidate; they take turns, and each round starts with another one."""
    calls = 20 if setting.device.type == "cuda" else 1  # one call on a GPU is too short for the clock
    times = {name: Times() for name in candidates}
    for step in candidates.values():  # warm-up
        seconds(step, setting.device, calls)
    names = list(candidates)
    for turn in range(setting.repeats):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            times[name].append(seconds(candidates[name], setting.device, calls))
    return times


def seconds(step: Callable[[], object], device: torch.device, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    print(f"\n### {title}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    sys.stdout.flush()


def print_bars(bars: list[Bar]) -> int:
    """Print what was measured beside what was needed; returns the exit status."""
    rows = [
        [bar.name, f"{bar.measured:.3f}", f"{bar.kind} {bar.needed}", "PASS" if bar.passed else "FAIL"] for bar in bars
    ]
    print_table("Bars", ["bar", "measured", "needed", "result"], rows)
    return 0 if all(bar.passed for bar in bars) else 1


def print_peers(title: str, times: dict[str, Times]) -> float:
    """Print times beside the faster peer's; returns the speed of ours relative to it."""
    fastest = min(value.median for name, value in times.items() if name != "ours")
    rows = [[name, *value.columns, f"{fastest / value.median:.3f}"] for name, value in times.items()]
    print_table(title, ["trunk", "median ms", "fastest ms", "speed / faster peer"], rows)
    return fastest / times["ours"].median


def run_forward(setting: Setting) -> list[Bar]:
    tokens = setting.randn(BATCH, TOKENS, WIDTH)
    steps = {name: partial(trunk.eval(), tokens) for name, trunk in all_trunks(setting).items()}
    with torch.no_grad():
        times = measure(steps, setting)
    speed = print_peers(f"Forward, {setting.label}", times)
    return [Bar(f"forward / faster peer, {setting.label}", speed, 0.97, "at least")]


def run_train(setting: Setting) -> list[Bar]:
    tokens = setting.randn(BATCH, TOKENS, WIDTH).requires_grad_()
    trunks = all_trunks(setting)
    steps = {name: partial(training_step, trunk.train(), nn.Identity(), tokens) for name, trunk in trunks.items()}
    print_peers(f"Training step, {setting.label}", measure(steps, setting))
    return []


def training_step(trunk: nn.Module, tokenizer: nn.Module, samples: Tensor) -> None:
    """Forward and backward; the gradients are dropped at the start, so that they count as memory of the step."""
    for tensor in (samples, *tokenizer.parameters(), *trunk.parameters()):
        tensor.grad = None
    output = trunk(tokenizer(samples))
    output.backward(torch.ones_like(output))


def freezing_step(what_trains: str, setting: Setting) -> Callable[[], None]:
    """A step of our trunk behind the patch projection of ViT-B/16, whose patches have 16 * 16 * 3 = 768 values."""
    trunk, tokenizer = our_trunk(), setting.to(nn.Linear(16 * 16 * 3, WIDTH))
    setting.to(trunk).train()
    if what_trains == "tokenizer":
        trunk.freeze()
    return partial(training_step, trunk, tokenizer, setting.randn(BATCH, TOKENS, 16 * 16 * 3))


def run_frozen(setting: Setting) -> list[Bar]:
    variants = ("everything", "tokenizer")
    times = measure({name: freezing_step(name, setting) for name in variants}, setting)
    memory = {name: in_fresh_process(peak_memory, name, setting) for name in variants}
    time_ratio = times["tokenizer"].median / times["everything"].median
    memory_ratio = memory["tokenizer"] / memory["everything"]
    rows = [[name, *times[name].columns, f"{memory[name] / 1e6:.0f}"] for name in variants]
    rows.append(["ratio", f"{time_ratio:.3f}", "", f"{memory_ratio:.3f}"])
    header = ["what trains", "median ms", "fastest ms", "peak MB"]
    print_table(f"Training step with a tokenizer, {setting.label}", header, rows)
    return [
        Bar(f"frozen / full step, time, {setting.label}", time_ratio, 0.75, "at most"),
        Bar(f"frozen / full step, peak memory, {setting.label}", memory_ratio, 0.8, "at most"),
    ]


def in_fresh_process(function: Callable[..., float], *arguments: object) -> float:
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**20)  # read by the new process alone; this one has started long ago
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_memory(what_trains: str, setting: Setting) -> float:
    """Bytes by which one step's peak exceeds what was in use before it."""
    return peak_of(freezing_step(what_trains, setting), setting)


def peak_of(step: Callable[[], object], setting: Setting) -> float:
    """As `peak_memory`, of any step that this process has not run yet."""
    if setting.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far, see proc(5)
    before = process_memory("VmRSS")
    step()
    return process_memory("VmHWM") - before


def process_memory(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def run_gemm(setting: Setting) -> list[Bar]:
    trunk = setting.to(our_trunk()).eval()
    tokens, rows = setting.randn(BATCH, TOKENS, WIDTH), BATCH * TOKENS
    weights = [module.weight for module in trunk.modules() if isinstance(module, nn.Linear)]
    inputs = {width: setting.randn(rows, width) for width in {weight.shape[1] for weight in weights}}
    outputs = {width: setting.randn(rows, width) for width in {weight.shape[0] for weight in weights}}

    def products() -> None:
        for weight in weights:
            torch.mm(inputs[weight.shape[1]], weight.T, out=outputs[weight.shape[0]])

    with torch.no_grad():
        times = measure({"matrix products": products, "trunk": partial(trunk, tokens)}, setting)
    product_work = sum(2 * rows * weight.numel() for weight in weights)
    attention_work = 4 * BATCH * TOKENS**2 * WIDTH * len(trunk.layers)  # scores and weighted sums
    rates = {
        "matrix products": product_work / times["matrix products"].median,
        "trunk": (product_work + attention_work) / times["trunk"].median,
    }
    share = rates["trunk"] / rates["matrix products"]
    table = [[name, *times[name].columns, f"{rates[name] / 1e9:.0f}"] for name in times]
    table.append(["ratio", "", "", f"{share:.3f}"])
    header = ["what", "median ms", "fastest ms", "GFLOP/s"]
    print_table(f"Share of the GEMM rate, {setting.label}", header, table)
    # In half precision products take half the time and everything else does not: no trunk reaches this share there.
    return [Bar("trunk / GEMM rate, float32", share, 0.85, "at least")] if setting.dtype == torch.float32 else []


def run_import(repeats: int) -> list[Bar]:
    def start(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])

    steps = {name: partial(start, code) for name, code in IMPORTS.items()}
    times = measure(steps, Setting(torch.device("cpu"), torch.float32, repeats))
    ratio = times["ours"].median / times["transformers"].median
    rows = [[f"`{code}`", *times[name].columns] for name, code in IMPORTS.items()]
    rows.append(["ratio", f"{ratio:.3f}", ""])
    print_table("Import in a fresh interpreter", ["statement", "median ms", "fastest ms"], rows)
    return [Bar("import / transformers", ratio, 1.2, "at most")]


def describe_machine(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    model = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    threads = torch.get_num_threads()
    name = model[0] if model else platform.processor()
    return f"{name}, {os.cpu_count()} cores, {threads} threads, torch {torch.__version__}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="sections to run")
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), help="both where the device can do both")
    parser.add_argument("--repeats", type=int, default=9, help="rounds of each measurement; at least 5 to count")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    device = torch.device(options.device)
    print(f"{describe_machine(device)}; base shape, {BATCH} x {TOKENS} tokens, medians of {options.repeats}")
    dtypes = options.dtype or (["float32", "bfloat16"] if device.type == "cuda" or computes_bfloat16() else ["float32"])
    if options.dtype is None and len(dtypes) == 1:
        print("bfloat16 is left out: this processor has no arithmetic for it. Ask for it with --dtype bfloat16.")
    bars: list[Bar] = []
    sections = {"forward": run_forward, "train": run_train, "frozen": run_frozen, "gemm": run_gemm}
    for name in (name for name in sections if name in options.only):
        for dtype in dtypes:
            bars += sections[name](Setting(device, getattr(torch, dtype), options.repeats))
    if "import" in options.only:
        bars += run_import(max(options.repeats, 7))
    return print_bars(bars)


if __name__ == "__main__":
    sys.exit(main())
