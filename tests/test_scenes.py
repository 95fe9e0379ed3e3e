"""Patches of a scene against a loop over a padded cube, and maps of its classes."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.progress import track
from spectral.io import envi
from torch.utils.data import DataLoader, StackDataset
from tqdm import tqdm

from meta_transformer import MetaTransformerConfig, MetaTransformerForClassification, MetaTransformerProcessor
from meta_transformer.processors.hyperspectral import HyperspectralProcessor
from meta_transformer.scenes import patches_of, predict_scene


def scene(height: int = 9, width: int = 7, bands: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(500, 100, (height, width, bands)).astype(np.float32)


def by_loop(cube: np.ndarray, pixels: np.ndarray, size: int) -> np.ndarray:
    """As SpectralFormer's code makes patches: one by one out of a cube with mirrored borders, all at once."""
    before = size // 2
    width = (before, size - 1 - before)
    padded = np.pad(cube, (width, width, (0, 0)), mode="symmetric")
    return np.stack([padded[row : row + size, column : column + size] for row, column in pixels])


def everywhere(cube: np.ndarray) -> np.ndarray:
    return np.argwhere(np.ones(cube.shape[:2], bool))


@pytest.fixture(scope="module")
def trained() -> tuple[MetaTransformerForClassification, MetaTransformerProcessor]:
    torch.manual_seed(0)
    processor = MetaTransformerProcessor(hyperspectral=HyperspectralProcessor().fit(scene()))
    options = {**processor.hyperspectral.tokenizer_config(), "window_size": 3}
    config = MetaTransformerConfig.tiny(
        num_hidden_layers=1, modalities={"hyperspectral": options}, num_labels=4, initializer_range=0.2
    )
    return MetaTransformerForClassification(config), processor


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 11, 30])
def test_patches_equal_a_loop_over_the_padded_cube(size: int) -> None:
    cube = scene()
    pixels = everywhere(cube)
    patches = patches_of(cube, pixels, size)
    assert len(patches) == 63
    np.testing.assert_array_equal(patches[:], by_loop(cube, pixels, size))


def test_a_sequence_takes_every_kind_of_index() -> None:
    cube = scene()
    pixels = everywhere(cube)[::-1]
    patches, expected = patches_of(cube, pixels, 3), by_loop(cube, everywhere(cube)[::-1], 3)
    np.testing.assert_array_equal(patches[5], expected[5])
    np.testing.assert_array_equal(patches[-1], expected[-1])
    np.testing.assert_array_equal(patches[np.int64(3)], expected[3])
    np.testing.assert_array_equal(patches[10:40:3], expected[10:40:3])
    for index in ([4, 4, -2], np.array([0, 62]), np.arange(63) % 5 == 0, torch.tensor([1, 2])):
        np.testing.assert_array_equal(patches[index], expected[np.asarray(index)])
    assert patches[[]].shape == (0, 3, 3, 5)
    np.testing.assert_array_equal(np.stack(list(patches)), expected)
    with pytest.raises(IndexError):
        patches[63]
    with pytest.raises(TypeError):
        patches["first"]


def test_a_map_of_labels_chooses_pixels_and_keeps_their_labels() -> None:
    cube, labels = scene(), np.zeros((9, 7), np.uint8)
    labels[2, 3], labels[0, 6], labels[8, 0] = 4, 1, 2
    patches = patches_of(cube, labels, 3)
    assert patches.coordinates.tolist() == [[0, 6], [2, 3], [8, 0]]
    assert patches.labels.tolist() == [1, 4, 2]
    np.testing.assert_array_equal(patches[:][:, 1, 1], cube[labels > 0])


def test_a_patch_is_a_copy() -> None:
    cube = scene()
    patches = patches_of(cube, everywhere(cube), 1)
    patches[0][:] = 0
    assert (cube[0, 0] != 0).all()


@pytest.mark.parametrize("interleave", ["bil", "bip", "bsq"])
def test_patches_of_memory_mapped_files_are_those_of_the_array(tmp_path: Path, interleave: str) -> None:
    cube = (scene() * 10).astype(np.int16)
    cube[4, 4, 2] = -1
    header = {"reflectance scale factor": 10, "data ignore value": -1}
    envi.save_image(str(tmp_path / "a.hdr"), cube, interleave=interleave, metadata=header)
    np.save(tmp_path / "a.npy", cube)
    expected = by_loop(cube, everywhere(cube), 5)
    np.testing.assert_array_equal(patches_of(tmp_path / "a.npy", everywhere(cube), 5)[:], expected)
    found = patches_of(tmp_path / "a.hdr", everywhere(cube), 5)[:]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.where(expected == -1, np.nan, expected / 10), rtol=1e-6)


def test_patches_are_a_column_of_a_torch_data_set() -> None:
    cube = scene()
    patches = patches_of(cube, everywhere(cube), 3)
    loader = DataLoader(StackDataset(patches, range(63)), batch_size=10)
    values, numbers = zip(*loader, strict=True)
    np.testing.assert_array_equal(torch.cat(values), patches[:])
    assert torch.cat(numbers).tolist() == list(range(63))


def test_patches_are_processed_one_by_one_and_together_alike() -> None:
    cube = scene()
    processor = HyperspectralProcessor().fit(cube)
    patches = patches_of(cube, everywhere(cube), 3)
    together = processor(patches[:])["hyperspectral_values"]
    torch.testing.assert_close(processor(patches)["hyperspectral_values"], together, rtol=0, atol=0)
    assert together.shape == (63, 5, 3, 3)


def test_memory_stays_below_four_cubes_while_all_pixels_pass() -> None:
    cube = scene(60, 60, 100)
    first = np.asfortranarray(cube)  # as scipy reads MATLAB files; it has to be copied once
    tracemalloc.start()
    patches = patches_of(first, np.ones((60, 60), np.uint8), 7)
    total = 0
    for start in range(0, len(patches), 64):
        total += len(patches[start : start + 64])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 3600
    assert cube.nbytes + peak < 4 * cube.nbytes
    assert total * 49 * 100 * 4 > 40 * cube.nbytes, "the premise: all patches at once are far more"


@pytest.mark.parametrize(
    ("pixels", "size", "error", "message"),
    [
        ([[0, 7]], 3, ValueError, r"\[0, 7\] lies outside the cube of 9 x 7"),
        ([[-1, 0]], 3, ValueError, "lies outside"),
        (np.zeros((7, 9), int), 3, ValueError, "of the cube's size"),
        ([1, 2], 3, ValueError, "of the cube's size"),
        ([[0.5, 1.0]], 3, TypeError, "must be integers"),
        ([[0, 0]], 0, ValueError, "patch_size must be at least 1"),
    ],
)
def test_bad_pixels_are_refused(pixels, size: int, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        patches_of(scene(), pixels, size)


def test_a_map_holds_what_the_model_says_of_each_pixel(trained) -> None:
    model, processor = trained
    model.train()
    cube = scene(seed=1)
    found = predict_scene(model, processor, cube, patch_size=3, batch_size=10, probabilities=True)
    assert model.training
    model.eval()
    with torch.no_grad():
        logits = model(**processor(hyperspectral=by_loop(cube, everywhere(cube), 3))).logits
    np.testing.assert_array_equal(found.classes, logits.argmax(1).view(9, 7))
    np.testing.assert_allclose(found.probabilities, logits.softmax(1).view(9, 7, 4), atol=1e-5)
    assert found.classes.dtype == np.int64
    assert predict_scene(model, processor, cube, patch_size=3).probabilities is None


def test_a_part_in_another_mode_than_the_model_stays_in_it(trained: tuple) -> None:
    model, processor = trained
    model.train().model.tokenizers.eval()
    before = [module.training for module in model.modules()]
    predict_scene(model, processor, scene(3, 3), patch_size=3)
    assert [module.training for module in model.modules()] == before
    model.eval()


def test_only_the_chosen_pixels_are_classified(trained) -> None:
    model, processor = trained
    cube = scene(seed=1)
    where = np.zeros((9, 7), bool)
    where[2:5, 1] = True
    found = predict_scene(model, processor, cube, patch_size=3, where=where, probabilities=True)
    whole = predict_scene(model, processor, cube, patch_size=3)
    np.testing.assert_array_equal(found.classes, np.where(where, whole.classes, -1))
    assert not found.probabilities[~where].any()


@pytest.mark.parametrize("bar", [tqdm, track])
def test_progress_bars_see_every_batch(trained, bar) -> None:
    seen = []

    def progress(batches):
        for batch in bar(batches):
            seen.append(batch)
            yield batch

    predict_scene(*trained, scene(), patch_size=3, batch_size=20, progress=progress)
    assert seen == [0, 20, 40, 60]


def test_wavelengths_of_a_file_reach_the_model(tmp_path: Path) -> None:
    cube, nm = scene(), [400.0, 500.0, 600.0, 700.0, 800.0]
    envi.save_image(str(tmp_path / "a.hdr"), cube, metadata={"wavelength": nm, "wavelength units": "Nanometers"})
    processor = MetaTransformerProcessor(hyperspectral=HyperspectralProcessor().fit(tmp_path / "a.hdr"))
    config = MetaTransformerConfig.tiny(num_hidden_layers=1, modalities=processor.tokenizer_configs())
    model = MetaTransformerForClassification(config)
    found = predict_scene(model, processor, tmp_path / "a.hdr", patch_size=1)
    given = predict_scene(model, processor, cube, patch_size=1, wavelengths=nm)
    np.testing.assert_array_equal(found.classes, given.classes)


@pytest.mark.parametrize("where", [np.zeros((9, 7), bool), np.ones((7, 9), bool)])
def test_a_map_that_names_no_pixel_is_refused(trained, where: np.ndarray) -> None:
    with pytest.raises(ValueError, match="where must be a map of 9 x 7"):
        predict_scene(*trained, scene(), patch_size=3, where=where)
