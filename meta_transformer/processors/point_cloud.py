"""Point clouds as people have them to padded coordinates: arrays, dicts, scans, meshes, `datasets` columns.

Leaves: `point_coordinates` `(batch, points, 3)`, normalised; `point_features` `(batch, points, channels)` if
`num_features` is not 0; and `point_mask` `(batch, points)`, true for points, if the clouds differ in their number.
"""

from collections.abc import Iterator, Mapping
from math import isfinite
from numbers import Integral, Real
from os import PathLike
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature

from .base import ModalityProcessor, errors_at, pad_to_longest, several
from .readers.point_files import RawCloud, decode, is_table, to_unit_range

__all__ = ["PointCloudProcessor"]

Normalization = Literal["unit_sphere", "center"]
Sampling = Literal["random", "farthest"]

_WIDTHS = {"colors": 3, "normals": 3}  # columns of these channels; any other has one
_KNOWN = ("colors", "normals", "intensity")  # taken without being named, if they are as many as are asked for
_LARGEST = 1e15  # float32 holds the squares of distances up to here


class PointCloudProcessor(ModalityProcessor):
    """Read, pick channels, normalise, cap the number of points, pad.

    Args:
        num_features: Columns beside x, y and z that every point has; by default as many as `feature_names` stand for.
        feature_names: Channels of dicts, tables and files to take, in this order: `"colors"` (red, green, blue),
            `"normals"` (nx, ny, nz), `"intensity"` or any name that is there. `None`: `"features"`, or else those
            of the three that are there.
        normalization: `"unit_sphere"`: the mean of the points becomes 0, the farthest point lies at a distance of 1.
            `"center"`: the mean becomes 0, the unit stays. `None`: neither.
        scale: What coordinates are multiplied by afterwards. Groups of about 1 across are best.
        max_points: Larger clouds are reduced to so many points; `None` keeps them all.
        sampling: How: `"random"` points in their order, or `"farthest"` points, which are spread evenly and do not
            depend on `seed`.
        mesh_points: Points drawn from the surface of a mesh, with normals; `None` takes its vertices.
        seed: Of both kinds of drawing. Each cloud is drawn from anew, so that it has the same points in any batch.
        feature_mean: Mean of each feature, set by `fit`.
        feature_std: Standard deviation of each feature, set by `fit`.
    """

    num_features: int
    feature_names: list[str] | None
    normalization: Normalization | None
    scale: float
    max_points: int | None
    sampling: Sampling
    mesh_points: int | None
    seed: int
    feature_mean: list[float] | None
    feature_std: list[float] | None

    def __init__(
        self,
        *,
        num_features: int | None = None,
        feature_names: list[str] | None = None,
        normalization: Normalization | None = "unit_sphere",
        scale: float = 1.0,
        max_points: int | None = None,
        sampling: Sampling = "random",
        mesh_points: int | None = 1024,
        seed: int = 0,
        feature_mean: list[float] | None = None,
        feature_std: list[float] | None = None,
        **kwargs: Any,
    ) -> None:
        if feature_names is not None:
            if isinstance(feature_names, str) or not all(isinstance(name, str) for name in feature_names):
                raise TypeError(f"feature_names must be a list of names, got {feature_names!r}.")
            feature_names = list(feature_names)
        if num_features is None:
            num_features = sum(_WIDTHS.get(name, 1) for name in feature_names or [])
        _check_integer("num_features", num_features, 0)
        _check_integer("seed", seed, 0)
        for name, value in (("max_points", max_points), ("mesh_points", mesh_points)):
            if value is not None:
                _check_integer(name, value, 1)
        for name, value, options in (
            ("normalization", normalization, (*get_args(Normalization), None)),
            ("sampling", sampling, get_args(Sampling)),
        ):
            if value not in options:
                raise ValueError(f"{name} must be one of {list(options)}, got {value!r}.")
        if not isinstance(scale, Real) or not isfinite(scale) or scale <= 0:
            raise ValueError(f"scale must be a positive number, got {scale!r}.")
        for name, values in (("feature_mean", feature_mean), ("feature_std", feature_std)):
            if values is not None and (len(values) != num_features or not all(map(isfinite, values))):
                raise ValueError(f"{name} must hold num_features={num_features} finite numbers, got {values!r}.")
        if (feature_mean is None) != (feature_std is None) or min(feature_std or [1]) <= 0:
            raise ValueError(f"feature_std must be positive and come with feature_mean, got {feature_std!r}.")
        super().__init__(
            num_features=int(num_features),
            feature_names=feature_names,
            normalization=normalization,
            scale=float(scale),
            max_points=max_points,
            sampling=sampling,
            mesh_points=mesh_points,
            seed=seed,
            feature_mean=feature_mean,
            feature_std=feature_std,
            **kwargs,
        )

    def tokenizer_config(self) -> dict[str, Any]:
        return {"num_features": self.num_features}

    def __call__(self, samples: Any, *, seed: int | None = None, return_tensors: str | None = "pt") -> BatchFeature:
        """Process one cloud or a list of clouds, of any sizes.

        Args:
            samples: Each an array, tensor or list `(points, 3 + features)`; a dict with the coordinates under
                `"points"` (or `"xyz"`, `"pos"` and the like, or `"x"`, `"y"`, `"z"`) and channels beside them; a pandas
                table or structured array with such columns; a trimesh mesh; or the path or bytes of a file: NPY, NPZ,
                PLY, LAS, LAZ, a mesh as OFF, OBJ or STL, text with a point a line (XYZ, TXT, CSV, ASC, PTS). An array
                of three dimensions is a batch.
            seed: Instead of the setting, such as another one for each epoch.
            return_tensors: `"pt"` or `"np"`.

        Returns:
            The tensors of the module's description.

        Raises:
            ValueError: No cloud, no point, an unreadable file, NaN, infinity, values beyond 1e15, or other features
                than the settings ask for.
            TypeError: A sample of another type.
        """
        if seed is not None:
            _check_integer("seed", seed, 0)
        pairs = list(self._clouds(samples, self.seed if seed is None else seed, standardized=True))
        coordinates, mask = pad_to_longest([coordinates for coordinates, _ in pairs])
        data = {"point_coordinates": coordinates.numpy()}
        if self.num_features:
            data["point_features"] = pad_to_longest([features.float() for _, features in pairs])[0].numpy()
        if mask is not None:
            data["point_mask"] = mask.numpy()
        return BatchFeature(data, tensor_type=return_tensors)

    def fit(self, samples: Any) -> "PointCloudProcessor":
        """Learn the mean and standard deviation of each feature over all points; without features, nothing.

        Args:
            samples: As of `__call__`; an iterator is consumed cloud by cloud.

        Returns:
            This processor, which then gives features of mean 0 and standard deviation 1. A feature that never changes
            is left at 0.

        Raises:
            ValueError: As `__call__`.
            TypeError: As `__call__`.
        """
        count, mean, squares = 0, np.zeros(self.num_features), np.zeros(self.num_features)
        for _, features in self._clouds(samples, self.seed, standardized=False):
            values = features.numpy()
            # Chan, Golub and LeVeque 1983, equation 2.1: no difference of large sums, whatever the mean is.
            step = values.mean(axis=0) - mean
            share = len(values) / (count + len(values))
            squares += ((values - values.mean(axis=0)) ** 2).sum(axis=0) + step**2 * count * share
            mean += step * share
            count += len(values)
        if self.num_features:
            std = np.sqrt(squares / count)
            self.feature_mean = mean.tolist()
            # Not std > 0: rounding of the mean leaves a little deviation in a constant feature.
            self.feature_std = np.where(std > 1e-12 * np.abs(mean), std, 1.0).tolist()
        return self

    def _clouds(self, samples: Any, seed: int, *, standardized: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Of one cloud after the other, coordinates in float32 and features in float64, each `(points, ...)`."""
        for index, sample in enumerate(_one_by_one(samples)):
            with errors_at(f"point_cloud[{index}]"):
                cloud = decode(sample, self.mesh_points, seed)
                coordinates = torch.from_numpy(self._normalized(cloud.coordinates).astype(np.float32))
                features = torch.from_numpy(self._features(cloud, standardized))
            keep = self._keep(coordinates, seed)
            yield coordinates[keep], features[keep]

    def _normalized(self, coordinates: np.ndarray) -> np.ndarray:
        """`(points, 3)` in float64, so that metres of a national grid keep their millimetres until they are centred."""
        if not (np.abs(coordinates) <= _LARGEST).all():
            raise ValueError(
                "the coordinates hold NaN, infinity or values beyond 1e15; leave such points out, as with "
                "cloud[np.isfinite(cloud).all(axis=1)]."
            )
        if self.normalization is not None:
            coordinates = coordinates - coordinates.mean(axis=0)
        if self.normalization == "unit_sphere":
            radius = np.sqrt((coordinates**2).sum(axis=1).max())
            coordinates = coordinates / radius if radius > 0 else coordinates
        coordinates = coordinates * self.scale
        if np.abs(coordinates).max() > _LARGEST:
            raise ValueError(f"coordinates times scale {self.scale} lie beyond 1e15; use a smaller scale.")
        return coordinates

    def _features(self, cloud: RawCloud, standardized: bool) -> np.ndarray:
        """`(points, num_features)` in float64."""
        names = self.feature_names
        if names is None:
            known = [name for name in cloud.channels if name in _KNOWN and self.num_features]
            names = ["features"] if "features" in cloud.channels else known
        elif not set(names) & set(cloud.channels) and list(cloud.channels) == ["features"]:
            names = ["features"]  # an array, whose columns are the named ones in their order
        if missing := [name for name in names if name not in cloud.channels]:
            raise ValueError(f"the cloud has no channel {missing}, only {sorted(cloud.channels)}; see feature_names.")
        columns = [to_unit_range(cloud.channels[name], name) for name in names]
        width = sum(column.shape[1] for column in columns)
        if width != self.num_features:
            raise ValueError(
                f"the cloud has {width} features beside x, y and z ({names}), but num_features is {self.num_features}. "
                f"Set num_features={width}, leave columns out, or name those to take in feature_names; there are "
                f"{ {name: column.shape[1] for name, column in cloud.channels.items()} }."
            )
        features = np.concatenate([np.zeros((len(cloud.coordinates), 0)), *columns], axis=1)
        if standardized and self.feature_mean is not None:
            with np.errstate(over="ignore"):  # refused below
                features = (features - np.array(self.feature_mean)) / np.array(self.feature_std)
        if not (np.abs(features) <= _LARGEST).all():
            raise ValueError(f"the features ({names}) hold NaN, infinity or values beyond 1e15; replace them first.")
        return features

    def _keep(self, coordinates: Tensor, seed: int) -> Tensor | slice:
        """The points that stay."""
        if self.max_points is None or len(coordinates) <= self.max_points:
            return slice(None)
        if self.sampling == "farthest":
            from ..geometry import farthest_point_sampling

            return farthest_point_sampling(coordinates[None], self.max_points)[0]
        chosen = np.random.default_rng(seed).choice(len(coordinates), size=self.max_points, replace=False)
        return torch.from_numpy(np.sort(chosen))

    def dummy_samples(self, batch_size: int, seed: int = 0) -> list[np.ndarray]:
        # Lines and planes in turn: clouds without any shape would look alike to whatever is trained on them.
        random = np.random.default_rng(seed)
        clouds = []
        for index, size in enumerate(random.integers(40, 81, size=batch_size)):
            points = random.normal(size=(size, 3)) * [1, 0.05 if index % 2 == 0 else 1, 0.05]
            features = random.normal(size=(size, self.num_features))
            clouds.append(np.concatenate([points, features], axis=1).astype(np.float32))
        return clouds


def _check_integer(name: str, value: Any, least: int) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")


def _one_by_one(samples: Any) -> Iterator[Any]:
    """The clouds of `samples`, be it one cloud, a sequence or an iterator."""
    array = isinstance(samples, np.ndarray | Tensor) and samples.dtype != object
    mesh_or_table = hasattr(samples, "vertices") or is_table(samples)
    if isinstance(samples, str | PathLike | bytes | Mapping) or mesh_or_table or (array and samples.ndim != 3):
        yield samples
        return
    first, clouds = several(samples, "point_cloud")
    yield from [list(clouds)] if _is_point(first) else clouds


def _is_point(value: Any) -> bool:
    """Whether the first item of a list is a point, so that the list is one cloud."""
    if isinstance(value, np.ndarray | Tensor):
        return value.ndim == 1 and getattr(value.dtype, "names", None) is None
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Real)
