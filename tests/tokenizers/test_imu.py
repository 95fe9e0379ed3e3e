"""The IMU tokenizer against a loop over windows, OneLLM's convolution, and torch's own interpolation."""

import json
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import Tensor, nn
from torch.export import Dim, export
from torch.nn import functional

from meta_transformer.processors.imu import ImuProcessor
from meta_transformer.tokenizers.imu import ImuTokenizer, ImuTokenizerConfig

HIDDEN = 12
SHAPES = [([10], [1]), ([4], [4]), ([5, 5], [2, 2]), ([8, 5, 3], [3, 2, 1]), ([1], [1])]


def make(positions: bool = True, **options: Any) -> ImuTokenizer:
    """A tokenizer with random weights, its positions zero on request."""
    torch.manual_seed(0)
    tokenizer = ImuTokenizer(ImuTokenizerConfig(**options), HIDDEN).eval()
    nn.init.normal_(tokenizer.positions.table, std=float(positions))
    for norm in tokenizer.norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return tokenizer


def recordings(*steps: int, channels: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(count, channels, generator=generator) for count in steps]


def batch_of(samples: list[Tensor], padding: float = 0.0) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(each) for each in samples])
    padded = nn.utils.rnn.pad_sequence(samples, batch_first=True, padding_value=padding)
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]


@torch.no_grad()
@pytest.mark.parametrize(("sizes", "strides"), SHAPES)
@pytest.mark.parametrize("steps", [1, 2, 7, 12, 13])
def test_tokens_equal_a_loop_over_windows(sizes: list[int], strides: list[int], steps: int) -> None:
    tokenizer = make(kernel_sizes=sizes, strides=strides)
    (signal,) = recordings(steps)
    for index, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
        convolution, norm = tokenizer.convolutions[index], tokenizer.norms[index]
        rows = []
        for start in range(0, len(signal), stride):
            first = start - (size - stride) // 2  # as many steps in front of its own as behind them, or one less
            window = torch.zeros(size, signal.shape[1])
            for step in range(size):
                if 0 <= first + step < len(signal):
                    window[step] = signal[first + step]
            rows.append(norm(torch.einsum("ocs,sc->o", convolution.weight, window) + convolution.bias))
        signal = torch.stack(rows)
        if index < len(sizes) - 1:
            signal = functional.gelu(signal)
    sequence = tokenizer(recordings(steps)[0][None])
    expected = signal + tokenizer.positions.table[: len(signal)]
    torch.testing.assert_close(sequence.embeddings[0], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_one_layer_of_ten_steps_is_onellms_convolution() -> None:
    tokenizer = make(positions=False, kernel_sizes=[10], strides=[1])
    values = torch.stack(recordings(400, 400))
    expected = functional.conv1d(values.mT, tokenizer.convolutions[0].weight, tokenizer.convolutions[0].bias).mT
    found = tokenizer(values).embeddings
    assert found.shape == (2, 400, HIDDEN)
    # Theirs has no norm, and 391 tokens: the windows that lie within the recording.
    torch.testing.assert_close(found[:, 4:-5], tokenizer.norms[0](expected), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("sizes", "strides"), SHAPES)
@pytest.mark.parametrize("steps", [1, 5, 12, 17])
def test_every_step_reaches_a_token(sizes: list[int], strides: list[int], steps: int) -> None:
    values = torch.stack(recordings(steps)).requires_grad_()
    sequence = make(kernel_sizes=sizes, strides=strides)(values)
    sequence.embeddings.square().sum().backward()
    assert (values.grad.abs().sum(dim=2) > 0).all()


@pytest.mark.parametrize(("steps", "tokens"), [(1, 1), (4, 1), (5, 2), (100, 25), (101, 26)])
def test_a_token_stands_for_four_steps_by_default(steps: int, tokens: int) -> None:
    sequence = make()(torch.zeros(2, steps, 6))
    assert sequence.embeddings.shape == (2, tokens, HIDDEN)
    assert sequence.mask is None
    layout = sequence.layout
    assert (layout.shape, layout.patch_size, layout.stride) == ((tokens,), (13,), (4,))


def test_the_layout_tells_what_a_token_sees() -> None:
    """By the gradient of one token in the middle."""
    for sizes, strides in SHAPES:
        tokenizer = make(kernel_sizes=sizes, strides=strides)
        values = torch.stack(recordings(120)).requires_grad_()
        sequence = tokenizer(values)
        sequence.embeddings[0, len(sequence) // 2].square().sum().backward()
        assert int((values.grad.abs().sum(dim=2) > 0).sum()) == sequence.layout.patch_size[0]


@torch.no_grad()
@pytest.mark.parametrize(("sizes", "strides"), SHAPES)
@pytest.mark.parametrize("padding", [0.0, 1e4, float("nan"), float("inf")])
def test_a_recording_has_the_same_tokens_alone_and_padded_with_anything(
    sizes: list[int], strides: list[int], padding: float
) -> None:
    tokenizer = make(kernel_sizes=sizes, strides=strides, max_positions=6)  # the longer ones get interpolated positions
    samples = recordings(1, 6, 9, 30, 41)
    sequence = tokenizer(*batch_of(samples, padding))
    for tokens, mask, sample in zip(sequence.embeddings, sequence.mask, samples, strict=True):
        torch.testing.assert_close(tokens[mask], tokenizer(sample[None]).embeddings[0], atol=1e-5, rtol=1e-4)


def test_garbage_reaches_no_gradient() -> None:
    found = []
    for padding in (0.0, float("nan"), float("inf")):
        tokenizer = make()
        sequence = tokenizer(*batch_of(recordings(9, 30), padding))
        sequence.embeddings[sequence.mask].square().sum().backward()
        found.append([parameter.grad for parameter in tokenizer.parameters()])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


def test_masked_tokens_are_those_past_the_end() -> None:
    sequence = make()(*batch_of(recordings(4, 5, 12)))
    assert sequence.mask.tolist() == [[True, False, False], [True, True, False], [True, True, True]]


def test_a_mask_of_integers_is_taken_as_booleans() -> None:
    tokenizer, (values, mask) = make(), batch_of(recordings(5, 12))
    torch.testing.assert_close(tokenizer(values, mask.long()).embeddings, tokenizer(values, mask).embeddings)


def test_a_recording_without_a_step_has_no_real_token() -> None:
    values, mask = batch_of(recordings(5, 12))
    mask[0] = False
    sequence = make()(values, mask)
    assert sequence.mask.any(dim=1).tolist() == [False, True]
    assert sequence.embeddings.isfinite().all()


@torch.no_grad()
def test_positions_beyond_the_table_are_interpolated() -> None:
    tokenizer = make(max_positions=4)
    for norm in tokenizer.norms:
        nn.init.zeros_(norm.weight)
        nn.init.zeros_(norm.bias)
    table = tokenizer.positions.table
    expected = functional.interpolate(table.T[None], size=9, mode="linear", align_corners=True).mT
    torch.testing.assert_close(tokenizer(torch.zeros(1, 36, 6)).embeddings, expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.15), (torch.float16, 2e-2)])
def test_half_precision_stays_close_to_full(dtype: torch.dtype, tolerance: float) -> None:
    tokenizer, (values, mask) = make(), batch_of(recordings(9, 40))
    full = tokenizer(values, mask)
    half = tokenizer.to(dtype)(values, mask)
    assert half.embeddings.dtype == dtype
    found = half.embeddings[half.mask].float()
    torch.testing.assert_close(found, full.embeddings[full.mask], atol=tolerance, rtol=0.1)


@torch.no_grad()
def test_one_graph_compiles_with_and_without_mask() -> None:
    tokenizer = make(max_positions=4)
    compiled = torch.compile(lambda *inputs: tokenizer(*inputs).embeddings, fullgraph=True, backend="eager")
    values, mask = batch_of(recordings(9, 40))
    for inputs in ((values,), (values, mask)):
        torch.testing.assert_close(compiled(*inputs), tokenizer(*inputs).embeddings)


@torch.no_grad()
def test_an_exported_graph_takes_recordings_of_any_length() -> None:
    class Embeddings(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokenizer = make(max_positions=4)

        def forward(self, imu_values: Tensor) -> Tensor:
            return self.tokenizer(imu_values).embeddings

    module = Embeddings()
    exported = export(module, (torch.zeros(2, 50, 6),), dynamic_shapes=({0: Dim.AUTO, 1: Dim.AUTO},)).module()
    for steps in (17, 36, 250):
        values = torch.stack(recordings(*[steps] * 3))
        torch.testing.assert_close(exported(values), module(values), atol=1e-5, rtol=1e-4)


def test_the_processors_output_is_the_input() -> None:
    processor = ImuProcessor(sensors=["accelerometer", "gyroscope", "magnetometer"])
    batch = processor(processor.dummy_samples(3), **processor.dummy_call_kwargs)
    sequence = make(**processor.tokenizer_config())(**batch)
    assert torch.equal(sequence.mask.sum(dim=1), batch["imu_mask"].sum(dim=1).div(4).ceil().long())


@pytest.mark.parametrize("shape", [(50, 6), (1, 50, 3), (1, 0, 6), (1, 1, 50, 6)])
def test_values_of_another_shape_are_refused_with_the_remedy(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(batch, steps, 6\), got .*ImuProcessor of 2 sensors"):
        make()(torch.zeros(shape))


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"imu_mask must have shape \(2, 50\).*got \(2, 40\)"):
        make()(torch.zeros(2, 50, 6), torch.ones(2, 40, dtype=torch.bool))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_channels": 0}, "num_channels and max_positions must be at least 1"),
        ({"max_positions": 0}, "num_channels and max_positions must be at least 1"),
        ({"kernel_sizes": [], "strides": []}, "one entry for each layer"),
        ({"kernel_sizes": [5]}, "one entry for each layer"),
        ({"strides": [6, 1]}, "strides must be at least 1 and at most kernel_sizes"),
        ({"strides": [0, 1]}, "strides must be at least 1"),
    ],
)
def test_options_that_make_no_tokens_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        ImuTokenizerConfig(**options)


def test_options_survive_json() -> None:
    config = ImuTokenizerConfig(num_channels=9, kernel_sizes=[10], strides=[5], max_positions=50)
    assert ImuTokenizerConfig(**json.loads(json.dumps(config.to_dict()))) == config
