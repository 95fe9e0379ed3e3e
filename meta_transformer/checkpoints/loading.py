"""Loading of models: our own checkpoints and foreign ones."""

import copy
from collections.abc import Mapping
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.utils.hub import extract_commit_hash

from ..configuration import MetaTransformerConfig
from ..registry import MODALITIES
from ..tokenizers.image import ImageTokenizerConfig
from .atomic import refuse_unfinished
from .foreign import ForeignCheckpoint, read_foreign
from .foreign.files import HUB_OPTIONS, Location, check_safetensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel as Model
else:
    Model = object

__all__ = ["LoadingMixin"]

# Fields of the configuration that `from_pretrained` understands otherwise: how to load, not what.
_NO_FIELDS = frozenset({"architectures", "dtype", "transformers_version"})
_IMAGE = "tokenizers.image."
# Fields that say what the trunk's weights are.
_TRUNK = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "qkv_bias",
    "layer_scale_init_value",
    "use_pre_layernorm",
    "use_final_layernorm",
    "lora",
)


class LoadingMixin(Model):
    """`from_pretrained` of all models."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike | nn.Module | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Load a checkpoint of this package, or the weights of another library.

        Which of them it is is told from the files. Weights of another library become the trunk, the class token and
        the image tokenizer; what else the model has is new. See `docs/foreign_weights.md`.

        Args:
            pretrained_model_name_or_path: A folder, a repository on the hub, an official Meta-Transformer `.pth` file,
                or a timm vision transformer in memory, whose weights are copied.
            kwargs: As of `PreTrainedModel.from_pretrained`. For foreign weights also any field of
                `MetaTransformerConfig`, unless `config` is given: `modalities` (by default `["image"]`; its weights
                are adapted to another `num_channels`, `image_size` or `patch_size`), `heads`, `id2label` and so on.
                Options in `modalities` and `heads` are laid over those of the checkpoint.

        Returns:
            The model in evaluation mode, its trunk frozen unless `freeze_encoder` is false; with `output_loading_info`
            also the dict that says which weights were new.

        Raises:
            ValueError: The files are of an unknown layout, truncated, damaged or not in safetensors format; they hold
                something that the trunk cannot express; or the configuration asks for another trunk than theirs.
            OSError: Neither a folder nor a repository that can be reached.
        """
        name: Any = pretrained_model_name_or_path
        lora, options = None, {}
        if name is not None:
            if not isinstance(name, nn.Module):
                refuse_unfinished(name, kwargs.get("subfolder"))
            options = {key: value for key, value in kwargs.items() if key in HUB_OPTIONS}
            foreign = read_foreign(name, **options)
            if foreign is not None:
                kwargs = {key: value for key, value in kwargs.items() if key not in HUB_OPTIONS}
                return _note_revision(cls._from_foreign(foreign, *args, **kwargs), name, options)
            _check_native(str(name), options)
            kwargs["use_safetensors"] = True  # else a pickle would do
            if Location(str(name), options).file("config.json") is not None:  # else an adapter of PEFT's
                saved = MetaTransformerConfig.from_pretrained(name, **options)
                if saved.lora is None:
                    lora = _take_lora(kwargs)
                _check_trunk(
                    str(name), {field: getattr(saved, field) for field in _TRUNK}, kwargs.get("config") or kwargs
                )
                for part in ("modalities", "heads"):
                    if part in kwargs:
                        kwargs[part] = _lay_over(getattr(saved, part), kwargs[part])
        loaded: Any = super().from_pretrained(name, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if lora is None:
            model._apply_freezing()
        else:
            model.freeze_encoder("lora", **lora)
        return loaded if name is None else _note_revision(loaded, name, options)

    @classmethod
    def _from_foreign(
        cls,
        foreign: ForeignCheckpoint,
        *args: Any,
        config: MetaTransformerConfig | str | PathLike | None = None,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        if config is None:
            names = ({field.name for field in fields(MetaTransformerConfig)} | {"num_labels"}) - _NO_FIELDS
            config = _configure(foreign, {key: kwargs.pop(key) for key in list(kwargs) if key in names})
        elif not isinstance(config, MetaTransformerConfig):
            config = MetaTransformerConfig.from_pretrained(config)
        asked = {"config": config}
        lora = _take_lora(asked)
        config = copy.deepcopy(asked["config"])  # the user's own stays as it is
        _check_trunk(foreign.name, foreign.config, config)
        config.encoder_name_or_path = foreign.name
        tensors = _tensors_for(foreign, config)
        loaded: Any = super().from_pretrained(
            None, *args, config=config, state_dict=tensors, output_loading_info=True, **kwargs
        )
        model, info = loaded
        _check_loaded(foreign, model, set(tensors), info)
        model.name_or_path = model.config.name_or_path = foreign.name
        if lora is None:
            model._apply_freezing()
        else:
            model.freeze_encoder("lora", **lora)
        return (model, info) if output_loading_info else model


def _note_revision(loaded: Any, name: Any, options: dict[str, Any]) -> Any:
    """Keep the commit that the files are of, which task packs name; of a model that may come with a report."""
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    if not isinstance(name, nn.Module) and not Path(name).exists():
        path = Location(str(name), {**options, "local_files_only": True}).file("config.json")
        model.config._commit_hash = extract_commit_hash(str(path), None)
    return loaded


def _take_lora(asked: dict[str, Any]) -> dict[str, Any] | None:
    """Take the wish for adapters out of the arguments for weights that know of none: they are added to these."""
    config = asked.get("config")
    if isinstance(config, MetaTransformerConfig):
        if config.lora is None and config.freeze_encoder != "lora":
            return None
        lora = config.lora or {}
        asked["config"] = copy.deepcopy(config)
        asked["config"].freeze_encoder, asked["config"].lora = True, None
        return lora
    if asked.get("lora") is None and asked.get("freeze_encoder") != "lora":
        return None
    asked["freeze_encoder"] = True
    return asked.pop("lora", None) or {}


def _check_native(name: str, options: dict[str, Any]) -> None:
    """Refuse weights of our own that transformers would fail on later and less clearly, or read from a pickle."""
    location = Location(name, options)
    if location.file("config.json") is None:
        return  # an adapter of PEFT's, whose base model transformers looks up
    if any(Path(name, options.get("subfolder") or "").glob("shard-*-model-*.safetensors")):
        return  # saved by several processes at once, which transformers reads in its own way
    check_safetensors(location.weights("model.safetensors"))


def _configure(foreign: ForeignCheckpoint, given: dict[str, Any]) -> MetaTransformerConfig:
    """The source's configuration with the fields that the user gave laid over it."""
    saved = foreign.config.get("modalities", {})
    # What is made of images, such as video, starts from the sizes that the weights are for: then they fit unchanged.
    sizes = {name: value for name, value in saved.get("image", {}).items() if name in ("patch_size", "image_size")}
    kinds = {each.name: sizes for each in MODALITIES if issubclass(each.config_class, ImageTokenizerConfig)}
    modalities = _lay_over(kinds | saved, given.pop("modalities", ["image"]))
    merged: dict[str, Any] = {**foreign.config, **given, "modalities": modalities}
    return MetaTransformerConfig(**merged)


def _lay_over(saved: Mapping[str, Any], given: Any) -> dict[str, Any]:
    """Options by modality or head: those given, and for the rest those of the checkpoint."""
    given = given if isinstance(given, dict) else dict.fromkeys([given] if isinstance(given, str) else given or ())
    laid: dict[str, Any] = {}
    for name, options in given.items():
        below = saved.get(name, {})
        below = below if isinstance(below, dict) else below.to_dict()
        laid[name] = {**below, **(options or {})} if isinstance(options, dict | None) else options
    return laid


def _check_trunk(source: str, fields_of_source: Mapping[str, Any], config: Any) -> None:
    """Refuse a configuration, or fields of one, whose trunk is not that of the weights."""
    if not isinstance(config, Mapping | MetaTransformerConfig):
        return  # the path of a configuration, which transformers reads
    asked = config if isinstance(config, Mapping) else config.to_dict()

    def shape(name: str, value: Any) -> Any:
        return value is not None if name == "layer_scale_init_value" else value  # the value itself is a start only

    wrong = [
        f"{name} is {asked[name]!r}, but {value!r} in the source"
        for name, value in fields_of_source.items()
        if name in asked and name not in ("modalities", "pooling") and shape(name, asked[name]) != shape(name, value)
    ]
    if wrong:
        raise ValueError(
            f"The configuration does not fit the weights of {source}: {'; '.join(wrong)}. Leave these fields "
            "out, or give them the values of the source."
        )


def _tensors_for(foreign: ForeignCheckpoint, config: MetaTransformerConfig) -> dict[str, torch.Tensor]:
    """The source's tensors that this model takes."""
    tensors = foreign.state_dict
    if foreign.source.positions is None:
        return tensors
    image = {name.removeprefix(_IMAGE): value for name, value in tensors.items() if name.startswith(_IMAGE)}
    tensors = {name: value for name, value in tensors.items() if not name.startswith(_IMAGE)}
    source: Any = MetaTransformerConfig(**foreign.config).modalities
    target: Any = config.modalities
    for modality, options in target.items():
        try:
            own = MODALITIES[modality].tokenizer_class.inherit_image_weights(image, source["image"], options)
        except ValueError as error:
            raise ValueError(f"The options of modality {modality!r} do not fit the weights: {error}") from error
        tensors |= {f"tokenizers.{modality}.{name}": value for name, value in own.items()}
        if own:  # no source has an embedding of the modality, and zero leaves its features as they are
            tensors[f"modality_embeddings.{modality}"] = torch.zeros_like(tensors["cls_token"][0, 0])
    return tensors


def _check_loaded(foreign: ForeignCheckpoint, model: Any, given: set[str], info: dict[str, Any]) -> None:
    """Make sure that every tensor of the source arrived, and that nothing else is missing than what is new."""
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    new = set(model.state_dict()) - {f"{prefix}{name}" for name in given}
    problems = {
        "unexpected": sorted(info["unexpected_keys"]),
        "mismatched": sorted(map(str, info["mismatched_keys"])),
        "not loaded": sorted(set(info["missing_keys"]) - new),
        "not new": sorted(new - set(info["missing_keys"])),
    }
    if problems := {kind: names for kind, names in problems.items() if names}:
        raise ValueError(f"The weights of {foreign.name} do not fit {type(model).__name__}: {problems}.")
