"""Fine-tune a search over your own samples: within a modality, or between two.

    python examples/run_retrieval.py --data pairs.csv --modalities audio image --output_dir outputs/pairs
    python examples/run_retrieval.py --data animals/ --modalities image --output_dir outputs/animals

Of several modalities, `--data` is a table of what belongs together: a column named as each modality, with paths
relative to the table (text and SMILES as such), and if need be `label`, equal for rows that belong together too, and
`split`. Without labels each row belongs to itself alone. Of one modality, `--data` is what `run_classification.py`
takes: samples of a class belong together. Without splits 15 % are drawn for validation and 15 % for test.

A tokenizer for each modality and a head are trained around a frozen trunk: `--encoder` names a pretrained one. Each
sample of the test split is a query; of several modalities, both ways. `--output_dir` gets the model with its processor
and card, and `all_results.json` with Recall@1, @5, @10 and mean average precision.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from run_shared import DataArguments, Samples, build, limited, split_places, start, train

from meta_transformer.cli.defaults import defaults_for
from meta_transformer.training.sources import is_table, read_collection, read_table
from meta_transformer.training.splits import Source, read_source

HEAD = {"embed_dim": 64, "layers": "all", "temperature": 0.1}


@dataclass
class RetrievalArguments(DataArguments):
    """What is searched for by what."""

    modalities: list[str] = field(default_factory=lambda: ["image"], metadata={"help": "One, or two and more."})
    label: str | None = field(default=None, metadata={"help": "Column of what belongs together; by default label."})


def read_pairs(data: RetrievalArguments, seed: int) -> tuple[dict[str, Source], dict[str, Samples]]:
    """By modality the samples, for fitting, and by split rows with all modalities.

    Raises:
        ValueError: No table, or a column or file that is not there.
    """
    path = Path(data.data)
    if not (is_table(path) and path.is_file()):
        raise ValueError(f"--data must be a table with the columns {data.modalities}, got {data.data!r}.")
    found = {each: read_collection(path, each, column=each, labelled=False) for each in data.modalities}
    table = read_table(path, "text")
    label = data.label or "label"
    if data.label and label not in table.columns:
        raise ValueError(f"{path} has no column {label!r}; it has {list(table.columns)}.")
    labels = np.arange(len(table))
    if label in table.columns:
        labels = np.unique(table[label].astype(str), return_inverse=True)[1]
    few = np.bincount(labels).min() < 3  # a draw takes a share of each label, where there is enough of it
    parts = split_places(found[data.modalities[0]].splits, np.zeros_like(labels) if few else labels, seed)

    def read(number: int, modalities: list[str]) -> dict[str, Any]:
        row = {each: found[each].read(found[each].values[number]) for each in modalities}
        return {**row, "labels": int(labels[number])}

    def rows(modalities: list[str], numbers: np.ndarray) -> Samples:
        return Samples(modalities[0], numbers.tolist(), lambda number: read(number, modalities))

    sources = {each: Source({name: rows([each], own) for name, own in parts.items()}) for each in data.modalities}
    return sources, {name: rows(data.modalities, own) for name, own in parts.items()}


def main() -> None:
    model_arguments, data, arguments = start(__doc__, RetrievalArguments, metric="map")
    if len(data.modalities) == 1:
        (modality,) = data.modalities
        source = read_source(data.data, modality, label=data.label, seed=arguments.seed)
        sources, splits = {modality: source}, source.splits
    else:
        sources, splits = read_pairs(data, arguments.seed)
    splits = limited(splits, data, arguments.seed)
    defaults = {each: defaults_for(each, "retrieval", source, 0, 0) for each, source in sources.items()}
    model, processor = build(model_arguments, "retrieval", sources, defaults, head=HEAD)
    train(model, processor, splits, arguments, model_arguments.call)


if __name__ == "__main__":
    main()
