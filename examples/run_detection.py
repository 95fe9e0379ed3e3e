"""Fine-tune object detection on your own pictures with boxes in COCO's JSON.

    python examples/run_detection.py --data annotations.json --images pictures/ --output_dir outputs/cells

`--data` is a JSON file with `images`, `annotations` and `categories` as COCO has them, of which 15 % are drawn for
validation and 15 % for test; or a folder with `train.json` and, if there are, `val.json` and `test.json`. `--images` is
the folder that the file names are relative to, by default that of the JSON. Regions marked as crowds, and boxes without
inside, are left out and counted. Pictures are brought to `--image_size`; boxes stay in pixels of the files.

A tokenizer and a head are trained around a frozen trunk: `--encoder` names a pretrained one. `--output_dir` gets the
model with its processor and card, `all_results.json` with COCO's metrics, and `predictions.png`: truth and prediction.
"""

import json
from collections import defaultdict
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

from meta_transformer.training.sources import SPLITS
from meta_transformer.training.splits import Source

HEAD = {"channels": 64, "doublings": 1}
SHOWN = 4


@dataclass
class DetectionArguments(DataArguments):
    """Where the pictures are, and at which size the model sees them."""

    images: str | None = field(default=None, metadata={"help": "Folder of the pictures; by default that of --data."})
    image_size: list[int] = field(default_factory=lambda: [256], metadata={"help": "One side, or height and width."})
    threshold: float = field(default=0.3, metadata={"help": "Lowest score of a box in the picture that is drawn."})


def read_coco(path: Path, images: Path) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Pictures with their boxes, none of them read, and the names of the categories.

    Raises:
        ValueError: No such file, not COCO's layout, or a picture or category that is not there.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        categories = {int(each["id"]): str(each["name"]) for each in content["categories"]}
        boxes, left_out = defaultdict(list), 0
        for each in content["annotations"]:
            if each.get("iscrowd") or min(each["bbox"][2:]) <= 0:
                left_out += 1
            else:
                boxes[each["image_id"]].append({"bbox": each["bbox"], "category_id": int(each["category_id"])})
        found = [{"path": str(images / each["file_name"]), "boxes": boxes[each["id"]]} for each in content["images"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} has no images, annotations and categories as COCO has them: {error!r}.") from error
    for row in found:
        if not Path(row["path"]).is_file():
            raise ValueError(f"{path} names {row['path']}, which is not there; give the folder by --images.")
        if unknown := {each["category_id"] for each in row["boxes"]} - set(categories):
            raise ValueError(f"{row['path']} has boxes of the categories {unknown}; {path} names {categories}.")
    print(f"{path}: {len(found):,} pictures; {left_out:,} crowds and boxes without inside left out")
    return found, categories


def read_splits(data: DetectionArguments, seed: int) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Pictures by split with class numbers from 0 on, and the names of the classes.

    Raises:
        ValueError: As of `read_coco`; no file of what is learned from; or files that disagree on the categories.
    """
    path = Path(data.data)
    images = Path(data.images) if data.images else path if path.is_dir() else path.parent
    files = [(None, path)]
    if path.is_dir():
        names = [(split, path / f"{word}.json") for split, words in SPLITS.items() for word in words]
        files = [(split, file) for split, file in names if file.is_file()]
        if "train" not in dict(files):
            raise ValueError(f"{path} has no train.json; give it, or one JSON file of all pictures.")
    rows: list[dict[str, Any]] = []
    given: list[Any] = []
    categories: dict[int, str] = {}
    for split, file in files:
        own, known = read_coco(file, images)
        if rows and known != categories:
            raise ValueError(f"{file} names the categories {known}, another file {categories}; give all the same.")
        categories = known
        rows += own
        given += [split] * len(own)
    numbers = {category: number for number, category in enumerate(sorted(categories))}
    for row in rows:
        row["boxes"] = [{**each, "category_id": numbers[each["category_id"]]} for each in row["boxes"]]
    parts = split_places(given if path.is_dir() else None, np.zeros(len(rows), np.int64), seed)
    splits = {name: [rows[place] for place in places] for name, places in parts.items()}
    return splits, [categories[category] for category in sorted(categories)]


def read_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row for the collator."""
    with Image.open(row["path"]) as picture:
        size = (picture.height, picture.width)
    return {"image": row["path"], "labels": row["boxes"], "original_sizes": size}


def main() -> None:
    model_arguments, data, arguments = start(
        __doc__,
        DetectionArguments,
        metric="map",
        num_train_epochs=12.0,
        weight_decay=0.05,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
    )
    rows, names = read_splits(data, arguments.seed)
    splits = limited({name: Samples("image", own, read_row) for name, own in rows.items()}, data, arguments.seed)
    source, defaults = Source(splits, names), picture_defaults(model_arguments, side_lengths(data.image_size))
    model, processor = build(
        model_arguments, "object_detection", {"image": source}, {"image": defaults}, head=HEAD, id2label=source.id2label
    )
    trainer, _ = train(model, processor, splits, arguments, model_arguments.call)
    if trainer.is_world_process_zero():
        show(trainer, splits[reported_split(splits)], names, data.threshold)


def show(trainer: Any, rows: Samples, names: list[str], threshold: float) -> None:
    """Draw truth and prediction over the first pictures."""
    samples, output = predict(trainer, rows, range(SHOWN))
    cells = []
    for sample, each in zip(samples, trainer.model.post_process(output, threshold=threshold), strict=True):
        truth = [(box["bbox"], names[box["category_id"]]) for box in sample["labels"]]
        corners = each["boxes"].cpu()
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()
        both = (truth, list(zip(boxes, each["labels"], strict=True)))
        cells.append([partial(_show, path=sample["image"], boxes=own) for own in both])
    draw(Path(str(trainer.args.output_dir)) / "predictions.png", ("truth", "prediction"), cells)


def _show(axis: Any, path: str, boxes: list[tuple[list[float], str]]) -> None:
    from matplotlib.patches import Rectangle

    axis.imshow(Image.open(path))
    for (left, top, width, height), name in boxes:
        axis.add_patch(Rectangle((left, top), width, height, fill=False, color="tab:red"))
        axis.text(left, top, name, fontsize=6, color="white", backgroundcolor="tab:red")


if __name__ == "__main__":
    main()
