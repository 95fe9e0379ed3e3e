"""Infrared processor: windows, bit depths, temperatures, dead pixels, files; against numpy, tifffile and sklearn."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from torch.testing import assert_close

from meta_transformer import MetaTransformerProcessor
from meta_transformer.processors.infrared import InfraredProcessor
from tests.support.fuzz import finite_or_refused, measurements

RANDOM = np.random.default_rng(0)
KELVIN = RANDOM.normal(300.0, 4.0, size=(20, 30)).astype(np.float32)
COUNTS = (KELVIN * 100).astype(np.uint16)  # 0.01 K a count


def raw(**options):
    """A processor that lays the window over the values and does nothing else."""
    return InfraredProcessor(image_mean=0.0, image_std=1.0, **options)


def values(processor, sample, **kwargs):
    return processor(sample, **kwargs)["infrared_values"][0]


def by_percentiles(array, low=1, high=99):
    """The definition, in numpy."""
    bounds = np.percentile(np.asarray(array, np.float64), [low, high])
    scaled = (np.asarray(array, np.float64) - bounds[0]) / (bounds[1] - bounds[0])
    return torch.from_numpy(scaled.clip(0, 1).astype(np.float32))


def saved(array, kind):
    buffer = io.BytesIO()
    if kind == "NPY":
        np.save(buffer, array)
    else:
        Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def modules():
    """Paths of thermal pictures of 8 bits: solar modules, or noise where there is no data."""
    data = os.environ.get("META_TRANSFORMER_DATA")
    if data:
        return sorted(Path(data, "infrared/solar_modules/images").glob("10*.jpg"))[:6]
    return [saved(RANDOM.integers(60, 200, size=(40, 24), dtype=np.uint8), "PNG") for _ in range(6)]


def decoded(sample):
    return np.asarray(Image.open(io.BytesIO(sample) if isinstance(sample, bytes) else sample))


def test_by_default_the_first_and_last_percent_of_each_image_are_clipped(modules):
    for sample in (*modules, KELVIN, COUNTS):
        array = sample if isinstance(sample, np.ndarray) else decoded(sample)
        assert_close(values(raw(), sample)[0], by_percentiles(array))


def test_other_percentiles_may_be_chosen():
    assert_close(values(raw(percentiles=(0, 100)), KELVIN)[0], by_percentiles(KELVIN, 0, 100))
    assert_close(values(raw(percentiles=[5, 90]), KELVIN)[0], by_percentiles(KELVIN, 5, 90))


def test_a_fixed_window_is_in_the_unit_of_the_array():
    kelvin = values(raw(intensity_window=[290.0, 310.0]), KELVIN)
    assert_close(kelvin[0], torch.from_numpy((KELVIN - 290) / 20).clamp(0, 1))
    assert_close(values(raw(intensity_window=(16.85, 36.85)), KELVIN - np.float32(273.15)), kelvin, rtol=0, atol=1e-5)
    assert_close(values(raw(intensity_window=[29_000, 31_000]), COUNTS), kelvin, rtol=0, atol=1e-3)


def test_equal_temperatures_of_different_images_stay_equal_in_a_fixed_window():
    cold, warm = np.full((4, 4), 295.0), np.full((4, 4), 300.0)
    batch = raw(intensity_window=[290, 310])([cold, warm])["infrared_values"]
    assert_close(batch[:, 0, 0, 0], torch.tensor([0.25, 0.5]))


def test_the_window_of_the_type_is_its_whole_range():
    assert_close(values(raw(intensity_window="type"), COUNTS)[0], torch.from_numpy(COUNTS / np.float32(65535)))
    assert_close(
        values(raw(intensity_window="type", float_range=(200, 400)), KELVIN)[0], torch.from_numpy((KELVIN - 200) / 200)
    )


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", ">u2", "<i4", "u4", "i8", "f2", "f4", ">f4", "f8"])
def test_every_real_type_is_measured(dtype):
    array = RANDOM.integers(0, 100, size=(9, 7)).astype(dtype)
    assert_close(values(raw(), array)[0], by_percentiles(array.astype(np.float64)))


def test_torch_tensors_of_bfloat16_too():
    assert_close(
        values(raw(), torch.arange(12.0).reshape(3, 4).bfloat16())[0], by_percentiles(np.arange(12.0)).view(3, 4)
    )


def test_all_forms_of_one_recording_give_the_same(tmp_path):
    expected = values(raw(), COUNTS)
    (tmp_path / "a.npy").write_bytes(saved(COUNTS, "NPY"))
    (tmp_path / "a.png").write_bytes(saved(COUNTS, "PNG"))
    tifffile.imwrite(tmp_path / "a.tiff", COUNTS)
    tifffile.imwrite(tmp_path / "big.tif", COUNTS, byteorder=">")
    for form in (
        tmp_path / "a.npy",
        str(tmp_path / "a.npy"),
        saved(COUNTS, "NPY"),
        {"bytes": saved(COUNTS, "NPY"), "path": None},
        tmp_path / "a.png",
        saved(COUNTS, "PNG"),
        tmp_path / "a.tiff",
        tmp_path / "big.tif",
        saved(COUNTS, "TIFF"),
        Image.fromarray(COUNTS),
        torch.from_numpy(COUNTS),
        COUNTS[None],
        COUNTS[:, :, None],
    ):
        assert_close(values(raw(), form), expected)


def test_temperatures_in_tiff_files_keep_their_values(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", KELVIN)
    (tmp_path / "pil.tif").write_bytes(saved(KELVIN, "TIFF"))
    for name in ("a.tif", "pil.tif"):
        assert_close(
            values(raw(intensity_window=[290, 310]), tmp_path / name), values(raw(intensity_window=[290, 310]), KELVIN)
        )


def test_negative_integers_in_files_keep_their_values(tmp_path):
    celsius = RANDOM.integers(-40, 120, size=(9, 7)).astype(np.int32)
    Image.fromarray(celsius, "I").save(tmp_path / "a.tif")
    assert_close(
        values(raw(intensity_window=[-40, 120]), tmp_path / "a.tif")[0], torch.from_numpy((celsius + 40) / 160).float()
    )


def test_one_channel_is_the_default_and_three_repeat_it():
    assert values(raw(), COUNTS).shape == (1, 20, 30)
    assert_close(values(raw(num_channels=3), COUNTS), values(raw(), COUNTS).expand(3, -1, -1))


def test_an_alpha_channel_does_not_move_the_window():
    grey = RANDOM.integers(60, 200, size=(20, 30), dtype=np.uint8)
    rgba = np.stack([grey, grey, grey, np.full_like(grey, 255)], axis=-1)
    assert_close(values(raw(num_channels=3), Image.fromarray(rgba)), values(raw(num_channels=3), grey))


def test_three_channels_share_one_window():
    bands = RANDOM.normal(size=(3, 9, 8)).astype(np.float32) + np.array([0, 5, 10], np.float32)[:, None, None]
    assert_close(values(raw(num_channels=3), bands), by_percentiles(bands))


def test_a_flat_image_lies_in_the_middle():
    assert_close(values(raw(), np.full((4, 5), 300.0)), torch.full((1, 4, 5), 0.5))


def test_a_few_hot_pixels_on_a_flat_background_are_not_lost():
    image = np.full((20, 20), 300.0)
    image[3, 4] = 350.0
    found = values(raw(), image)[0]
    assert (found[3, 4], found.sum()) == (1, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_dead_pixels_are_refused_or_become_the_median_of_the_others(bad):
    image = KELVIN.copy()
    image[2, 3] = image[7, 7] = bad
    with pytest.raises(ValueError, match=r"infrared\[0\]: 2 of 600 values are NaN or infinity.*dead_pixels='median'"):
        InfraredProcessor()(image)
    filled = np.where(np.isfinite(image), image, np.median(image[np.isfinite(image)]))
    for window in ("percentiles", [290, 310], "type"):
        made = raw(intensity_window=window, dead_pixels="median", float_range=(0, 1000))
        assert_close(values(made, image), values(made, filled))


def test_each_channel_has_its_own_median():
    bands = np.stack([np.full((4, 4), level) for level in (1.0, 2.0, 3.0)])
    holed = bands.copy()
    holed[:, 1, 1] = np.nan
    made = raw(num_channels=3, dead_pixels="median", intensity_window=[0, 4])
    order = {"input_data_format": "channels_first"}
    assert_close(values(made, holed, **order), values(made, bands, **order))


def test_an_image_without_a_living_pixel_is_refused():
    with pytest.raises(ValueError, match="all values of a channel are NaN or infinity"):
        InfraredProcessor(dead_pixels="median")(np.full((4, 4), np.nan))


def test_fit_gives_the_training_images_mean_0_and_standard_deviation_1(modules):
    processor = InfraredProcessor().fit(modules)
    found = torch.cat([values(processor, sample).flatten() for sample in modules])
    assert found.mean().item() == pytest.approx(0, abs=1e-5)
    assert found.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    scaled = np.concatenate([by_percentiles(decoded(sample)).numpy().ravel() for sample in modules])
    assert processor.image_mean == pytest.approx([scaled.mean()], abs=1e-5)
    assert processor.image_std == pytest.approx([scaled.std()], abs=1e-5)


def test_fit_can_fix_the_window_to_percentiles_of_all_images_together():
    images = [RANDOM.normal(level, 2, size=(30, 30)) for level in (280, 300, 320)]
    processor = InfraredProcessor(percentiles=(2, 98)).fit(images, fix_window=True)
    assert processor.intensity_window == pytest.approx(np.percentile(images, [2, 98]), abs=0.2)
    assert len({values(raw(intensity_window=processor.intensity_window), image).mean().item() for image in images}) == 3


def test_images_without_contrast_cannot_be_fitted():
    flat = [np.full((4, 4), 300.0)] * 2
    with pytest.raises(ValueError, match="image_std cannot be fitted"):
        InfraredProcessor().fit(flat)
    with pytest.raises(ValueError, match="intensity_window cannot be fitted: nearly all values of the samples are 300"):
        InfraredProcessor().fit(flat, fix_window=True)


def test_a_fit_that_fails_leaves_the_window():
    processor, colour = InfraredProcessor(num_channels=3), RANDOM.random((3, 8, 8))
    state = processor.to_dict()
    colour[2] = 0.5
    with pytest.raises(ValueError, match="image_std cannot be fitted"):
        processor.fit([colour], fix_window=True)
    assert processor.to_dict() == state


def test_fit_takes_no_unknown_argument():
    with pytest.raises(TypeError, match="sampling_rate"):
        InfraredProcessor().fit([KELVIN], sampling_rate=1)


def test_images_of_different_size_are_padded_and_masked():
    batch = InfraredProcessor()([KELVIN[:8, :12], KELVIN])
    assert batch["infrared_values"].shape == (2, 1, 20, 30)
    assert batch["infrared_mask"].sum(dim=(1, 2)).tolist() == [8 * 12, 20 * 30]
    assert batch["infrared_values"][0][:, ~batch["infrared_mask"][0]].abs().max() == 0


def test_images_are_resized_and_cropped_after_the_window():
    processor = InfraredProcessor(size=10, crop_size=8)
    assert values(processor, KELVIN).shape == (1, 8, 8)
    assert values(processor, KELVIN).abs().max() <= 1


def test_settings_and_statistics_survive_json(modules, tmp_path):
    processor = InfraredProcessor(dead_pixels="median", percentiles=(2, 97), size=[8, 8]).fit(modules, fix_window=True)
    MetaTransformerProcessor(infrared=processor).save_pretrained(tmp_path)
    loaded = MetaTransformerProcessor.from_pretrained(tmp_path)
    assert loaded.infrared.to_dict() == processor.to_dict()
    assert torch.equal(loaded(infrared=modules)["infrared_values"], processor(modules)["infrared_values"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"intensity_window": "percentile"}, "'percentiles', 'type' or two numbers, got 'percentile'"),
        ({"intensity_window": [310, 290]}, "intensity_window must be finite, the lower value first"),
        ({"intensity_window": [290]}, "intensity_window must be two numbers"),
        ({"intensity_window": [-1.7e308, 1.7e308]}, "the difference finite"),
        ({"intensity_window": None}, "intensity_window must be two numbers"),
        ({"intensity_window": [290, float("nan")]}, "intensity_window must be finite"),
        ({"percentiles": [-1, 99]}, r"percentiles must lie in 0\.\.100"),
        ({"percentiles": [99, 1]}, "percentiles must be finite, the lower value first"),
        ({"dead_pixels": "zero"}, "dead_pixels must be 'refuse' or 'median', got 'zero'"),
        ({"float_range": [1, 0]}, "float_range must be finite"),
        ({"image_std": 0}, "image_std must be positive"),
        ({"num_channels": 0}, "num_channels must be an integer of at least 1"),
        ({"size": 2.5}, "size must be one positive number of pixels or two"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        InfraredProcessor(**options)


@pytest.mark.parametrize(
    ("sample", "error", "message"),
    [
        (np.zeros((4, 4), np.complex64), ValueError, "complex64 are no measurements"),
        (np.zeros((4, 4), "U3"), ValueError, "are no measurements"),
        (np.zeros((5, 8, 8), np.uint16), ValueError, "cannot tell which dimension"),
        (np.zeros((0, 8), np.uint16), ValueError, "empty"),
        (saved(COUNTS, "NPY")[:90], ValueError, "EOF"),
        (saved(np.array([{}]), "NPY"), ValueError, "allow_pickle"),
        (b"no image", ValueError, "cannot identify"),
        ("no/such/file.npy", ValueError, "No such file"),
        (None, TypeError, "got NoneType"),
        (3, TypeError, "got int"),
    ],
)
def test_bad_images_are_refused_with_their_index(sample, error, message):
    with pytest.raises(error, match=rf"infrared\[1\].*{message}"):
        InfraredProcessor()([KELVIN, sample])


def test_an_empty_list_is_refused_by_its_own_name():
    with pytest.raises(ValueError, match="infrared is an empty list"):
        InfraredProcessor()([])


SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)
DTYPES = st.sampled_from(["u1", "u2", ">u2", "i2", "i8", "f2", "c8", "?", "U1", "M8[s]"])
SIDES = st.integers(1, 9)
IMAGES = measurements(st.tuples(SIDES, SIDES) | st.tuples(st.just(1), SIDES, SIDES), [">f4", "f4", "f8"])
CUT = st.sampled_from([saved(COUNTS, "PNG"), saved(COUNTS, "NPY")]).flatmap(
    lambda data: st.integers(0, len(data)).map(lambda end: data[:end])
)
ANY = st.one_of(
    DTYPES.flatmap(lambda dtype: arrays.arrays(dtype, SHAPES)),
    st.none() | st.integers() | st.text(max_size=8) | st.binary(max_size=40) | st.lists(st.floats(), max_size=3),
    CUT,
    st.dictionaries(st.sampled_from(["bytes", "path", "array"]), st.none() | st.binary(max_size=9), max_size=2),
)
SETTINGS = {
    "dead_pixels": st.sampled_from(["refuse", "median"]),
    "num_channels": st.sampled_from([1, 3]),
    "size": st.sampled_from([None, 5, [3, 7]]),
}


@settings(max_examples=40, deadline=None)
@given(
    samples=st.one_of(ANY, st.lists(ANY, max_size=3)),
    window=st.sampled_from(["percentiles", "type", [0.0, 1.0]]),
    options=st.fixed_dictionaries(SETTINGS),
)
def test_any_input_gives_finite_values_or_a_sentence(samples, window, options):
    finite_or_refused(lambda: InfraredProcessor(intensity_window=window, **options)(samples))


@settings(max_examples=40, deadline=None)
@given(
    image=IMAGES,
    window=st.sampled_from(["percentiles", [0.0, 1.0], [-1e30, 1e30], [0, 1e-310]]),
    options=st.fixed_dictionaries(SETTINGS),
)
def test_an_image_is_taken_if_its_living_pixels_are_measurements(image, window, options):
    processor = InfraredProcessor(intensity_window=window, **options)
    taken = finite_or_refused(lambda: processor(image, input_data_format="channels_first"))
    alive = np.isfinite(image)
    refused = not alive.any() if options["dead_pixels"] == "median" else not alive.all()
    assert taken == (not refused and bool((np.abs(image[alive].astype(np.float64)) <= 1e300).all()))
