"""Which topic has a paper? A frozen trunk classifies nodes of a citation graph from samples of what lies around them.

    META_TRANSFORMER_DATA=../shared/data OMP_NUM_THREADS=1 python examples/04_node_classification.py
    python examples/04_node_classification.py --encoder timm/vit_tiny_patch16_224.augreg_in21k --seed 1

A token classification head is fitted on 140 papers of Cora (2,708 papers, 5,278 citations, seven topics; the split of
Yang et al. 2016), behind a trunk, 192 wide and 4 deep with random weights unless `--encoder` names others, and behind a
tokenizer that both stay as they are. A sample is a paper with some of its neighbours.

140 labels are few for 1,433 words. What a node holds is therefore made beforehand, without labels and from the whole
graph, as the task allows: the words are averaged over the neighbours, several times (SGC, Wu et al. 2019), and reduced
to their main directions. The tokenizer keeps angles and lengths, and tokens are long beside what blocks of random
weights add to them. The head sees each paper several times, each time from a graph in which other papers have lost
their words (GRAND, Feng et al. 2020, section 3.1), and is solved, not trained: a logistic regression by L-BFGS on what
its linear layer reads (as CLIP's linear probes, Radford et al. 2021, section 3.2), whose strength is chosen on the
validation split. The test split is measured once, beside logistic regressions made in the same run: on the words of a
paper alone, on words averaged twice, and on what our nodes hold.

Prints accuracy and macro-averaged F1. Writes the table, the model, and `nodes.png` (the test papers as the head sees
them, in two dimensions, and the confusion matrix) to `--output`.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.progress import track
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.metrics import ConfusionMatrixDisplay, accuracy_score, f1_score
from task_runs import arguments, console, print_table
from transformers import set_seed

from meta_transformer import MetaTransformerForTokenClassification, MetaTransformerProcessor
from meta_transformer.processors.graph import GraphProcessor

CARD = 0.808  # accuracy of the regression on words averaged twice in the set's CARD
TOPICS = [f"topic {number}" for number in range(7)]  # the set gives no names
STRENGTHS = (0.1, 1, 10, 100)  # of the regressions on features, inverse; chosen on the validation split
PROBES = (0.001, 0.003, 0.01, 0.03, 0.1)  # of the head, which reads more and larger numbers
HOPS, DIRECTIONS, LENGTH = 4, 128, 300.0
NEIGHBOURS, VIEWS, LEFT_OUT = 5, 8, 0.3
TOKENIZER = {"edge_tokens": False, "size_features": False}
HEAD = {"seed_only": True, "layers": "all"}


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


def condensed(words: np.ndarray, edges: np.ndarray) -> list[np.ndarray]:
    """What our nodes hold: main directions of the averaged words, all of one length, `(nodes, DIRECTIONS)`.

    First of all words, then views in which a share of the papers has lost theirs before they are averaged.
    """
    directions = TruncatedSVD(DIRECTIONS, random_state=0).fit(averaged(words, edges, HOPS)).components_.T
    random, present = np.random.default_rng(0), [np.ones((len(words), 1))]
    present += [random.random((len(words), 1)) >= LEFT_OUT for _ in range(VIEWS - 1)]
    views = [averaged((words * own) @ directions, edges, HOPS) for own in present]  # the same: averaging is linear
    lengths = [np.linalg.norm(view, axis=1, keepdims=True).clip(1e-6) for view in views]
    return [LENGTH * view / length for view, length in zip(views, lengths, strict=True)]


# 2. Baselines
def best_regression(train: tuple, validation: tuple, strengths: tuple[float, ...]) -> LogisticRegression:
    """The logistic regression that is best on validation data; both are features and topics."""
    models = [LogisticRegression(C=strength, max_iter=3000).fit(*train) for strength in strengths]
    return max(models, key=lambda model: model.score(*validation))


def regression(features: np.ndarray, topics: np.ndarray, splits: dict[str, np.ndarray]) -> np.ndarray:
    """Topics of the test nodes by a logistic regression on the nodes' features."""
    train, validation = ((features[splits[name]], topics[splits[name]]) for name in ("train", "val"))
    return best_regression(train, validation, STRENGTHS).predict(features[splits["test"]])


# 3. The model
def build(trunk: str, processor: MetaTransformerProcessor) -> MetaTransformerForTokenClassification:
    """A frozen trunk, and a tokenizer that turns what a node holds without bending it."""
    model = MetaTransformerForTokenClassification.from_pretrained(
        trunk,
        modalities={"graph": {**processor.tokenizer_configs()["graph"], **TOKENIZER}},
        heads={"token_classification": HEAD},
        ignore_mismatched_sizes=True,  # the trunk may come with a tokenizer of another size
        id2label=dict(enumerate(TOPICS)),
    )
    for weight in model.model.tokenizers.parameters():
        if weight.shape == (model.config.hidden_size, DIRECTIONS):
            torch.nn.init.orthogonal_(weight)
    return model.eval()


@torch.no_grad()
def read_nodes(
    model: MetaTransformerForTokenClassification,
    processor: MetaTransformerProcessor,
    graph: dict[str, np.ndarray],
    nodes: np.ndarray,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """What the head's linear layer reads of nodes, `(nodes, hidden)`, and its logits, `(nodes, topics)`."""
    features: list[torch.Tensor] = []
    hook = model.head.classifier.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0][:, 0]))
    reader: GraphProcessor = processor.graph
    samples = list(reader.neighbourhoods(graph, nodes, num_hops=1, num_neighbors=NEIGHBOURS, seed=seed))
    parts = [samples[start : start + 250] for start in range(0, len(samples), 250)]
    logits = [model(**processor(graph=part)).logits[:, 0] for part in parts]
    hook.remove()
    return torch.cat(features).numpy(), torch.cat(logits).numpy()


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
    options = arguments(__file__, __doc__, seed=0)
    words, edges, topics, splits = read(options.data)
    console.print(
        f"{len(words)} papers, {len(edges)} citations;", ", ".join(f"{len(n)} {s}" for s, n in splits.items())
    )
    views = condensed(words, edges)
    graphs = [{"edges": edges, "node_features": view} for view in views]
    fields = [{"mean": 0.0, "std": 1.0}] * DIRECTIONS  # as they are: the first directions say most
    reader = GraphProcessor(node_fields=fields, edge_fields=[], identifiers="none", seed_nodes=True)
    processor = MetaTransformerProcessor(graph=reader)
    set_seed(options.seed)
    model = build(options.trunk, processor)
    seen = [
        read_nodes(model, processor, graph, splits["train"], seed=number)[0]
        for number, graph in enumerate(track(graphs, description="Views", console=console))
    ]
    validation = read_nodes(model, processor, graphs[0], splits["val"])[0], topics[splits["val"]]
    train = np.concatenate(seen), np.tile(topics[splits["train"]], VIEWS)
    solved = best_regression(train, validation, PROBES)
    with torch.no_grad():
        model.head.classifier.weight.copy_(torch.from_numpy(solved.coef_))
        model.head.classifier.bias.copy_(torch.from_numpy(solved.intercept_))
    model.save_pretrained(options.output, processor=processor)
    truth = topics[splits["test"]]
    logits = read_nodes(model, processor, graphs[0], splits["test"])[1]
    predictions = {
        "commonest topic": np.full_like(truth, np.bincount(topics[splits["train"]]).argmax()),
        "logistic regression, own words": regression(words, topics, splits),
        "logistic regression, words averaged twice": regression(averaged(words, edges, 2), topics, splits),
        "logistic regression, what our nodes hold": regression(10 * views[0] / LENGTH, topics, splits),
        "frozen trunk": logits.argmax(axis=1),
    }
    table = {
        name: {"accuracy": accuracy_score(truth, guess), "macro-F1": f1_score(truth, guess, average="macro")}
        for name, guess in predictions.items()
    }
    print_table("Topics of papers, test split", pd.DataFrame(table).T, options.output / "scores.csv")
    console.print(
        f"{solved.coef_.size + solved.intercept_.size:,} parameters solved for, validation accuracy "
        f"{solved.score(*validation):.3f}; the set's CARD reports {CARD} for words averaged twice."
    )
    draw(logits, truth, options.output / "nodes.png")
    console.print(f"Written: the model, scores.csv and nodes.png in {options.output}")


if __name__ == "__main__":
    main()
