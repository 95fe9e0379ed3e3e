"""Digits spoken and written, in pairs: the data that examples of several modalities share."""

from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch
from PIL import Image

from meta_transformer import MetaTransformerProcessor
from meta_transformer.processors.audio import AudioProcessor
from meta_transformer.processors.image import ImageProcessor

RATE = 8000
TOKENIZERS = {
    "image": {"patch_size": 8, "image_size": 32, "patch_embedding": "convolutional"},
    "audio": {"patch_size": [64, 8], "stride": [64, 4]},  # all mel bins of 80 ms, one every 40 ms
}


def read(data: Path) -> dict[str, pd.DataFrame]:
    """The splits, each a row a pair: `audio` `(samples,)`, `image` `(32, 32)`, `label`."""
    folder = data / "paired/spoken_written_digits"
    table = pd.read_csv(folder / "pairs.csv")
    table["audio"] = [soundfile.read(folder / path, dtype="float32")[0] for path in table["audio"]]
    table["image"] = [np.asarray(Image.open(folder / path)) for path in table["image"]]
    return {split: part.reset_index(drop=True) for split, part in table.groupby("split")}


def make_processor(train: pd.DataFrame) -> MetaTransformerProcessor:
    """Fitted to the pairs of training."""
    listen = AudioProcessor(sampling_rate=RATE, num_mel_bins=64).fit(list(train["audio"]), sampling_rate=RATE)
    look = ImageProcessor(num_channels=1, image_mean=[0.3], image_std=[0.35])
    return MetaTransformerProcessor(audio=listen, image=look)


def shifted(image: np.ndarray, most: int = 2) -> np.ndarray:
    """Moved by some pixels; edges are repeated."""
    top, left = torch.randint(2 * most + 1, (2,)).tolist()
    height, width = image.shape
    return np.pad(image, most, mode="edge")[top : top + height, left : left + width]


def disturbed(wave: np.ndarray) -> np.ndarray:
    """Up to a tenth faster or slower, and with noise at 30 to 50 dB below the voice."""
    length = int(len(wave) * (0.9 + 0.2 * float(torch.rand(()))))
    resampled = np.interp(np.linspace(0, len(wave) - 1, length), np.arange(len(wave)), wave)
    noise = float(resampled.std()) * 10 ** (-1.5 - float(torch.rand(())))
    return (resampled + noise * torch.randn(length).numpy()).astype(np.float32)
