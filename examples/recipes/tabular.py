"""Adult (1994 census): does a person earn more than 50,000 dollars? A table of 14 columns with missing cells."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder

from meta_transformer.processors.tabular import TabularProcessor

from .base import Recipe, Split
from .metrics import area_under_curve


def recipe(data: Path) -> Recipe:
    """Piecewise-linear numbers, one token a column."""
    table = pd.read_csv(data / "tabular/adult/adult.csv", na_values="?")
    parts = {name: part.drop(columns=["split", "income"]) for name, part in table.groupby("split")}
    labels = {name: (part["income"] == ">50K").astype(int).tolist() for name, part in table.groupby("split")}
    splits = {name: Split(part.to_dict("records"), labels[name]) for name, part in parts.items()}
    return Recipe(
        modality="tabular",
        dataset="tabular/adult",
        train=splits["train"],
        validation=splits["val"],
        test=splits["test"],
        processor=TabularProcessor().fit(parts["train"]),
        metric="AUC",
        score=area_under_curve,
        card=("gradient boosting", 0.920),
        baseline=partial(_boosting, parts, labels),
        classes=["<=50K", ">50K"],
        tokenizer={"numerical_embedding": "piecewise_linear"},
        epochs=8,
        learning_rate=1e-3,
        batch_size=128,
    )


def _boosting(parts: dict[str, pd.DataFrame], labels: dict[str, list[int]]) -> float:
    encode = make_column_transformer(
        (
            OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
            make_column_selector(dtype_exclude="number"),
        ),
        remainder="passthrough",
    )
    model = make_pipeline(encode, HistGradientBoostingClassifier(random_state=0)).fit(parts["train"], labels["train"])
    return area_under_curve(np.array(labels["test"]), model.predict_proba(parts["test"]))
