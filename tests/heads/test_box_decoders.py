"""The losses of the two decoders: against naive loops, torchvision and transformers."""

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close
from torchvision.ops import generalized_box_iou
from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss

from meta_transformer import MetaTransformerConfig
from meta_transformer.heads.box_decoders import DenseBoxes, SetBoxes, cell_size, centre_focal_loss, centre_targets
from meta_transformer.heads.object_detection import ObjectDetectionHeadConfig
from meta_transformer.sequence import ImageLayout, Segment

NOTHING = [-100.0] * 5
LABELS = torch.tensor(
    [
        [[1, 4, 6, 40, 30], [0, 10, 2, 18, 12], [1, 44, 33, 61, 47]],
        [[2, 0, 0, 64, 48], NOTHING, NOTHING],
        [NOTHING, NOTHING, NOTHING],
    ]
)
STEPS = (4.0, 4.0)
SEGMENT = Segment("image", 1, 12, ImageLayout((3, 4), (16, 16), (16, 16), (48, 64)))
SIZES = torch.tensor([[48.0, 64]] * 3)


def naive_targets() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Box by box, cell by cell."""
    heat, weights, boxes = torch.zeros(3, 3, 12, 16), torch.zeros(3, 12, 16), torch.zeros(3, 4, 12, 16)
    for sample in range(3):
        rows = [row for row in LABELS[sample].tolist() if row[0] >= 0]
        bells = []
        for number, left, top, right, bottom in rows:
            bell = torch.zeros(12, 16)
            middle = (int((top + bottom) / 2 / 4), int((left + right) / 2 / 4))
            reach = (0.54 * (bottom - top) / 8, 0.54 * (right - left) / 8)
            for y in range(12):
                for x in range(16):
                    away = (y - middle[0], x - middle[1])
                    if all(part == 0 or abs(part) <= limit for part, limit in zip(away, reach, strict=True)):
                        squares = sum((3 * part / limit) ** 2 for part, limit in zip(away, reach, strict=True))
                        bell[y, x] = torch.exp(torch.tensor(-squares / 2))
            heat[sample, int(number)] = heat[sample, int(number)].maximum(bell)
            bells.append(bell)
        order = sorted(range(len(rows)), key=lambda i: -(rows[i][3] - rows[i][1]) * (rows[i][4] - rows[i][2]))
        owner = torch.full((12, 16), -1)
        for index in order:  # the smallest last
            owner[bells[index] > 0] = index
        for index in order:
            own = owner == index
            weights[sample][own] = bells[index][own] / bells[index][own].sum()
            boxes[sample][:, own] = torch.tensor(rows[index][1:])[:, None]
    return heat, weights, boxes


def test_targets_are_those_of_a_naive_loop() -> None:
    heat, weights, boxes = centre_targets(LABELS, (3, 12, 16), STEPS)
    expected = naive_targets()
    assert_close(heat, expected[0])
    assert_close(weights, expected[1])
    assert_close(boxes * (weights > 0)[:, None], expected[2])


def test_each_box_has_a_peak_and_weights_that_sum_to_one() -> None:
    heat, weights, _ = centre_targets(LABELS, (3, 12, 16), STEPS)
    assert (heat == 1).sum() == 4
    assert_close(weights.sum(dim=(1, 2)), torch.tensor([3.0, 1.0, 0.0]))


def test_a_box_smaller_than_a_cell_and_one_at_the_edge_have_a_peak() -> None:
    labels = torch.tensor([[[0, 5.0, 5, 5.5, 5.5], [1, 63, 47, 64, 48]]])
    heat, weights, _ = centre_targets(labels, (2, 12, 16), STEPS)
    assert heat[0, 0].nonzero().tolist() == [[1, 1]]
    assert heat[0, 1].nonzero().tolist() == [[11, 15]]
    assert weights.sum() == 2


def test_the_focal_loss_is_that_of_cornernet() -> None:
    logits = torch.randn(3, 3, 12, 16, generator=torch.Generator().manual_seed(0)).double()
    heat = centre_targets(LABELS.double(), (3, 12, 16), STEPS)[0]
    expected = 0.0
    for p, y in zip(logits.sigmoid().flatten().tolist(), heat.flatten().tolist(), strict=True):
        p = torch.tensor(p, dtype=torch.float64)
        expected -= (1 - p) ** 2 * p.log() if y == 1 else (1 - y) ** 4 * p**2 * (1 - p).log()
    assert_close(centre_focal_loss(logits, heat), expected)


def config(**options) -> tuple[ObjectDetectionHeadConfig, MetaTransformerConfig]:
    return ObjectDetectionHeadConfig(**options), MetaTransformerConfig.tiny(num_hidden_layers=2)


def random_boxes(*shape: int) -> torch.Tensor:
    points = torch.rand(*shape, 2, 2, generator=torch.Generator().manual_seed(1)).sort(dim=-2).values
    return (points * torch.tensor([64.0, 48.0])).flatten(-2)


def test_the_dense_loss_is_focal_and_twice_giou() -> None:
    decoder = DenseBoxes(*config(channels=32), num_labels=3)
    logits, boxes = torch.randn(3, 3, 12, 16), random_boxes(3, 12, 16)
    heat, weights, targets = naive_targets()
    giou = 1 - generalized_box_iou(boxes.flatten(0, 2), targets.movedim(1, -1).flatten(0, 2)).diagonal()
    expected = centre_focal_loss(logits, heat) + 2 * (weights.flatten() * giou.nan_to_num()).sum()
    assert_close(decoder.loss(logits, boxes.movedim(-1, 1), LABELS, SEGMENT, SIZES), expected)


def test_the_set_loss_is_that_of_transformers() -> None:
    logits, boxes = torch.randn(3, 7, 3, generator=torch.Generator().manual_seed(0)), random_boxes(3, 7)
    decoder = SetBoxes(*config(decoder="set", num_detection_tokens=7), num_labels=3)
    widths = torch.tensor([64.0, 48, 64, 48])

    def centred(corners):
        low, high = (corners / widths).split(2, dim=-1)
        return torch.cat([(low + high) / 2, high - low], dim=-1)

    targets = [rows[rows[:, 0] >= 0] for rows in LABELS]
    targets = [{"class_labels": rows[:, 0].long(), "boxes": centred(rows[:, 1:])} for rows in targets]
    settings = {"class_cost": 1, "bbox_cost": 5, "giou_cost": 2, "focal_alpha": 0.25, "auxiliary_loss": False}
    settings |= {"num_labels": 3, "bbox_loss_coefficient": 5, "giou_loss_coefficient": 2}
    expected, *_ = DeformableDetrForObjectDetectionLoss(
        logits, targets, "cpu", centred(boxes), SimpleNamespace(**settings)
    )
    assert_close(decoder.loss(logits, boxes, LABELS, SEGMENT, SIZES) / 4, expected)


@pytest.mark.parametrize("kind", [DenseBoxes, SetBoxes])
def test_a_loss_is_the_sum_over_pictures(kind) -> None:
    decoder = kind(*config(channels=32, num_detection_tokens=7), num_labels=3)
    dense = kind is DenseBoxes
    logits = torch.randn(3, 3, 12, 16) if dense else torch.randn(3, 7, 3)
    boxes = random_boxes(3, 12, 16).movedim(-1, 1) if dense else random_boxes(3, 7)
    parts = [
        decoder.loss(logits[i : i + 1], boxes[i : i + 1], LABELS[i : i + 1], SEGMENT, SIZES[i : i + 1])
        for i in range(3)
    ]
    assert_close(sum(parts), decoder.loss(logits, boxes, LABELS, SEGMENT, SIZES))


def test_more_boxes_than_tokens_are_refused() -> None:
    decoder = SetBoxes(*config(decoder="set", num_detection_tokens=2), num_labels=3)
    with pytest.raises(ValueError, match="3 boxes, but the head has 2 detection tokens; set num_detection_tokens"):
        decoder.loss(torch.randn(3, 2, 3), random_boxes(3, 2), LABELS, SEGMENT, SIZES)


def test_cells_are_parts_of_patches_whatever_their_shape() -> None:
    layout = ImageLayout((3, 4), (14, 8), (14, 8), (40, 30))
    assert cell_size(layout, (12, 16)) == (3.5, 2.0)
