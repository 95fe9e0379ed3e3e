"""The object detection head: what it learns, its boxes in raw pixels, its metrics, padding, and what it refuses."""

import contextlib
import io

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import EvalPrediction, Trainer, TrainingArguments

from meta_transformer import MetaTransformerConfig, MetaTransformerForObjectDetection, MetaTransformerProcessor
from meta_transformer.heads.object_detection import ObjectDetectionOutput
from meta_transformer.processors.image import ImageProcessor
from meta_transformer.training import DataCollatorForMetaTransformer

PIXELS = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([[[1.0, 3, 5, 20, 30], [0, 30, 1, 44, 12]], [[2, 0, 0, 48, 32], [-100] * 5]])
BOTH = pytest.mark.parametrize("decoder", ["dense", "set"])
NAMES = ["cell", "plate", "dust"]


def model(image: dict | None = None, lively: bool = True, **options) -> MetaTransformerForObjectDetection:
    """One in which every weight matters."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    heads = {"object_detection": {"channels": 32, "num_detection_tokens": 8, **options}}
    made = MetaTransformerForObjectDetection(
        MetaTransformerConfig(**shape, modalities={"image": image}, heads=heads, id2label=dict(enumerate(NAMES)))
    )
    with torch.no_grad():
        for parameter in made.parameters() if lively else ():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return made.eval()


def ragged(sizes=((20, 37), (32, 9), (5, 48))) -> tuple[list[np.ndarray], MetaTransformerProcessor]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes], MetaTransformerProcessor(image=True)


def squares() -> tuple[torch.Tensor, torch.Tensor]:
    """Bright and dark rectangles on grey, two a picture, classes 0 and 1."""
    pixels, labels = torch.zeros(4, 3, 48, 64), []
    for index, (top, left) in enumerate([(3, 5), (14, 2), (25, 19), (18, 8)]):
        pixels[index, :, top : top + 16, left : left + 20] = 1
        pixels[index, :, 4 * index + 5 : 4 * index + 15, 45:57] = -1
        labels.append([[0, left, top, left + 20, top + 16], [1, 45, 4 * index + 5, 57, 4 * index + 15]])
    return pixels, torch.tensor(labels).float()


@pytest.mark.parametrize(("decoder", "rate"), [("dense", 3e-3), ("set", 1e-2)])
def test_boxes_are_learned_where_they_lie(decoder, rate) -> None:
    made = model({"patch_size": 8, "image_size": [48, 64]}, lively=False, decoder=decoder).train()
    pixels, labels = squares()
    optimizer = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=rate)
    for _ in range(100 if decoder == "dense" else 250):
        made(pixel_values=pixels, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    output = made.eval()(pixel_values=pixels, labels=labels)
    found = made.metrics()(EvalPrediction((output.logits.detach(), output.boxes.detach()), labels))
    assert found["map_50"] > 0.9


@BOTH
def test_a_padded_picture_gives_what_it_gives_alone(decoder) -> None:
    made = model({"patch_size": 8, "image_size": 64}, decoder=decoder)
    pictures, processor = ragged()
    together = made.post_process(made(**processor(image=pictures)), threshold=0.0)
    for found, picture in zip(together, pictures, strict=True):
        alone = made.post_process(made(**processor(image=picture)), threshold=0.0)[0]
        assert_close(found["scores"], alone["scores"], rtol=1e-4, atol=1e-5)
        assert_close(found["boxes"], alone["boxes"], rtol=1e-4, atol=1e-3)
        assert found["labels"] == alone["labels"]


def test_detection_tokens_stand_behind_the_picture_and_move_nothing() -> None:
    made = model(decoder="set")
    sequence = made.model.tokenize(pixel_values=PIXELS)
    extended = made.head.parts(sequence)[""]
    assert len(extended) == len(sequence) + 8
    assert extended.segments == sequence.segments
    assert_close(extended.embeddings[:, : len(sequence)], sequence.embeddings, rtol=0, atol=0)


def test_detection_tokens_learn_through_the_frozen_trunk() -> None:
    made = model(decoder="set")
    made(pixel_values=PIXELS, labels=LABELS).loss.backward()
    assert made.head.decoder.tokens.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in made.model.encoder.parameters())


# The dense one also compiles and exports in tests/generic/test_export.py, in the fast tier.
@pytest.mark.parametrize("decoder", [pytest.param("dense", marks=pytest.mark.slow), "set"])
def test_it_compiles_and_exports(decoder) -> None:
    torch._dynamo.reset()
    made = model({"image_size": [32, 48]}, decoder=decoder)
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")(pixel_values=PIXELS)
    program = torch.export.export(made, (), {"pixel_values": PIXELS})
    expected = made(pixel_values=PIXELS).to_tuple()
    assert_close(compiled.to_tuple(), expected, rtol=1e-4, atol=1e-4)
    assert_close(program.module()(pixel_values=PIXELS).to_tuple(), expected, rtol=1e-4, atol=1e-4)


@BOTH
def test_a_saved_model_gives_the_same(decoder, tmp_path) -> None:
    made = model(decoder=decoder)
    made.save_pretrained(tmp_path)
    loaded = MetaTransformerForObjectDetection.from_pretrained(tmp_path)
    assert_close(loaded(pixel_values=PIXELS).to_tuple(), made(pixel_values=PIXELS).to_tuple(), rtol=0, atol=0)


@BOTH
def test_original_sizes_scale_labels_and_boxes(decoder) -> None:
    made, twice = model(decoder=decoder), LABELS.clone()
    twice[..., 1::2], twice[..., 2::2] = LABELS[..., 1::2] * 3, LABELS[..., 2::2] * 2
    twice = twice.where(LABELS != -100, -100)
    plain = made(pixel_values=PIXELS, labels=LABELS)
    scaled = made(pixel_values=PIXELS, labels=twice, original_sizes=torch.tensor([[64, 144]] * 2))
    assert_close(scaled.loss, plain.loss)
    factors = torch.tensor([3.0, 2, 3, 2])
    for one, other in zip(made.post_process(plain), made.post_process(scaled), strict=True):
        assert_close(other["boxes"], one["boxes"] * factors)
    for one, other in zip(
        made.post_process(plain, target_sizes=[(64, 144)] * 2), made.post_process(scaled), strict=True
    ):
        assert_close(other["boxes"], one["boxes"])


def test_the_collator_takes_annotations_and_original_sizes_to_raw_pixels() -> None:
    made, processor = model(), MetaTransformerProcessor(image=ImageProcessor(size=[32, 48]))
    sample = {"image": np.zeros((64, 144, 3), np.uint8), "original_sizes": (64, 144)}
    sample["labels"] = [{"bbox": [120, 10, 24, 54], "category_id": 2}]
    batch = DataCollatorForMetaTransformer.for_model(made, processor)([sample])
    assert_close(batch["labels"], torch.tensor([[[2.0, 120, 10, 144, 64]]]))
    output = made(**batch)
    assert output.loss.isfinite()
    assert output.sizes.tolist() == [[64, 144]]
    with pytest.raises(ValueError, match="outside its picture of .* 'original_sizes'"):
        made(**{**batch, "original_sizes": None})


@BOTH
def test_boxes_lie_inside_their_pictures(decoder) -> None:
    made, (pictures, processor) = model(decoder=decoder), ragged()
    for found, picture in zip(made.post_process(made(**processor(image=pictures)), threshold=0), pictures, strict=True):
        height, width = picture.shape[:2]
        assert (found["boxes"] >= 0).all()
        assert (found["boxes"] <= torch.tensor([width, height, width, height])).all()


def test_post_processing_names_the_surest_boxes_and_suppresses_their_doubles() -> None:
    logits = torch.full((1, 3, 1, 4), -9.0)
    logits[0, 1, 0, :3], logits[0, 2, 0, 1] = torch.tensor([1.0, 2, 0]), 3
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 11], [20, 0, 30, 10], [0, 0, 1, 1.0]]).T[None, :, None]
    output = ObjectDetectionOutput(logits=logits, boxes=boxes, sizes=torch.tensor([[32.0, 48]]))
    found = model().post_process(output)[0]
    assert found["labels"] == ["dust", "plate", "plate"]
    assert_close(found["scores"], torch.tensor([3.0, 2, 0]).sigmoid())
    assert_close(found["boxes"], torch.tensor([[0.0, 0, 10, 11], [0, 0, 10, 11], [20, 0, 30, 10]]))
    assert len(model().post_process(output, threshold=0.6)[0]["labels"]) == 2
    assert len(model().post_process(output, nms_threshold=1.0)[0]["labels"]) == 4
    assert model().post_process(output, top_k=1)[0]["labels"] == ["dust"]


def coco_directly(found: list[dict], truth: torch.Tensor) -> np.ndarray:
    """The twelve numbers of pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def rows(boxes):
        return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()

    annotations, results = [], []
    for image, (own, each) in enumerate(zip(truth, found, strict=True)):
        own = own[own[:, 0] >= 0]
        for number, bbox in zip(own[:, 0].tolist(), rows(own[:, 1:]), strict=True):
            row = {"id": len(annotations) + 1, "image_id": image, "category_id": int(number), "iscrowd": 0}
            annotations.append({**row, "bbox": bbox, "area": bbox[2] * bbox[3]})
        for name, score, bbox in zip(each["labels"], each["scores"].tolist(), rows(each["boxes"]), strict=True):
            results.append({"image_id": image, "category_id": NAMES.index(name), "score": score, "bbox": bbox})
    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO()
        data.dataset = {"images": [{"id": i} for i in range(len(truth))], "annotations": annotations}
        data.dataset["categories"] = [{"id": i} for i in range(3)]
        data.createIndex()
        evaluation = COCOeval(data, data.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@BOTH
def test_streamed_metrics_equal_those_of_pycocotools(decoder) -> None:
    """Predictions are the truth, shaken, and noise."""
    made, metrics, generator = model(decoder=decoder), model(decoder=decoder).metrics(), torch.Generator()
    generator.manual_seed(0)
    corners = torch.rand(6, 4, 2, 2, generator=generator).sort(dim=2).values * 100
    truth = torch.cat([torch.randint(0, 3, (6, 4, 1), generator=generator), corners.flatten(2)], dim=2)
    truth[1, 2:], truth[4] = -100, -100
    boxes = truth[..., 1:].repeat(1, 2, 1) + 4 * torch.randn(6, 8, 4, generator=generator)
    logits = torch.randn(6, 8, 3, generator=generator) - 2
    logits.scatter_add_(2, truth[..., :1].clamp(min=0).long().repeat(1, 2, 1), torch.full((6, 8, 1), 3.0))
    if decoder == "dense":
        logits, boxes = (each.transpose(1, 2).unflatten(2, (2, 4)) for each in (logits, boxes))
    found = {}
    for step in range(3):
        part = slice(2 * step, 2 * step + 2)
        found = metrics(EvalPrediction((logits[part], boxes[part]), truth[part]), compute_result=step == 2)
    output = ObjectDetectionOutput(logits=logits, boxes=boxes, sizes=torch.tensor([[100.0, 100]] * 6))
    expected = coco_directly(made.post_process(output, threshold=0.01), truth)
    assert 0.1 < expected[0] < 0.9
    assert list(found.values()) == pytest.approx(expected[:3].tolist(), abs=1e-6)


def test_trainer_measures_pictures_of_different_size_batch_by_batch(tmp_path) -> None:
    (pictures, processor), made = ragged(), model()
    labels = [{"boxes": [[0, 0, 5, 5]], "class_labels": [1]}, [], [{"bbox": [1, 1, 2, 2], "category_id": 0}]]
    data = [{"image": picture, "labels": label} for picture, label in zip(pictures, labels, strict=True)]
    options = {"per_device_eval_batch_size": 1, "batch_eval_metrics": True, "remove_unused_columns": False}
    arguments = TrainingArguments(tmp_path, report_to=[], use_cpu=True, disable_tqdm=True, **options)
    collator = DataCollatorForMetaTransformer.for_model(made, processor)
    found = Trainer(made, arguments, data_collator=collator, compute_metrics=made.metrics()).evaluate(data)
    assert {"eval_map", "eval_map_50", "eval_map_75", "eval_loss"} <= found.keys()


@BOTH
def test_trainer_accumulates_to_the_gradients_of_the_big_batch(decoder, tmp_path) -> None:
    """One step of SGD, with a picture without boxes: a batch of 3, and 3 accumulated batches of 1."""
    pictures, processor = ragged()
    boxes = [[[1, 2, 30, 18], [20, 3, 28, 20]], [], [[4, 0, 44, 5]]]
    data = [
        {"image": picture, "labels": {"boxes": own, "class_labels": [1] * len(own)}}
        for picture, own in zip(pictures, boxes, strict=True)
    ]
    ends = []
    for batch_size in (3, 1):
        made = model(decoder=decoder)
        options = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": 3 // batch_size}
        options |= {"max_steps": 1, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "max_grad_norm": 0}
        options |= {"optim": "sgd", "save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True}
        arguments = TrainingArguments(tmp_path, remove_unused_columns=False, **options)
        collator = DataCollatorForMetaTransformer.for_model(made, processor)
        result = Trainer(made, arguments, train_dataset=data, data_collator=collator).train()
        ends.append((result.training_loss, [parameter.detach() for parameter in made.head.parameters()]))
    assert_close(ends[1][1], ends[0][1], rtol=1e-4, atol=1e-5)
    loss = model(decoder=decoder)(**collator(data)).loss  # the mean over the boxes
    assert ends[0][0] == pytest.approx(loss.item(), rel=1e-4)


@BOTH
def test_a_batch_without_boxes_has_a_finite_loss_and_no_gradient_of_boxes(decoder) -> None:
    made = model(decoder=decoder)
    loss = made(pixel_values=PIXELS, labels=torch.full((2, 1, 5), -100.0)).loss
    loss.backward()
    assert 0 < loss < float("inf")
    last = made.head.decoder.distances if decoder == "dense" else made.head.decoder.regressor[-1]
    assert last.weight.grad is None or last.weight.grad.abs().max() == 0


def test_labels_and_sizes_of_another_shape_are_refused() -> None:
    made = model()
    with pytest.raises(ValueError, match=r"labels must have shape \(2, boxes, 5\), got \(2, 4\)"):
        made(pixel_values=PIXELS, labels=torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"original_sizes must have shape \(2, 2\)"):
        made(pixel_values=PIXELS, original_sizes=torch.zeros(2))
    with pytest.raises(ValueError, match="original_sizes must be positive"):
        made(pixel_values=PIXELS, original_sizes=torch.zeros(2, 2))
    with pytest.raises(ValueError, match="target_sizes must be 2, one for each sample, got 1"):
        made.post_process(made(pixel_values=PIXELS), target_sizes=[(4, 5)])


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([0, 0, 0, 49, 5], "outside its picture"),
        ([0, 5, 5, 2, 8], "left < right"),
        ([0, 0, 0, float("nan"), 5], "finite"),
        ([3, 0, 0, 5, 5], "of classes 0..2"),
    ],
)
def test_bad_boxes_are_refused_before_a_step(box, message) -> None:
    with pytest.raises(ValueError, match=message):
        model()(pixel_values=PIXELS, labels=torch.tensor([[box], [[1, 0, 0, 5, 5]]]).float())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels must be at least 1"),
        ({"doublings": -1}, "doublings must be at least 0"),
        ({"num_detection_tokens": 0}, "num_detection_tokens must be at least 1"),
        ({"pyramid_layers": []}, "pyramid_layers is empty"),
        ({"layers": "all"}, "set pyramid_layers"),
        ({"decoder": "set", "pyramid_layers": [1]}, "pyramid_layers is for decoder 'dense'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message) -> None:
    with pytest.raises(Exception, match=message):
        model(**options)
