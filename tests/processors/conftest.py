"""What several processors are tested on."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Sentences of reviews, or generated ones where there is no data."""
    data = os.environ.get("META_TRANSFORMER_DATA")
    if data:
        return pd.read_csv(Path(data) / "text/sst2/data.csv", nrows=300)["text"].tolist()
    random = np.random.default_rng(0)
    words = ["naïve", *("".join(random.choice(list("aeilnorst"), size=random.integers(2, 9))) for _ in range(200))]
    return [" ".join(random.choice(words, size=random.integers(3, 30))) for _ in range(300)]
