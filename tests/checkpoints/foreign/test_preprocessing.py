"""Images are prepared as the source prepares them, up to rounding to 8 bits."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor
from transformers import CLIPImageProcessor, ViTImageProcessor

from meta_transformer.checkpoints.foreign import read_foreign
from meta_transformer.processors.image import ImageProcessor


def photo() -> Image.Image:
    """Smooth, since resizing in 8 bits and in floats differs by the rounding alone."""
    rows, columns = np.mgrid[0:60, 0:90]
    colours = [rows * 2, columns * 2, (rows + columns) * 1.5]
    return Image.fromarray(np.stack(colours, axis=-1).astype(np.uint8))


def close(ours: dict[str, Any], theirs: Tensor) -> None:
    pixels = ImageProcessor(**ours)(photo())["pixel_values"][0]
    torch.testing.assert_close(pixels, theirs, rtol=0, atol=0.03)


@pytest.mark.parametrize("crop", [{"crop_pct": 0.9, "crop_mode": "center"}, {"crop_pct": 1.0, "crop_mode": "squash"}])
def test_images_are_prepared_as_timm_does(make: ModuleType, crop: dict, tmp_path: Path) -> None:
    model = make.timm_model(img_size=32)
    model.pretrained_cfg.update(crop, mean=(0.4, 0.5, 0.6), std=(0.3, 0.4, 0.5), interpolation="bilinear")
    make.save_timm(model, tmp_path)
    foreign = read_foreign(tmp_path)
    transform = create_transform(**resolve_data_config({"input_size": (3, 32, 32)}, model=model))
    close(foreign.image_processor, transform(photo()))
    assert "state_dict" not in vars(foreign)  # no weight was read


@pytest.mark.parametrize("processor_class", [ViTImageProcessor, CLIPImageProcessor])
def test_images_are_prepared_as_transformers_does(make: ModuleType, processor_class: type, tmp_path: Path) -> None:
    make.vit().config.save_pretrained(tmp_path)
    clip_style = processor_class is CLIPImageProcessor
    size = {"shortest_edge": 30} if clip_style else {"height": 24, "width": 24}
    processor = processor_class(size=size, crop_size={"height": 24, "width": 24})
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "preprocessor_config.json").is_file()
    close(read_foreign(tmp_path).image_processor, processor(photo(), return_tensors="pt")["pixel_values"][0])


@pytest.mark.parametrize(
    ("stored", "size", "crop_size"),
    [
        ({"size": 24}, [24, 24], None),  # ViT's, as Google's checkpoints have it
        ({"size": 24, "do_center_crop": True, "crop_size": 20}, 24, 20),  # CLIP's, as OpenAI's have it
        (
            {"size": {"shortest_edge": 30}, "do_center_crop": True, "crop_size": {"height": 24, "width": 20}},
            30,
            [24, 20],
        ),
        ({"size": 24, "do_resize": False}, None, None),
    ],
)
def test_sizes_are_read_as_old_checkpoints_store_them(
    make: ModuleType, stored: dict, size: Any, crop_size: Any, tmp_path: Path
) -> None:
    make.vit().config.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**stored, "resample": 3, "do_normalize": False}))
    settings = read_foreign(tmp_path).image_processor
    assert (settings["size"], settings["crop_size"], settings["interpolation"]) == (size, crop_size, "bicubic")
    assert (settings["image_mean"], settings["image_std"]) == (0.0, 1.0)


def test_settings_inside_those_of_a_processor_are_found(make: ModuleType, tmp_path: Path) -> None:
    """Where transformers saves them since its version 5, when there is a tokenizer of text as well."""
    make.clip().config.save_pretrained(tmp_path)
    settings = CLIPImageProcessor(image_mean=[0.1, 0.2, 0.3]).to_dict()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert read_foreign(tmp_path).image_processor["image_mean"] == [0.1, 0.2, 0.3]


def test_a_source_that_does_not_say_gives_no_settings(make: ModuleType, tmp_path: Path) -> None:
    make.vit().config.save_pretrained(tmp_path)
    assert read_foreign(tmp_path).image_processor == {}


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_images_are_prepared_as_open_clip_does(make: ModuleType, mode: str, tmp_path: Path) -> None:
    vision = {"image_size": 24}
    model = make.open_clip_model(open_clip.CLIP, False, **vision)
    model.visual.preprocess_cfg = {"resize_mode": mode, "interpolation": "bilinear"}
    make.save_open_clip(False, vision, model, tmp_path)
    transform = open_clip.image_transform(
        24, is_train=False, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), resize_mode=mode, interpolation="bilinear"
    )
    close(read_foreign(tmp_path).image_processor, transform(photo()))


def test_preparation_that_has_no_equivalent_is_refused_only_when_asked_for(make: ModuleType) -> None:
    model = make.timm_model(img_size=32)
    model.pretrained_cfg["crop_mode"] = "border"
    foreign = read_foreign(model)
    with pytest.raises(ValueError, match=r"crop_mode 'border'.*make one with other settings"):
        _ = foreign.image_processor
