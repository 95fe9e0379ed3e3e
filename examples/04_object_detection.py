"""Where are the cells? A frozen trunk finds red cells, white cells and platelets in blood smears.

    META_TRANSFORMER_DATA=../shared/data python examples/04_object_detection.py
    python examples/04_object_detection.py --encoder timm/vit_tiny_patch16_224.augreg_in21k --epochs 10

A tokenizer and a dense detection head are trained on BCCD (205 pictures of 640 x 480, shown at 256 x 192); the trunk,
192 wide and 4 deep with random weights unless `--encoder` names others, stays as it is. The best epoch is chosen on the
validation split. The test split is measured once, beside a baseline made in the same run: threshold of the stain's
colour, connected components, and peaks of the distance transform for the red cells, which touch each other.

Prints COCO's mean average precision over all classes, and the average precision at an IoU of 0.5 for each. Writes the
table, the model, and `predictions.png` (truth and prediction over the picture) to `--output`. What is finished is kept
there: a run that was stopped goes on where it was, unless its settings are others now; `--fresh` starts anew.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy import ndimage
from task_runs import arguments, console, print_table, train
from torch.utils.data import Dataset
from torchmetrics.detection import MeanAveragePrecision

from meta_transformer import MetaTransformerForObjectDetection, MetaTransformerProcessor

CARD = 0.366  # average precision of the white cells by a threshold of colour, in the set's CARD
CLASSES = ["Platelets", "RBC", "WBC"]
SIZE = (192, 256)  # height and width that the model sees
TOKENIZER = {"patch_size": 16, "image_size": list(SIZE), "patch_embedding": "convolutional"}
# The finest map is made of what enters the trunk: blocks of random weights blur where things are.
HEAD = {"pyramid_layers": [0, 2, 4], "channels": 64, "doublings": 1}
BATCH = 4


# 1. Data
def read(data: Path) -> dict[str, pd.DataFrame]:
    """The splits, each a row a picture: `image` at the size of the model, `size` of the file, COCO's `annotations`."""
    folder = data / "detection/bccd"
    boxes = pd.read_csv(folder / "boxes.csv").query("valid == 1")
    table = pd.read_csv(folder / "labels.csv")[["path", "split"]]
    images = [Image.open(folder / path).convert("RGB") for path in table["path"]]
    table["size"] = [(image.height, image.width) for image in images]
    table["image"] = [np.asarray(image.resize(SIZE[::-1], Image.Resampling.BOX)) for image in images]
    rows = dict(list(boxes.groupby("path")))
    table["annotations"] = [[annotation(row) for row in rows[path].itertuples()] for path in table["path"]]
    return {split: part.reset_index(drop=True) for split, part in table.groupby("split")}


def annotation(row: Any) -> dict[str, Any]:
    """As COCO has it, with the classes numbered from 0."""
    bbox = [row.xmin, row.ymin, row.xmax - row.xmin, row.ymax - row.ymin]
    return {"bbox": bbox, "category_id": CLASSES.index(row.label)}


class Pictures(Dataset):
    """Rows as the collator takes them, changed at random in training."""

    def __init__(self, table: pd.DataFrame, augment: bool = False) -> None:
        self.table, self.augment = table, augment

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.table.loc[index]
        image, annotations = row["image"], row["annotations"]
        if self.augment:
            image, annotations = augmented(image, annotations, row["size"])
        return {"image": image, "labels": annotations, "original_sizes": row["size"]}


def augmented(image: np.ndarray, annotations: list[dict], size: tuple[int, int]) -> tuple[np.ndarray, list[dict]]:
    """Mirrored, brighter or darker, with more or less contrast and colour."""
    boxes = np.array([each["bbox"] for each in annotations], dtype=float)
    for axis in (0, 1):  # rows and columns, as the image has them
        if torch.rand(()) < 0.5:
            image = np.flip(image, axis)
            boxes[:, 1 - axis] = size[axis] - boxes[:, 1 - axis] - boxes[:, 3 - axis]
    gains = 0.85 + 0.3 * torch.rand(3).numpy()
    image = (image * gains + 30 * float(torch.rand(())) - 15).clip(0, 255).astype(np.uint8)
    changed = [{**each, "bbox": bbox.tolist()} for each, bbox in zip(annotations, boxes, strict=True)]
    return image, changed


# 2. Baseline
def classical(image: np.ndarray, size: tuple[int, int], typical: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Blobs of the stain's colour are white cells or platelets, by their area; what is left of the cells, red ones.

    Args:
        image: `(height, width, 3)`.
        size: Height and width to which its boxes refer.
        typical: Mean height and width of the boxes of each class in the training split.
    """
    _, green, blue = np.moveaxis(image.astype(float), 2, 0)
    scale = np.array(size) / image.shape[:2]
    halves = {name: extent / scale / 2 for name, extent in typical.items()}
    found = []

    def around(name: str, score: float, y: float, x: float) -> None:
        """A box of the typical size."""
        height, width = halves[name]
        found.append((name, score, [x - width, y - height, x + width, y + height]))

    stain = ndimage.gaussian_filter(blue - green, 1)
    stained = ndimage.binary_opening(stain > threshold(stain))
    blobs, count = ndimage.label(stained)
    areas = ndimage.sum_labels(stained, blobs, np.arange(1, count + 1))
    limit = 2 * np.sqrt(np.prod(halves["Platelets"]) * np.prod(halves["WBC"]))
    for area, (rows, columns) in zip(areas, ndimage.find_objects(blobs), strict=True):
        if area > limit:
            found.append(("WBC", float(area), [columns.start, rows.start, columns.stop, rows.stop]))
        else:
            around("Platelets", float(area), (rows.start + rows.stop) / 2, (columns.start + columns.stop) / 2)
    body = ndimage.gaussian_filter(green, 1)
    cells = ndimage.binary_fill_holes(body < threshold(body)) & ~ndimage.binary_dilation(stained, iterations=4)
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(cells), 2)
    height = halves["RBC"][0]
    for y, x in np.argwhere((depth == ndimage.maximum_filter(depth, int(height))) & (depth > height / 3)):
        around("RBC", float(depth[y, x]), y, x)
    corners = torch.tensor([box for _, _, box in found], dtype=torch.float32).reshape(-1, 4)
    corners = corners * torch.tensor([*scale[::-1], *scale[::-1]], dtype=torch.float32)
    limits = torch.tensor([size[1], size[0], size[1], size[0]], dtype=torch.float32)
    return {
        "scores": torch.tensor([score for _, score, _ in found]),
        "labels": torch.tensor([CLASSES.index(name) for name, _, _ in found], dtype=torch.long),
        "boxes": corners.clamp(min=0).minimum(limits),
    }


def threshold(values: np.ndarray) -> float:
    """The value that splits the histogram best (Otsu 1979)."""
    counts, edges = np.histogram(values, bins=128)
    middles = (edges[:-1] + edges[1:]) / 2
    below, sums = np.cumsum(counts), np.cumsum(counts * middles)
    share = below[:-1] / below[-1]
    between = (sums[-1] / below[-1] * share - sums[:-1] / below[-1]) ** 2 / (share * (1 - share)).clip(1e-9)
    return float(edges[1 + between.argmax()])


# 3. Predict
@torch.no_grad()
def predict(
    model: MetaTransformerForObjectDetection, processor: MetaTransformerProcessor, table: pd.DataFrame
) -> list[dict[str, torch.Tensor]]:
    """Boxes in pixels of the files, also those of low scores, which the average precision asks for."""
    found = []
    for start in range(0, len(table), BATCH):
        part = table.iloc[start : start + BATCH]
        batch = processor(image=list(part["image"]))
        output = model(**batch, original_sizes=torch.tensor(list(part["size"])))
        found += model.post_process(output, threshold=0.01)
    for each in found:
        each["labels"] = torch.tensor([CLASSES.index(name) for name in each["labels"]], dtype=torch.long)
    return found


# 4. Report
def truth_of(row: Any) -> dict[str, torch.Tensor]:
    """The annotations of a picture as corners."""
    boxes = torch.tensor([each["bbox"] for each in row["annotations"]], dtype=torch.float32)
    boxes[:, 2:] += boxes[:, :2]
    return {"boxes": boxes, "labels": torch.tensor([each["category_id"] for each in row["annotations"]])}


def scores(test: pd.DataFrame, found: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """Mean average precision, and that at an IoU of 0.5 over all classes and of each."""
    truth = [truth_of(row) for _, row in test.iterrows()]
    whole, half = MeanAveragePrecision(), MeanAveragePrecision(iou_thresholds=[0.5], class_metrics=True)
    for metric in (whole, half):
        metric.update(found, truth)
    each, all_classes = half.compute(), whole.compute()
    by_class = dict(zip(each["classes"].tolist(), each["map_per_class"].tolist(), strict=True))
    named = {f"AP50 {name}": by_class[number] for number, name in enumerate(CLASSES)}
    return {"mAP": float(all_classes["map"]), "AP50": float(all_classes["map_50"]), **named}


def draw(folder: Path, test: pd.DataFrame, found: list[dict[str, torch.Tensor]], file: Path) -> None:
    """Truth and prediction over the first pictures of the test split."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    figure, axes = pyplot.subplots(2, 4, figsize=(15, 6.2))
    for column, index in zip(axes.T, range(0, len(test), len(test) // 4), strict=False):
        row = test.loc[index]
        sure = found[index]["scores"] >= 0.3
        shown = {name: value[sure] for name, value in found[index].items()}
        for axis, boxes, name in zip(column, (truth_of(row), shown), ("truth", "prediction"), strict=True):
            axis.imshow(Image.open(folder / row["path"]))
            for (left, top, right, bottom), number in zip(boxes["boxes"].tolist(), boxes["labels"], strict=True):
                colour = ("gold", "red", "blue")[int(number)]
                axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, color=colour))
            axis.set(xticks=[], yticks=[])
            axis.set_title(f"{name}, {len(boxes['boxes'])} boxes", fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=80)
    pyplot.close(figure)


def main() -> None:
    options = arguments(__file__, __doc__, epochs=12)
    splits = read(options.data)
    console.print(", ".join(f"{len(part)} pictures {split}" for split, part in splits.items()))
    processor = MetaTransformerProcessor(image=True)
    model, training = train(
        MetaTransformerForObjectDetection,
        options.trunk,
        processor,
        (Pictures(splits["train"], augment=True), Pictures(splits["val"])),
        options.output,
        tokenizer=TOKENIZER,
        head=HEAD,
        id2label=dict(enumerate(CLASSES)),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        learning_rate=2e-3,
        weight_decay=0.05,
        batch_eval_metrics=True,
        metric_for_best_model="map",
    )
    learned = pd.DataFrame([each for row in splits["train"]["annotations"] for each in row])
    sizes = [np.mean(list(own), axis=0)[:1:-1] for _, own in learned.groupby("category_id")["bbox"]]
    typical = dict(zip(CLASSES, sizes, strict=True))
    test = splits["test"]
    found = {
        "threshold and components": [classical(row["image"], row["size"], typical) for _, row in test.iterrows()],
        "frozen trunk": predict(model, processor, test),
    }
    table = pd.DataFrame({name: scores(test, each) for name, each in found.items()}).T
    print_table("Blood cells, test split", table, options.output / "scores.csv")
    console.print(
        f"{training['trainable']:,} parameters trained in {training['seconds']:.0f} s; the set's CARD reports {CARD} "
        "for AP50 WBC by a threshold of colour."
    )
    draw(options.data / "detection/bccd", test, found["frozen trunk"], options.output / "predictions.png")
    console.print(f"Written: scores.csv and predictions.png in {options.output}")


if __name__ == "__main__":
    main()
