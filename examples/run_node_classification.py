"""Fine-tune the classification of nodes of your own graph, by what a node holds and what is around it.

    python examples/run_node_classification.py --data graph/ --output_dir outputs/graph

`--data` is a folder with `nodes.csv` and `edges.csv`. Nodes: a column `id` (or `node`, or the first), `label`, `split`,
and what a node holds: columns of numbers, or `--words`, a column of words with spaces between them, or `--features`,
another table with `id` and columns of numbers. A node without label, or in no split of train, val and test, is there
for the others alone. Edges: the ids of two nodes in the columns `source` and `target`, followed both ways.

The whole graph is known while training, without its labels: what a node holds is averaged over its neighbours `--hops`
times (SGC, Wu et al. 2019) and brought to its main directions. A sample is a node with some of its neighbours, drawn
`--draws` times for training. A tokenizer and a head are trained around a frozen trunk: `--encoder` names a pretrained
one. Prints a table of accuracies; `--output_dir` gets the model with its processor and card, and `all_results.json`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from run_shared import DataArguments, Samples, build, limited, reported_split, start, train
from scipy import sparse

from meta_transformer.cli.console import print_rows
from meta_transformer.cli.defaults import Defaults
from meta_transformer.processors.graph import GraphProcessor
from meta_transformer.training.sources import SPLITS, read_table
from meta_transformer.training.splits import Source

LENGTH = 10.0  # of what a node holds; numbers of the size that layers behind it expect
HEAD = {"seed_only": True, "layers": "all", "dropout": 0.5, "label_smoothing": 0.1}


@dataclass
class NodeArguments(DataArguments):
    """What a node holds, and what of the graph is a sample."""

    words: str | None = field(default=None, metadata={"help": "Column of words that a node holds."})
    features: str | None = field(default=None, metadata={"help": "Table of ids and numbers that nodes hold."})
    hops: int = field(default=2, metadata={"help": "How often a node takes the mean with its neighbours, 0 for never."})
    directions: int = field(default=64, metadata={"help": "Most numbers of a node after that."})
    neighbors: int = field(default=5, metadata={"help": "Most neighbours of a node in a sample."})
    draws: int = field(default=4, metadata={"help": "Samples of each node that is learned from."})


@dataclass
class Nodes:
    """A graph with classes.

    Attributes:
        features: `(nodes, numbers)`.
        edges: `(edges, 2)` places of nodes.
        labels: `(nodes,)` class numbers, -1 where unknown.
        classes: Their names.
        splits: By name, places of nodes.
    """

    features: np.ndarray
    edges: np.ndarray
    labels: np.ndarray
    classes: list[str]
    splits: dict[str, np.ndarray]


# 1. Data
def read_graph(data: NodeArguments) -> Nodes:
    """The graph of two tables.

    Raises:
        ValueError: A file or column is not there, ids are repeated or unknown, or a split is empty.
    """
    folder = Path(data.data)
    for name in ("nodes.csv", "edges.csv"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}; --data is a folder with nodes.csv and edges.csv.")
    table = _by_id(folder / "nodes.csv")
    for name in ("label", "split"):
        if name not in table.columns:
            raise ValueError(f"{folder / 'nodes.csv'} has no column {name!r}; it has {list(table.columns)}.")
    words = table["label"].map(lambda value: None if pd.isna(value) else str(value))
    classes = sorted(words.dropna().unique())
    labels = words.map({name: number for number, name in enumerate(classes)}).fillna(-1).astype(np.int64).to_numpy()
    given = table["split"].astype(str).str.strip().str.lower()
    splits = {name: np.flatnonzero(given.isin(known) & (labels >= 0)) for name, known in SPLITS.items()}
    if empty := [name for name in ("train", "validation") if not len(splits[name])]:
        raise ValueError(f"{folder / 'nodes.csv'} has no labelled node in {empty}; its splits are {set(given)}.")
    ends = read_table(folder / "edges.csv", "tabular")
    if not {"source", "target"} <= set(ends.columns):
        raise ValueError(f"{folder / 'edges.csv'} needs the columns source and target, it has {list(ends.columns)}.")
    edges = np.stack([table.index.get_indexer(ends[name]) for name in ("source", "target")], axis=1)
    if (edges < 0).any():
        row = int((edges < 0).any(axis=1).argmax())
        raise ValueError(f"row {row + 1} of {folder / 'edges.csv'} names a node that nodes.csv does not have.")
    own = _features(data, table.drop(columns=["label", "split"]))
    return Nodes(own, edges, labels, classes, {name: part for name, part in splits.items() if len(part)})


def _by_id(path: Path) -> pd.DataFrame:
    table = read_table(path, "tabular")
    name = next((each for each in ("id", "node") if each in table.columns), table.columns[0])
    if table[name].duplicated().any():
        raise ValueError(f"{path} has several rows of the {name} {table[name][table[name].duplicated()].iloc[0]!r}.")
    return table.set_index(name)


def _features(data: NodeArguments, table: pd.DataFrame) -> np.ndarray:
    if data.words:
        if data.words not in table.columns:
            raise ValueError(f"nodes.csv has no column {data.words!r}; it has {list(table.columns)}.")
        return table[data.words].fillna("").astype(str).str.get_dummies(" ").to_numpy(np.float32)
    if data.features:
        table = _by_id(Path(data.features)).reindex(table.index)
    numbers = table.select_dtypes("number").to_numpy(np.float32)
    if not numbers.shape[1] or not np.isfinite(numbers).all():
        raise ValueError(
            f"nodes hold {numbers.shape[1]} columns of numbers, {int((~np.isfinite(numbers)).sum())} of them missing; "
            "give each node all numbers, or name a column by --words or a table by --features."
        )
    return (numbers - numbers.mean(axis=0)) / numbers.std(axis=0).clip(1e-6)


def condensed(features: np.ndarray, edges: np.ndarray, hops: int, directions: int) -> np.ndarray:
    """Features averaged over neighbours, in their main directions and of one length, `(nodes, directions)`."""
    count, both = len(features), np.concatenate([edges, edges[:, ::-1]])
    near = sparse.coo_matrix((np.ones(len(both)), both.T), (count, count)).tocsr() + sparse.eye(count)
    scale = sparse.diags(np.asarray(near.sum(axis=1)).ravel() ** -0.5)
    for _ in range(hops):  # Kipf and Welling 2017, equation 2
        features = scale @ (near @ (scale @ features))
    whole = torch.from_numpy(np.asarray(features, np.float32))
    if whole.shape[1] > directions:
        whole = whole @ torch.svd_lowrank(whole, q=directions, niter=6)[2]
    return (LENGTH * whole / whole.norm(dim=1, keepdim=True).clamp(min=1e-6)).numpy()


def samples(graph: Nodes, features: np.ndarray, data: NodeArguments) -> dict[str, Samples]:
    """By split, a row for each node, several of each that is learned from."""
    whole, cut = {"edges": graph.edges, "node_features": features}, GraphProcessor()
    found = {}
    for name, nodes in graph.splits.items():
        rows = [
            {"graph": sample, "labels": [graph.labels[node]]}
            for draw in range(data.draws if name == "train" else 1)
            for node, sample in zip(
                nodes,
                cut.neighbourhoods(whole, nodes, num_hops=1, num_neighbors=data.neighbors, seed=draw),
                strict=True,
            )
        ]
        found[name] = Samples("graph", rows, lambda row: row)
    return found


# 2. Train
def main() -> None:
    model_arguments, data, arguments = start(
        __doc__,
        NodeArguments,
        metric="accuracy",
        num_train_epochs=8.0,
        learning_rate=3e-3,
        weight_decay=1.0,
        per_device_train_batch_size=56,
        per_device_eval_batch_size=250,
    )
    graph = read_graph(data)
    print(f"{len(graph.features):,} nodes, {len(graph.edges):,} edges, {len(graph.classes)} classes")
    own = condensed(graph.features, graph.edges, data.hops, data.directions)
    splits = limited(samples(graph, own, data), data, arguments.seed)
    source = Source(splits, graph.classes)
    fields = [{"mean": 0.0, "std": 1.0}] * own.shape[1]  # as they are: the first directions say most
    settings: dict[str, Any] = {"node_fields": fields, "edge_fields": [], "identifiers": "none", "seed_nodes": True}
    defaults = {"graph": Defaults(settings, {"edge_tokens": False, "size_features": False}, fit=False)}
    model, processor = build(
        model_arguments, "token_classification", {"graph": source}, defaults, head=HEAD, id2label=source.id2label
    )
    trainer, found = train(model, processor, splits, arguments, model_arguments.call)
    if trainer.is_world_process_zero():
        reported = reported_split(splits)
        truth = graph.labels[graph.splits[reported]]
        commonest = np.bincount(graph.labels[graph.splits["train"]]).argmax()
        rows = [("this model", found[f"{reported}_accuracy"]), ("commonest class", float((truth == commonest).mean()))]
        print_rows(f"{reported}, {len(splits[reported]):,} nodes", ("", "accuracy"), rows)


if __name__ == "__main__":
    main()
