"""Which topic has a paper? A frozen trunk classifies nodes of a citation graph from samples of what lies around them.

    META_TRANSFORMER_DATA=../shared/data OMP_NUM_THREADS=1 python examples/04_node_classification.py
    python examples/04_node_classification.py --encoder timm/vit_tiny_patch16_224.augreg_in21k --epochs 4

A tokenizer and a token classification head are trained on 140 papers of Cora (2,708 papers, 5,278 citations, seven
topics; the split of Yang et al. 2016); the trunk, 192 wide and 4 deep with random weights unless `--encoder` names
others, stays as it is. A sample is a paper with some of its neighbours, drawn anew several times in training.

140 labels are few for 1,433 words. What a node holds is therefore made beforehand, without labels and from the whole
graph, as the task allows: the words are averaged over the neighbours, several times (SGC, Wu et al. 2019), and reduced
to their main directions. The best epoch is chosen on the validation split. The test split is measured once, beside
logistic regressions made in the same run: on the words of a paper alone, on words averaged twice, and on what our
nodes hold.

Prints accuracy and macro-averaged F1. Writes the table, the model, and `nodes.png` (the test papers as the head sees
them, in two dimensions, and the confusion matrix) to `--output`. What is finished is kept there: a run that was
stopped goes on where it was, unless its settings are others now; `--fresh` starts anew.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.metrics import ConfusionMatrixDisplay, accuracy_score, f1_score
from task_runs import arguments, console, print_table, train
from torch.utils.data import Dataset

from meta_transformer import MetaTransformerForTokenClassification, MetaTransformerProcessor
from meta_transformer.processors.graph import GraphProcessor

CARD = 0.808  # accuracy of the regression on words averaged twice in the set's CARD
TOPICS = [f"topic {number}" for number in range(7)]  # the set gives no names
STRENGTHS = (0.1, 1, 10, 100)  # of the regressions, inverse; chosen on the validation split
HOPS, DIRECTIONS, LENGTH = 4, 64, 10.0
NEIGHBOURS, DRAWS, LEFT_OUT = 5, 4, 0.4
TOKENIZER = {"edge_tokens": False, "size_features": False}
HEAD = {"seed_only": True, "layers": "all", "dropout": 0.5, "label_smoothing": 0.1}


# 1. Data
def read(data: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Words `(nodes, 1433)` of zeros and ones, edges `(edges, 2)`, topics `(nodes,)`, and the nodes of each split."""
    folder = data / "graph_nodes/cora"
    table, edges = pd.read_csv(folder / "nodes.csv"), pd.read_csv(folder / "edges.csv").to_numpy()
    present = [np.array(words.split(), dtype=int) for words in table["words"].fillna("")]
    words = np.zeros((len(table), 1 + max(max(each, default=0) for each in present)), np.float32)
    for row, each in zip(words, present, strict=True):
        row[each] = 1
    splits = {name: np.flatnonzero(table["split"] == name) for name in ("train", "val", "test")}
    return words, edges, table["label"].to_numpy(), splits


def averaged(features: np.ndarray, edges: np.ndarray, hops: int) -> np.ndarray:
    """Each node's features mixed with those of its neighbours, so many times (Kipf and Welling 2017, equation 2)."""
    count = len(features)
    both = np.concatenate([edges, edges[:, ::-1]])
    joined = sparse.coo_matrix((np.ones(len(both)), both.T), (count, count)).tocsr() + sparse.eye(count)
    scale = sparse.diags(np.asarray(joined.sum(axis=1)).ravel() ** -0.5)
    for _ in range(hops):
        features = scale @ (joined @ (scale @ features))
    return features.astype(np.float32)


def condensed(words: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """What our nodes hold: main directions of the averaged words, all of one length, `(nodes, DIRECTIONS)`."""
    found = TruncatedSVD(DIRECTIONS, random_state=0).fit_transform(averaged(words, edges, HOPS))
    return (LENGTH * found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def samples(
    processor: GraphProcessor, graph: dict[str, np.ndarray], nodes: np.ndarray, topics: np.ndarray, draws: int = 1
) -> list[dict[str, Any]]:
    """Rows as the collator takes them, each a node and some of its neighbours."""
    return [
        {"graph": sample, "labels": [topics[node]]}
        for draw in range(draws)
        for node, sample in zip(
            nodes,
            processor.neighbourhoods(graph, nodes, num_hops=1, num_neighbors=NEIGHBOURS, seed=draw),
            strict=True,
        )
    ]


class Varied(Dataset):
    """Samples without a share of the directions, others each time, so that no single one decides."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        graph, labels = self.rows[index]["graph"], self.rows[index]["labels"]
        kept = (torch.rand(DIRECTIONS) >= LEFT_OUT).float().numpy() / (1 - LEFT_OUT)
        return {"graph": {**graph, "node_features": graph["node_features"] * kept}, "labels": labels}


# 2. Baselines
def regression(features: np.ndarray, topics: np.ndarray, splits: dict[str, np.ndarray]) -> np.ndarray:
    """Topics of the test nodes by the logistic regression that is best on the validation nodes."""
    known, validation = splits["train"], splits["val"]
    models = [
        LogisticRegression(C=strength, max_iter=3000).fit(features[known], topics[known]) for strength in STRENGTHS
    ]
    best = max(models, key=lambda model: model.score(features[validation], topics[validation]))
    return best.predict(features[splits["test"]])


# 3. Predict
@torch.no_grad()
def predict(
    model: MetaTransformerForTokenClassification,
    processor: MetaTransformerProcessor,
    rows: list[dict[str, Any]],
    batch: int = 250,
) -> np.ndarray:
    """Logits `(rows, topics)`."""
    found = []
    for start in range(0, len(rows), batch):
        graphs = [row["graph"] for row in rows[start : start + batch]]
        found.append(model(**processor(graph=graphs)).logits[:, 0])
    return torch.cat(found).numpy()


# 4. Report
def draw(logits: np.ndarray, truth: np.ndarray, file: Path) -> None:
    """The test nodes in two dimensions by their logits, coloured by topic, and the confusion matrix."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 6), layout="constrained")
    places = TSNE(init="pca", random_state=0).fit_transform(logits)
    for number, topic in enumerate(TOPICS):
        left.scatter(*places[truth == number].T, s=10, label=topic)
    left.set(title="test papers by their logits (t-SNE), coloured by their topics", xticks=[], yticks=[])
    left.legend(fontsize=8)
    ConfusionMatrixDisplay.from_predictions(truth, logits.argmax(axis=1), ax=right, cmap="Blues", colorbar=False)
    right.set(xlabel="predicted topic", ylabel="topic")
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def main() -> None:
    options = arguments(__file__, __doc__, epochs=8)
    words, edges, topics, splits = read(options.data)
    console.print(
        f"{len(words)} papers, {len(edges)} citations;", ", ".join(f"{len(n)} {s}" for s, n in splits.items())
    )
    own = condensed(words, edges)
    graph = {"edges": edges, "node_features": own}
    fields = [{"mean": 0.0, "std": 1.0}] * DIRECTIONS  # as they are: the first directions say most
    reader = GraphProcessor(node_fields=fields, edge_fields=[], identifiers="none", seed_nodes=True)
    processor = MetaTransformerProcessor(graph=reader)
    model, training = train(
        MetaTransformerForTokenClassification,
        options.trunk,
        processor,
        (
            Varied(samples(reader, graph, splits["train"], topics, DRAWS)),
            samples(reader, graph, splits["val"], topics),
        ),
        options.output,
        tokenizer=TOKENIZER,
        head=HEAD,
        id2label=dict(enumerate(TOPICS)),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=56,
        per_device_eval_batch_size=250,
        learning_rate=3e-3,
        weight_decay=1.0,
        metric_for_best_model="accuracy",
    )
    truth = topics[splits["test"]]
    logits = predict(model, processor, samples(reader, graph, splits["test"], topics))
    predictions = {
        "commonest topic": np.full_like(truth, np.bincount(topics[splits["train"]]).argmax()),
        "logistic regression, own words": regression(words, topics, splits),
        "logistic regression, words averaged twice": regression(averaged(words, edges, 2), topics, splits),
        "logistic regression, what our nodes hold": regression(own, topics, splits),
        "frozen trunk": logits.argmax(axis=1),
    }
    table = {
        name: {"accuracy": accuracy_score(truth, guess), "macro-F1": f1_score(truth, guess, average="macro")}
        for name, guess in predictions.items()
    }
    print_table("Topics of papers, test split", pd.DataFrame(table).T, options.output / "scores.csv")
    console.print(
        f"{training['trainable']:,} parameters trained in {training['seconds']:.0f} s, validation accuracy "
        f"{training['validation']:.3f}; the set's CARD reports {CARD} for words averaged twice."
    )
    draw(logits, truth, options.output / "nodes.png")
    console.print(f"Written: scores.csv and nodes.png in {options.output}")


if __name__ == "__main__":
    main()
