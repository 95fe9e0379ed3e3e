"""Recordings of inertial sensors, made here, and a processor that leaves their values alone."""

from typing import Any

import numpy as np

from meta_transformer.processors.imu import ImuProcessor

COLUMNS = ["x_acc", "y_acc", "z_acc", "x_gyro", "y_gyro", "z_gyro"]


def raw(**options: Any) -> ImuProcessor:
    """A processor that leaves values in SI units as they are."""
    count = 3 * len(options.get("sensors", ("accelerometer", "gyroscope")))
    return ImuProcessor(means=[0.0] * count, stds=[1.0] * count, **options)


def values(samples: Any, rate: float | None = None, **options: Any) -> np.ndarray:
    return raw(**options)(samples, imu_sampling_rate=rate)["imu_values"].numpy()


def waves(seconds: float, rate: float, hertz: float = 2.0) -> np.ndarray:
    """Six sines of different phase on an offset, `(steps, 6)`."""
    time = np.arange(round(seconds * rate)) / rate
    return 9.8 + np.sin(2 * np.pi * hertz * time[:, None] + np.arange(6))
