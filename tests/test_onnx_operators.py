"""Translations to ONNX: under onnxruntime exactly what torch gives, indices too."""

from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from meta_transformer.geometry import farthest_point_sampling, knn_groups
from meta_transformer.onnx_operators import TRANSLATIONS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of torch's own exporter


class Searches(nn.Module):
    """Both searches, for a number of centres and of neighbours that depends on the size, rounded up."""

    def forward(self, points: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        size = points.shape[1]
        chosen = farthest_point_sampling(points, min(-(-size // 4), 64), mask)
        centres = points.gather(1, chosen[:, :, None].expand(-1, -1, 3))
        return chosen, knn_groups(centres, points, 32, mask)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Tensor, Tensor], list[Tensor]]:
    """`Searches` under onnxruntime."""
    sizes = {0: Dim("batch"), 1: Dim.AUTO}
    example = torch.randn(2, 50, 3), torch.rand(2, 50) > 0.2
    shapes = {"points": sizes, "mask": sizes}
    program = torch.export.export(Searches(), example, dynamic_shapes=shapes, strict=True)
    path: Path = tmp_path_factory.mktemp("onnx") / "searches.onnx"
    graph = torch.onnx.export(program, dynamo=True, verbose=False, custom_translation_table=TRANSLATIONS)
    assert graph is not None
    graph.save(path)
    session = onnxruntime.InferenceSession(str(path))
    return lambda points, mask: [
        torch.from_numpy(each) for each in session.run(None, {"points": points.numpy(), "mask": mask.numpy()})
    ]


def clouds() -> dict[str, tuple[Tensor, Tensor]]:
    """Batches of points with masks, by what is special about them."""
    generator = torch.Generator().manual_seed(0)
    points, places = torch.randn(3, 90, 3, generator=generator), torch.arange(90)
    many, anywhere = torch.randn(3, 1500, 3, generator=generator), torch.rand(3, 90, generator=generator) < 0.6
    return {
        "padding anywhere": (points, anywhere),
        "more than the limits": (many, torch.ones(3, 1500, dtype=torch.bool)),
        "fewer than a group": (points[:, :5], torch.ones(3, 5, dtype=torch.bool)),
        "one point": (points[:, :1], torch.ones(3, 1, dtype=torch.bool)),
        "few real points": (points, (places > 86).expand(3, -1)),
        "no real point": (points, places < torch.tensor([0, 90, 40])[:, None]),
        "equal distances": ((3 * points).round(), anywhere),
        "one place": (torch.ones(3, 90, 3), anywhere),
        "far from the origin": (points + 1e4, anywhere),
    }


@pytest.mark.parametrize("kind", clouds())
def test_searches_among_points_give_the_same_indices(run: Callable, kind: str) -> None:
    points, mask = clouds()[kind]
    for found, expected in zip(run(points, mask), Searches()(points, mask), strict=True):
        assert torch.equal(found, expected)
