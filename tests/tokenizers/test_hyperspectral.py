"""The hyperspectral tokenizer against loops over groups and patches."""

import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import Tensor, nn
from torch.export import Dim, export

from meta_transformer import MetaTransformerConfig, MetaTransformerModel
from meta_transformer.tokenizers.hyperspectral import HyperspectralTokenizer, HyperspectralTokenizerConfig

HIDDEN = 12
SPATIAL = {"tokenization": "spatial_spectral", "patch_size": [2, 3], "bands_per_token": 3}
GROUPS = {"bands_per_token": 3, "band_stride": 1, "window_size": 3}


def make(**options: object) -> HyperspectralTokenizer:
    torch.manual_seed(0)
    tokenizer = HyperspectralTokenizer(HyperspectralTokenizerConfig(**options), HIDDEN).eval()
    for name, parameter in tokenizer.named_parameters():
        if "table" in name:
            nn.init.normal_(parameter)
    return tokenizer


def cubes(*shapes: tuple[int, int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def ramp(bands: int) -> Tensor:
    return torch.linspace(400, 2400, bands)


def batch_of(samples: list[Tensor], padding: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Values, wavelengths and mask."""
    shape = [max(sizes) for sizes in zip(*(sample.shape for sample in samples), strict=True)]
    values = torch.full((len(samples), *shape), padding)
    mask = torch.zeros(values.shape, dtype=torch.bool)
    nm = torch.full(values.shape[:2], padding)
    for index, sample in enumerate(samples):
        place = (index, *(slice(size) for size in sample.shape))
        values[place], mask[place] = sample, True
        nm[index, : len(sample)] = ramp(len(sample))
    return values, nm, mask


def mirrored(place: int, size: int) -> int:
    """Walk from 0 to a place, turning round at the ends, which count twice."""
    while not 0 <= place < size:
        place = -1 - place if place < 0 else 2 * size - 1 - place
    return place


def spectral_position(tokenizer: HyperspectralTokenizer, nm: float) -> Tensor:
    periods = [20 * 1000 ** (k / 15) for k in range(16)]
    phases = [2 * math.pi * nm / period for period in periods]
    features = torch.tensor([*map(math.sin, phases), *map(math.cos, phases)])
    network = tokenizer.spectral_positions
    return network.outer(nn.functional.gelu(network.inner(features)))


def by_loops(tokenizer: HyperspectralTokenizer, cube: Tensor, nm: Tensor | None) -> Tensor:
    """Token by token, value by value."""
    bands, height, width = cube.shape
    config, (rows, columns) = tokenizer.config, tokenizer.patch_size
    stride = config.band_stride or config.bands_per_token
    spatial = config.tokenization == "spatial_spectral"
    tops = range(0, height, rows) if spatial else [height // 2 - rows // 2]
    lefts = range(0, width, columns) if spatial else [width // 2 - columns // 2]
    tokens = []
    for group in range(math.ceil(bands / stride)):
        first = group * stride + (stride - 1) // 2 - (config.bands_per_token - 1) // 2
        members = range(first, first + config.bands_per_token)
        inside = [band for band in members if 0 <= band < bands]
        places = [400 + 2100 * (band + 0.5) / bands if nm is None else nm[band].item() for band in inside]
        position = spectral_position(tokenizer, sum(places) / len(places))
        for i, top in enumerate(tops):
            for j, left in enumerate(lefts):
                token = tokenizer.projection.bias + position
                for k, band in enumerate(members):
                    for pixel in range(rows * columns):
                        row, column = top + pixel // columns, left + pixel % columns
                        value = cube[mirrored(band, bands), mirrored(row, height), mirrored(column, width)]
                        token = token + tokenizer.projection.weight[:, pixel, k] * value
                if spatial:
                    token = token + tokenizer.row_positions.table[i] + tokenizer.column_positions.table[j]
                tokens.append(token)
    return torch.stack(tokens)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 3), (7, 4, 6), (9, 5, 5)])
@pytest.mark.parametrize("placed", ["wavelength", "index"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        GROUPS,
        {"bands_per_token": 5, "band_stride": 2},
        {"bands_per_token": 4, "band_stride": 4, "window_size": 2},
        SPATIAL,
        {**SPATIAL, "patch_size": 1, "band_stride": 1},
    ],
)
def test_tokens_equal_a_loop(options: dict, placed: str, shape: tuple[int, int, int]) -> None:
    tokenizer = make(spectral_positions=placed, **options)
    (cube,) = cubes(shape)
    nm = ramp(shape[0]) if placed == "wavelength" else None
    found = tokenizer(cube[None], None if nm is None else nm[None])
    assert found.mask is None
    torch.testing.assert_close(found.embeddings[0], by_loops(tokenizer, cube, nm), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "grid"), [(SPATIAL, (4, 3, 2)), (GROUPS, (10,)), ({"bands_per_token": 3, "band_stride": 2}, (5,))]
)
def test_the_layout_tells_where_tokens_lie(options: dict, grid: tuple[int, ...]) -> None:
    found = make(**options)(torch.zeros(2, 10, 5, 6))
    assert found.layout.shape == grid
    assert found.embeddings.shape == (2, math.prod(grid), HIDDEN)
    spatial = len(grid) == 3
    assert found.layout.patch_size == ((3, 2, 3) if spatial else (3,))
    assert found.layout.stride == ((3, 2, 3) if spatial else (options["band_stride"],))


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, GROUPS, SPATIAL, {**SPATIAL, "max_spatial_positions": 2}])
@pytest.mark.parametrize("padding", [0.0, float("nan"), float("inf"), 1e30])
def test_a_sample_has_the_same_tokens_alone_and_in_any_padding(options: dict, padding: float) -> None:
    tokenizer = make(spectral_positions="wavelength", **options)
    samples = cubes((9, 5, 7), (4, 1, 1), (6, 8, 3), (1, 2, 2))
    together = tokenizer(*batch_of(samples, padding))
    assert together.embeddings.isfinite().all()
    for index, sample in enumerate(samples):
        alone = tokenizer(sample[None], ramp(len(sample))[None]).embeddings[0]
        torch.testing.assert_close(together.embeddings[index][together.mask[index]], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [GROUPS, SPATIAL])
def test_garbage_in_the_padding_reaches_no_gradient(options: dict) -> None:
    gradients = []
    for padding in (0.0, float("nan")):
        tokenizer = make(spectral_positions="wavelength", **options)
        values, nm, mask = batch_of(cubes((9, 5, 7), (4, 1, 1)), padding)
        values.requires_grad_()
        found = tokenizer(values, nm, mask)
        found.embeddings[found.mask].square().sum().backward()
        assert not values.grad[~mask].any()
        gradients.append([parameter.grad for parameter in tokenizer.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_sample_without_true_values_has_no_token() -> None:
    values, nm, mask = batch_of(cubes((4, 3, 3), (4, 3, 3)), float("nan"))
    mask[1], values[1], nm[1] = False, float("nan"), float("nan")
    found = make(spectral_positions="wavelength", **SPATIAL)(values, nm, mask)
    assert not found.mask[1].any()
    assert found.mask[0].all()
    assert found.embeddings.isfinite().all()


@pytest.mark.parametrize("options", [{}, GROUPS, {**SPATIAL, "band_stride": 2}])
def test_every_band_reaches_a_token(options: dict) -> None:
    values = torch.randn(1, 11, 3, 3, requires_grad=True)
    make(**options)(values).embeddings.sum().backward()
    assert (values.grad[0].abs().amax(dim=(1, 2)) > 0).all()


@torch.no_grad()
def test_sensors_with_other_bands_see_the_same_spectrum_alike() -> None:
    """A band is placed by its wavelength, not by its number: every second band has every second token."""
    tokenizer = make(spectral_positions="wavelength", bands_per_token=1)
    (cube,) = cubes((9, 1, 1))
    every = tokenizer(cube[None], ramp(9)[None]).embeddings
    second = tokenizer(cube[None, ::2], ramp(9)[None, ::2]).embeddings
    torch.testing.assert_close(second, every[:, ::2])


@torch.no_grad()
def test_wavelengths_keep_their_precision_in_a_model_of_half_precision() -> None:
    options = {"spectral_positions": "wavelength", "bands_per_token": 1}
    model = MetaTransformerModel(MetaTransformerConfig.tiny(num_hidden_layers=1, modalities={"hyperspectral": options}))
    nm = torch.tensor([[1000.0, 1003.0]])
    inputs = {"hyperspectral_values": torch.ones(1, 2, 1, 1), "wavelengths": nm}
    tokens = model.to(torch.bfloat16).tokenize(**inputs).embeddings[:, -2:]
    assert (tokens[:, 0] != tokens[:, 1]).any(), "both would be 1000 in bfloat16"


@torch.no_grad()
@pytest.mark.parametrize("options", [GROUPS, SPATIAL])
def test_an_exported_graph_takes_any_number_of_samples_and_bands(options: dict) -> None:
    class Embeddings(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokenizer = make(**options)

        def forward(self, hyperspectral_values: Tensor) -> Tensor:
            return self.tokenizer(hyperspectral_values).embeddings

    module = Embeddings()
    example, sizes = torch.randn(3, 12, 5, 6), ({0: Dim.AUTO, 1: Dim.AUTO},)
    exported = export(module, (example,), dynamic_shapes=sizes).module()
    for bands in (5, 17, 60):
        values = torch.randn(2, bands, 5, 6)
        torch.testing.assert_close(exported(values), module(values))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 5, 3),), "batch, bands, height, width"),
        ((torch.zeros(2, 0, 3, 3),), "batch, bands, height, width"),
        ((torch.zeros(2, 5, 3, 3), None, torch.ones(2, 5)), "hyperspectral_mask must have shape"),
        ((torch.zeros(2, 5, 3, 3), torch.zeros(2, 5)), "wavelengths are given"),
    ],
)
def test_bad_tensors_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()(*arguments)


def test_missing_or_too_few_wavelengths_are_refused() -> None:
    tokenizer = make(spectral_positions="wavelength")
    with pytest.raises(ValueError, match="wavelengths are missing"):
        tokenizer(torch.zeros(2, 5, 3, 3))
    with pytest.raises(ValueError, match=r"wavelengths must have shape \(2, 5\), \(batch, bands\)"):
        tokenizer(torch.zeros(2, 5, 3, 3), torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bands_per_token": 0}, "bands_per_token must be at least 1"),
        ({"band_stride": 5}, "leave bands out"),
        ({"patch_size": [1, 2, 3]}, "patch_size"),
        ({"patch_size": 0}, "patch_size"),
        ({"num_frequencies": 0}, "num_frequencies"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises((ValueError, StrictDataclassClassValidationError), match=message):
        HyperspectralTokenizerConfig(**options)
