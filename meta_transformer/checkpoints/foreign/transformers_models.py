"""transformers' vision transformers: ViT, the vision tower of CLIP, and DINOv2.

The names are those of the checkpoints on the hub. transformers itself has renamed some of its modules since; its newer
names are other spellings of the same. The final norm is applied to all tokens, also where the source applies it to the
class token alone: after CLIP, `last_hidden_state` here is `post_layernorm` of the one there.
"""

from typing import Any

from transformers import CONFIG_MAPPING

from .base import ForeignCheckpoint, Source, one_or_two, whole_patches
from .files import Location, read_tensors
from .preprocessing import transformers_preprocessing

__all__ = ["CLIP", "DINOV2", "TRANSFORMERS", "VIT", "read_transformers"]

_SEPARATE_ATTENTION = {
    "attention.attention.query.*": "attention.q_proj.*",
    "attention.attention.key.*": "attention.k_proj.*",
    "attention.attention.value.*": "attention.v_proj.*",
    "attention.output.dense.*": "attention.o_proj.*",
}
_RENAMED_ATTENTION = (
    (r"attention\.q_proj\.", "attention.attention.query."),
    (r"attention\.k_proj\.", "attention.attention.key."),
    (r"attention\.v_proj\.", "attention.attention.value."),
    (r"attention\.o_proj\.", "attention.output.dense."),
)

VIT = Source(
    name="vit",
    block="encoder.layer.{}.",
    inside={
        "layernorm_before.*": "layernorm_before.*",
        **_SEPARATE_ATTENTION,
        "layernorm_after.*": "layernorm_after.*",
        "intermediate.dense.*": "mlp.fc1.*",
        "output.dense.*": "mlp.fc2.*",
    },
    outside={
        "embeddings.patch_embeddings.projection.*": "tokenizers.image.projection.*",
        "layernorm.*": "encoder.layernorm.*",
    },
    features={"use_pre_layernorm": False, "use_final_layernorm": True, "layer_scale": False, "patch_bias": True},
    ignored=(
        r"pooler\.dense\.(weight|bias)",
        r"classifier\.(weight|bias)",
        r"decoder\.0\.(weight|bias)",
        r"embeddings\.mask_token",
    ),
    spellings=(
        (r"^vit\.", ""),
        (r"^layers\.", "encoder.layer."),
        *_RENAMED_ATTENTION,
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
    ),
    class_token="embeddings.cls_token",
    positions="embeddings.position_embeddings",
)

CLIP = Source(
    name="clip",
    block="vision_model.encoder.layers.{}.",
    inside={
        "layer_norm1.*": "layernorm_before.*",
        "self_attn.q_proj.*": "attention.q_proj.*",
        "self_attn.k_proj.*": "attention.k_proj.*",
        "self_attn.v_proj.*": "attention.v_proj.*",
        "self_attn.out_proj.*": "attention.o_proj.*",
        "layer_norm2.*": "layernorm_after.*",
        "mlp.fc1.*": "mlp.fc1.*",
        "mlp.fc2.*": "mlp.fc2.*",
    },
    outside={
        "vision_model.embeddings.patch_embedding.weight": "tokenizers.image.projection.weight",
        "vision_model.pre_layrnorm.*": "encoder.pre_layernorm.*",
        "vision_model.post_layernorm.*": "encoder.layernorm.*",
    },
    features={
        "use_pre_layernorm": True,
        "use_final_layernorm": True,
        "qkv_bias": True,
        "layer_scale": False,
        "patch_bias": False,
    },
    ignored=(
        r"text_model\..*",
        r"text_projection\.weight",
        r"visual_projection\.weight",
        r"logit_scale",
        r"classifier\.(weight|bias)",
        r"vision_model\.embeddings\.position_ids",
    ),
    spellings=((r"^(embeddings|pre_layrnorm|encoder|post_layernorm)\.", r"vision_model.\1."),),
    class_token="vision_model.embeddings.class_embedding",
    positions="vision_model.embeddings.position_embedding.weight",
    flat=True,
)

DINOV2 = Source(
    name="dinov2",
    block="encoder.layer.{}.",
    inside={
        "norm1.*": "layernorm_before.*",
        **_SEPARATE_ATTENTION,
        "layer_scale1.lambda1": "layer_scale1.factor",
        "norm2.*": "layernorm_after.*",
        "mlp.fc1.*": "mlp.fc1.*",
        "mlp.fc2.*": "mlp.fc2.*",
        "layer_scale2.lambda1": "layer_scale2.factor",
    },
    outside={
        "embeddings.patch_embeddings.projection.*": "tokenizers.image.projection.*",
        "layernorm.*": "encoder.layernorm.*",
    },
    features={"use_pre_layernorm": False, "use_final_layernorm": True, "layer_scale": True, "patch_bias": True},
    ignored=(r"embeddings\.mask_token", r"classifier\.(weight|bias)"),
    spellings=((r"^dinov2\.", ""), *_RENAMED_ATTENTION),
    class_token="embeddings.cls_token",
    positions="embeddings.position_embeddings",
)

# By `model_type`; "clip" is the model of images and text.
TRANSFORMERS = {"vit": VIT, "clip": CLIP, "clip_vision_model": CLIP, "dinov2": DINOV2}


def read_transformers(location: Location, configuration: dict[str, Any]) -> ForeignCheckpoint:
    """Describe a folder or repository in transformers' layout.

    Args:
        location: Where the weights are.
        configuration: Contents of its `config.json`, with a `model_type` of `TRANSFORMERS`.

    Raises:
        ValueError: The configuration asks for something that our trunk cannot express.
    """
    source = TRANSFORMERS[configuration["model_type"]]
    theirs: Any = CONFIG_MAPPING[configuration["model_type"]].from_dict(dict(configuration))
    theirs = getattr(theirs, "vision_config", theirs)
    if getattr(theirs, "use_swiglu_ffn", False):
        raise ValueError(
            f"{location.name} has use_swiglu_ffn, SwiGLU feed-forward parts, which the trunk cannot express. Choose "
            "another checkpoint, such as a small, base or large DINOv2."
        )
    config = {
        "hidden_size": theirs.hidden_size,
        "num_hidden_layers": theirs.num_hidden_layers,
        "num_attention_heads": theirs.num_attention_heads,
        "intermediate_size": getattr(theirs, "intermediate_size", None) or int(theirs.hidden_size * theirs.mlp_ratio),
        "hidden_act": theirs.hidden_act,
        "layer_norm_eps": float(theirs.layer_norm_eps),
        "qkv_bias": getattr(theirs, "qkv_bias", True),
        "use_pre_layernorm": source.features["use_pre_layernorm"],
        "use_final_layernorm": source.features["use_final_layernorm"],
        "layer_scale_init_value": float(theirs.layerscale_value) if source.features["layer_scale"] else None,
        "pooling": "cls",
        "modalities": {
            "image": {
                "num_channels": theirs.num_channels,
                "patch_size": one_or_two(theirs.patch_size),
                "image_size": whole_patches(theirs.image_size, theirs.patch_size),
                "patch_bias": source.features["patch_bias"],
            }
        },
    }
    files = ("model.safetensors", "pytorch_model.bin")
    return ForeignCheckpoint(
        source,
        location.name,
        config,
        lambda skip: read_tensors(location.weights(*files), skip),
        lambda: transformers_preprocessing(location),
    )
