"""`MetaTransformerConfig`: the trunk's shape at the top level, one entry for each modality and each head."""

from dataclasses import fields, replace
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .encoder.presets import check_preset
from .heads.base import HeadConfig
from .registry import HEADS, MODALITIES
from .tokenizers.base import TokenizerConfig

__all__ = ["MetaTransformerConfig"]


def _build(config_class: type[TokenizerConfig | HeadConfig], value: Any, owner: str) -> Any:
    """An instance of `config_class` from a dictionary, from nothing, or as it is."""
    if isinstance(value, config_class):
        return replace(value)  # a copy, so that no two models share one
    if not isinstance(value, dict | None):
        raise TypeError(f"The configuration of {owner} must be a dict or {config_class.__name__}, got {value!r}.")
    known = [field.name for field in fields(config_class)]
    if unknown := sorted(set(value or {}) - set(known)):
        raise ValueError(f"{owner} has no option {unknown}. {config_class.__name__} has {known}.")
    return config_class(**(value or {}))


@strict
class MetaTransformerConfig(PreTrainedConfig):
    """Configuration of a trunk together with the tokenizers in front of it and the heads behind it.

    Attributes:
        hidden_size: Width of the tokens.
        num_hidden_layers: Number of blocks.
        num_attention_heads: Attention heads, a divisor of `hidden_size`.
        intermediate_size: Inner width of the feed-forward parts.
        hidden_act: Activation by transformers' name; `"gelu"` is the exact one, `"quick_gelu"` is OpenAI CLIP's.
        layer_norm_eps: 1e-5 in Meta-Transformer and CLIP, 1e-6 in timm's ViT, 1e-12 in transformers' ViT.
        qkv_bias: Whether the query, key and value projections have a bias.
        attention_dropout: Dropout of attention weights, in training with an unfrozen trunk.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0 at the first.
        layer_scale_init_value: Start of the learned branch factors as in DINOv2; `None` for none.
        use_pre_layernorm: Whether a norm comes before the first block, CLIP's `ln_pre`.
        use_final_layernorm: Whether a norm comes after the last block.
        initializer_range: Standard deviation of newly made weights.
        pooling: What `pooler_output` is: the class token, or the mean over the other tokens.
        fusion: How the modalities of a sample come together. `"early"`: as one sequence through the trunk. Late: each
            goes through it alone, and heads combine what they pool of each, by `"concat"`, concatenation and one
            linear layer; `"gated"`, a weighted sum; or `"attention"`, a learned query over them. `"bottleneck"`: each
            alone but for a few tokens that they share (Nagrani et al. 2021); heads take the mean of what they pool.
        num_bottleneck_tokens: How many those are.
        bottleneck_layer: The first block, counted from 0, behind which they are shared.
        absent_tokens: Whether a learned token stands for each modality that a sample lacks.
        modality_dropout: Probability with which a modality of a sample is left out in training, never all of them.
        packing: Whether the trunk computes the real tokens of a batch end to end, without padding; `"auto"` where that
            is faster. The results are the same.
        token_merging: How many tokens each block merges into others that are alike, in evaluation mode (Bolya et al.
            2023); 0 for none. Faster, and not quite the same; heads still get a token for every place.
        modalities: The tokenizers by modality: a list of names for the defaults, or a dict from name to the options
            of that tokenizer. Samples with several modalities are concatenated in the order of their names.
        heads: The options of the heads by name.
        freeze_encoder: Which weights of the trunk are frozen, now and after loading: all, with `True` or `"all"`; none,
            with `False` or `"none"`; or those of another preset of `model.freeze_encoder`.
        lora: Options of `peft.LoraConfig` for adapters inside the trunk; `None` for no adapters.
        encoder_name_or_path: Where the trunk's weights came from; `None` when they were made at random.
    """

    model_type = "meta_transformer"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["hidden_states", "attentions", "sizes", "losses"]
    base_model_fsdp_plan: ClassVar[dict[Any, str]] = {"encoder.layers.*": "free_full_weight"}

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    qkv_bias: bool = True
    attention_dropout: float | int = 0.0
    drop_path_rate: float | int = 0.0
    layer_scale_init_value: float | None = None
    use_pre_layernorm: bool = False
    use_final_layernorm: bool = True
    initializer_range: float = 0.02
    pooling: Literal["cls", "mean"] = "cls"
    fusion: Literal["early", "concat", "gated", "attention", "bottleneck"] = "early"
    num_bottleneck_tokens: int = 4
    bottleneck_layer: int = 0
    absent_tokens: bool = False
    modality_dropout: float | int = 0.0
    packing: Literal["auto", True, False] = "auto"
    token_merging: int = 0
    # Whatever form is assigned to these two, they are read as a dict of configurations; see `__setattr__`.
    modalities: Any = ("image",)
    heads: Any = None
    freeze_encoder: bool | str = True
    lora: dict[str, Any] | None = None
    encoder_name_or_path: str | None = None

    def __setattr__(self, key: str, value: Any) -> None:
        # On assignment, not in __post_init__: from_pretrained(..., modalities=[...]) assigns to a finished object.
        if key in ("modalities", "heads"):
            registry = MODALITIES if key == "modalities" else HEADS
            value = [value] if isinstance(value, str) else value or ()
            options = value if isinstance(value, dict) else dict.fromkeys(value)
            value = {
                name: _build(registry[name].config_class, option, f"{registry.kind} {name!r}")
                for name, option in sorted(options.items())  # JSON sorts them too
            }
        if key == "freeze_encoder" and value in ("all", "none"):
            value = value == "all"  # as it stands in checkpoints from before there were presets
        super().__setattr__(key, value)

    @property
    def freeze_preset(self) -> str:
        """`freeze_encoder` as the name of a preset."""
        preset = self.freeze_encoder
        return preset if isinstance(preset, str) else "all" if preset else "none"

    def validate_freezing(self) -> None:
        """Refuse what is no preset."""
        check_preset(self.freeze_preset, self.num_hidden_layers)

    def validate_trunk(self) -> None:
        """Refuse shapes that cannot be built."""
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got {self.hidden_size} and "
                f"{self.num_attention_heads}."
            )
        if self.num_bottleneck_tokens < 1:
            raise ValueError(f"num_bottleneck_tokens must be at least 1, got {self.num_bottleneck_tokens}.")
        if self.token_merging < 0:
            raise ValueError(f"token_merging must be at least 0, got {self.token_merging}.")
        if not 0 <= self.bottleneck_layer < self.num_hidden_layers:
            raise ValueError(
                f"bottleneck_layer must be one of the {self.num_hidden_layers} blocks, from 0, got "
                f"{self.bottleneck_layer}."
            )
        for name in ("attention_dropout", "drop_path_rate", "modality_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is a probability below 1, got {getattr(self, name)}.")

    def validate_modalities(self) -> None:
        """Refuse a model that could take no input."""
        if not self.modalities:
            raise ValueError(f"modalities is empty; name at least one of {MODALITIES.names()}.")

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON types, the tokenizers' and heads' own included."""
        output = super().to_dict()
        for part in ("modalities", "heads"):
            output[part] = {name: config.to_dict() for name, config in getattr(self, part).items()}
        return output

    @classmethod
    def _named(cls, shape: tuple[int, int, int], options: dict[str, Any]) -> "MetaTransformerConfig":
        width, depth, heads = shape
        trunk = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
        settings: dict[str, Any] = {**trunk, "intermediate_size": 4 * width, **options}
        return cls(**settings)

    @classmethod
    def tiny(cls, **options: Any) -> "MetaTransformerConfig":
        """192 wide, 12 deep, 3 heads; `options` are any other fields."""
        return cls._named((192, 12, 3), options)

    @classmethod
    def small(cls, **options: Any) -> "MetaTransformerConfig":
        """384 wide, 12 deep, 6 heads; `options` are any other fields."""
        return cls._named((384, 12, 6), options)

    @classmethod
    def base_patch16(cls, **options: Any) -> "MetaTransformerConfig":
        """768 wide, 12 deep, 12 heads, as Meta-Transformer-B16; `options` are any other fields."""
        return cls._named((768, 12, 12), options)

    @classmethod
    def large_patch14(cls, **options: Any) -> "MetaTransformerConfig":
        """1024 wide, 24 deep, 16 heads, as Meta-Transformer-L14, with images in patches of 14; `options` as above."""
        modalities = options.get("modalities", ["image"])
        modalities = modalities if isinstance(modalities, dict) else dict.fromkeys(modalities)
        if "image" in modalities and isinstance(modalities["image"], dict | None):
            modalities = {**modalities, "image": {"patch_size": 14, **(modalities["image"] or {})}}
        return cls._named((1024, 24, 16), {**options, "modalities": modalities})
