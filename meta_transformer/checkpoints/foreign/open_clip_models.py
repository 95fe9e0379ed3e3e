"""OpenCLIP's image towers (Ilharco et al. 2021), read from their configuration, without the library itself.

The final norm is applied to all tokens, as for transformers' CLIP.
"""

from typing import Any

from .base import QKV, ForeignCheckpoint, Source, one_or_two, whole_patches
from .files import Location, read_tensors
from .preprocessing import open_clip_preprocessing

__all__ = ["OPEN_CLIP", "read_open_clip"]

OPEN_CLIP = Source(
    name="open_clip",
    block="visual.transformer.resblocks.{}.",
    inside={
        "ln_1.*": "layernorm_before.*",
        "attn.in_proj_*": QKV,
        "attn.out_proj.*": "attention.o_proj.*",
        "ls_1.gamma": "layer_scale1.factor",
        "ln_2.*": "layernorm_after.*",
        "mlp.c_fc.*": "mlp.fc1.*",
        "mlp.c_proj.*": "mlp.fc2.*",
        "ls_2.gamma": "layer_scale2.factor",
    },
    outside={
        "visual.conv1.weight": "tokenizers.image.projection.weight",
        "visual.ln_pre.*": "encoder.pre_layernorm.*",
        "visual.ln_post.*": "encoder.layernorm.*",
    },
    features={"use_final_layernorm": True, "qkv_bias": True, "patch_bias": False},
    ignored=(
        r"visual\.proj",
        # The text tower: of its own in CustomTextCLIP, at the top level in CLIP.
        r"text\..*",
        r"transformer\..*",
        r"token_embedding\.weight",
        r"positional_embedding",
        r"ln_final\.(weight|bias)",
        r"text_projection(\.(weight|bias))?",
        r"attn_mask",
        r"logit_(scale|bias)",
    ),
    class_token="visual.class_embedding",
    positions="visual.positional_embedding",
    flat=True,
)

# Options of the vision tower that change what it computes, beyond what the trunk can express.
_REFUSED = (
    "act_kwargs",
    "attentional_pool",
    "qk_norm",
    "scale_attn",
    "scale_attn_inner",
    "scale_fc",
    "scale_heads",
    "scaled_cosine_attn",
    "timm_model_name",
)


def read_open_clip(location: Location, configuration: dict[str, Any]) -> ForeignCheckpoint:
    """Describe a folder or repository in OpenCLIP's layout.

    Args:
        location: Where the weights are.
        configuration: Contents of its `open_clip_config.json`.

    Raises:
        ValueError: Its image tower is nothing that our trunk can express.
    """
    model = configuration.get("model_cfg") or {}
    vision = model.get("vision_cfg") or {}
    _check(vision, location.name)
    width, layers = vision.get("width", 768), vision.get("layers", 12)
    patch_size, image_size = one_or_two(vision.get("patch_size", 16)), one_or_two(vision.get("image_size", 224))
    layer_scale = vision.get("ls_init_value")
    config = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // vision.get("head_width", 64),
        "intermediate_size": int(width * vision.get("mlp_ratio", 4.0)),
        "hidden_act": "quick_gelu" if model.get("quick_gelu", False) else "gelu",
        "layer_norm_eps": float((vision.get("norm_kwargs") or {}).get("eps", 1e-5)),
        "qkv_bias": True,
        "use_pre_layernorm": not vision.get("no_ln_pre", False),
        "use_final_layernorm": True,
        "layer_scale_init_value": None if layer_scale is None else float(layer_scale),
        "pooling": "mean" if vision.get("pool_type", "tok") == "avg" else "cls",
        "modalities": {
            "image": {
                "num_channels": 3,
                "patch_size": patch_size,
                "image_size": whole_patches(image_size, patch_size),
                "patch_bias": False,
            }
        },
    }
    # Later releases may name the files as transformers does; then there is no config.json of transformers beside them.
    files = ("open_clip_model.safetensors", "model.safetensors", "open_clip_pytorch_model.bin", "pytorch_model.bin")
    return ForeignCheckpoint(
        OPEN_CLIP,
        location.name,
        config,
        lambda skip: read_tensors(location.weights(*files), skip),
        lambda: open_clip_preprocessing(configuration.get("preprocess_cfg") or {}, image_size),
    )


def _check(vision: dict[str, Any], name: str) -> None:
    found = {option: vision[option] for option in _REFUSED if vision.get(option)}
    if not isinstance(vision.get("layers", 12), int):
        found["layers"] = vision["layers"]  # a ResNet
    if set(vision.get("norm_kwargs") or {}) - {"eps"}:
        found["norm_kwargs"] = vision["norm_kwargs"]
    if vision.get("final_ln_after_pool", False) and vision.get("pool_type", "tok") == "avg":
        found["final_ln_after_pool"] = True
    if found:
        raise ValueError(
            f"The image tower of {name} is no plain vision transformer, the only one that the trunk can express: its "
            f"vision_cfg has {found}. Choose another checkpoint; timm's towers can be loaded from timm's repositories."
        )
