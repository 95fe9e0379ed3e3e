"""What several processors are tested on."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support.recordings import COLUMNS


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Sentences of reviews, or generated ones where there is no data."""
    data = os.environ.get("META_TRANSFORMER_DATA")
    if data:
        return pd.read_csv(Path(data) / "text/sst2/data.csv", nrows=300)["text"].tolist()
    random = np.random.default_rng(0)
    words = ["naïve", *("".join(random.choice(list("aeilnorst"), size=random.integers(2, 9))) for _ in range(200))]
    return [" ".join(random.choice(words, size=random.integers(3, 30))) for _ in range(300)]


@pytest.fixture(scope="session")
def recording() -> pd.DataFrame:
    """A walk of 10 seconds or more at about 100 Hz, with times in ms and labels; made up where there is no data."""
    if folder := os.environ.get("META_TRANSFORMER_DATA"):
        return pd.read_csv(Path(folder) / "imu/sp_sw_har/recordings/s01_01_sp.csv")
    random = np.random.default_rng(0)
    steps = np.arange(1200)
    values = np.sin(steps[:, None] / random.uniform(5, 30, 6))
    values[:, 2] -= 9.8
    table = pd.DataFrame(values, columns=COLUMNS)
    times = 1657533977813 + (steps * 9.76).astype(int) + random.integers(-8, 9, len(steps))
    return table.assign(timestamp=np.sort(times), label=np.where(steps < 400, "SEATED", "WALKING"))


@pytest.fixture
def hourly() -> pd.DataFrame:
    """30 hours of two channels, of which the first misses a value."""
    index = pd.date_range("2023-12-31 20:00", periods=30, freq="h")
    values = np.random.default_rng(0).normal(size=(30, 2))
    values[3, 0] = np.nan
    return pd.DataFrame(values, index=index, columns=["load", "oil"])
