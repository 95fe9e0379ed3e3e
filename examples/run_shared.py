"""What the scripts `run_*.py` share: arguments, the building of processor and model, and a training that resumes."""

import json
import os
import sys
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import yaml
from torch.utils.data import Dataset
from transformers import HfArgumentParser, Trainer, TrainingArguments, set_seed

from meta_transformer import MetaTransformerProcessor
from meta_transformer.cli.batches import device_of, to_device
from meta_transformer.cli.building import SIZES, make_processor, model_class_of, with_trunk
from meta_transformer.cli.console import pairs
from meta_transformer.cli.defaults import Defaults
from meta_transformer.cli.runs import write_json
from meta_transformer.training import DataCollatorForMetaTransformer
from meta_transformer.training.resuming import resume
from meta_transformer.training.sources import SPLITS
from meta_transformer.training.splits import Source

RESULTS, SETTINGS = "all_results.json", "settings.json"
_PAIRS = "name=value, several with spaces; where there are several modalities, <modality>.name=value is of one."
# Of TrainingArguments; each of them can be given.
_TRAINING = {
    "output_dir": "outputs/run",
    "num_train_epochs": 20.0,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "learning_rate": 2e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "weight_decay": 0.01,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "logging_strategy": "epoch",
    "save_total_limit": 2,
    "load_best_model_at_end": True,
    "batch_eval_metrics": True,
    "remove_unused_columns": False,
    "dataloader_pin_memory": False,
    "report_to": "none",
}


# 1. Arguments
@dataclass
class ModelArguments:
    """A shared trunk, and what stands in front of it and behind it."""

    encoder: str | None = field(
        default=None,
        metadata={"help": "Pretrained trunk, a name of the hub or a folder; without, a small one of random weights."},
    )
    size: str = field(default="nano", metadata={"help": "Of a trunk of random weights.", "choices": list(SIZES)})
    freeze: str = field(
        default="all", metadata={"help": "What of the trunk stays: all, none, last_<k>, layernorm, bias, lora."}
    )
    processor: list[str] = field(default_factory=list, metadata={"help": f"Settings of the processor: {_PAIRS}"})
    tokenizer: list[str] = field(default_factory=list, metadata={"help": f"Options of the tokenizer: {_PAIRS}"})
    head: list[str] = field(default_factory=list, metadata={"help": "Options of the head: name=value."})
    call: list[str] = field(
        default_factory=list, metadata={"help": "Of the processor's call: name=value, such as sampling_rate=8000."}
    )


@dataclass
class DataArguments:
    """Where the data are; the script's own description says in which form."""

    data: str = field(metadata={"help": "See above."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Learn from so many samples, drawn."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Of validation and test each, drawn."})


class _Help(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Defaults, and the description as it stands."""


def parse(description: str | None, classes: Sequence[type], **defaults: Any) -> tuple[Any, ...]:
    """The arguments of a script, from the command line, or from a file of JSON or YAML that is the only argument.

    Args:
        description: What `--help` shows.
        classes: Dataclasses.
        defaults: Of their fields, where the script's are others.

    Returns:
        One object for each class.

    Raises:
        ValueError: The file holds no settings by name, or some that no class has.
    """
    parser = HfArgumentParser(classes, description=description, formatter_class=_Help)
    if len(sys.argv) == 2 and Path(sys.argv[1]).suffix in (".json", ".yaml", ".yml"):
        given = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))  # JSON is YAML, too
        if not isinstance(given, dict):
            raise ValueError(f"{sys.argv[1]} must hold settings by name, such as 'data: clips/'.")
        return parser.parse_dict({**defaults, **given})
    parser.set_defaults(**defaults)
    return parser.parse_args_into_dataclasses()


def start(
    description: str | None, data_class: type, *, metric: str, greater_is_better: bool = True, **defaults: Any
) -> tuple[ModelArguments, Any, TrainingArguments]:
    """Begin a run under `Trainer`: arguments, its folder, and the seed of all that is random.

    Args:
        description: As of `parse`.
        data_class: The script's own arguments.
        metric: What the best epoch is chosen by.
        greater_is_better: Whether more of it is.
        defaults: As of `parse`.

    Raises:
        ValueError: As of `parse` and `remember`.
    """
    defaults = {**_TRAINING, "metric_for_best_model": metric, "greater_is_better": greater_is_better, **defaults}
    model_arguments, data, arguments = parse(description, (ModelArguments, data_class, TrainingArguments), **defaults)
    remember(arguments.output_dir, model_arguments, data, seed=arguments.seed)
    set_seed(arguments.seed)
    return model_arguments, data, arguments


# 2. Data
class Samples(Dataset):
    """Rows for the collator that are made when they are asked for, as of `training.sources.Rows`.

    Args:
        modality: The key of the raw sample.
        values: What is known of each sample.
        read: From that to a row.
    """

    def __init__(self, modality: str, values: Sequence[Any], read: Callable[[Any], dict[str, Any]]) -> None:
        self.modality, self.values, self.read = modality, values, read

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.read(self.values[index])

    def select(self, numbers: Any) -> "Samples":
        """The rows of these places."""
        return Samples(self.modality, [self.values[number] for number in numbers], self.read)


def split_places(given: Sequence[str] | None, strata: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Places of rows by split; what is not given is drawn, 15 % for validation and for test each.

    Args:
        given: The split of each row; `None` if all have to be drawn.
        strata: `(rows,)`; of each of these numbers the same share is taken.
        seed: Of what is drawn.

    Raises:
        ValueError: Nothing is left to learn from, or to choose on.
    """
    random = np.random.default_rng(seed)
    words = np.array(["train"] * len(strata) if given is None else given, dtype=object)
    for name in ("test", "validation") if given is None else ("validation",):
        if (words == name).any():
            continue
        for stratum in np.unique(strata):
            own = random.permutation(np.flatnonzero((strata == stratum) & (words == "train")))
            words[own[: round(0.15 * len(own))]] = name
    parts = {name: np.flatnonzero(words == name) for name in SPLITS}
    if absent := [name for name in ("train", "validation") if not len(parts[name])]:
        raise ValueError(f"{len(words)} rows are too few, or their splits leave none, for {absent}; give more.")
    return {name: part for name, part in parts.items() if len(part)}


def limited(splits: Mapping[str, Any], arguments: DataArguments, seed: int) -> dict[str, Any]:
    """Splits of at most as many rows as were asked for; which ones depends on the seed and their number alone."""
    found = {}
    for name, rows in splits.items():
        count = arguments.max_train_samples if name == "train" else arguments.max_eval_samples
        if count is not None and count < len(rows):
            rows = rows.select(np.sort(np.random.default_rng(seed).permutation(len(rows))[:count]))
        found[name] = rows
    print(", ".join(f"{len(rows):,} {name}" for name, rows in found.items()))
    return found


def side_lengths(image_size: list[int]) -> list[int]:
    """Height and width, of one number or of two.

    Raises:
        ValueError: Other numbers.
    """
    if len(image_size) not in (1, 2) or min(image_size) < 8:
        raise ValueError(f"--image_size takes one number of pixels or height and width, from 8 on, got {image_size}.")
    return [image_size[0], image_size[-1]]


def picture_defaults(arguments: ModelArguments, sides: list[int]) -> Defaults:
    """For tasks with places in the picture: all pictures get one size, without cropping."""
    arguments.processor = [f"size={sides}", *arguments.processor]
    own = {"image_size": sides, "patch_size": 8 if max(sides) <= 128 else 16, "patch_embedding": "convolutional"}
    return Defaults(tokenizer={} if arguments.encoder else own)


# 3. Processor and model
def build(
    arguments: ModelArguments,
    task: str,
    sources: Mapping[str, Source],
    defaults: Mapping[str, Defaults],
    *,
    head: Mapping[str, Any] | None = None,
    id2label: Mapping[int, str] | None = None,
) -> tuple[Any, MetaTransformerProcessor]:
    """A model with a new tokenizer for each modality and a new head, and its processor, fitted on what is learned from.

    Args:
        arguments: What was asked for; its options win over all others.
        task: The head's name.
        sources: By modality, rows with its samples.
        defaults: By modality, as of `cli.defaults.defaults_for`.
        head: Options of the head that follow from the data.
        id2label: Names of the classes.

    Returns:
        The model, with a line of where its trunk is from, and a table of what trains, printed.

    Raises:
        ValueError: An unknown option, or a sample that cannot be read.
    """
    processors: dict[str, Any] = {}
    tokenizers: dict[str, dict[str, Any]] = {}
    options: dict[str, Any] = {}
    for modality, source in sources.items():
        own = {"processor": _options_of(arguments.processor, modality), "modality": modality}
        settings: Any = SimpleNamespace(**{**vars(arguments), **own, "task": task, "check": False})
        processors |= make_processor(settings, source, defaults[modality]).processors
        tokenizers[modality] = {
            **processors[modality].tokenizer_config(),
            **defaults[modality].tokenizer,
            **pairs(_options_of(arguments.tokenizer, modality), "--tokenizer"),
        }
        options |= defaults[modality].head
    config: dict[str, Any] = {
        "modalities": tokenizers,
        "heads": {task: {**options, **(head or {}), **pairs(arguments.head, "--head")}},
        **({"id2label": dict(id2label)} if id2label else {}),
    }
    model = with_trunk(model_class_of(task), config, arguments.encoder, arguments.size, arguments.freeze)
    print(model.parameter_summary())
    return model, MetaTransformerProcessor(**processors)


def _options_of(options: Sequence[str], modality: str) -> list[str]:
    """Those of a modality: `patch_size=8` is of all, `image.patch_size=8` of one."""
    own = (each for each in options if "." not in each.partition("=")[0] or each.startswith(f"{modality}."))
    return [each.removeprefix(f"{modality}.") for each in own]


# 4. Training and results
def remember(folder: str | os.PathLike, *arguments: Any, seed: int) -> None:
    """Write what the run in a folder is, or refuse to go on there with another one.

    Raises:
        ValueError: The folder holds a run of another model, other data or another seed.
    """
    now: dict[str, Any] = {"seed": seed}
    for each in arguments:
        now |= asdict(each)
    path = Path(folder) / SETTINGS
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else now
    if other := {name: known.get(name) for name in now if known.get(name) != now[name]}:
        raise ValueError(f"{folder} holds a run with {other}; give another --output_dir, or delete it.")
    if os.environ.get("RANK", "0") == "0":
        write_json(path, now)


def train(
    model: Any, processor: MetaTransformerProcessor, splits: Mapping[str, Any], arguments: TrainingArguments, call: Any
) -> tuple[Trainer, dict[str, float]]:
    """Train, or go on where a run was killed; keep the best epoch, measure it once, and save all of it.

    Args:
        model: Of a task.
        processor: Of the model.
        splits: `"train"`, `"validation"` and, if there is one, `"test"`, which is reported then.
        arguments: Of the training.
        call: Of the processor's call: pairs `name=value`.

    Returns:
        The trainer with the best model, and the metrics of `all_results.json`.
    """
    trainer = Trainer(
        model,
        arguments,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=DataCollatorForMetaTransformer.for_model(model, processor, **pairs(call, "--call")),
        compute_metrics=model.metrics(),
    )
    folder = Path(str(arguments.output_dir))
    found = resume(trainer, arguments.resume_from_checkpoint)
    reported = reported_split(splits)
    found |= trainer.evaluate(splits[reported], metric_key_prefix=reported)
    found[f"{reported}_samples"] = len(splits[reported])
    trainer.log_metrics(reported, found)
    if trainer.is_world_process_zero():
        save(model, processor, folder, reported, found)
    return trainer, found


def reported_split(splits: Mapping[str, Any]) -> str:
    """What results are of: `"test"`, or `"validation"` where there is none."""
    return "test" if "test" in splits else "validation"


def save(model: Any, processor: Any, folder: Path, reported: str, results: dict[str, float]) -> None:
    """Write model, processor, card with the results of a split, and last, because it says that all is there, those."""
    timed = ("_runtime", "_per_second", "_samples")
    own = {name: value for name, value in results.items() if name.startswith(reported) and not name.endswith(timed)}
    model.save_pretrained(folder, processor=processor, metrics={name: round(value, 4) for name, value in own.items()})
    write_json(folder / RESULTS, results)
    print(f"Written to {folder}: the model with its processor and card, {RESULTS}")


@torch.no_grad()
def predict(trainer: Trainer, rows: Any, places: Sequence[int]) -> tuple[list[dict[str, Any]], Any]:
    """Some rows that there are, and the model's output for them."""
    model: Any = trainer.model
    samples = [rows[place] for place in places if place < len(rows)]
    return samples, model.eval()(**to_device(trainer.data_collator(samples), device_of(model)))


def draw(file: Path, titles: Sequence[str], rows: Sequence[Sequence[Callable[[Any], None]]]) -> None:
    """Write a picture of rows and columns, whole or not at all.

    Args:
        file: A PNG.
        titles: Of the columns.
        rows: Functions that draw a cell into its axis.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(titles), 3 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for place, cells in enumerate(rows):
        for axis, title, cell in zip(axes[place], titles, cells, strict=True):
            cell(axis)
            axis.set(xticks=[], yticks=[], title=None if place else title)
    unfinished = file.with_name(f".{file.name}.unfinished")
    figure.savefig(unfinished, dpi=110, format="png")
    os.replace(unfinished, file)
    print(f"Written: {file}")
