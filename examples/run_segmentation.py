"""Fine-tune a segmentation of your own pictures: a class for each pixel.

    python examples/run_segmentation.py --data cells/ --classes background nucleus --output_dir outputs/cells

`--data` is a CSV with the columns image (or path), mask and, if need be, split, paths relative to it; or a folder with
`images/` and `masks/` whose files have the same names before the ending. Without splits 15 % are drawn for validation
and 15 % for test. A mask holds class numbers from 0 on, 255 where a pixel does not count; of a mask of 0 and 255 alone,
255 is class 1. Pictures and masks are brought to `--image_size`, and mean IoU and Dice are measured there.

A tokenizer and a head are trained around a frozen trunk: `--encoder` names a pretrained one. `--output_dir` gets the
model with its processor and card, `all_results.json`, and `predictions.png`: input, truth and prediction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from run_shared import (
    DataArguments,
    Samples,
    build,
    draw,
    limited,
    picture_defaults,
    predict,
    reported_split,
    side_lengths,
    split_places,
    start,
    train,
)

from meta_transformer.heads.class_maps import resize_class_map
from meta_transformer.training.sources import files_below, is_table, read_collection, read_table
from meta_transformer.training.splits import Source

HEAD = {"decoder": "pyramid", "channels": 64, "dice_weight": 1.0, "detail_channels": 24}
SHOWN = 4


@dataclass
class SegmentationArguments(DataArguments):
    """What is in the pictures, and at which size the model sees them."""

    classes: list[str] | None = field(
        default=None, metadata={"help": "Their names in the order of their numbers; by default the numbers."}
    )
    image_size: list[int] = field(default_factory=lambda: [128], metadata={"help": "One side, or height and width."})


def read_pairs(data: str, seed: int) -> dict[str, list[tuple[str, str]]]:
    """Paths of pictures and masks by split, none of them read.

    Raises:
        ValueError: No such table or folders; a picture without mask.
    """
    path = Path(data)
    if (path / "images").is_dir() and (path / "masks").is_dir() and not (path / "labels.csv").is_file():
        masks = {Path(each).stem: each for each in files_below(path / "masks")}
        images = sorted(files_below(path / "images"))
        if absent := [each for each in images if Path(each).stem not in masks]:
            raise ValueError(f"{len(absent)} pictures have no mask of their name in {path / 'masks'}: {absent[:5]}.")
        pairs, given = [(each, masks[Path(each).stem]) for each in images], None
    else:
        path = path if is_table(path) else path / "labels.csv"
        if not path.is_file():
            raise ValueError(f"{data} is no table of images and masks, and has no labels.csv, nor images/ and masks/.")
        column = "image" if "image" in read_table(path, "image").columns else None
        found = read_collection(path, "image", label="mask", column=column)
        masks = [str(path.parent / each) for each in found.labels or ()]
        if absent := [each for each in masks if not Path(each).is_file()]:
            raise ValueError(f"{len(absent)} masks of {path} are not there: {absent[:5]}.")
        pairs, given = list(zip(found.values, masks, strict=True)), found.splits
    parts = split_places(given, np.zeros(len(pairs), np.int64), seed)
    return {name: [pairs[number] for number in numbers] for name, numbers in parts.items()}


def read_mask(path: str, *, binary: bool) -> np.ndarray:
    """Class numbers `(height, width)`; of a `binary` one, 0 and 1."""
    with Image.open(path) as mask:
        values = np.asarray(mask)
    if values.ndim != 2:
        raise ValueError(f"{path} is a mask in colours, {values.shape}; give class numbers in one channel.")
    return (values > 0).astype(np.int64) if binary else values.astype(np.int64)


def read_row(pair: tuple[str, str], *, sides: list[int], binary: bool) -> dict[str, Any]:
    """A row for the collator; the mask at the size to which the processor brings the picture."""
    image, path = pair
    mask = read_mask(path, binary=binary)
    with Image.open(image) as picture:
        if (picture.height, picture.width) != mask.shape:
            raise ValueError(f"{image} is {picture.height} x {picture.width}, its mask {path} {mask.shape}.")
    return {"image": image, "labels": resize_class_map(mask, (sides[0], sides[1])).numpy()}


def class_names(masks: Sequence[str], names: list[str] | None) -> tuple[list[str], bool]:
    """Names of the classes, and whether the masks are of 0 and 255 alone.

    Raises:
        ValueError: One class only, or fewer names than classes.
    """
    values: set[int] = set()
    for path in masks:
        values |= set(np.unique(read_mask(path, binary=False)).tolist())
    binary = values == {0, 255}
    count = 2 if binary else 1 + max(values - {255}, default=0)
    names = names or [str(number) for number in range(max(count, 2))]
    if len(names) < max(count, 2):
        raise ValueError(f"The masks hold {count} classes, --classes names {names}; name all, two at least.")
    return names, binary


def main() -> None:
    model_arguments, data, arguments = start(
        __doc__,
        SegmentationArguments,
        metric="mean_iou",
        num_train_epochs=24.0,
        learning_rate=3e-3,
        weight_decay=0.05,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=8,
    )
    sides = side_lengths(data.image_size)
    pairs = read_pairs(data.data, arguments.seed)
    names, binary = class_names([mask for _, mask in pairs["train"]], data.classes)
    read = partial(read_row, sides=sides, binary=binary)
    splits = limited({name: Samples("image", own, read) for name, own in pairs.items()}, data, arguments.seed)
    source, defaults = Source(splits, names), picture_defaults(model_arguments, sides)
    model, processor = build(
        model_arguments, "segmentation", {"image": source}, {"image": defaults}, head=HEAD, id2label=source.id2label
    )
    trainer, _ = train(model, processor, splits, arguments, model_arguments.call)
    if trainer.is_world_process_zero():
        show(trainer, splits[reported_split(splits)], sides)


def show(trainer: Any, rows: Samples, sides: list[int]) -> None:
    """Draw input, truth and prediction of the first pictures."""
    samples, output = predict(trainer, rows, range(SHOWN))
    cells = []
    for sample, found in zip(samples, trainer.model.post_process(output), strict=True):
        picture = Image.open(sample["image"]).resize((sides[1], sides[0]))
        cells.append([partial(_show, picture=picture, classes=each) for each in (None, sample["labels"], found)])
    draw(Path(str(trainer.args.output_dir)) / "predictions.png", ("input", "truth", "prediction"), cells)


def _show(axis: Any, picture: Any, classes: np.ndarray | None) -> None:
    axis.imshow(picture, cmap="gray")
    if classes is not None:
        shown = np.ma.masked_where((classes < 1) | (classes == 255), classes)
        axis.imshow(shown, cmap="tab10", vmin=0, vmax=9, alpha=0.5, interpolation="nearest")


if __name__ == "__main__":
    main()
