"""Point cloud tokenizer: against a loop over groups, and each cloud against itself in other company."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from meta_transformer import MetaTransformerConfig, MetaTransformerModel
from meta_transformer.processors.point_cloud import PointCloudProcessor
from meta_transformer.sequence import PointLayout
from meta_transformer.tokenizers.point_cloud import PointCloudTokenizer, PointCloudTokenizerConfig

HIDDEN = 16
SMALL = {"group_size": 8, "embedding_width": 8}


def make(**options: object) -> PointCloudTokenizer:
    """A tokenizer whose weights are all random, biases too."""
    torch.manual_seed(0)
    tokenizer = PointCloudTokenizer(PointCloudTokenizerConfig(**{**SMALL, **options}), HIDDEN).eval()
    for parameter in tokenizer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return tokenizer


def clouds(*sizes: int, channels: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, channels, generator=generator) for size in sizes]


def padded(parts: list[Tensor], value: float = 0.0) -> tuple[Tensor, Tensor]:
    sizes = torch.tensor([len(part) for part in parts])
    points = nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=value)
    return points, torch.arange(points.shape[1]) < sizes[:, None]


@torch.no_grad()
@pytest.mark.parametrize("unit", ["group_radius", "coordinates"])
def test_tokens_equal_a_loop_over_groups(unit: str) -> None:
    tokenizer = make(num_features=2, offset_unit=unit)
    (points,), (features,) = clouds(30), clouds(30, channels=2)
    sequence = tokenizer(points[None], features[None])
    embed, tokens = tokenizer.stages[0], []
    for centre in sequence.layout.stages[0].centres[0]:
        distances = (points - centre).norm(dim=1)
        members = distances.argsort()[:8]
        radius = distances[members].max()
        lifted = []
        for member in members:
            offset = points[member] - centre
            values = [offset / radius, radius[None]] if unit == "group_radius" else [offset]
            row = torch.cat([*values, features[member], torch.ones(1)])
            lifted.append(embed.point(embed.lift_norm(embed.lift.weight @ row).relu()))
        lifted = torch.stack(lifted)
        group = embed.joint_group(lifted.max(dim=0).values)
        joint = torch.stack([embed.joint_norm(embed.joint_point(each) + group) for each in lifted])
        token = embed.projection(embed.group_norm(joint.max(dim=0).values))
        tokens.append(token + tokenizer.position_out(functional.gelu(tokenizer.position_in(centre))))
    assert_close(sequence.embeddings[0], torch.stack(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("points", "groups"), [(1, 1), (4, 1), (5, 2), (40, 10), (41, 11), (1024, 12)])
def test_a_quarter_of_the_points_become_groups_up_to_the_limit(points: int, groups: int) -> None:
    sequence = make(num_groups=12)(torch.randn(2, points, 3))
    assert sequence.embeddings.shape == (2, groups, HIDDEN)
    assert sequence.mask is None


def test_the_default_makes_256_groups_of_32_of_1024_points() -> None:
    sequence = PointCloudTokenizer(PointCloudTokenizerConfig(), HIDDEN)(torch.randn(1, 1024, 3))
    assert sequence.layout.stages[0].groups.shape == (1, 256, 32)


@torch.no_grad()
@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("padding", [0.0, 1e4, float("nan"), float("inf")])
def test_a_cloud_has_the_same_tokens_alone_and_padded_with_anything(padding: float, stages: int) -> None:
    tokenizer = make(num_features=2, num_stages=stages, num_groups=20)
    parts = clouds(1, 2, 5, 33, 64, 129, channels=5)
    batch, mask = padded(parts, padding)
    sequence = tokenizer(batch[:, :, :3], batch[:, :, 3:], mask)
    for tokens, real, part in zip(sequence.embeddings, sequence.mask, parts, strict=True):
        alone = tokenizer(part[None, :, :3], part[None, :, 3:])
        assert_close(tokens[real], alone.embeddings[0], rtol=1e-5, atol=1e-5)
    assert sequence.embeddings.isfinite().all()


def test_garbage_in_padding_does_not_reach_gradients() -> None:
    gradients = []
    for value in (0.0, float("nan")):
        tokenizer = make()
        points, mask = padded(clouds(9, 30), value)
        points.requires_grad_()
        sequence = tokenizer(points, point_mask=mask)
        sequence.embeddings[sequence.mask].square().sum().backward()
        assert points.grad[~mask].eq(0).all()
        gradients.append([points.grad[mask], *(parameter.grad for parameter in tokenizer.parameters())])
    assert_close(*gradients)


@torch.no_grad()
def test_the_order_of_points_does_not_matter() -> None:
    tokenizer, (points,) = make(), clouds(60)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    assert_close(tokenizer(points[None][:, order]).embeddings, tokenizer(points[None]).embeddings)


@torch.no_grad()
def test_on_request_training_starts_anywhere_and_evaluation_where_the_cloud_says() -> None:
    points = torch.stack(clouds(60, 60))
    tokenizer = make(random_start=True).train()
    starts = {tuple(tokenizer(points).layout.stages[0].centres[:, 0, 0].tolist()) for _ in range(10)}
    assert len(starts) > 5
    expected = make()(points).embeddings
    assert_close(tokenizer.eval()(points).embeddings, expected, rtol=0, atol=0)
    assert_close(make().train()(points).embeddings, expected, rtol=0, atol=0)


@torch.no_grad()
def test_a_mask_of_integers_with_holes_picks_points() -> None:
    tokenizer, (points,) = make(), clouds(40)
    mask = torch.arange(40) % 3 != 0
    sequence = tokenizer(points[None], point_mask=mask[None].long())
    assert_close(sequence.embeddings[sequence.mask], tokenizer(points[mask][None]).embeddings[0])


@torch.no_grad()
def test_equal_points_and_a_single_one_make_finite_tokens() -> None:
    tokenizer = make()
    for points in (torch.zeros(1, 1, 3), torch.ones(1, 40, 3)):
        assert tokenizer(points).embeddings.isfinite().all()
    (few,) = clouds(5)
    assert_close(tokenizer(few[None]).embeddings[:, 0], tokenizer(few.repeat(4, 1)[None, :8]).embeddings[:, 0])


def test_a_cloud_without_a_point_has_no_real_token() -> None:
    points, mask = padded(clouds(20, 30), float("nan"))
    mask[0] = False
    sequence = make()(points, point_mask=mask)
    assert sequence.mask.any(dim=1).tolist() == [False, True]
    assert sequence.embeddings.isfinite().all()


@torch.no_grad()
def test_moving_a_cloud_changes_positions_alone() -> None:
    tokenizer, (points,) = make(), clouds(50)
    first, moved = (tokenizer(each[None]).layout.stages[0].features for each in (points, points + 8))
    assert_close(first, moved, rtol=1e-3, atol=1e-3)  # float32 rounds the moved coordinates


@torch.no_grad()
def test_by_radius_a_group_and_its_enlargement_differ_by_the_radius_channel_alone() -> None:
    tokenizer, (points,) = make(), clouds(50)
    tokenizer.stages[0].lift.weight[:, 3] = 0
    first, large = (tokenizer(each[None]).layout.stages[0].features for each in (points, points * 100))
    assert_close(first, large, rtol=1e-4, atol=1e-4)


def test_the_layout_leads_from_tokens_back_to_points() -> None:
    points, mask = padded(clouds(64, 40))
    layout = make(num_stages=2)(points, point_mask=mask).layout
    assert isinstance(layout, PointLayout)
    assert torch.equal(layout.points[mask], points[mask])
    first, second = layout.stages
    assert (first.groups.shape, second.groups.shape) == ((2, 16, 8), (2, 4, 8))
    assert (first.features.shape[2], second.features.shape[2]) == (HIDDEN // 2, HIDDEN)
    assert first.mask.sum(dim=1).tolist() == [16, 10]
    assert second.mask.sum(dim=1).tolist() == [4, 3]
    for row in range(2):
        nearest = points[row][first.groups[row, :, 0]]
        assert torch.equal(nearest[first.mask[row]], first.centres[row][first.mask[row]])
        assert torch.equal(second.centres[row], first.centres[row, :4])


def test_two_stages_limit_both() -> None:
    layout = make(num_stages=2, num_groups=5, sampling_ratio=3)(torch.randn(1, 300, 3)).layout
    assert [stage.centres.shape[1] for stage in layout.stages] == [15, 5]


@torch.no_grad()
def test_neighbours_are_exact_in_a_model_of_half_precision() -> None:
    """Coordinates that bfloat16 cannot tell apart: the model must not round them before grouping."""
    torch.manual_seed(0)
    config = MetaTransformerConfig.tiny(num_hidden_layers=1, modalities={"point_cloud": SMALL})
    model = MetaTransformerModel(config).eval()
    line = torch.stack([1 + torch.arange(64) / 4096, torch.zeros(64), torch.zeros(64)], dim=1)[None]
    exact = model.tokenizers["point_cloud"](line).layout.stages[0]
    half = model.to(torch.bfloat16).tokenize(point_coordinates=line)
    assert half.embeddings.dtype == torch.bfloat16
    found = half.segments[0].layout.stages[0]
    assert torch.equal(found.groups, exact.groups)
    assert found.centres[0, :, 0].unique().numel() == 16


@pytest.mark.parametrize("stages", [1, 2])
def test_all_parameters_get_a_gradient(stages: int) -> None:
    tokenizer = make(num_stages=stages, num_features=1)
    tokenizer(torch.randn(2, 40, 3), torch.randn(2, 40, 1)).embeddings.square().sum().backward()
    assert all(parameter.grad is not None for parameter in tokenizer.parameters())


@torch.no_grad()
def test_features_stages_and_masks_compile_and_export() -> None:
    tokenizer = make(num_stages=2, num_features=2)
    points, mask = padded(clouds(30, 50, channels=5))
    inputs = (points[:, :, :3], points[:, :, 3:], mask)

    class Embeddings(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokenizer = tokenizer

        def forward(self, *inputs: Tensor) -> Tensor:
            return self.tokenizer(*inputs).embeddings

    expected = tokenizer(*inputs).embeddings
    compiled = torch.compile(Embeddings(), fullgraph=True, backend="aot_eager")
    assert_close(compiled(*inputs), expected)
    assert_close(torch.export.export(Embeddings(), inputs).module()(*inputs), expected)


def test_the_processors_batch_fits_the_tokenizer() -> None:
    processor = PointCloudProcessor(num_features=3)
    tokenizer = make(**processor.tokenizer_config())
    sequence = tokenizer(**processor(processor.dummy_samples(3)))
    assert sequence.embeddings.shape[0] == 3


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"point_coordinates": torch.zeros(4, 3)}, r"\(batch, points, 3\).*\(4, 3\)"),
        ({"point_coordinates": torch.zeros(1, 4, 6)}, "point_features"),
        ({"point_coordinates": torch.zeros(1, 0, 3)}, "a point or more"),
        ({"point_coordinates": torch.zeros(1, 4, 3), "point_features": torch.zeros(1, 4, 2)}, "must be None.*num_fea"),
        ({"point_coordinates": torch.zeros(1, 4, 3), "point_mask": torch.ones(1, 5)}, r"\(1, 4\).*\(1, 5\)"),
    ],
)
def test_inputs_of_other_shapes_are_refused(inputs: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()(**inputs)


@pytest.mark.parametrize("features", [None, torch.zeros(1, 4, 3), torch.zeros(1, 5, 2)])
def test_other_features_than_the_tokenizers_are_refused(features: Tensor | None) -> None:
    with pytest.raises(ValueError, match="num_features=2"):
        make(num_features=2)(torch.zeros(1, 4, 3), features)


@pytest.mark.parametrize(
    "option", ["num_groups", "group_size", "sampling_ratio", "num_stages", "embedding_width", "num_features"]
)
def test_options_that_make_no_groups_are_refused(option: str) -> None:
    with pytest.raises(StrictDataclassClassValidationError, match=f"{option} must be at least"):
        PointCloudTokenizerConfig(**{option: -1})


def test_options_survive_json() -> None:
    config = PointCloudTokenizerConfig(num_stages=2, num_features=4, offset_unit="coordinates")
    assert PointCloudTokenizerConfig(**json.loads(json.dumps(config.to_dict()))) == config
