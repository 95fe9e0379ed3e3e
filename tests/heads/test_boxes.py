"""Boxes as labels: COCO's annotations, corners, tensors; ragged, none; and what is refused."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from meta_transformer.heads.boxes import as_boxes, check_inside, checked_boxes, collate_boxes

COCO = [
    {"id": 7, "bbox": [10, 20, 30, 40], "category_id": 1, "area": 1200, "iscrowd": 0},
    {"bbox": (0.5, 1, 2, 3), "category_id": 0},
]
ROWS = torch.tensor([[1, 10, 20, 40, 60], [0, 0.5, 1, 2.5, 4]])
CORNERS = {"boxes": np.array([[10, 20, 40, 60], [0.5, 1, 2.5, 4]]), "class_labels": [1, 0]}


@pytest.mark.parametrize("label", [COCO, {"image_id": 3, "annotations": COCO}, CORNERS, ROWS])
def test_all_forms_are_the_same_rows(label) -> None:
    assert_close(as_boxes(label), ROWS)


@pytest.mark.parametrize("label", [[], {"annotations": []}, {"boxes": [], "class_labels": []}, torch.zeros(0, 5)])
def test_a_picture_may_have_no_box(label) -> None:
    assert as_boxes(label).shape == (0, 5)
    assert_close(collate_boxes([label], num_labels=2), torch.full((1, 1, 5), -100.0))


def test_crowds_are_left_out() -> None:
    assert_close(as_boxes([{**COCO[0], "iscrowd": 1}, COCO[1]]), ROWS[1:])


def test_a_batch_is_padded_to_its_most_boxes() -> None:
    found = collate_boxes([COCO, [], CORNERS], num_labels=2)
    assert found.shape == (3, 2, 5)
    assert_close(found[0], ROWS)
    assert_close(found[2], ROWS)
    assert (found[1] == -100).all()


def test_what_is_not_minus_100_is_five_numbers_a_box() -> None:
    assert collate_boxes([COCO, [], COCO[:1]], num_labels=2).ne(-100).sum() == 5 * 3


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("cells", "boxes must be a list of COCO's annotations"),
        ({"boxes": [[0, 0, 1, 1]]}, "boxes must be a list of COCO's annotations"),
        ([{"bbox": [0, 0, 1, 1]}], "an annotation needs 'bbox' and 'category_id'"),
        ([{"bbox": [0, 0, 1], "category_id": 0}], "bbox must be .left, top, width, height., got"),
        ({"boxes": [[0, 0, 1]], "class_labels": [0]}, r"boxes must have shape \(boxes, 4\)"),
        ({"boxes": [[0, 0, 1, 1]], "class_labels": [0, 1]}, r"class_labels \(boxes,\), got \(1, 4\) and \(2,\)"),
        (torch.zeros(3, 4), r"boxes must have shape \(boxes, 5\)"),
    ],
)
def test_another_form_is_refused(label, message) -> None:
    with pytest.raises(ValueError, match=message):
        as_boxes(label)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0, 1, 1, float("nan"), 3], "boxes must be finite numbers; got class 0"),
        ([0, 1, 1, float("inf"), 3], "boxes must be finite numbers"),
        ([2, 1, 1, 3, 3], "boxes must be of classes 0..1; set id2label"),
        ([-1, 1, 1, 3, 3], "boxes must be of classes 0..1"),
        ([0.5, 1, 1, 3, 3], "boxes must be of classes 0..1"),
        ([1, 3, 1, 1, 3], "boxes must have left < right and top < bottom"),
        ([1, 1, 3, 3, 3], "boxes must have left < right and top < bottom"),
    ],
)
def test_no_box_and_no_class_is_refused(row, message) -> None:
    with pytest.raises(ValueError, match=message):
        checked_boxes(torch.tensor([[[1.0, 1, 1, 2, 2], row, [-100] * 5]]), 2)


@pytest.mark.parametrize("box", [[-1, 0, 5, 5], [0, -1, 5, 5], [0, 0, 21, 5], [0, 0, 5, 11]])
def test_a_box_outside_its_picture_is_refused(box) -> None:
    boxes = torch.tensor([[[1, 0, 0, 99.0, 99]], [[1.0, *box]]])
    with pytest.raises(ValueError, match=r"labels of sample 1 hold the box .*, outside its picture of \[10.0, 20.0\]"):
        check_inside(boxes, torch.tensor([[100.0, 100], [10, 20]]))


def test_a_box_that_fills_its_picture_is_taken() -> None:
    check_inside(torch.tensor([[[1, 0, 0, 20.0, 10], [-100] * 5]]), torch.tensor([[10.0, 20]]))
