"""timm's vision transformers: ViT (Dosovitskiy et al. 2021), CLIP's image towers, DINO, DINOv2, MAE and the like."""

from typing import Any

import torch
from torch import nn

from .base import QKV, ForeignCheckpoint, Source, one_or_two, whole_patches
from .files import Location, read_tensors
from .preprocessing import timm_preprocessing

__all__ = ["TIMM", "read_timm_folder", "read_timm_model"]

TIMM = Source(
    name="timm",
    block="blocks.{}.",
    inside={
        "norm1.*": "layernorm_before.*",
        "attn.qkv.*": QKV,
        "attn.proj.*": "attention.o_proj.*",
        "ls1.gamma": "layer_scale1.factor",
        "norm2.*": "layernorm_after.*",
        "mlp.fc1.*": "mlp.fc1.*",
        "mlp.fc2.*": "mlp.fc2.*",
        "ls2.gamma": "layer_scale2.factor",
    },
    outside={
        "patch_embed.proj.*": "tokenizers.image.projection.*",
        "norm_pre.*": "encoder.pre_layernorm.*",
        "norm.*": "encoder.layernorm.*",
    },
    features={},
    ignored=(r"head\.(weight|bias)", r"fc_norm\.(weight|bias)", r"attn_pool\..*"),
    class_token="cls_token",
    positions="pos_embed",
)

# Class of the activation to transformers' name of it
_ACTIVATIONS = {
    "GELU": "gelu",
    "GELUTanh": "gelu_pytorch_tanh",
    "QuickGELU": "quick_gelu",
    "ReLU": "relu",
    "SiLU": "silu",
}


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ImportError('Reading weights of timm needs timm: pip install "meta_transformer[image]"') from error
    return timm


def read_timm_folder(location: Location) -> ForeignCheckpoint:
    """Describe a folder or repository in timm's hub layout, whose `config.json` names an architecture.

    Raises:
        ValueError: timm knows no such architecture, or it is nothing that our trunk can express.
    """
    configuration = location.file("config.json")
    try:
        # timm itself builds the model that the configuration means, without memory for its weights.
        with torch.device("meta"):
            model = _timm().create_model(f"local-dir:{configuration.parent if configuration else location.name}")
    except RuntimeError as error:
        raise ValueError(f"timm cannot build the model of {location.name}: {error}") from error
    files = ("model.safetensors", "pytorch_model.bin")
    return ForeignCheckpoint(
        TIMM,
        location.name,
        _config(model, location.name),
        lambda skip: read_tensors(location.weights(*files), skip),
        lambda: timm_preprocessing(model),
        has_class_position=not model.no_embed_class,
    )


def read_timm_model(model: nn.Module) -> ForeignCheckpoint:
    """Describe a timm model in memory, whose weights are copied.

    Raises:
        ValueError: It is nothing that our trunk can express.
    """
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture", type(model).__name__)
    return ForeignCheckpoint(
        TIMM,
        name,
        _config(model, name),
        lambda skip: {key: value.detach().clone() for key, value in model.state_dict().items() if not skip(key)},
        lambda: timm_preprocessing(model),
        has_class_position=not model.no_embed_class,
    )


def _config(model: Any, name: str) -> dict[str, Any]:
    """Our configuration of a timm model, read from its modules."""
    if reasons := _obstacles(model):
        raise ValueError(
            f"{name} is no plain vision transformer, the only model of timm that the trunk can express: it has "
            f"{'; '.join(reasons)}. Choose another checkpoint."
        )
    block, patches = model.blocks[0], model.patch_embed
    return {
        "hidden_size": model.embed_dim,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "hidden_act": _activation(block.mlp.act),
        "layer_norm_eps": float(block.norm1.eps),
        "qkv_bias": block.attn.qkv.bias is not None,
        "use_pre_layernorm": not _absent(model.norm_pre),
        "use_final_layernorm": not _absent(model.norm),
        "layer_scale_init_value": None if _absent(block.ls1) else float(block.ls1.init_values),
        "pooling": "mean" if model.global_pool == "avg" else "cls",
        "modalities": {
            "image": {
                "num_channels": patches.proj.in_channels,
                "patch_size": one_or_two(patches.patch_size),
                "image_size": whole_patches(patches.img_size, patches.patch_size),
                "patch_bias": patches.proj.bias is not None,
            }
        },
    }


def _activation(module: nn.Module) -> str | None:
    """The name of an activation, `None` if it has none here."""
    if getattr(module, "approximate", None) == "tanh":
        return "gelu_pytorch_tanh"
    return _ACTIVATIONS.get(type(module).__name__)


def _obstacles(model: Any) -> list[str]:
    """What about a model our trunk cannot express; empty if it can."""
    from timm.layers import PatchEmbed
    from timm.models.vision_transformer import VisionTransformer

    if type(model) is not VisionTransformer:
        return [f"the class {type(model).__name__}, not VisionTransformer"]
    stem = model.patch_embed
    found = {
        "no class token": model.cls_token is None,
        "register tokens": model.num_reg_tokens > 0,
        "no learned positions": model.pos_embed is None,
        "another stem than one projection of patches": type(stem) is not PatchEmbed or not _absent(stem.norm),
    }
    inside = [reason for block in model.blocks for reason in _obstacles_inside(block, model.embed_dim)]
    return [reason for reason, present in found.items() if present] + list(dict.fromkeys(inside))


def _obstacles_inside(block: Any, width: int) -> list[str]:
    from timm.layers import Attention, Mlp
    from timm.models.vision_transformer import Block

    if type(block) is not Block:
        return [f"blocks of the class {type(block).__name__}, which may be parallel or post-norm"]
    attention, mlp = block.attn, block.mlp
    if type(attention) is not Attention or type(mlp) is not Mlp:
        return [f"{type(attention).__name__} and {type(mlp).__name__} in its blocks, not Attention and Mlp"]
    found = {
        "normalised queries and keys (qk_norm)": not _absent(attention.q_norm),
        "a norm inside attention or feed-forward part": not (_absent(attention.norm) and _absent(mlp.norm)),
        "gated attention": attention.gate is not None,
        "heads whose widths do not add up to the tokens'": attention.attn_dim != width,
        "projections without bias": any(layer.bias is None for layer in (attention.proj, mlp.fc1, mlp.fc2)),
        "another norm than LayerNorm": not isinstance(block.norm1, nn.LayerNorm),
        f"the activation {type(mlp.act).__name__}": _activation(mlp.act) is None,
    }
    return [reason for reason, present in found.items() if present]


def _absent(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity)
