"""From tokens to points and steps, against naive loops and PyTorch Geometric."""

import pytest
import torch
from torch.testing import assert_close

from meta_transformer import MetaTransformerConfig, MetaTransformerForTokenClassification
from meta_transformer.heads.origins import interpolate, read_steps
from meta_transformer.sequence import GridLayout

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}


def model_of(modality: str, **options) -> MetaTransformerForTokenClassification:
    torch.manual_seed(0)
    config = MetaTransformerConfig(**TINY, modalities={modality: options}, id2label={0: "a", 1: "b", 2: "c"})
    return MetaTransformerForTokenClassification(config).eval()


def cloud(centres: int, points: int = 30) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(centres)
    return torch.randn(1, centres, 4), torch.randn(1, centres, 3), torch.randn(1, points, 3)


@pytest.mark.parametrize("centres", [1, 2, 8])
def test_interpolation_equals_a_loop_over_points(centres: int) -> None:
    values, places, points = cloud(centres)
    found = interpolate(values, places, points)[0]
    for point, row in zip(points[0], found, strict=True):
        distances = [(float((place - point).square().sum()), index) for index, place in enumerate(places[0])]
        nearest = sorted(distances)[:3]
        total = sum(1 / distance for distance, _ in nearest)
        assert_close(row, sum(values[0, index] / distance / total for distance, index in nearest))


def test_interpolation_equals_that_of_pytorch_geometric(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights; its search needs kernels that are not installed everywhere."""
    pytest.importorskip("torch_geometric")
    from torch_geometric.nn.unpool import knn_interpolate as module

    def search(x, y, k, **_):
        nearest = torch.cdist(y, x).topk(k, largest=False).indices
        return torch.stack([torch.arange(len(y)).repeat_interleave(k), nearest.flatten()])

    monkeypatch.setitem(module.__globals__ if callable(module) else vars(module), "knn", search)
    function = module if callable(module) else module.knn_interpolate
    values, places, points = cloud(8)
    points[0, 0] = places[0, 3]
    expected = function(values[0], places[0], points[0], k=3)
    assert_close(interpolate(values, places, points)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("centres", [1, 2, 8])
def test_padding_of_the_centres_does_not_change_the_interpolation(centres: int) -> None:
    values, places, points = cloud(centres)
    filled = [torch.cat([each, torch.full((1, 5, each.shape[2]), 9.0)], dim=1) for each in (values, places)]
    mask = torch.arange(centres + 5)[None] < centres
    assert_close(interpolate(*filled, points, mask), interpolate(values, places, points))


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_every_stage_and_the_raw_point_reach_the_logits(stages: int) -> None:
    model = model_of("point_cloud", num_stages=stages, num_groups=4, group_size=4, num_features=2)
    points, features = torch.randn(2, 80, 3), torch.randn(2, 80, 2)
    output = model(point_coordinates=points, point_features=features)
    assert output.logits.shape == (2, 80, 3)
    output.logits.square().sum().backward()
    propagation = model.head.origins.propagation
    assert [layer.in_features for layer in propagation.skip] == [[5], [5, 16], [5, 8, 16]][stages - 1]
    for parameter in propagation.parameters():
        assert parameter.grad.abs().max() > 0


def test_another_order_of_the_points_gives_the_logits_in_that_order() -> None:
    model = model_of("point_cloud", num_groups=8, group_size=4)
    points, order = torch.randn(1, 40, 3), torch.randperm(40, generator=torch.Generator().manual_seed(0))
    expected = model(point_coordinates=points).logits[:, order]
    assert_close(model(point_coordinates=points[:, order]).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "stride", "first", "steps"),
    [(1, 1, 0, 9), (4, 4, 0, 17), (16, 8, 0, 20), (16, 8, 0, 5), (5, 2, -1, 13), (13, 4, -3, 50), (7, 3, -2, 8)],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_steps_equal_a_loop_over_the_patches_that_cover_them(size, stride, first, steps, channels) -> None:
    patches = -(-(steps - first) // stride)
    torch.manual_seed(0)
    tokens, mask = torch.randn(1, channels * patches, 4), torch.rand(1, channels * patches) < 0.8
    shape = (patches,) if channels == 1 else (channels, patches)
    layout = GridLayout(shape, (*shape[:-1], size), (*(1 for _ in shape[:-1]), stride))
    found = read_steps(tokens, mask, layout, first, steps)[0]
    for step in range(steps):
        total, weights = torch.zeros(4), 0.0
        for index in range(channels * patches):
            begin = first + index % patches * stride
            if begin <= step < begin + size and mask[0, index]:
                weight = (size + 1) / 2 - abs(step - (begin + (size - 1) / 2))
                total, weights = total + weight * tokens[0, index], weights + weight
        assert_close(found[step], total / max(weights, 1))


def test_a_step_of_a_recording_reads_the_tokens_that_see_it() -> None:
    """The layout against what really reaches the tokens: gradients of the tokenizer's outputs."""
    tokenizer = model_of("imu", num_channels=3).model.tokenizers["imu"]
    values = torch.randn(1, 41, 3, requires_grad=True)
    sequence = tokenizer(imu_values=values)
    layout = sequence.layout
    for index in range(len(sequence)):
        weights = torch.randn(sequence.embeddings.shape[-1])  # LayerNorm has no gradient of a plain sum
        (slope,) = torch.autograd.grad(sequence.embeddings[0, index] @ weights, values, retain_graph=True)
        begin = layout.first + index * layout.stride[0]
        seen = [step for step in range(begin, begin + layout.patch_size[0]) if 0 <= step < 41]
        assert slope[0].abs().sum(dim=1).nonzero()[:, 0].tolist() == seen


@pytest.mark.parametrize(
    ("modality", "options", "batch"),
    [
        ("text", {"ngram_size": 6, "downsampling_rate": 4}, {"input_ids": torch.arange(22).view(2, 11)}),
        ("imu", {"num_channels": 3}, {"imu_values": torch.randn(2, 11, 3)}),
        ("time_series", {"form": "channel_independent"}, {"past_values": torch.randn(2, 11, 3)}),
        ("time_series", {"form": "convolution", "num_channels": 3}, {"past_values": torch.randn(2, 11, 3)}),
    ],
)
def test_there_are_logits_for_each_step_that_comes_in(modality, options, batch) -> None:
    model = model_of(modality, **options)
    assert model(**batch).logits.shape == (2, 11, 3)
    assert [len(each) for each in model.post_process(model(**batch))] == [11, 11]
