"""Audio tokenizer: against transformers' AST, a loop over patches, and torch's own interpolation."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import Tensor, nn
from torch.export import Dim, export
from torch.nn import functional
from transformers import ASTConfig
from transformers.models.audio_spectrogram_transformer.modeling_audio_spectrogram_transformer import ASTPatchEmbeddings

from meta_transformer.processors.audio import AudioProcessor
from meta_transformer.tokenizers.audio import AudioTokenizer, AudioTokenizerConfig

HIDDEN = 12


def make(positions: bool = True, **options: object) -> AudioTokenizer:
    """A tokenizer with random weights, its positions zero on request."""
    torch.manual_seed(0)
    tokenizer = AudioTokenizer(AudioTokenizerConfig(**options), HIDDEN).eval()
    for table in (tokenizer.frequency_positions, tokenizer.time_positions.table):
        nn.init.normal_(table, std=float(positions))
    return tokenizer


def spectrograms(*frames: int, mels: int = 128) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(count, mels, generator=generator) for count in frames]


def batch_of(clips: list[Tensor], padding: float = 0.0) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(clip) for clip in clips])
    padded = nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=padding)
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]


@torch.no_grad()
def test_tokens_equal_asts_patch_embeddings_where_no_patch_is_incomplete() -> None:
    tokenizer = make(positions=False)
    reference = ASTPatchEmbeddings(ASTConfig(hidden_size=HIDDEN))
    reference.load_state_dict(tokenizer.state_dict(), strict=False)
    features = torch.stack(spectrograms(56, 56))
    torch.testing.assert_close(tokenizer(features).embeddings, reference(features), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 3, 4, 5, 13, 14, 15])
def test_tokens_equal_a_loop_over_patches(frames: int) -> None:
    tokenizer = make(num_mel_bins=20, patch_size=[6, 4], stride=[5, 3], max_time_positions=8)
    (clip,) = spectrograms(frames, mels=20)
    weight, bias = tokenizer.projection.weight[:, 0], tokenizer.projection.bias
    times = 1
    while 4 + 3 * (times - 1) < frames:  # patches until no frame is left
        times += 1
    padded = functional.pad(clip, (0, 20, 0, 20))
    tokens = []
    for row in range(4):  # 20 bins: patches at 0, 5, 10 and 15, of which the last reaches beyond
        for time in range(times):
            patch = padded[3 * time : 3 * time + 4, 5 * row : 5 * row + 6].T
            value = (weight * patch).sum(dim=(1, 2)) + bias
            tokens.append(value + tokenizer.frequency_positions[row] + tokenizer.time_positions.table[time])
    sequence = tokenizer(clip[None])
    assert sequence.layout.shape == (4, times)
    assert (sequence.layout.patch_size, sequence.layout.stride) == ((6, 4), (5, 3))
    torch.testing.assert_close(sequence.embeddings[0], torch.stack(tokens), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("frames", "times"), [(1, 1), (15, 1), (16, 1), (17, 2), (26, 2), (27, 3), (1024, 102)])
def test_128_mels_make_12_rows_and_times_are_rounded_up(frames: int, times: int) -> None:
    sequence = make()(torch.zeros(2, frames, 128))
    assert sequence.embeddings.shape == (2, 12 * times, HIDDEN)
    assert sequence.layout.shape == (12, times)
    assert sequence.mask is None


@pytest.mark.parametrize("frames", [7, 16, 29, 36])
def test_every_frame_reaches_a_token(frames: int) -> None:
    features = torch.zeros(1, frames, 128, requires_grad=True)
    make()(features).embeddings.sum().backward()
    assert (features.grad.abs().sum(dim=2) > 0).all()


@pytest.mark.parametrize(
    ("mels", "options", "rows", "unseen"),
    [
        (64, {}, 6, 0),
        (40, {}, 4, 0),
        (129, {}, 13, 0),
        (128, {}, 12, 2),  # AST's grid
        (64, {"patch_size": [64, 8], "stride": [64, 4]}, 1, 0),
        (17, {"stride": 1}, 2, 0),
        (19, {"stride": 16}, 1, 3),
        (20, {"stride": 16}, 2, 0),
    ],
)
def test_mel_bins_reach_a_token_but_for_less_than_a_quarter_of_a_stride(
    mels: int, options: dict[str, object], rows: int, unseen: int
) -> None:
    features = torch.zeros(1, 20, mels, requires_grad=True)
    sequence = make(num_mel_bins=mels, **options)(features)
    assert sequence.layout.shape[0] == rows
    sequence.embeddings.sum().backward()
    seen = features.grad.abs().sum(dim=(0, 1)) > 0
    assert seen.tolist() == [True] * (mels - unseen) + [False] * unseen


@torch.no_grad()
@pytest.mark.parametrize("padding", [0.0, 1e4, float("nan"), float("inf")])
def test_a_clip_has_the_same_tokens_alone_and_padded_with_anything(padding: float) -> None:
    tokenizer = make(max_time_positions=6)  # the longer clips get interpolated positions, each its own
    clips = spectrograms(9, 16, 40, 76, 123, 130)
    sequence = tokenizer(*batch_of(clips, padding))
    for tokens, mask, clip in zip(sequence.embeddings, sequence.mask, clips, strict=True):
        torch.testing.assert_close(tokens[mask], tokenizer(clip[None]).embeddings[0], atol=1e-5, rtol=0)


def test_masked_tokens_are_those_past_the_last_column_of_their_clip() -> None:
    sequence = make()(*batch_of(spectrograms(16, 17, 37)))
    expected = [[True, False, False, False], [True, True, False, False], [True, True, True, True]]
    assert sequence.layout.shape == (12, 4)
    assert torch.equal(sequence.mask.unflatten(1, (12, 4)), torch.tensor(expected)[:, None].expand(3, 12, 4))


def test_a_mask_of_integers_is_taken_as_booleans() -> None:
    tokenizer, (features, mask) = make(), batch_of(spectrograms(20, 50))
    torch.testing.assert_close(tokenizer(features, mask.long()).embeddings, tokenizer(features, mask).embeddings)


def test_a_sample_without_a_frame_has_no_real_token() -> None:
    features, mask = batch_of(spectrograms(30, 50))
    mask[0] = False
    sequence = make()(features, mask)
    assert sequence.mask.any(dim=1).tolist() == [False, True]
    assert sequence.embeddings.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("table", [1, 2, 5, 128])
def test_positions_beyond_the_table_are_interpolated_linearly_to_the_clips_own_length(table: int) -> None:
    tokenizer = make(max_time_positions=table)
    nn.init.zeros_(tokenizer.projection.weight)
    nn.init.zeros_(tokenizer.projection.bias)
    nn.init.zeros_(tokenizer.frequency_positions)
    times = 2 * table + 1
    tokens = tokenizer(torch.zeros(1, 16 + 10 * (times - 1), 128)).embeddings.unflatten(1, (12, times))
    expected = functional.interpolate(
        tokenizer.time_positions.table.T[None], size=times, mode="linear", align_corners=True
    )
    torch.testing.assert_close(tokens, expected.mT[:, None].expand_as(tokens), atol=1e-5, rtol=0)


def test_gradients_reach_both_position_tables_where_they_are_used() -> None:
    tokenizer = make()
    tokenizer(torch.zeros(1, 56, 128)).embeddings.sum().backward()
    assert torch.equal(tokenizer.frequency_positions.grad, torch.full((12, HIDDEN), 5.0))
    expected = torch.zeros(128, HIDDEN)
    expected[:5] = 12
    torch.testing.assert_close(tokenizer.time_positions.table.grad, expected)


def test_weights_are_filled_on_a_module_made_without_memory() -> None:
    with torch.device("meta"):
        tokenizer = AudioTokenizer(AudioTokenizerConfig(), 64)
    for module in tokenizer.to_empty(device="cpu"), tokenizer.time_positions:
        module.init_parameters(0.02)
    for table in (tokenizer.frequency_positions, tokenizer.time_positions.table):
        assert table.std().item() == pytest.approx(0.02, rel=0.1)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 5e-2), (torch.float16, 5e-3)])
def test_half_precision_stays_close_to_full(dtype: torch.dtype, tolerance: float) -> None:
    tokenizer = make(max_time_positions=4)
    features, mask = batch_of(spectrograms(30, 100))
    full = tokenizer(features, mask).embeddings
    half = tokenizer.to(dtype)(features.to(dtype), mask).embeddings
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), full, atol=tolerance, rtol=tolerance)


@torch.no_grad()
def test_one_graph_compiles_with_and_without_mask() -> None:
    tokenizer = make(max_time_positions=4)
    compiled = torch.compile(
        lambda *inputs: tokenizer(*inputs).embeddings, fullgraph=True, backend="eager", dynamic=True
    )
    features, mask = batch_of(spectrograms(30, 100))
    for inputs in ((features,), (features, mask), (features[:, :57],)):
        torch.testing.assert_close(compiled(*inputs), tokenizer(*inputs).embeddings)


@torch.no_grad()
def test_an_exported_graph_takes_clips_of_any_length() -> None:
    class Embeddings(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokenizer = make(max_time_positions=4)

        def forward(self, input_features: Tensor) -> Tensor:
            return self.tokenizer(input_features).embeddings

    module = Embeddings()
    exported = export(module, (torch.zeros(2, 50, 128),), dynamic_shapes=({0: Dim.AUTO, 1: Dim.AUTO},)).module()
    for frames in (17, 36, 37, 250):
        features = torch.stack(spectrograms(*[frames] * 3))
        torch.testing.assert_close(exported(features), module(features))


def test_the_processors_output_is_the_input() -> None:
    processor = AudioProcessor(num_mel_bins=40)
    batch = processor(processor.dummy_samples(3), **processor.dummy_call_kwargs)
    sequence = make(**processor.tokenizer_config())(**batch)
    columns = (batch["input_features_mask"].sum(dim=1) - 16).div(10).ceil() + 1
    assert torch.equal(sequence.mask.sum(dim=1), 4 * columns.long())


@pytest.mark.parametrize("shape", [(50, 128), (1, 50, 64), (1, 0, 128), (1, 1, 50, 128)])
def test_features_of_another_shape_are_refused_with_the_remedy(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(batch, frames, 128\), got .*AudioProcessor\(num_mel_bins=128\)"):
        make()(torch.zeros(shape))


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"input_features_mask must have shape \(2, 50\).*got \(2, 40\)"):
        make()(torch.zeros(2, 50, 128), torch.ones(2, 40, dtype=torch.bool))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 0}, "patch_size must be"),
        ({"patch_size": [16, 16, 16]}, "patch_size must be"),
        ({"stride": []}, "stride must be"),
        ({"stride": 17}, "stride 17 is larger than patch_size 16"),
        ({"stride": [10, 20]}, "larger than patch_size"),
        ({"num_mel_bins": 8}, "num_mel_bins 8 is smaller than a patch of 16"),
        ({"max_time_positions": 0}, "max_time_positions must be at least 1"),
    ],
)
def test_options_that_make_no_tokens_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        AudioTokenizerConfig(**options)


def test_options_survive_json() -> None:
    config = AudioTokenizerConfig(num_mel_bins=64, patch_size=[16, 8], stride=[10, 4], max_time_positions=50)
    assert AudioTokenizerConfig(**json.loads(json.dumps(config.to_dict()))) == config
