"""The time series tokenizer against loops over patches, torch's convolution and transformers' PatchTST."""

import json
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import Tensor, nn
from torch.export import Dim, export
from torch.nn import functional
from transformers import PatchTSTConfig
from transformers.models.patchtst.modeling_patchtst import PatchTSTEmbedding, PatchTSTPatchify, PatchTSTStdScaler

from meta_transformer import MetaTransformerConfig, MetaTransformerModel
from meta_transformer.processors.time_series import TimeSeriesProcessor
from meta_transformer.tokenizers.time_series import TimeSeriesTokenizer, TimeSeriesTokenizerConfig

HIDDEN = 12
FORMS = ["channel_independent", "channel_mixing", "convolution"]
SMALL = {"num_channels": 2, "patch_length": 4, "stride": 3, "max_positions": 5}


def make(positions: bool = True, **options: Any) -> TimeSeriesTokenizer:
    """A tokenizer with random weights, its positions zero on request."""
    torch.manual_seed(0)
    tokenizer = TimeSeriesTokenizer(TimeSeriesTokenizerConfig(**options), HIDDEN).eval()
    nn.init.normal_(tokenizer.positions.table, std=float(positions))
    if tokenizer.channel_embeddings is not None:
        nn.init.normal_(tokenizer.channel_embeddings)
    return tokenizer


def series(*steps: int, channels: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(count, channels, generator=generator) * 3 + 5 for count in steps]


def batch_of(samples: list[Tensor], padding: float = 0.0, features: int = 0) -> dict[str, Tensor]:
    """A batch in which every third value of each series is missing, and whatever is no value is `padding`."""
    lengths = torch.tensor([len(each) for each in samples])
    values = nn.utils.rnn.pad_sequence(samples, batch_first=True)
    mask = torch.arange(values.shape[1]) < lengths[:, None]
    observed = mask[:, :, None] & (torch.arange(values[0].numel()).view_as(values[0]) % 3 != 1)
    batch = {"past_values": values.masked_fill(~observed, padding), "past_observed_mask": observed, "past_mask": mask}
    if features:
        times = torch.linspace(-0.5, 0.5, values.shape[1])[:, None].expand(len(samples), -1, features)
        batch["past_time_features"] = times.masked_fill(~mask[:, :, None], padding)
    return batch


def row(batch: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """One series of a batch without its padding, and so without a mask of steps."""
    steps = int(batch["past_mask"][index].sum())
    return {name: value[index : index + 1, :steps] for name, value in batch.items() if name != "past_mask"}


@torch.no_grad()
def test_tokens_are_patchtsts_where_nothing_is_missing_and_no_patch_incomplete() -> None:
    tokenizer = make(positions=False, patch_length=8, stride=4, level_features=False)
    config = PatchTSTConfig(context_length=40, num_input_channels=3, patch_length=8, patch_stride=4, d_model=HIDDEN)
    values = torch.stack(series(40, 40, channels=3))
    scaled, loc, scale = PatchTSTStdScaler(config)(values, torch.ones_like(values))
    embedding = PatchTSTEmbedding(config)
    embedding.input_embedding.weight.copy_(tokenizer.projection.weight[:, :8])
    embedding.input_embedding.bias.copy_(tokenizer.projection.bias)
    expected = embedding(PatchTSTPatchify(config)(scaled))
    sequence = tokenizer(values)
    assert sequence.layout.shape == (3, 9)
    # Their deviation has 1e-5 added to its square.
    torch.testing.assert_close(sequence.embeddings.unflatten(1, (3, 9)), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(sequence.layout.loc, loc[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(sequence.layout.scale, scale[:, 0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_convolution_is_torchs() -> None:
    tokenizer = make(positions=False, form="convolution", num_channels=2, instance_norm=False)
    (values,) = series(9)
    weight = tokenizer.projection.weight.view(HIDDEN, 2, 6)[:, :, :3]  # of the values, without those of what is missing
    missing = torch.zeros(2, 9 + 2)
    missing[:, [0, -1]] = 1  # the steps past both ends
    expected = functional.conv1d(values.T[None], weight, tokenizer.projection.bias, padding=1)
    expected += functional.conv1d(missing[None], tokenizer.projection.weight.view(HIDDEN, 2, 6)[:, :, 3:])
    sequence = tokenizer(values[None])
    assert (sequence.layout.shape, sequence.layout.patch_size, sequence.layout.stride) == ((9,), (1,), (1,))
    torch.testing.assert_close(sequence.embeddings, expected.mT, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("steps", [1, 3, 4, 5, 7, 8, 14])
def test_tokens_equal_a_loop_over_patches(form: str, steps: int) -> None:
    tokenizer = make(form=form, num_time_features=2, **SMALL)
    batch = row(batch_of(series(steps, steps + 3), features=2), 0)
    values, observed, times = (value[0] for value in batch.values())
    patches = 1
    while 4 + 3 * (patches - 1) < steps:  # patches until no step is left
        patches += 1
    cells, level = [], []
    for channel in range(2):
        own = values[:, channel][observed[:, channel]]
        loc, scale = torch.tensor(0.0), torch.tensor(1.0)
        if len(own):
            loc, scale = own.mean(), own.std(correction=0).clamp(min=1e-5 * own.abs().max())
        cell = torch.cat([torch.zeros(steps + 9, 1), torch.ones(steps + 9, 1)], dim=1)
        for step in range(steps):
            if observed[step, channel]:
                cell[step] = torch.tensor([(values[step, channel] - loc) / scale, 0.0])
        cells.append(cell)
        level.append(torch.stack([loc.asinh(), scale.log()]))
    times = torch.cat([times, torch.zeros(9, 2)])
    tokens: list[list[Tensor]] = [[], []]
    for patch in range(patches):
        window = slice(3 * patch, 3 * patch + 4)
        common = tokenizer.positions.table[patch] + tokenizer.time_projection(times[window].T.flatten())
        inputs = [cell[window].T.flatten() for cell in cells]
        if form == "channel_mixing":
            mixed = tokenizer.projection(torch.cat(inputs)) + tokenizer.level_projection(torch.cat(level))
            tokens[0].append(mixed + common)
            continue
        for channel in range(2):
            own = tokenizer.projection(inputs[channel]) + tokenizer.level_projection(level[channel])
            tokens[channel].append(own + common + tokenizer.channel_embeddings[channel])
    sequence = tokenizer(**batch)
    torch.testing.assert_close(sequence.embeddings[0], torch.stack(tokens[0] + tokens[1]), atol=1e-5, rtol=1e-5)
    channel = (2,) if form == "channel_independent" else ()
    assert sequence.layout.shape == (*channel, patches)
    assert sequence.layout.patch_size[-1] == 4
    assert sequence.layout.stride[-1] == 3


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("padding", [0.0, 1e4, float("nan"), float("inf")])
def test_a_series_has_the_same_tokens_alone_and_padded_with_anything(form: str, padding: float) -> None:
    tokenizer = make(form=form, num_time_features=1, **SMALL)  # the longer ones get interpolated positions
    batch = batch_of(series(2, 4, 9, 25, 40), padding, features=1)
    sequence = tokenizer(**batch)
    for index, (tokens, mask) in enumerate(zip(sequence.embeddings, sequence.mask, strict=True)):
        alone = tokenizer(**row(batch, index))
        expected = alone.embeddings[0] if alone.mask is None else alone.embeddings[0][alone.mask[0]]
        torch.testing.assert_close(tokens[mask], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(sequence.layout.loc[index], alone.layout.loc[0])
        steps = int(sequence.layout.lengths[index])
        assert steps == alone.layout.lengths[0] == batch["past_mask"][index].sum()
        torch.testing.assert_close(sequence.layout.values[index, :steps], alone.layout.values[0])
        assert torch.equal(sequence.layout.observed[index, :steps], alone.layout.observed[0])
        assert not sequence.layout.observed[index, steps:].any()


@pytest.mark.parametrize("form", FORMS)
def test_garbage_reaches_no_gradient(form: str) -> None:
    found = []
    for padding in (0.0, float("nan"), float("inf")):
        tokenizer = make(form=form, num_time_features=1, **SMALL)
        sequence = tokenizer(**batch_of(series(4, 9), padding, features=1))
        sequence.embeddings[sequence.mask].square().sum().backward()
        found.append([parameter.grad for parameter in tokenizer.parameters()])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("steps", [3, 4, 8, 12])
def test_every_step_reaches_a_token(form: str, steps: int) -> None:
    values = torch.stack(series(steps)).requires_grad_()
    make(form=form, instance_norm=False, **SMALL)(values).embeddings.sum().backward()
    assert (values.grad.abs() > 0).all()


def test_masked_tokens_are_those_past_the_end() -> None:
    batch = batch_of(series(4, 5, 10))
    expected = torch.tensor([[True, False, False], [True, True, False], [True, True, True]])
    assert torch.equal(make(form="channel_mixing", **SMALL)(**batch).mask, expected)
    assert torch.equal(make(**SMALL)(**batch).mask, expected.repeat(1, 2))


def test_a_gap_in_the_middle_keeps_its_token() -> None:
    """It tells that there was nothing, and that is not what a patch of zeros tells."""
    values = torch.stack(series(12))
    observed = torch.ones_like(values, dtype=torch.bool)
    observed[:, 3:10] = False
    tokenizer = make(instance_norm=False, **SMALL)
    gap = tokenizer(values, observed)
    assert gap.mask.all()
    zeros = tokenizer(values.masked_fill(~observed, 0))
    assert (gap.embeddings - zeros.embeddings)[0, 1].abs().max() > 0.1


def test_a_channel_in_which_nothing_was_observed_has_no_token_of_its_own() -> None:
    values = torch.stack(series(10, 10))
    observed = torch.ones_like(values, dtype=torch.bool)
    observed[1, :, 0] = False
    sequence = make(**SMALL)(values, observed)
    assert sequence.mask.tolist() == [[True] * 6, [False] * 3 + [True] * 3]
    assert (sequence.layout.loc[1, 0], sequence.layout.scale[1, 0]) == (0, 1)
    mixed = make(form="channel_mixing", **SMALL)(values, observed)
    assert mixed.mask is None
    assert mixed.embeddings.isfinite().all()


def test_any_number_of_channels_is_taken_and_none_depends_on_the_others() -> None:
    tokenizer = make(patch_length=4, stride=4)
    (values,) = series(8, channels=5)
    whole = tokenizer(values[None]).embeddings[0].unflatten(0, (5, 2))
    for channel in range(5):
        torch.testing.assert_close(tokenizer(values[None, :, [channel]]).embeddings[0], whole[channel])


@torch.no_grad()
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e6, 1e30])
def test_shape_survives_any_scale_and_the_layout_undoes_it(scale: float) -> None:
    tokenizer = make(level_features=False, **SMALL)
    values = torch.stack(series(20))
    expected, found = tokenizer(values), tokenizer(values * scale)
    torch.testing.assert_close(found.embeddings, expected.embeddings, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.layout.loc, expected.layout.loc * scale, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.layout.scale, expected.layout.scale * scale, rtol=1e-4, atol=0)
    undone = found.layout.values * found.layout.scale[:, None] + found.layout.loc[:, None]
    torch.testing.assert_close(undone, values * scale, rtol=1e-5, atol=1e-5 * scale)


@torch.no_grad()
@pytest.mark.parametrize("level", [0.0, 0.1, -7e8])
def test_a_constant_series_becomes_zero(level: float) -> None:
    tokenizer = make(positions=False, level_features=False, patch_length=4, stride=4)
    sequence = tokenizer(torch.full((1, 8, 1), level))
    expected = tokenizer.projection.bias.expand(2, -1)
    torch.testing.assert_close(sequence.embeddings[0], expected, atol=0.02, rtol=0)  # the mean is rounded
    torch.testing.assert_close(sequence.layout.loc, torch.full((1, 1), level))


def test_level_and_scale_are_seen_only_with_level_features() -> None:
    values = torch.stack(series(12))
    for features in (True, False):
        tokenizer = make(level_features=features, **SMALL)
        same = torch.allclose(tokenizer(values).embeddings, tokenizer(values * 2 + 10).embeddings, atol=1e-4)
        assert same is not features


def test_without_instance_norm_values_arrive_as_they_are() -> None:
    values = torch.stack(series(12))
    sequence = make(instance_norm=False, **SMALL)(values)
    assert not sequence.layout.loc.any()
    assert (sequence.layout.scale == 1).all()
    other = make(instance_norm=False, **SMALL)(values + 10).embeddings
    assert (other - sequence.embeddings).abs().max() > 1


def test_a_series_without_a_step_has_no_real_token() -> None:
    batch = batch_of(series(5, 9))
    batch["past_mask"][0] = False
    for form in FORMS:
        sequence = make(form=form, **SMALL)(**batch)
        assert sequence.mask.any(dim=1).tolist() == [False, True]
        assert sequence.embeddings.isfinite().all()


def test_masks_of_integers_are_taken_as_booleans() -> None:
    tokenizer, batch = make(**SMALL), batch_of(series(5, 9))
    integers = {name: value.long() if value.dtype == torch.bool else value for name, value in batch.items()}
    torch.testing.assert_close(tokenizer(**integers).embeddings, tokenizer(**batch).embeddings)


def test_gradients_with_respect_to_values_are_finite_for_a_constant_series() -> None:
    values = torch.ones(1, 6, 2, requires_grad=True)
    make(**SMALL)(values).embeddings.sum().backward()
    assert values.grad.isfinite().all()


def test_weights_are_filled_on_a_module_made_without_memory() -> None:
    with torch.device("meta"):
        tokenizer = TimeSeriesTokenizer(TimeSeriesTokenizerConfig(num_channels=50), 64)
    tokenizer = tokenizer.to_empty(device="cpu")
    tokenizer.init_parameters(0.02)
    assert tokenizer.channel_embeddings.std().item() == pytest.approx(0.02, rel=0.1)


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 1e-2)])
def test_half_precision_weights_keep_statistics_in_float32(form: str, dtype: torch.dtype, tolerance: float) -> None:
    tokenizer, batch = make(form=form, num_time_features=1, **SMALL), batch_of(series(9, 20), features=1)
    full = tokenizer(**batch)
    half = tokenizer.to(dtype)(**batch)
    assert half.embeddings.dtype == dtype
    assert half.layout.loc.dtype == torch.float32
    torch.testing.assert_close(half.embeddings[half.mask].float(), full.embeddings[full.mask], atol=tolerance, rtol=0.1)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "level"), [(torch.bfloat16, 1013.0), (torch.float16, 70_000.0)])
def test_a_model_in_half_precision_sees_what_varies_little_about_a_high_level(dtype: torch.dtype, level: float) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = MetaTransformerModel(MetaTransformerConfig(**sizes, modalities={"time_series": {}}, initializer_range=0.2))
    waves = torch.stack([torch.arange(32.0).sin(), torch.arange(32.0).cos()])[:, :, None] * 0.5
    full = model.tokenize(past_values=level + waves)
    half = model.to(dtype).tokenize(past_values=level + waves)
    assert half.embeddings.dtype == dtype
    torch.testing.assert_close(half.segments[0].layout.scale, full.segments[0].layout.scale)
    torch.testing.assert_close(half.embeddings.float(), full.embeddings, atol=0.1, rtol=0.1)
    assert (half.embeddings[0] - half.embeddings[1]).abs().max() > 0.5


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_one_graph_compiles_with_and_without_masks(form: str) -> None:
    tokenizer = make(form=form, **SMALL)
    compiled = torch.compile(lambda **inputs: tokenizer(**inputs).embeddings, fullgraph=True, backend="eager")
    batch = batch_of(series(5, 9))
    for inputs in ({"past_values": batch["past_values"]}, batch):
        torch.testing.assert_close(compiled(**inputs), tokenizer(**inputs).embeddings)


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_an_exported_graph_takes_series_of_any_length(form: str) -> None:
    class Embeddings(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokenizer = make(form=form, **SMALL)

        def forward(self, past_values: Tensor) -> Tensor:
            return self.tokenizer(past_values).embeddings

    module = Embeddings()
    exported = export(module, (torch.randn(2, 20, 2),), dynamic_shapes=({0: Dim.AUTO, 1: Dim.AUTO},)).module()
    for steps in (7, 8, 41):
        values = torch.stack(series(steps, steps, steps))
        torch.testing.assert_close(exported(values), module(values))


@pytest.mark.parametrize("form", FORMS)
def test_the_processors_output_is_the_input(form: str) -> None:
    processor = TimeSeriesProcessor(num_channels=3, time_features=["hour_of_day", "day_of_week"])
    batch = processor(processor.dummy_samples(4))
    assert set(batch) == {"past_values", "past_observed_mask", "past_mask", "past_time_features"}
    sequence = make(form=form, **processor.tokenizer_config())(**batch)
    assert sequence.mask.any(dim=1).all()


@pytest.mark.parametrize("shape", [(5, 2), (1, 5, 3), (1, 0, 2), (1, 1, 5, 2)])
def test_values_of_another_shape_are_refused_with_the_remedy(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(batch, steps, 2\), got .*TimeSeriesProcessor\(num_channels=2\)"):
        make(**SMALL)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"past_observed_mask": torch.ones(1, 5)}, r"past_observed_mask must have shape \(1, 5, 2\).*got \(1, 5\)"),
        ({"past_mask": torch.ones(1, 4)}, r"past_mask must have shape \(1, 5\).*got \(1, 4\)"),
        ({"past_time_features": torch.ones(1, 5, 3)}, r"must have shape \(1, 5, 0\), got \(1, 5, 3\)"),
    ],
)
def test_other_tensors_of_another_shape_are_refused(inputs: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**SMALL)(torch.zeros(1, 5, 2), **inputs)


def test_a_calendar_that_was_promised_must_come() -> None:
    with pytest.raises(ValueError, match=r"past_time_features must have shape \(1, 5, 2\), got None"):
        make(num_time_features=2, **SMALL)(torch.zeros(1, 5, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_length": 0}, "patch_length must be at least 1"),
        ({"stride": 17}, "stride 17 is larger than patch_length 16"),
        ({"max_positions": 0}, "max_positions must be at least 1"),
        ({"num_time_features": -1}, "num_time_features must be at least 0"),
        ({"num_channels": 0}, "num_channels must be at least 1"),
        ({"form": "channel_mixing"}, "needs num_channels"),
        ({"form": "convolution"}, "needs num_channels"),
    ],
)
def test_options_that_make_no_tokens_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        TimeSeriesTokenizerConfig(**options)


def test_options_survive_json() -> None:
    config = TimeSeriesTokenizerConfig(form="convolution", num_channels=3, num_time_features=2, level_features=False)
    assert TimeSeriesTokenizerConfig(**json.loads(json.dumps(config.to_dict()))) == config
