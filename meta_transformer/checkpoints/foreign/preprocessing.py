"""How the sources prepare images, as settings of our `ImageProcessor`.

Settings alone: each source's size, crop, mean and standard deviation, for the transform that it evaluates with.
"""

from collections.abc import Mapping
from typing import Any

from .base import one_or_two
from .files import Location

__all__ = ["open_clip_preprocessing", "timm_preprocessing", "transformers_preprocessing"]

_OPENAI_MEAN = [0.48145466, 0.4578275, 0.40821073]
_OPENAI_STD = [0.26862954, 0.26130258, 0.27577711]

# PIL's numbers, which transformers stores
_RESAMPLING = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}


def _settings(name: str, interpolation: Any, **settings: Any) -> dict[str, Any]:
    """The settings, once it is certain that `ImageProcessor` resizes in the same way."""
    if interpolation not in _RESAMPLING.values():
        raise _no_equivalent(name, f"interpolation {interpolation!r}")
    return {"interpolation": interpolation, **settings}


def _no_equivalent(name: str, what: str) -> ValueError:
    return ValueError(f"{name} prepares images with {what}, which ImageProcessor cannot; make one with other settings.")


def timm_preprocessing(model: Any) -> dict[str, Any]:
    """Of a timm model, by its `pretrained_cfg` and timm's defaults, at the size that its positions are for."""
    from timm.data import resolve_data_config

    channels, (height, width) = model.patch_embed.proj.in_channels, model.patch_embed.img_size
    data = resolve_data_config({"input_size": (channels, height, width)}, model=model)
    center = data["crop_mode"] == "center"
    if (center and height != width) or data["crop_mode"] not in ("center", "squash"):
        raise _no_equivalent("timm", f"crop_mode {data['crop_mode']!r} and size {height} x {width}")
    scaled = [int(length / data["crop_pct"]) for length in (height, width)]
    return _settings(
        "timm",
        data["interpolation"],
        num_channels=channels,
        size=scaled[0] if center else scaled,
        crop_size=one_or_two((height, width)),
        image_mean=list(data["mean"]),
        image_std=list(data["std"]),
    )


def transformers_preprocessing(location: Location) -> dict[str, Any]:
    """Of a folder or repository in transformers' layout, by its `preprocessor_config.json`; empty without one."""
    settings = location.json("preprocessor_config.json")
    if settings is None:
        settings = (location.json("processor_config.json") or {}).get("image_processor")
    if settings is None:
        return {}
    normalize = settings.get("do_normalize", True)
    crop = settings.get("crop_size") if settings.get("do_center_crop", False) else None
    # A bare number was the shorter side for processors that crop, and both sides for those that do not.
    shorter = crop is not None
    return _settings(
        location.name,
        _RESAMPLING.get(settings.get("resample", 2), settings.get("resample")),
        size=_size(settings.get("size"), shorter) if settings.get("do_resize", True) else None,
        crop_size=_size(crop, shorter=True),
        image_mean=settings.get("image_mean", 0.5) if normalize else 0.0,
        image_std=settings.get("image_std", 0.5) if normalize else 1.0,
    )


def _size(size: Any, shorter: bool) -> int | list[int] | None:
    """A size as transformers stores it: a number, or a dict of height and width or of the shorter side."""
    if isinstance(size, Mapping):
        return size["shortest_edge"] if "shortest_edge" in size else [size["height"], size["width"]]
    return [size, size] if isinstance(size, int) and not shorter else size


def open_clip_preprocessing(preprocess: Mapping[str, Any], image_size: int | list[int]) -> dict[str, Any]:
    """Of the `preprocess_cfg` in an `open_clip_config.json`, with OpenCLIP's defaults."""
    mode = preprocess.get("resize_mode") or "shortest"
    square = isinstance(image_size, int)
    if mode not in ("shortest", "squash") or (mode == "shortest" and not square):
        raise _no_equivalent("OpenCLIP", f"resize_mode {mode!r} and size {image_size}")
    interpolation = preprocess.get("interpolation")
    return _settings(
        "OpenCLIP",
        interpolation if interpolation == "bilinear" else "bicubic",
        size=[image_size, image_size] if square and mode == "squash" else image_size,
        crop_size=image_size if mode == "shortest" else None,
        image_mean=preprocess.get("mean") or _OPENAI_MEAN,
        image_std=preprocess.get("std") or _OPENAI_STD,
    )
