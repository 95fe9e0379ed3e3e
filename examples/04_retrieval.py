"""Say a digit, find its handwriting, and the other way round, by a frozen trunk that both modalities share.

    META_TRANSFORMER_DATA=../shared/data OMP_NUM_THREADS=1 python examples/04_retrieval.py
    python examples/04_retrieval.py --encoder timm/vit_tiny_patch16_224.augreg_in21k --epochs 10

A tokenizer for each modality and a retrieval head are trained on 600 pairs of a recording and a picture; the trunk, 192
wide and 4 deep with random weights unless `--encoder` names others, stays as it is. A pair is a digit spoken and the
same digit written, and nothing else links them: in training each recording is joined with any picture of its digit. The
best epoch is chosen on the validation split. The test split is measured once, beside a baseline made in the same run:
two logistic regressions, one a modality, whose probabilities of the ten digits are compared.

Prints the share of queries with a right item among the first and the first five, and mean average precision, both ways.
Writes the table, the model, and `found.png` (the pictures found for spoken digits) to `--output`. What is finished is
kept there: a run that was stopped goes on where it was, unless its settings are others now; `--fresh` starts anew.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from digit_pairs import RATE, TOKENIZERS, disturbed, make_processor, read, shifted
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import label_ranking_average_precision_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from task_runs import arguments, console, print_table, train
from torch.utils.data import Dataset
from torchaudio.transforms import MFCC

from meta_transformer import MetaTransformerForRetrieval, MetaTransformerProcessor

CARD = 0.907  # of the set's CARD: spoken queries whose nearest picture is of their digit
HEAD = {"embed_dim": 64, "pooling": "mean", "layers": "all", "temperature": 0.1}
BATCH = 20


# 1. Data
class Pairs(Dataset):
    """Rows as the collator takes them; in training, joined anew and changed at random."""

    def __init__(self, table: pd.DataFrame, augment: bool = False) -> None:
        self.table, self.augment = table, augment
        self.places = {label: part.index.to_numpy() for label, part in table.groupby("label")}

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | int]:
        audio, image, label = self.table.loc[index, ["audio", "image", "label"]]
        if self.augment:
            same = self.places[label]
            image = shifted(self.table.loc[same[int(torch.randint(len(same), ()))], "image"])
            audio = disturbed(audio)
        return {"audio": audio, "image": image, "labels": int(label)}


# 2. Baseline
def class_probabilities(splits: dict[str, pd.DataFrame]) -> np.ndarray:
    """What logistic regressions say of the test split, scaled to length 1, `(samples, 2, 10)`: audio, image.

    They see means and deviations of the mel cepstrum over time, and the pixels.
    """
    cepstrum = MFCC(RATE, n_mfcc=20, melkwargs={"n_fft": 256, "hop_length": 80, "n_mels": 40})

    def spoken(table: pd.DataFrame) -> np.ndarray:
        parts = [cepstrum(torch.from_numpy(wave)).numpy() for wave in table["audio"]]
        return np.stack([np.concatenate([part.mean(axis=1), part.std(axis=1)]) for part in parts])

    def written(table: pd.DataFrame) -> np.ndarray:
        return np.stack(list(table["image"])).reshape(len(table), -1) / 255

    scaled = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    found = []
    for features, model in ((spoken, scaled), (written, LogisticRegression(max_iter=2000))):
        model.fit(features(splits["train"]), splits["train"]["label"])
        probabilities = model.predict_proba(features(splits["test"]))
        found.append(probabilities / np.linalg.norm(probabilities, axis=1, keepdims=True))
    return np.stack(found, axis=1)


# 3. Embed
def embed(model: MetaTransformerForRetrieval, processor: MetaTransformerProcessor, table: pd.DataFrame) -> np.ndarray:
    """`(samples, 2, embed_dim)` of length 1: audio, image."""
    found = []
    for start in range(0, len(table), BATCH):
        rows = table.iloc[start : start + BATCH]
        batch = processor(audio=list(rows["audio"]), image=list(rows["image"]), sampling_rate=RATE)
        embeds = model.get_embeds(**batch)
        found.append(torch.stack([embeds["audio"], embeds["image"]], dim=1))
    return torch.cat(found).numpy()


# 4. Report
def one_way(queries: np.ndarray, gallery: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """How well each query finds the items of its digit."""
    similarity, right = queries @ gallery.T, labels[:, None] == labels
    found = np.take_along_axis(right, nearest(queries, gallery, len(gallery)), axis=1)
    recalls = {f"Recall@{rank}": found[:, :rank].any(axis=1).mean() for rank in (1, 5)}
    return {**recalls, "mAP": label_ranking_average_precision_score(right, similarity)}


def nearest(queries: np.ndarray, gallery: np.ndarray, count: int) -> np.ndarray:
    """Places of the nearest items, nearest first, `(queries, count)`."""
    return np.argsort(-queries @ gallery.T, axis=1, kind="stable")[:, :count]


def report(embeds: dict[str, np.ndarray], labels: np.ndarray) -> pd.DataFrame:
    """A row a direction and method."""
    ways = {"audio to image": (0, 1), "image to audio": (1, 0)}
    return pd.DataFrame(
        {
            f"{way}: {method}": one_way(both[:, query], both[:, gallery], labels)
            for way, (query, gallery) in ways.items()
            for method, both in embeds.items()
        }
    ).T


def draw(test: pd.DataFrame, embeds: np.ndarray, file: Path) -> None:
    """The pictures nearest to the first recording of each digit, and to up to four recordings that find a wrong one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = test["label"].to_numpy()
    found = nearest(embeds[:, 0], embeds[:, 1], 5)
    wrong = np.flatnonzero(labels[found[:, 0]] != labels)[:4]
    queries = [*(int(np.flatnonzero(labels == digit)[0]) for digit in range(10)), *wrong.tolist()]
    figure, axes = pyplot.subplots(len(queries), 6, figsize=(7, 1.05 * len(queries)), width_ratios=[2, 1, 1, 1, 1, 1])
    for row, query in zip(axes, queries, strict=True):
        row[0].plot(test.loc[query, "audio"], color="black", linewidth=0.4)
        row[0].set_ylabel(f"'{labels[query]}'", rotation=0, labelpad=12, va="center")
        for axis, item in zip(row[1:], found[query], strict=True):
            axis.imshow(test.loc[item, "image"], cmap="gray_r")
            right = labels[item] == labels[query]
            for side in axis.spines.values():
                side.set(color="tab:green" if right else "tab:red", linewidth=2)
        for axis in row:
            axis.set(xticks=[], yticks=[])
    axes[0, 0].set_title("spoken", fontsize=10)
    axes[0, 3].set_title("nearest pictures", fontsize=10)
    figure.tight_layout()
    figure.savefig(file, dpi=90)
    pyplot.close(figure)


def main() -> None:
    options = arguments(__file__, __doc__, epochs=24)
    splits = read(options.data)
    console.print(", ".join(f"{len(part)} pairs {split}" for split, part in splits.items()))
    processor = make_processor(splits["train"])
    model, training = train(
        MetaTransformerForRetrieval,
        options.trunk,
        processor,
        (Pairs(splits["train"], augment=True), Pairs(splits["val"])),
        options.output,
        tokenizers=TOKENIZERS,
        head=HEAD,
        call={"sampling_rate": RATE},
        num_train_epochs=options.epochs,
        per_device_train_batch_size=BATCH,
        learning_rate=5e-3,
        metric_for_best_model="map",
    )
    test = splits["test"]
    embeds = {
        "chance": np.random.default_rng(0).normal(size=(len(test), 2, 64)),
        "logistic regressions": class_probabilities(splits),
        "frozen trunk": embed(model, processor, test),
    }
    table = report(embeds, test["label"].to_numpy())
    print_table("Spoken and written digits, test split", table, options.output / "scores.csv")
    console.print(
        f"{training['trainable']:,} parameters trained in {training['seconds']:.0f} s, validation mAP "
        f"{training['validation']:.3f}; the set's CARD reports Recall@1 {CARD:.3f} from audio to image."
    )
    draw(test, embeds["frozen trunk"], options.output / "found.png")
    console.print(f"Written: scores.csv and found.png in {options.output}")


if __name__ == "__main__":
    main()
