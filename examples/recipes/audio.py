"""Free Spoken Digit Dataset: which digit is said? Recordings of 0.3 to 1 second by six speakers, at 8 kHz."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor
from torchaudio.functional import mask_along_axis
from torchaudio.transforms import MFCC

from meta_transformer.processors.audio import AudioProcessor

from .base import Recipe, Split, splits_of
from .metrics import accuracy


def recipe(data: Path) -> Recipe:
    """All mel bins of 80 ms are a token, one every 40 ms."""
    folder = data / "audio/fsdd_small"
    table = pd.read_csv(folder / "labels.csv")
    table["wave"] = [soundfile.read(folder / path, dtype="float32")[0] for path in table["path"]]
    splits = splits_of(table, "wave", list(range(10)))
    rate = int(table["sample_rate"][0])
    return Recipe(
        modality="audio",
        dataset="audio/fsdd_small",
        train=splits["train"],
        validation=splits["val"],
        test=splits["test"],
        processor=AudioProcessor(sampling_rate=rate, num_mel_bins=64).fit(splits["train"].samples, sampling_rate=rate),
        metric="accuracy",
        score=accuracy,
        card=("SVM on MFCC statistics", 0.990),
        baseline=partial(_mfcc_svm, splits, rate),
        tokenizer={"patch_size": [64, 8], "stride": [64, 4]},
        call={"sampling_rate": rate},
        epochs=20,
        learning_rate=4e-3,
        batch_size=32,
        label_smoothing=0.1,
        augment=mask_spectrogram,
    )


def mask_spectrogram(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """SpecAugment (Park et al. 2019): a band of up to 12 mel bins and a stretch of up to 10 frames become the mean."""
    features = batch["input_features"].clone()
    features = mask_along_axis(features, mask_param=12, mask_value=0.0, axis=2)
    features = mask_along_axis(features, mask_param=10, mask_value=0.0, axis=1)
    return {**batch, "input_features": features + 0.1 * torch.randn_like(features)}


def _mfcc_svm(splits: dict[str, Split], rate: int) -> float:
    transform = MFCC(rate, n_mfcc=20, melkwargs={"n_fft": 256, "hop_length": 80, "n_mels": 40})

    def statistics(split: Split) -> np.ndarray:
        coefficients = [transform(torch.from_numpy(wave)).numpy() for wave in split.samples]
        return np.stack([np.concatenate([each.mean(axis=1), each.std(axis=1)]) for each in coefficients])

    model = make_pipeline(StandardScaler(), SVC(C=10)).fit(statistics(splits["train"]), splits["train"].labels)
    return float(model.score(statistics(splits["test"]), splits["test"].labels))
