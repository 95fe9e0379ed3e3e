"""Small samples of every modality as files and tables, as people have them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from meta_transformer.registry import MODALITIES


def write_texts(folder: Path, count: int = 8) -> Path:
    """Texts that tell apart at a glance: `<class>/<number>.txt`."""
    for name, word in (("cat", "meow"), ("dog", "woof")):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"{number}.txt").write_text(f"{word} " * (1 + number % 3))
    return folder


def write_samples(modality: str, folder: Path, count: int = 8) -> tuple[Path, list[str]]:
    """Samples of two classes at random as people have them, and what `train` has to be told of them."""
    samples = MODALITIES[modality].processor_class().dummy_samples(count)
    if modality == "tabular":
        samples.assign(label=["a", "b"] * (count // 2)).to_csv(folder / "table.csv", index=False)
        return folder / "table.csv", []
    if modality == "graph":
        smiles = ["CCO", "CCN", "c1ccccc1", "CC(=O)O"] * (count // 4)
        pd.DataFrame({"smiles": smiles, "label": ["a", "b"] * (count // 2)}).to_csv(folder / "table.csv", index=False)
        return folder / "table.csv", []
    for number, sample in enumerate(samples):
        path = folder / "files" / "ab"[number % 2] / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        _WRITERS.get(modality, _write_array)(path, sample)
    return folder / "files", ["--call", "imu_sampling_rate=50"] if modality == "imu" else []


def _write_sound(path: Path, wave: np.ndarray) -> None:
    import soundfile

    soundfile.write(path.with_suffix(".wav"), wave, 16_000)


def _write_picture(path: Path, picture: np.ndarray) -> None:
    from PIL import Image

    picture = np.asarray(picture)
    picture = (255 * picture).astype(np.uint8) if picture.dtype.kind == "f" else picture.astype(np.uint8)
    Image.fromarray(np.moveaxis(picture, 0, -1).squeeze()).save(path.with_suffix(".png"))


def _write_clip(path: Path, clip: np.ndarray) -> None:
    from PIL import Image

    frames = [Image.fromarray(frame) for frame in clip]
    frames[0].save(path.with_suffix(".gif"), save_all=True, append_images=frames[1:], duration=40)


def _write_series(path: Path, values: np.ndarray) -> None:
    values = np.asarray(values)
    columns = [f"channel_{number}" for number in range(values.shape[1])]
    pd.DataFrame(values, columns=columns).to_csv(path.with_suffix(".csv"), index=False)


def _write_recording(path: Path, values: Any) -> None:
    columns = [f"{sensor}_{axis}" for sensor in ("accelerometer", "gyroscope") for axis in "xyz"]
    values = values["values"] if isinstance(values, dict) else values
    pd.DataFrame(np.asarray(values), columns=columns).to_csv(path.with_suffix(".csv"), index=False)


def _write_array(path: Path, values: Any) -> None:
    values = values["array"] if isinstance(values, dict) and "array" in values else values
    np.save(path.with_suffix(".npy"), np.asarray(values))


_WRITERS: dict[str, Callable[[Path, Any], None]] = {
    "audio": _write_sound,
    "image": _write_picture,
    "infrared": _write_picture,
    "xray": _write_picture,
    "video": _write_clip,
    "text": lambda path, text: path.with_suffix(".txt").write_text(text),
    "time_series": _write_series,
    "imu": _write_recording,
}
