"""Masks of padded batches, of every tokenizer whose samples begin at the first place of each axis."""

import pytest
import torch
from torch.testing import assert_close

from meta_transformer.registry import MODALITIES
from meta_transformer.tokenizers.padding import first_places, read_mask

# For each mask: options of the tokenizer, and the tensor that it belongs to, with a last axis or two that it lacks.
CASES = [
    ("audio", {}, "input_features_mask", {"input_features": (2, 40, 128)}, (2, 40)),
    ("imu", {}, "imu_mask", {"imu_values": (2, 40, 6)}, (2, 40)),
    ("time_series", {}, "past_mask", {"past_values": (2, 40, 3)}, (2, 40)),
    ("hyperspectral", {}, "hyperspectral_mask", {"hyperspectral_values": (2, 8, 5, 5)}, (2, 8, 5, 5)),
    ("image", {}, "pixel_mask", {"pixel_values": (2, 3, 32, 32)}, (2, 32, 32)),
    ("infrared", {}, "infrared_mask", {"infrared_values": (2, 1, 32, 32)}, (2, 32, 32)),
    ("xray", {}, "xray_mask", {"xray_values": (2, 1, 32, 32)}, (2, 32, 32)),
    ("video", {}, "padding_mask_videos", {"pixel_values_videos": (2, 4, 3, 32, 32)}, (2, 4)),
    ("video", {}, "pixel_mask_videos", {"pixel_values_videos": (2, 4, 3, 32, 32)}, (2, 32, 32)),
]


@pytest.mark.parametrize(("modality", "options", "name", "values", "shape"), CASES, ids=[case[2] for case in CASES])
@pytest.mark.parametrize("place", [0, 2])
def test_padding_in_front_of_a_sample_or_inside_it_is_refused_along_every_axis(
    modality, options, name, values, shape, place
):
    entry = MODALITIES[modality]
    tokenizer = entry.tokenizer_class(entry.config_class(**options), 8)
    inputs = {key: torch.randn(size) for key, size in values.items()}
    for axis in range(1, len(shape)):
        mask = torch.ones(shape, dtype=torch.bool)
        mask[1].select(axis - 1, place)[...] = False
        with pytest.raises(ValueError, match=f"{name} has padding in front of sample 1 or inside it; .* pad behind it"):
            tokenizer(**inputs, **{name: mask})


def test_samples_that_fill_no_box_are_refused():
    mask = torch.ones(1, 3, 3, dtype=torch.bool)
    mask[0, 2, 2] = False
    with pytest.raises(ValueError, match="padding in front of sample 0"):
        read_mask("mask", mask, torch.zeros(1, 3, 3), [1, 2])


def test_counts_and_masks_equal_a_loop():
    sizes = [(3, 1, 2), (0, 0, 0), (4, 5, 6)]
    mask = torch.zeros(3, 4, 5, 6, dtype=torch.long)
    for row, size in zip(mask, sizes, strict=True):
        row[: size[0], : size[1], : size[2]] = 1
    found, counts = read_mask("mask", mask, torch.zeros(3, 4, 5, 6), [1, 2, 3])
    assert torch.stack(counts, dim=1).tolist() == [list(size) for size in sizes]
    assert found.dtype == torch.bool
    assert_close(first_places(counts, mask.shape[1:]), mask.bool())


def test_without_mask_all_samples_fill_the_tensor():
    mask, counts = read_mask("mask", None, torch.zeros(7, 4, 5), [1, 2])
    assert mask is None
    assert [count.tolist() for count in counts] == [[4], [5]]
