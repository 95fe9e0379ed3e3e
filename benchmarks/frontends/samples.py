"""Typical samples of every modality, made at random: what `share` measures on."""

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np

from meta_transformer.registry import MODALITIES

COUNT = 4
_random = np.random.default_rng(0)


def _processor(modality: str, **settings: Any) -> Any:
    return MODALITIES[modality].processor_class(**settings)


def _jpegs(mode: str) -> list[bytes]:
    """Smooth pictures of 224 x 224, which compress as photographs do."""
    from PIL import Image

    files = []
    for _ in range(COUNT):
        small = _random.integers(0, 256, size=(28, 28, 3) if mode == "RGB" else (28, 28), dtype=np.uint8)
        file = BytesIO()
        Image.fromarray(small, mode).resize((224, 224)).save(file, "JPEG")
        files.append(file.getvalue())
    return files


def _table() -> Any:
    import pandas as pd

    numbers = pd.DataFrame(_random.normal(size=(64, 6)), columns=[f"number {place}" for place in range(6)])
    for place in range(8):
        numbers[f"category {place}"] = _random.choice(["a", "b", "c", "d"], size=64)
    return numbers


def _molecules() -> list[dict[str, Any]]:
    """Trees of 24 nodes with 4 rings closed, with nine fields a node and three an edge, as OGB's molecules have."""
    graphs = []
    for _ in range(32):
        parents = [(child, int(_random.integers(max(0, child - 3), child))) for child in range(1, 24)]
        edges = np.array(parents + [(place, place + 5) for place in (0, 6, 12, 18)])
        graphs.append(
            {
                "edges": edges,
                "num_nodes": 24,
                "node_features": _random.integers(0, 5, size=(24, 9)),
                "edge_features": _random.integers(0, 3, size=(len(edges), 3)),
            }
        )
    return graphs


def _fitted(modality: str, samples: Any, call: dict[str, Any] | None = None, **settings: Any) -> tuple:
    return _processor(modality, **settings).fit(samples, **(call or {})), samples, call or {}


Typical = tuple[Any, Any, dict[str, Any]]

# The processor, the samples and the arguments of its call.
SAMPLES: dict[str, Callable[[], Typical]] = {
    "text": lambda: (_processor("text"), ["A sentence of about two hundred bytes, " * 5] * COUNT, {}),
    "image": lambda: (_processor("image"), _jpegs("RGB"), {}),
    "point_cloud": lambda: _fitted("point_cloud", list(_random.normal(size=(COUNT, 1024, 3)))),
    "audio": lambda: (
        _processor("audio"),
        list(_random.uniform(-0.5, 0.5, size=(COUNT, 80_000))),
        {"sampling_rate": 16_000},
    ),
    "video": lambda: (
        _processor("video", num_frames=8),
        list(_random.integers(0, 256, size=(2, 32, 224, 224, 3), dtype=np.uint8)),
        {"input_data_format": "channels_last"},
    ),
    "infrared": lambda: (_processor("infrared"), _jpegs("L"), {}),
    "hyperspectral": lambda: _fitted(
        "hyperspectral", list(_random.uniform(size=(COUNT, 7, 7, 200))), {"input_data_format": "channels_last"}
    ),
    "xray": lambda: (_processor("xray"), _jpegs("L"), {}),
    "time_series": lambda: _fitted("time_series", list(_random.normal(size=(COUNT, 96, 7)))),
    "tabular": lambda: _fitted("tabular", _table()),
    "graph": lambda: _fitted("graph", _molecules()),
    "imu": lambda: _fitted("imu", list(_random.normal(size=(COUNT, 400, 6))), {"imu_sampling_rate": 200}),
}
