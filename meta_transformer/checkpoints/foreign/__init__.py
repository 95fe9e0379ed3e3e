"""Weights of other libraries, in and out.

Each source has one table of names, in the file of its family; both directions read the same table.
"""

from os import PathLike, fspath
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .base import ForeignCheckpoint, Source, features
from .files import HUB_OPTIONS, Location
from .official import OFFICIAL, read_official
from .open_clip_models import OPEN_CLIP, read_open_clip
from .timm_models import TIMM, read_timm_folder, read_timm_model
from .transformers_models import CLIP, DINOV2, TRANSFORMERS, VIT, read_transformers

__all__ = ["SOURCES", "ForeignCheckpoint", "Source", "export_foreign", "read_foreign"]

SOURCES: dict[str, Source] = {source.name: source for source in (OFFICIAL, TIMM, VIT, CLIP, DINOV2, OPEN_CLIP)}

_LAYOUTS = (
    "a model saved by this package (config.json with model_type 'meta_transformer'); timm (config.json with an "
    f"'architecture'); transformers (config.json with model_type {', '.join(map(repr, TRANSFORMERS))}); OpenCLIP "
    "(open_clip_config.json); an official Meta-Transformer .pth file"
)


def read_foreign(name: str | PathLike | nn.Module, **options: Any) -> ForeignCheckpoint | None:
    """Recognise the layout of weights and describe them, without reading the weights.

    Args:
        name: A folder, a repository on the hub, an official `.pth` file, or a timm model in memory.
        options: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`, `subfolder`, `variant`,
            `proxies`; others are ignored.

    Returns:
        The description; `None` for a checkpoint of this package, which is not foreign.

    Raises:
        ValueError: The layout is unknown, or the model is nothing that our trunk can express.
        OSError: Neither a folder nor a repository that can be reached.
    """
    if isinstance(name, nn.Module):
        return read_timm_model(name)
    name = fspath(name)
    if Path(name).is_file():
        return read_official(Path(name))
    location = Location(name, {key: value for key, value in options.items() if key in HUB_OPTIONS})
    configuration = location.json("config.json") or {}
    model_type = configuration.get("model_type")
    if model_type == "meta_transformer" or (not configuration and location.file("adapter_config.json")):
        return None
    if "architecture" in configuration:
        return read_timm_folder(location)
    if model_type in TRANSFORMERS:
        return read_transformers(location, configuration)
    if open_clip := location.json("open_clip_config.json"):
        return read_open_clip(location, open_clip)
    if location.file("task_pack.json") is not None:
        raise ValueError(
            f"{name} is a task pack, which has no trunk; load it onto one: trunk.load_task_pack({name!r})."
        )
    found = f"its config.json has model_type {model_type!r}" if configuration else "it has no config.json"
    raise location.absence(
        "config.json", f"Cannot tell the layout of the weights in {name}: {found}. Known layouts are: {_LAYOUTS}."
    )


def export_foreign(model: Any, source: str) -> dict[str, Tensor]:
    """The weights of a model under the names of another library; the inverse of loading them from there.

    Trunk, class token and image tokenizer go along, as far as the source has them; heads and other modalities do not.
    Activation and `layer_norm_eps` are no weights: give the other library's configuration those of `model.config`.

    Args:
        model: A `MetaTransformerModel`, or a model with a head.
        source: One of `SOURCES`.

    Returns:
        Copies of the tensors: for transformers and OpenCLIP by the names of their files, without heads, poolers and
        text towers.

    Raises:
        ValueError: The source is unknown, or has no place for a part of the model, or has a part that the model lacks.
    """
    if source not in SOURCES:
        raise ValueError(f"Unknown source {source!r}. Known are: {', '.join(map(repr, SOURCES))}.")
    layout, config = SOURCES[source], model.config
    present = features(config)
    if layout.positions and "image" not in config.modalities:
        raise ValueError(
            f"The {source!r} layout holds an image model, but this one has modalities {list(config.modalities)} only."
        )
    wrong = {name: present[name] for name, value in layout.features.items() if present[name] != value}
    if wrong:
        needed = {name: layout.features[name] for name in wrong}
        raise ValueError(f"The {source!r} layout is for models with {needed}, but this one has {wrong}.")
    base = model.base_model
    tensors = {f"encoder.{name}": value.detach().clone() for name, value in base.encoder.trunk_parameters().items()}
    if layout.positions:
        image = {f"tokenizers.image.{name}": value for name, value in base.tokenizers["image"].state_dict().items()}
        # Added to every token of an image, as the positions are, which is where the other library can keep it.
        image["tokenizers.image.positions"] = image["tokenizers.image.positions"] + base.modality_embeddings["image"]
        tensors |= {name: value.detach().clone() for name, value in {**image, "cls_token": base.cls_token}.items()}
    return layout.to_theirs(tensors, config.num_hidden_layers)
