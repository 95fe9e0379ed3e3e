"""Patches of a hyperspectral scene beside SpectralFormer's way of making them, in time and in memory."""

import tracemalloc

import numpy as np

from meta_transformer.scenes import Patches, patches_of

from .bars import Bar, in_turns

HEIGHT, WIDTH, BANDS = 145, 145, 200  # Indian Pines
PIXELS, PATCH, GROUP, BATCH = 2000, 7, 3, 256


def measure(repeats: int) -> list[Bar]:
    """Time of patches, and of patches with neighbouring bands; memory while all pixels of the scene pass by."""
    random = np.random.default_rng(0)
    cube = random.uniform(size=(HEIGHT, WIDTH, BANDS)).astype(np.float32)
    pixels = random.integers(0, HEIGHT, size=(PIXELS, 2))
    np.testing.assert_array_equal(gather(patches_of(cube, pixels, PATCH)), loop(cube, pixels).astype(np.float32))
    plain = in_turns(repeats, lambda: gather(patches_of(cube, pixels, PATCH)), lambda: loop(cube, pixels))
    groups = in_turns(repeats, lambda: gather(patches_of(cube, pixels, PATCH)), lambda: expand(loop(cube, pixels)))
    peaks = [float(peak_memory()) for _ in range(repeats)]
    return [
        Bar(
            f"{PIXELS} patches of {PATCH} x {PATCH} from {HEIGHT} x {WIDTH} x {BANDS}",
            "SpectralFormer's loop over pixels",
            *plain,
            needed=1.0,
            note="both mirror the borders and make every patch; ours float32 as the cube, the loop float64 as there",
        ),
        Bar(
            f"the same, with {GROUP} neighbouring bands for each token",
            "SpectralFormer's loop, then its copies of neighbouring bands",
            *groups,
            needed=5.0,
            note="ours copies no bands: the tokenizer's convolution reads neighbours where they are",
        ),
        Bar(
            f"peak memory while all {HEIGHT * WIDTH} pixels pass in batches of {BATCH}",
            "four times the cube",
            ours_seconds=peaks,
            peer_seconds=[4.0 * cube.nbytes] * repeats,
            needed=1.0,
            unit="MB",
            note="the cube is counted, in the order of dimensions in which scipy reads MATLAB files",
        ),
    ]


def gather(patches: Patches) -> np.ndarray:
    """All patches, as one batch."""
    return patches[:]


def loop(cube: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Patches `(pixels, patch, patch, bands)` one by one, from a copy of the cube with mirrored borders."""
    padded = np.pad(cube, ((PATCH // 2,) * 2, (PATCH // 2,) * 2, (0, 0)), mode="symmetric")
    patches = np.zeros((len(pixels), PATCH, PATCH, cube.shape[2]))
    for number, (row, column) in enumerate(pixels):
        patches[number] = padded[row : row + PATCH, column : column + PATCH]
    return patches


def expand(patches: np.ndarray) -> np.ndarray:
    """Each band with its neighbours, `(pixels, group * patch * patch, bands)`, round the ends of the spectrum."""
    flat = patches.reshape(len(patches), PATCH * PATCH, -1)
    half = GROUP // 2
    groups = np.zeros((len(flat), GROUP * PATCH * PATCH, flat.shape[2]))
    for place, shift in enumerate(range(half, -half - 1, -1)):
        groups[:, place * PATCH * PATCH : (place + 1) * PATCH * PATCH] = np.roll(flat, shift, axis=2)
    return groups


def peak_memory() -> int:
    """Most bytes that numpy holds at once, from before the cube is made until the last batch."""
    tracemalloc.start()
    cube = np.zeros((HEIGHT, WIDTH, BANDS), np.float32, order="F")
    patches = patches_of(cube, np.ones((HEIGHT, WIDTH), bool), PATCH)
    for start in range(0, len(patches), BATCH):
        patches[start : start + BATCH].sum()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak
