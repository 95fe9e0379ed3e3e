"""The segmentation head: its losses against torch and transformers, its metrics against scikit-learn, its maps."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch.nn import functional
from torch.testing import assert_close
from transformers import EvalPrediction, Trainer, TrainingArguments
from transformers.models.mask2former.modeling_mask2former import dice_loss

from meta_transformer import MetaTransformerConfig, MetaTransformerForSegmentation, MetaTransformerProcessor
from meta_transformer.heads.segmentation import SegmentationOutput
from meta_transformer.processors.image import ImageProcessor
from meta_transformer.training import DataCollatorForMetaTransformer

PIXELS = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 3, (2, 32, 48), generator=torch.Generator().manual_seed(1))
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
BOTH = pytest.mark.parametrize("decoder", ["progressive", "pyramid"])


def model(image: dict | None = None, **options) -> MetaTransformerForSegmentation:
    """One in which every weight matters."""
    torch.manual_seed(0)
    heads = {"segmentation": {"channels": 32, **options}}
    classes = dict(enumerate(["sky", "road", "tree"]))
    made = MetaTransformerForSegmentation(
        MetaTransformerConfig(**SHAPE, modalities={"image": image}, heads=heads, id2label=classes)
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return made.eval()


def ragged(sizes=((20, 37), (32, 9), (5, 48))) -> tuple[list[np.ndarray], MetaTransformerProcessor]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes], MetaTransformerProcessor(image=True)


@BOTH
@pytest.mark.parametrize("patch", [16, 14, 3, [16, 8]])
def test_logits_have_the_size_of_the_input_whatever_the_patch(decoder, patch) -> None:
    logits = model({"patch_size": patch, "image_size": 64}, decoder=decoder)(pixel_values=PIXELS[..., :45]).logits
    assert logits.shape == (2, 3, 32, 45)


@BOTH
@pytest.mark.parametrize("patch", [16, 14, 3])
def test_a_padded_picture_gives_what_it_gives_alone(decoder, patch) -> None:
    made = model({"patch_size": patch, "image_size": 64}, decoder=decoder)
    pictures, processor = ragged()
    together = made(**processor(image=pictures)).logits
    for row, picture in zip(together, pictures, strict=True):
        alone = made(**processor(image=picture)).logits[0]
        assert_close(row[:, : picture.shape[0], : picture.shape[1]], alone, rtol=1e-5, atol=1e-5)


@BOTH
def test_a_class_is_learned_where_it_lies(decoder) -> None:
    """Bright pixels are class 1; the borders lie on no border of a patch."""
    made = model({"patch_size": 8, "image_size": 32}, decoder=decoder, doublings=3).train()
    pixels = -torch.ones(4, 3, 32, 32)
    for index, (top, left) in enumerate([(3, 5), (14, 2), (9, 19), (18, 11)]):
        pixels[index, :, top : top + 11, left : left + 9] = 1
    labels = (pixels[:, 0] > 0).long()
    optimizer = torch.optim.AdamW(made.parameters(), lr=5e-3)
    for _ in range(120):
        made(pixel_values=pixels, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    predicted = made.eval()(pixel_values=pixels).logits.argmax(1)
    assert (predicted == labels).float().mean() > 0.99


def test_the_pyramid_reads_its_layers() -> None:
    made = model(decoder="pyramid", pyramid_layers=[0, 1])
    before = made(pixel_values=PIXELS).logits
    with torch.no_grad():
        for parameter in made.model.encoder.layers[1].parameters():
            parameter.add_(1)
    assert_close(made(pixel_values=PIXELS).logits, before, rtol=0, atol=0)
    assert not torch.allclose(model(decoder="pyramid", pyramid_layers=[0, 2])(pixel_values=PIXELS).logits, before)


def test_the_loss_is_the_cross_entropy_of_the_pixels_that_count() -> None:
    labels = LABELS.masked_fill(torch.rand(LABELS.shape) < 0.3, 255)
    output = model()(pixel_values=PIXELS, labels=labels)
    assert_close(output.loss, functional.cross_entropy(output.logits, labels, ignore_index=255))


def test_the_dice_loss_is_that_of_mask2former_on_the_probabilities_of_each_class() -> None:
    plain, dice = model()(pixel_values=PIXELS, labels=LABELS), model(dice_weight=0.7)
    logits = plain.logits.softmax(1).logit().flatten(0, 1)
    truth = functional.one_hot(LABELS, 3).movedim(-1, 1).flatten(0, 1).flatten(1).float()
    expected = plain.loss + 0.7 * dice_loss(logits, truth, num_masks=6)
    assert_close(dice(pixel_values=PIXELS, labels=LABELS).loss, expected)


def test_pixels_that_do_not_count_change_no_dice_loss() -> None:
    head = model(dice_weight=1.0).head
    logits = torch.randn(1, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    labels = LABELS[:1, :6, :8].clone()
    labels[:, :, 5:] = -100
    assert_close(head.loss(logits, labels), head.loss(logits[..., :5], labels[..., :5]))


@pytest.mark.parametrize("dice_weight", [0.0, 1.0])
def test_the_loss_over_accumulated_batches_sums_to_that_of_the_whole(dice_weight) -> None:
    made, labels = model(dice_weight=dice_weight), LABELS.clone()
    labels[0, :20] = -100
    count = (labels != -100).sum()
    parts = [made(pixel_values=PIXELS[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=count) for i in (0, 1)]
    assert_close(sum(part.loss for part in parts), made(pixel_values=PIXELS, labels=labels).loss)


def test_trainer_counts_neither_ignored_nor_padded_pixels(tmp_path) -> None:
    """One step of SGD by `Trainer`, with ragged pictures: a batch of 3, and 3 accumulated batches of 1."""
    pictures, processor = ragged()
    random = np.random.default_rng(1)
    maps = [random.choice([0, 1, 2, 255], picture.shape[:2], p=[0.2, 0.2, 0.2, 0.4]) for picture in pictures]
    data = [{"image": picture, "labels": label} for picture, label in zip(pictures, maps, strict=True)]
    weights = []
    for batch_size in (3, 1):
        made = model(dice_weight=1.0)
        options = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": 3 // batch_size}
        options |= {"max_steps": 1, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "max_grad_norm": 0}
        options |= {"optim": "sgd", "save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True}
        arguments = TrainingArguments(tmp_path, remove_unused_columns=False, **options)
        collator = DataCollatorForMetaTransformer.for_model(made, processor)
        result = Trainer(made, arguments, train_dataset=data, data_collator=collator).train()
        weights.append((result.training_loss, made.head.classifier.weight))
    assert_close(weights[1][1], weights[0][1], rtol=1e-4, atol=1e-6)
    loss = model(dice_weight=1.0)(**collator(data)).loss  # the mean over the pixels that count
    assert weights[0][0] == pytest.approx(loss.item(), rel=1e-4)


def test_a_batch_in_which_no_pixel_counts_has_a_loss_and_metrics_of_zero() -> None:
    made = model(dice_weight=1.0)
    labels = torch.full((2, 32, 48), 255)
    output = made(pixel_values=PIXELS, labels=labels)
    output.loss.backward()
    assert output.loss == 0
    assert made.head.classifier.weight.grad.abs().max() == 0
    assert made.metrics()(EvalPrediction(output.logits, labels)) == {"mean_iou": 0, "dice": 0, "pixel_accuracy": 0}


@pytest.mark.parametrize("classes", [3, 2])
def test_streamed_metrics_equal_those_of_the_confusion_matrix(classes) -> None:
    """Of batches of different size, with ignored pixels; with two classes, one of three never occurs."""
    random, metrics = np.random.default_rng(0), model().metrics()
    truth, guesses, found = [], [], {}
    for step, (height, width) in enumerate([(20, 30), (7, 11), (32, 9)]):
        logits = random.normal(size=(2, 3, height, width)).astype(np.float32)
        logits[:, classes:] = -9
        labels = random.choice([*range(classes), 255], (2, height, width))
        found = metrics(EvalPrediction(logits, labels), compute_result=step == 2)
        truth.append(labels.ravel()[labels.ravel() != 255])
        guesses.append(logits.argmax(1).ravel()[labels.ravel() != 255])
    matrix = confusion_matrix(np.concatenate(truth), np.concatenate(guesses))
    right, both = matrix.diagonal(), matrix.sum(0) + matrix.sum(1)
    assert found["mean_iou"] == pytest.approx((right / (both - right)).mean(), rel=1e-5)
    assert found["dice"] == pytest.approx((2 * right / both).mean(), rel=1e-5)
    assert found["pixel_accuracy"] == pytest.approx(right.sum() / matrix.sum(), rel=1e-5)


def test_trainer_measures_maps_of_different_size_batch_by_batch(tmp_path) -> None:
    pictures, processor = ragged()
    data = [{"image": picture, "labels": np.zeros(picture.shape[:2], int)} for picture in pictures]
    made = model()
    arguments = TrainingArguments(
        tmp_path,
        per_device_eval_batch_size=2,
        batch_eval_metrics=True,
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    collator = DataCollatorForMetaTransformer.for_model(made, processor)
    trainer = Trainer(made, arguments, data_collator=collator, compute_metrics=made.metrics())
    found = trainer.evaluate(data)["eval_pixel_accuracy"]
    alone = [made.post_process(made(**processor(image=picture)))[0] == 0 for picture in pictures]
    assert found == pytest.approx(np.concatenate([each.ravel() for each in alone]).mean(), abs=1e-3)


def test_class_maps_have_the_size_of_each_picture() -> None:
    made, (pictures, processor) = model(), ragged()
    output = made(**processor(image=pictures))
    for index, (classes, picture) in enumerate(zip(made.post_process(output), pictures, strict=True)):
        assert classes.shape == picture.shape[:2]
        assert np.issubdtype(classes.dtype, np.integer)
        own = output.logits[index, :, : classes.shape[0], : classes.shape[1]]
        assert np.array_equal(classes, own.argmax(0).numpy())


def test_class_maps_come_at_the_size_asked_for_without_the_padding() -> None:
    made, (pictures, processor) = model(), ragged()
    output, sizes = made(**processor(image=pictures)), [(40, 74), (7, 5), (5, 48)]
    found = made.post_process(output, target_sizes=sizes)
    assert [each.shape for each in found] == sizes
    for each, picture, size in zip(found, pictures, sizes, strict=True):
        logits = made(**processor(image=picture)).logits
        expected = functional.interpolate(logits, size, mode="bilinear")[0].argmax(0).numpy()
        assert (each == expected).mean() > 0.99  # ties of rounding


def test_probabilities_come_with_the_class_maps() -> None:
    logits = torch.randn(2, 3, 4, 5)
    found = model().post_process(SegmentationOutput(logits=logits), probabilities=True)[1]
    assert_close(torch.from_numpy(found["probabilities"]), logits[1].softmax(0))
    assert np.array_equal(found["probabilities"].argmax(0), found["classes"])


def test_another_number_of_target_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match="target_sizes must be 2, one for each sample, got 1"):
        model().post_process(SegmentationOutput(logits=torch.zeros(2, 3, 4, 5)), target_sizes=[(4, 5)])


def test_tokens_that_are_no_picture_are_refused() -> None:
    config = MetaTransformerConfig.tiny(num_hidden_layers=1, modalities=["audio"])
    processor = MetaTransformerProcessor(audio=True)
    with pytest.raises(ValueError, match="needs exactly one segment with a layout of"):
        MetaTransformerForSegmentation(config)(**processor(audio=np.zeros(16000, np.float32), sampling_rate=16000))


def test_a_processor_that_resizes_is_followed_by_target_sizes() -> None:
    made, processor = model(), MetaTransformerProcessor(image=ImageProcessor(size=32))
    picture = np.zeros((50, 70, 3), np.uint8)
    output = made(**processor(image=picture))
    assert made.post_process(output, target_sizes=[picture.shape[:2]])[0].shape == (50, 70)


def cube_model(decoder: str) -> MetaTransformerForSegmentation:
    torch.manual_seed(0)
    cube = {"tokenization": "spatial_spectral", "patch_size": 2, "bands_per_token": 4}
    modalities = {"hyperspectral": cube}
    heads = {"segmentation": {"decoder": decoder, "channels": 16}}
    return MetaTransformerForSegmentation(
        MetaTransformerConfig(**SHAPE, modalities=modalities, heads=heads, num_labels=2)
    )


@BOTH
def test_pixels_of_hyperspectral_cubes_are_segmented(decoder) -> None:
    torch.manual_seed(0)
    made = cube_model(decoder)
    truth = (torch.arange(10) > 4).long().expand(2, 9, 10)
    values = torch.randn(2, 12, 9, 10) + 3 * truth[:, None] * torch.linspace(-1, 1, 12)[:, None, None]
    optimizer = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(40):
        loss = made(hyperspectral_values=values, labels=truth).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    logits = made.eval()(hyperspectral_values=values).logits
    assert logits.shape == (2, 2, 9, 10)
    assert (logits.argmax(dim=1) == truth).float().mean() > 0.9


@BOTH
@torch.no_grad()
def test_a_padded_cube_gives_what_it_gives_alone(decoder) -> None:
    made = cube_model(decoder).eval()
    for parameter in made.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.2)
    values, mask = torch.randn(2, 12, 9, 10), torch.ones(2, 12, 9, 10, dtype=torch.bool)
    mask[1, 6:] = mask[1, :, 5:] = mask[1, :, :, 7:] = False
    together = made(hyperspectral_values=values, hyperspectral_mask=mask).logits
    alone = made(hyperspectral_values=values[1:, :6, :5, :7]).logits
    assert_close(together[1:, :, :5, :7], alone, rtol=1e-5, atol=1e-5)


@BOTH
@torch.no_grad()
def test_the_detail_stream_sees_single_pixels_and_no_padding(decoder) -> None:
    pictures, processor = ragged()
    made = model(decoder=decoder, detail_channels=8)
    batch = processor(image=pictures)
    together = made(**batch).logits
    for index, picture in enumerate(pictures):
        alone = made(**processor(image=[picture])).logits[0]
        rows, columns = picture.shape[:2]
        assert_close(together[index, :, :rows, :columns], alone, rtol=1e-5, atol=1e-5)
    made.head.details.context.weight.zero_()  # without what comes from the trunk
    pixels = PIXELS.clone()
    pixels[0, :, 20, 30] += 3
    change = (made(pixel_values=pixels).logits - made(pixel_values=PIXELS).logits)[0].abs().amax(dim=0)
    assert change[20, 30] > 1e-3
    change[17:24, 27:34] = 0  # what three convolutions of 3 x 3 reach
    assert change.max() == 0


def test_a_detail_stream_for_other_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="pixel_channels is 4"):
        model(detail_channels=8, pixel_channels=4)(pixel_values=PIXELS)
