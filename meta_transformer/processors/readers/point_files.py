"""Reading of point clouds: files, tables and meshes to coordinates and named channels."""

import re
from collections.abc import Callable, Mapping
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ...extras import needs
from .arrays import to_array

__all__ = ["RawCloud", "decode", "is_table", "to_unit_range"]

# Under these names a dict or a file may hold the coordinates.
_COORDINATES = ("points", "xyz", "coordinates", "coords", "pos", "positions", "vertices")
# Columns that belong together, and the names under which people keep them side by side.
_GROUPS = {"colors": ("red", "green", "blue"), "normals": ("nx", "ny", "nz")}
_ALIASES = {"colours": "colors", "color": "colors", "colour": "colors", "rgb": "colors", "normal": "normals"}
_MAGIC = {b"ply": ".ply", b"OFF": ".off", b"LASF": ".las", b"\x93NUMPY": ".npy", b"PK": ".npz"}
_TEXT = (".xyz", ".txt", ".csv", ".asc", ".pts")


class RawCloud(NamedTuple):
    """A cloud as it came.

    Attributes:
        coordinates: `(points, 3)` float64.
        channels: By name, `(points, columns)` as stored, see `to_unit_range`. Those under `"features"` have no names of
            their own.
    """

    coordinates: np.ndarray
    channels: dict[str, np.ndarray]


def decode(sample: Any, mesh_points: int | None, seed: int) -> RawCloud:
    """One sample of any kind to coordinates and channels.

    Args:
        sample: As of `PointCloudProcessor.__call__`.
        mesh_points: How many points are drawn from the surface of a mesh; `None` takes its vertices.
        seed: Of that drawing.

    Returns:
        The cloud, not empty; its values are not checked otherwise.

    Raises:
        ValueError: It cannot be read, has other shapes or lacks coordinates.
        TypeError: It is of another type.
        ImportError: A package that reads this kind of file is not installed.
    """
    if isinstance(sample, Mapping) and not set(sample) - {"bytes", "path"}:  # of a column of a `datasets` data set
        contents, path = sample.get("bytes"), sample.get("path")
        source = contents or path
        if source is None or not isinstance(contents, bytes | None) or not isinstance(path, str | PathLike | None):
            raise ValueError(f"a dict must hold points, bytes or a path, got {dict(sample)!r:.100}.")
        sample = _read(source, Path(path).suffix if path else None)
    elif isinstance(sample, str | PathLike | bytes):
        sample = _read(sample)
    if hasattr(sample, "vertices"):  # trimesh's mesh or PointCloud
        sample = _mesh(sample, mesh_points, seed)
    if is_table(sample):
        table: Any = sample
        sample = {name: table[name].to_numpy() for name in table.columns}
    if isinstance(sample, np.ndarray) and sample.dtype.names:
        sample = {name: sample[name] for name in sample.dtype.names}
    if isinstance(sample, Mapping):
        return _from_channels({name: value for name, value in sample.items() if value is not None})
    if not isinstance(sample, np.ndarray | Tensor | list | tuple):
        raise TypeError(
            "a cloud must be a path, bytes, a dict with 'points', a mesh, a table, a numpy or torch array or a list of "
            f"points, got {type(sample).__name__}."
        )
    return _from_array(_numbers(sample, "points"))


def is_table(sample: Any) -> bool:
    """Whether this is a pandas DataFrame, or another table with its manners."""
    return hasattr(sample, "columns") and hasattr(sample, "to_numpy")


def _from_array(array: np.ndarray) -> RawCloud:
    """Columns x, y, z, and features that have no name."""
    if array.ndim != 2 or array.shape[1] < 3 or len(array) == 0:
        raise ValueError(
            f"a cloud must have shape (points, 3 + features) with a point or more, got {array.shape}; give several "
            "clouds as a list."
        )
    rest = {"features": array[:, 3:]} if array.shape[1] > 3 else {}
    return RawCloud(array[:, :3].astype(np.float64), rest)


def _from_channels(values: Mapping[Any, Any]) -> RawCloud:
    """Coordinates under one of their names or as columns x, y and z, and all else that has a value for each point."""
    channels = {str(name): value for name, value in values.items()}
    lower = {name.lower(): name for name in channels}
    if {"x", "y", "z"} <= lower.keys():
        columns = [_numbers(channels.pop(lower[axis]), axis).reshape(-1, 1) for axis in "xyz"]
        if len({len(column) for column in columns}) > 1:
            raise ValueError(f"x, y and z have different lengths, {[len(column) for column in columns]}.")
        coordinates, own = _from_array(np.concatenate(columns, axis=1))
    else:
        names = [name for name in _COORDINATES if name in channels]
        if len(names) != 1:
            raise ValueError(
                f"a dict must hold the coordinates under one of {list(_COORDINATES)}, or as x, y and z, got "
                f"{sorted(channels)}."
            )
        coordinates, own = _from_array(_numbers(channels.pop(names[0]), names[0]))
    found = dict(own)
    for name, value in channels.items():
        array = _channel(value, len(coordinates))
        if array is not None:
            found[_ALIASES.get(name.lower(), name)] = array
        elif name == "features" or _ALIASES.get(name.lower(), name) in _GROUPS:
            raise ValueError(f"{name!r} must have one row of numbers for each of the {len(coordinates)} points.")
    for name, members in _GROUPS.items():
        lower = {key.lower(): key for key in found}
        if set(members) <= lower.keys() and name not in found:
            found[name] = np.concatenate([found.pop(lower[member]) for member in members], axis=1)
    return RawCloud(coordinates, found)


def _channel(value: Any, count: int) -> np.ndarray | None:
    """A value for each point as `(points, columns)`; `None` for what is none, such as a label or a file's name."""
    try:
        array = _numbers(value, "channel")
    except (TypeError, ValueError):
        return None
    array = array[:, None] if array.ndim == 1 else array
    return array if array.ndim == 2 and len(array) == count else None


def to_unit_range(values: np.ndarray, name: str) -> np.ndarray:
    """Integers whose range is known to 0..1; all else as it is.

    That is of unsigned integers of 8 and 16 bits, by their type, and of colours: where the type is another, as in lists
    and tables, they are of 8 bits.

    Raises:
        ValueError: Such colours that are not of 8 bits.
    """
    if values.dtype in (np.uint8, np.uint16):
        return values / np.iinfo(values.dtype).max
    if values.dtype.kind not in "iu" or name.lower() not in ("colors", *_GROUPS["colors"]):
        return values
    if ((values < 0) | (values > 255)).any():
        raise ValueError(
            f"{name} must be whole numbers from 0 to 255, got {values.min()} to {values.max()}; give others as uint16 "
            "or as floats from 0 to 1."
        )
    return values / 255


def _numbers(value: Any, name: str) -> np.ndarray:
    try:
        array = to_array(value)
    except ValueError as error:
        raise ValueError(f"{name} must be a table of equal rows: {error}.") from error
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must be real numbers, got values of type {array.dtype}.")
    return array


def _mesh(mesh: Any, mesh_points: int | None, seed: int) -> np.ndarray | dict[str, np.ndarray]:
    """Points drawn evenly from the surface of a mesh, each with the normal of its face; or the vertices."""
    vertices, faces = np.asarray(mesh.vertices, np.float64), np.asarray(getattr(mesh, "faces", ()))
    if mesh_points is None or len(faces) == 0:
        return vertices
    origin, first, second = (vertices[faces[:, corner]] for corner in range(3))
    first, second = first - origin, second - origin
    normals = np.cross(first, second)
    lengths = np.linalg.norm(normals, axis=1)  # twice the areas
    total = lengths.sum()
    if not np.isfinite(total) or total == 0:
        raise ValueError(
            f"the faces of the mesh have a total area of {total / 2}; set mesh_points=None for its vertices."
        )
    random = np.random.default_rng(seed)
    face = random.choice(len(faces), size=mesh_points, p=lengths / total)
    u, v = random.random((2, mesh_points, 1))
    beyond = u + v > 1  # the other half of the parallelogram is folded back onto the triangle
    u, v = np.where(beyond, 1 - u, u), np.where(beyond, 1 - v, v)
    return {
        "points": origin[face] + u * first[face] + v * second[face],
        "normals": normals[face] / lengths[face, None],
    }


def _read(source: str | PathLike | bytes, suffix: str | None = None) -> Any:
    """What a file or its bytes hold, as `decode` takes it."""
    if isinstance(source, bytes):
        name, stream = f"{len(source)} bytes", BytesIO(source)
        suffix = suffix or next((kind for magic, kind in _MAGIC.items() if source.startswith(magic)), ".txt")
    else:
        name, path = repr(str(source)), Path(source)
        if not path.is_file():
            raise ValueError(f"there is no file {name}.")
        suffix, stream = path.suffix, path.open("rb")
    suffix = suffix.lower()
    with stream:
        reader = _READERS.get(suffix)
        if reader is None:
            raise ValueError(f"cannot read {name}: {suffix!r} is none of the known kinds, {sorted(_READERS)}.")
        try:
            return reader(stream, suffix)
        except ImportError:
            raise
        except Exception as error:  # each of the libraries has exceptions of its own
            raise ValueError(f"cannot read {name} as a {suffix} file: {error}") from error


def _read_numpy(stream: Any, suffix: str) -> Any:
    loaded = np.load(stream, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return loaded
    arrays = {name: loaded[name] for name in loaded.files}
    return next(iter(arrays.values())) if len(arrays) == 1 else arrays


def _read_text(stream: Any, suffix: str) -> np.ndarray | dict[str, np.ndarray]:
    """A point a line, perhaps after a line with their number, as Leica's have it, and one with the columns' names."""
    lines = stream.read().decode("utf-8-sig").replace("//", "#").splitlines()
    lines = [line for line in (line.split("#")[0].strip() for line in lines) if line]
    if lines and lines[0].isdigit():
        del lines[0]
    names = _header(lines[0]) if lines else []
    if names:
        del lines[0]
    if not lines:
        raise ValueError("it holds no point.")
    table = np.loadtxt([line.replace(",", " ").replace(";", " ") for line in lines], ndmin=2)
    if not names:
        return table
    if len(set(names)) != table.shape[1]:
        raise ValueError(f"its header {names} must name each of the {table.shape[1]} columns once.")
    return dict(zip(names, table.T, strict=True))


def _header(line: str) -> list[str]:
    """The words of a line that does not begin with a number; else none."""
    words = [word.strip(" \t\"'") for word in (re.split("[,;]", line) if re.search("[,;]", line) else line.split())]
    try:
        float(words[0])
    except ValueError:
        return [word for word in words if word]
    return []


def _read_ply(stream: Any, suffix: str) -> dict[str, np.ndarray]:
    with needs("plyfile to read PLY files", "point_cloud"):
        from plyfile import PlyData
    vertices = PlyData.read(stream)["vertex"].data
    return {name: vertices[name] for name in vertices.dtype.names}


def _read_mesh(stream: Any, suffix: str) -> Any:
    with needs("trimesh to read meshes", "point_cloud"):
        import trimesh
    return trimesh.load_mesh(stream, file_type=suffix[1:], process=False)


def _read_las(stream: Any, suffix: str) -> dict[str, np.ndarray]:
    with needs("laspy to read LAS files", "point_cloud"):
        import laspy
    try:
        las = laspy.read(stream)
    except laspy.LaspyException as error:
        if "LazBackend" in str(error):
            raise ImportError('Compressed LAS files need lazrs: pip install "laspy[lazrs]"') from error
        raise
    names = [name for name in las.point_format.dimension_names if name not in ("X", "Y", "Z")]
    return {"points": np.asarray(las.xyz), **{name: np.asarray(las[name]) for name in names}}


_READERS: dict[str, Callable[[Any, str], Any]] = {
    ".npy": _read_numpy,
    ".npz": _read_numpy,
    ".ply": _read_ply,
    **dict.fromkeys((".off", ".obj", ".stl"), _read_mesh),
    **dict.fromkeys((".las", ".laz"), _read_las),
    **dict.fromkeys(_TEXT, _read_text),
}
