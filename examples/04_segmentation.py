"""Which pixels are nuclei? A frozen trunk segments microscope pictures of three kinds.

    META_TRANSFORMER_DATA=../shared/data python examples/04_segmentation.py
    python examples/04_segmentation.py --encoder timm/vit_tiny_patch16_224.augreg_in21k --epochs 10

A tokenizer and a segmentation head are trained on the 2018 Data Science Bowl (165 pictures of 128 x 128); the trunk,
192 wide and 4 deep with random weights unless `--encoder` names others, stays as it is. The best epoch is chosen on the
validation split. The test split is measured once, beside two baselines made in the same run: Otsu's threshold and a
random forest on the neighbourhood of each pixel.

Prints IoU and Dice of the nuclei, each the mean over pictures, and the IoU for each kind. Writes the table,
the model, and `predictions.png` (input, truth, prediction) to `--output`. What is finished is kept there: a run that
was stopped goes on where it was, unless its settings are others now; `--fresh` starts anew.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy import ndimage
from sklearn.ensemble import RandomForestClassifier
from task_runs import arguments, console, print_table, train
from torch.utils.data import Dataset

from meta_transformer import MetaTransformerForSegmentation, MetaTransformerProcessor
from meta_transformer.heads.class_maps import resize_class_map
from meta_transformer.processors.image import ImageProcessor

CARD = 0.749  # mean IoU of the pixel forest in the set's CARD
TOKENIZER = {"patch_size": 8, "image_size": 128, "patch_embedding": "convolutional"}
# The finest map is made of what enters the trunk: blocks of random weights blur where things are.
HEAD = {"decoder": "pyramid", "pyramid_layers": [0, 1, 2, 4], "channels": 64, "dice_weight": 1.0}
# Nuclei are a few pixels wide, patches eight.
HEAD |= {"detail_channels": 24, "pixel_channels": 5}
BATCH = 8


# 1. Data
def read(data: Path) -> dict[str, pd.DataFrame]:
    """The splits, each a row a picture: `image` `(height, width, 3)`, `mask` `(height, width)`, `kind`."""
    folder = data / "segmentation/nuclei_dsb2018"
    table = pd.read_csv(folder / "labels.csv")
    table["image"] = [np.asarray(Image.open(folder / path).convert("RGB")) for path in table["path"]]
    table["mask"] = [np.asarray(Image.open(folder / path)) > 0 for path in table["mask"]]
    return {split: part.reset_index(drop=True) for split, part in table.groupby("split")}


def balanced(table: pd.DataFrame) -> pd.DataFrame:
    """Each kind of picture as often as it takes to be half as frequent as the most frequent one."""
    counts = table["kind"].value_counts()
    times = (counts.max() / counts / 2).round().clip(lower=1).astype(int)
    return table.loc[table.index.repeat(table["kind"].map(times))].reset_index(drop=True)


class Pictures(Dataset):
    """Rows as the collator takes them, changed at random in training."""

    def __init__(self, table: pd.DataFrame, augment: bool = False) -> None:
        self.table, self.augment = table, augment

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        image, mask = self.table.loc[index, "image"], self.table.loc[index, "mask"]
        if self.augment:
            image, mask = augmented(image, mask)
        return {"image": prepared(image), "labels": mask}


def prepared(image: np.ndarray) -> np.ndarray:
    """A picture in five channels: its colours, its grey level, and white everywhere.

    Colours go from the darkest to the brightest percent to 0..255, because some nuclei glow faintly, and grey to what
    is brightest, because some pictures have few of them. White, because the stem's convolutions have no bias and norms
    behind them, so that without it they would see no difference between grey and white.
    """
    low, high = np.percentile(image, (1, 99))
    colours = ((image - low) / max(high - low, 1) * 255).clip(0, 255)
    grey = ((image.mean(axis=2) - low) / max(image.max() - low, 1) * 255).clip(0, 255)
    return np.dstack([colours, grey, np.full(grey.shape, 255)]).astype(np.uint8)


def augmented(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turned, mirrored, a part of it enlarged; brighter or darker, with more or less contrast."""
    height, width = mask.shape
    side = int(torch.randint(int(0.6 * height), height + 1, ()))
    top, left = (int(torch.randint(0, length - side + 1, ())) for length in (height, width))
    part = Image.fromarray(image[top : top + side, left : left + side])
    image = np.asarray(part.resize((width, height), Image.Resampling.BILINEAR))
    mask = resize_class_map(mask[top : top + side, left : left + side], (height, width)).numpy()
    turns, mirror = int(torch.randint(4, ())), bool(torch.rand(()) < 0.5)
    image, mask = (np.rot90(each, turns)[:, :: -1 if mirror else 1] for each in (image, mask))
    contrast, brightness = 0.75 + 0.5 * float(torch.rand(())), 40 * float(torch.rand(())) - 20
    return (image * contrast + brightness).clip(0, 255).astype(np.uint8), np.ascontiguousarray(mask)


# 2. Baselines
def otsu(image: np.ndarray) -> np.ndarray:
    """The rarer side of the grey level that splits the histogram best (Otsu 1979)."""
    grey = image.mean(axis=2)
    counts, edges = np.histogram(grey, bins=256, range=(0, 256))
    below = np.cumsum(counts)
    sums = np.cumsum(counts * edges[:-1])
    share = below / below[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (sums[-1] / below[-1] * share - sums / below[-1]) ** 2 / (share * (1 - share))
    bright = grey > np.nanargmax(np.nan_to_num(between))
    return bright if bright.mean() < 0.5 else ~bright


def pixel_features(image: np.ndarray) -> np.ndarray:
    """Colours, and means, gradients and deviations of grey around each pixel, `(pixels, features)`."""
    colours = image.astype(np.float32) / 255
    grey = colours.mean(axis=2)
    maps = [*np.moveaxis(colours, 2, 0), grey - grey.mean()]
    for sigma in (1, 2, 4, 8):
        mean = ndimage.gaussian_filter(grey, sigma)
        spread = ndimage.gaussian_filter(grey**2, sigma) - mean**2
        maps += [mean, ndimage.gaussian_gradient_magnitude(grey, sigma), np.sqrt(spread.clip(0))]
    return np.stack(maps, axis=-1).reshape(-1, len(maps))


def forest(train: pd.DataFrame) -> RandomForestClassifier:
    """A random forest on 500 pixels of each training picture."""
    random = np.random.default_rng(0)
    features, classes = [], []
    for image, mask in zip(train["image"], train["mask"], strict=True):
        chosen = random.choice(mask.size, 500, replace=False)
        features.append(pixel_features(image)[chosen])
        classes.append(mask.ravel()[chosen])
    model = RandomForestClassifier(100, min_samples_leaf=3, random_state=0)
    return model.fit(np.concatenate(features), np.concatenate(classes))


# 3. Predict
@torch.no_grad()
def predict(
    model: MetaTransformerForSegmentation, processor: MetaTransformerProcessor, images: list[np.ndarray]
) -> list[np.ndarray]:
    """Class maps at the size of the pictures, by the mean over eight turned and mirrored copies."""
    maps = []
    for image in images:
        pixels = processor(image=prepared(image))["pixel_values"]
        total = torch.zeros(())
        for mirror in (False, True):
            for turns in range(4):
                copy = torch.rot90(pixels.flip(3) if mirror else pixels, turns, (2, 3))
                shares = torch.rot90(model(pixel_values=copy).logits.softmax(dim=1), -turns, (2, 3))
                total = total + (shares.flip(3) if mirror else shares)
        maps.append(total[0].argmax(dim=0).numpy())
    return maps


# 4. Report
def scores(truth: list[np.ndarray], predicted: list[np.ndarray]) -> pd.DataFrame:
    """IoU and Dice of the nuclei of each picture."""
    rows = []
    for mask, guess in zip(truth, predicted, strict=True):
        both, either = (mask & (guess > 0)).sum(), (mask | (guess > 0)).sum()
        rows.append({"IoU": both / max(either, 1), "Dice": 2 * both / max(both + either, 1)})
    return pd.DataFrame(rows)


def report(test: pd.DataFrame, maps: dict[str, list[np.ndarray]]) -> pd.DataFrame:
    """A row a method: mean IoU and Dice over all pictures, and mean IoU over those of each kind."""
    rows = {}
    for name, predicted in maps.items():
        each = scores(list(test["mask"]), predicted)
        kinds = {f"IoU, {kind}": each["IoU"][test["kind"] == kind].mean() for kind in sorted(test["kind"].unique())}
        rows[name] = {**each.mean(), **kinds}
    return pd.DataFrame(rows).T


def draw(test: pd.DataFrame, predicted: list[np.ndarray], file: Path) -> None:
    """Input, truth and prediction of two pictures of each kind."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    chosen = [index for kind in sorted(test["kind"].unique()) for index in test.index[test["kind"] == kind][:2]]
    figure, axes = pyplot.subplots(3, len(chosen), figsize=(2 * len(chosen), 6.4))
    for column, index in zip(axes.T, chosen, strict=True):
        row = test.loc[index]
        iou = scores([row["mask"]], [predicted[index]])["IoU"][0]
        for axis, picture in zip(column, (row["image"], row["mask"], predicted[index]), strict=True):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        column[0].set_title(row["kind"], fontsize=9)
        column[2].set_xlabel(f"IoU {iou:.2f}", fontsize=9)
    for axis, name in zip(axes[:, 0], ("input", "truth", "prediction"), strict=True):
        axis.set_ylabel(name)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def main() -> None:
    options = arguments(__file__, __doc__, epochs=24)
    splits = read(options.data)
    console.print(", ".join(f"{len(part)} pictures {split}" for split, part in splits.items()))
    processor = MetaTransformerProcessor(image=ImageProcessor(num_channels=5))
    model, training = train(
        MetaTransformerForSegmentation,
        options.trunk,
        processor,
        (Pictures(balanced(splits["train"]), augment=True), Pictures(splits["val"])),
        options.output,
        tokenizer=TOKENIZER,
        head=HEAD,
        id2label={0: "background", 1: "nucleus"},
        num_train_epochs=options.epochs,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        learning_rate=3e-3,
        weight_decay=0.05,
        batch_eval_metrics=True,
        metric_for_best_model="mean_iou",
    )
    test = splits["test"]
    images = list(test["image"])
    maps = {"Otsu's threshold": [otsu(image) for image in images]}
    console.print("Growing the random forest of pixels ...")
    trees = forest(splits["train"])
    maps["random forest of pixels"] = [trees.predict(pixel_features(each)).reshape(each.shape[:2]) for each in images]
    maps["frozen trunk"] = predict(model, processor, images)
    print_table("Nuclei, test split: mean over pictures", report(test, maps), options.output / "scores.csv")
    console.print(
        f"{training['trainable']:,} parameters trained in {training['seconds']:.0f} s; the set's CARD reports {CARD} "
        "mean IoU for its random forest of pixels."
    )
    draw(test, maps["frozen trunk"], options.output / "predictions.png")
    console.print(f"Written: scores.csv and predictions.png in {options.output}")


if __name__ == "__main__":
    main()
