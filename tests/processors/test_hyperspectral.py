"""The hyperspectral processor: against scikit-learn and numpy, on real scenes."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.io
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from meta_transformer import MetaTransformerProcessor
from meta_transformer.processors.hyperspectral import HyperspectralProcessor
from tests.support.cubes import NM, matlab_scene, scene
from tests.support.fuzz import finite_or_refused


def values(processor: HyperspectralProcessor, samples: Any, **options: Any) -> np.ndarray:
    return processor(samples, return_tensors="np", **options)["hyperspectral_values"]


def plain(**options: Any) -> HyperspectralProcessor:
    return HyperspectralProcessor(normalization="none", **options)


@pytest.mark.parametrize(("kind", "scaler"), [("standardize", StandardScaler), ("minmax", MinMaxScaler)])
def test_bands_are_scaled_as_scikit_learn_does(tmp_path: Path, kind: str, scaler: type) -> None:
    cube = scipy.io.loadmat(matlab_scene(tmp_path))["data"]
    train, test = cube[:6], cube[6:]
    processor = HyperspectralProcessor(normalization=kind).fit(train)
    expected = scaler().fit(train.reshape(-1, cube.shape[2])).transform(test.reshape(-1, cube.shape[2]))
    found = values(processor, test)
    assert found.shape == (1, cube.shape[2], *test.shape[:2])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0].reshape(cube.shape[2], -1).T, expected, rtol=1e-4, atol=1e-4)


def test_statistics_do_not_depend_on_how_samples_are_cut() -> None:
    cube = scene(200, 100)  # more spectra than are taken at once
    whole = HyperspectralProcessor().fit(cube)
    for samples in (cube.reshape(-1, 24), [cube[:50], cube[50:]], iter(cube.reshape(100, 20, 10, 24))):
        other = HyperspectralProcessor().fit(samples)
        for name in ("center", "scale"):
            np.testing.assert_allclose(other.sensors[0][name], whole.sensors[0][name], rtol=1e-9)
    np.testing.assert_allclose(whole.sensors[0]["scale"], cube.reshape(-1, 24).std(axis=0), rtol=1e-9)


def test_each_sample_can_be_normalised_by_itself() -> None:
    cubes = [scene(3, 4), scene(5, 2, bands=7)]
    batch = HyperspectralProcessor(normalization="sample")(cubes)
    for index, cube in enumerate(cubes):
        expected = ((cube - cube.mean()) / cube.std()).transpose(2, 0, 1)
        found = batch["hyperspectral_values"][index][batch["hyperspectral_mask"][index]]
        np.testing.assert_allclose(found.view(expected.shape), expected, atol=1e-4)


def test_arrays_tensors_lists_and_orders_of_dimensions_are_the_same() -> None:
    cube = scene(3, 4)
    expected = values(plain(), cube)
    forms = [torch.from_numpy(cube.astype("i4")), cube.tolist(), cube.astype(">f8"), {"array": cube}]
    for sample in forms:
        np.testing.assert_array_equal(values(plain(), [sample]), expected)
    first = np.moveaxis(cube, -1, 0)
    np.testing.assert_array_equal(values(plain(), first, input_data_format="channels_first"), expected)
    batch = np.moveaxis(np.stack([cube, cube]), -1, 1)
    np.testing.assert_array_equal(values(plain(), batch, input_data_format="channels_first")[1:], expected)


def test_spectra_have_height_and_width_1() -> None:
    spectra = scene(3, 1)[:, 0]
    assert values(plain(), spectra[0]).shape == values(plain(), spectra[0].tolist()).shape == (1, 24, 1, 1)
    np.testing.assert_array_equal(values(plain(), list(spectra)), values(plain(), spectra))
    np.testing.assert_array_equal(values(plain(), spectra)[:, :, 0, 0], spectra)


def test_ragged_samples_are_padded_and_masked() -> None:
    cubes = [scene(3, 4, 6), scene(2, 5, 9), scene(1, 1, 2)]
    batch = plain()(cubes)
    assert batch["hyperspectral_values"].shape == batch["hyperspectral_mask"].shape == (3, 9, 3, 5)
    for index, cube in enumerate(cubes):
        row, mask = batch["hyperspectral_values"][index], batch["hyperspectral_mask"][index]
        height, width, bands = cube.shape
        np.testing.assert_array_equal(row[:bands, :height, :width], cube.transpose(2, 0, 1))
        assert mask[:bands, :height, :width].all()
        assert mask.sum() == cube.size
        assert not row[~mask].any()
    assert "hyperspectral_mask" not in plain()([cubes[0]])


def test_wavelengths_come_along_where_samples_have_them() -> None:
    samples = [{"array": scene(bands=9), "wavelengths": NM[:9]}, {"array": scene(bands=6), "wavelengths": NM[:6]}]
    processor = HyperspectralProcessor().fit(samples)
    assert processor.tokenizer_config() == {"spectral_positions": "wavelength"}
    found = processor(samples)["wavelengths"]
    torch.testing.assert_close(found[0], torch.tensor(NM[:9]))
    torch.testing.assert_close(found[1], torch.tensor([*NM[:6], 0, 0, 0]))
    # An array without is taken for the sensor of as many bands.
    torch.testing.assert_close(processor(scene(bands=6))["wavelengths"], torch.tensor([NM[:6]]))
    shared = processor(scene(bands=6), wavelengths=NM[:6])
    torch.testing.assert_close(shared["wavelengths"], torch.tensor([NM[:6]]))


def test_a_table_holds_spectra_and_its_columns_may_name_wavelengths() -> None:
    spectra = scene(3, 1)[:, 0]
    for names in (NM, [str(nm) for nm in NM]):
        frame = pd.DataFrame(spectra, columns=names)
        batch = HyperspectralProcessor(normalization="sample").fit(frame)(frame)
        expected = HyperspectralProcessor(normalization="sample")(spectra, wavelengths=NM)
        assert batch.keys() == expected.keys()
        assert all(torch.equal(value, batch[name]) for name, value in expected.items())
    batch = plain()(pd.DataFrame(spectra))
    assert set(batch) == {"hyperspectral_values"}
    np.testing.assert_array_equal(batch["hyperspectral_values"][:, :, 0, 0], spectra)


@pytest.mark.parametrize(
    ("frame", "error", "message"),
    [
        (pd.DataFrame({"400": [1], "500": [2], "label": [0]}), ValueError, "spectra alone.*'label'"),
        (pd.DataFrame({0.4: [1], 0.5: [2]}), ValueError, "by 1000"),
        (pd.DataFrame({400: ["a"], 500: [2]}), TypeError, "got object"),
        (pd.DataFrame({400: [1.0], 500: [np.nan]}), ValueError, r"no data: \[1\]"),
        (pd.DataFrame(), ValueError, "empty"),
    ],
)
def test_a_table_of_something_else_is_refused(frame: pd.DataFrame, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plain()(frame)


def test_masked_values_are_no_data() -> None:
    cube = np.ma.masked_equal(scene(), scene()[2, 3, 4])
    for samples in (cube, [cube], cube[None], {"array": cube}):
        with pytest.raises(ValueError, match=r"no data: .*4.*row 2, column 3"):
            plain()(samples)


def test_a_new_fit_does_not_depend_on_the_one_before() -> None:
    processor = HyperspectralProcessor().fit(scene(), wavelengths=NM)
    assert processor.fit(scene()).tokenizer_config() == {"spectral_positions": "index"}
    assert set(processor(scene())) == {"hyperspectral_values"}
    assert processor.to_dict() == HyperspectralProcessor().fit(scene()).to_dict()


def test_a_failing_fit_changes_nothing() -> None:
    processor = HyperspectralProcessor().fit(scene(), wavelengths=NM)
    before = processor.to_dict()
    with pytest.raises(ValueError, match="others have not"):
        processor.fit([scene(bands=6), {"array": scene(bands=9), "wavelengths": NM[:9]}])
    assert processor.to_dict() == before


def test_without_wavelengths_bands_are_placed_by_number() -> None:
    processor = HyperspectralProcessor().fit(scene())
    assert processor.tokenizer_config() == {"spectral_positions": "index"}
    assert set(processor(scene())) == {"hyperspectral_values"}
    forced = HyperspectralProcessor(spectral_positions="index").fit(scene(), wavelengths=NM)
    assert set(forced(scene(), wavelengths=NM)) == {"hyperspectral_values"}


def test_each_sensor_keeps_its_own_statistics() -> None:
    counts, reflectance = scene(), scene(bands=6) / 10_000
    samples = [{"array": counts, "wavelengths": NM}, {"array": reflectance, "wavelengths": NM[::4]}]
    processor = HyperspectralProcessor().fit(samples)
    for sample in samples:
        np.testing.assert_allclose(values(processor, sample).mean(axis=(0, 2, 3)), 0, atol=1e-4)
    with pytest.raises(ValueError, match="12 bands of 400 .* fit 0 of the sensors"):
        processor({"array": scene(bands=12), "wavelengths": NM[:12]})


def test_statistics_of_one_sensor_are_interpolated_for_another() -> None:
    cube = scene()
    processor = HyperspectralProcessor().fit(cube, wavelengths=NM)
    between = [(low + high) / 2 for low, high in pairwise(NM)]
    sensor = processor.sensors[0]
    spectrum = np.full(23, 700.0)
    expected = (spectrum - np.interp(between, NM, sensor["center"])) / np.interp(between, NM, sensor["scale"])
    found = values(processor, {"array": spectrum, "wavelengths": between})[0, :, 0, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    part = values(processor, cube[..., ::-2], wavelengths=NM[::-2])  # some of the bands, backwards
    np.testing.assert_allclose(part, values(processor, cube)[:, ::-2], atol=1e-5)
    with pytest.raises(ValueError, match="fit 0 of the sensors"):
        processor({"array": spectrum[:3], "wavelengths": [9000.0, 10_000.0, 11_000.0]})


def test_bad_bands_are_left_out_everywhere() -> None:
    cube = scene().astype(np.float32)
    cube[..., 4], cube[2, 3, 7] = np.nan, np.inf
    processor = HyperspectralProcessor(bad_bands=[7, 4]).fit(cube, wavelengths=NM)
    assert processor(cube, wavelengths=NM)["hyperspectral_values"].shape == (1, 22, 12, 10)
    assert processor.sensors[0]["wavelengths"] == [nm for band, nm in enumerate(NM) if band not in (4, 7)]
    assert values(processor, processor.dummy_samples(3)[0]).shape[1] == 22
    with pytest.raises(ValueError, match=r"2 of 24 bands hold NaN, infinity or no data: \[4, 7\]"):
        HyperspectralProcessor().fit(cube)
    with pytest.raises(ValueError, match=r"1 of 24 bands .*: \[7\].*row 2, column 3"):
        HyperspectralProcessor(bad_bands=[4]).fit(cube)


def test_constant_bands_are_named_by_their_own_number() -> None:
    cube = scene()
    cube[..., [5, 8]] = 77
    with pytest.raises(ValueError, match=r"Bands \[5, 8\] have the same value"):
        HyperspectralProcessor(bad_bands=[0, 6]).fit(cube)
    with pytest.raises(ValueError, match="fit on more pixels"):
        HyperspectralProcessor().fit(cube[0, 0])


CUBE = scene(3, 3, 4)
BAD_CALLS = {
    "no fit": ({}, CUBE, {}, ValueError, "call fit"),
    "two dimensions in a list": ({"normalization": "none"}, [CUBE[0]], {}, ValueError, "shape \\(bands,\\)"),
    "five dimensions": ({"normalization": "none"}, CUBE[None, None], {}, ValueError, "shape \\(bands,\\)"),
    "empty": ({"normalization": "none"}, np.zeros((0, 3, 4)), {}, ValueError, "empty, shape"),
    "ragged": ({"normalization": "none"}, [[[1, 2], [3]]], {}, ValueError, "inhomogeneous"),
    "complex": ({"normalization": "none"}, CUBE * 1j, {}, TypeError, "complex128"),
    "truth": ({"normalization": "none"}, CUBE > 3, {}, TypeError, "bool"),
    "bytes": ({"normalization": "none"}, b"abc", {}, TypeError, "got bytes"),
    "type": ({"normalization": "none"}, 3, {}, TypeError, "got int"),
    "huge": ({"normalization": "none"}, CUBE * 1e300, {}, ValueError, "too large"),
    "no data": ({"normalization": "none", "no_data": int(CUBE[1, 2, 3])}, CUBE, {}, ValueError, r"no data"),
    "bad band": ({"normalization": "none", "bad_bands": [4]}, CUBE, {}, ValueError, "band 4, but there are 4"),
    "all bad": ({"normalization": "none", "bad_bands": [0, 1, 2, 3]}, CUBE, {}, ValueError, "leave at least one"),
    "order": ({"normalization": "none"}, CUBE, {"input_data_format": "last"}, ValueError, "channels_first"),
    "micrometres": ({"normalization": "none"}, CUBE, {"wavelengths": [0.4, 1, 2, 3]}, ValueError, "by 1000"),
    "NaN as wavelength": ({"normalization": "none"}, CUBE, {"wavelengths": [400, np.nan, 2e3, 3e3]}, ValueError, "nan"),
    "too few wavelengths": ({"normalization": "none"}, CUBE, {"wavelengths": [500]}, ValueError, "4 numbers"),
    "words as wavelengths": ({"normalization": "none"}, CUBE, {"wavelengths": "red"}, ValueError, "in nm, got 'red'"),
    "no wavelengths": (
        {"normalization": "none", "spectral_positions": "wavelength"}, CUBE, {}, ValueError, "pass wavelengths="
    ),
    "some wavelengths": (
        {"normalization": "none"}, [CUBE, {"array": CUBE, "wavelengths": NM[:4]}], {}, ValueError, "1 of 2 samples"
    ),
    "keys": ({"normalization": "none"}, {"array": CUBE, "nm": 1}, {}, ValueError, "'nm'"),
    "no array": ({"normalization": "none"}, {"wavelengths": NM}, {}, ValueError, "must hold 'array' or 'path'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_samples_are_refused_with_a_sentence(name: str) -> None:
    options, samples, arguments, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=message):
        HyperspectralProcessor(**options)(samples, **arguments)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"normalization": "max"}, "'max'"),
        ({"spectral_positions": "nm"}, "'nm'"),
        ({"bad_bands": [-1]}, "from 0"),
        ({"bad_bands": [1.5]}, "from 0"),
        ({"no_data": float("nan")}, "finite"),
        ({"sensors": [{"center": [0.0]}]}, "as fit makes"),
        ({"sensors": [{"wavelengths": None, "center": [0.0], "scale": [0.0]}]}, "scale positive"),
    ],
)
def test_bad_settings_are_refused(settings_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HyperspectralProcessor(**settings_)


def test_mixed_wavelengths_are_refused_in_fit() -> None:
    samples = [scene(bands=6), {"array": scene(bands=9), "wavelengths": NM[:9]}]
    with pytest.raises(ValueError, match="others have not"):
        HyperspectralProcessor().fit(samples)
    with pytest.raises(ValueError, match="pass wavelengths="):
        HyperspectralProcessor(spectral_positions="wavelength").fit(samples)
    assert len(HyperspectralProcessor(spectral_positions="index").fit(samples).sensors) == 2


def test_what_was_fitted_survives_json(tmp_path: Path) -> None:
    fitted = HyperspectralProcessor(bad_bands=[3], no_data=-1).fit(scene(), wavelengths=NM)
    MetaTransformerProcessor(hyperspectral=fitted).save_pretrained(tmp_path)
    loaded = MetaTransformerProcessor.from_pretrained(tmp_path).hyperspectral
    assert loaded.sensors == fitted.sensors
    assert loaded.tokenizer_config() == fitted.tokenizer_config() == {"spectral_positions": "wavelength"}
    np.testing.assert_array_equal(values(loaded, scene(seed=2)), values(fitted, scene(seed=2)))


SHAPES = arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)
DTYPES = st.sampled_from(["u1", "i2", ">u2", "u8", "f2", "f4", "f8", "c8", "?", "U1", "M8[s]"])
SAMPLES = st.one_of(
    DTYPES.flatmap(lambda dtype: arrays.arrays(dtype, SHAPES)),
    arrays.arrays("f4", st.just((2, 2, 3)), elements=st.floats(-1e3, 1e3, width=32)),
    st.none(),
    st.text(max_size=5),
    st.lists(st.floats(), max_size=3),
    st.dictionaries(st.sampled_from(["array", "path", "wavelengths"]), st.lists(st.floats(), max_size=3), max_size=3),
)


@settings(max_examples=40, deadline=None)
@given(
    samples=st.one_of(SAMPLES, st.lists(SAMPLES, max_size=3)),
    normalization=st.sampled_from(["standardize", "minmax", "sample", "none"]),
    bad_bands=st.sampled_from([[], [0], [1, 5]]),
    wavelengths=st.sampled_from([None, [500.0, 600.0, 700.0], [0.5], "nm"]),
)
def test_any_input_gives_finite_values_or_a_sentence(samples, normalization, bad_bands, wavelengths) -> None:
    processor = HyperspectralProcessor(normalization=normalization, bad_bands=bad_bands, no_data=7)
    given_ = {"wavelengths": wavelengths}
    finite_or_refused(lambda: processor.fit(samples, **given_)(samples, **given_))


@st.composite
def cubes(draw: st.DrawFn) -> list[np.ndarray]:
    """Cubes of two sizes and one number of bands, with the largest and smallest numbers among others."""
    dtype, bands = draw(st.sampled_from(["f4", "f8"])), draw(st.integers(1, 3))
    numbers = st.sampled_from([0.0, 1e38, -1e38, 1e-45]) | st.floats(-1e3, 1e3, width=32)
    shapes = [(draw(st.integers(1, 3)), draw(st.integers(1, 3)), bands) for _ in range(2)]
    return [draw(arrays.arrays(dtype, shape, elements=numbers, fill=st.nothing())) for shape in shapes]


@settings(max_examples=80, deadline=None)
@given(
    samples=cubes(),
    normalization=st.sampled_from(["standardize", "minmax", "sample", "none"]),
    wrong=st.sampled_from([None, None, np.nan, np.inf, -9.0]),
)
def test_cubes_are_taken_unless_a_value_is_no_measurement_or_a_band_is_constant(
    samples: list[np.ndarray], normalization: str, wrong: float | None
) -> None:
    spread = np.ptp(np.concatenate([each.reshape(-1, each.shape[2]) for each in samples]).astype("f8"), axis=0)
    if wrong is not None:
        samples[-1][0, 0, 0] = wrong
    processor = HyperspectralProcessor(normalization=normalization, no_data=-9)
    taken = finite_or_refused(lambda: processor.fit(samples)(samples))
    if wrong is not None or normalization in ("sample", "none") or spread.min() > 1e-30:
        assert taken == (wrong is None)
    elif spread.min() == 0:
        assert not taken
