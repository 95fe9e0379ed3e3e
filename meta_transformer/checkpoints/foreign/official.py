"""The weights that the authors of Meta-Transformer published (Zhang et al. 2023, arXiv 2307.10802).

`Meta-Transformer_base_patch16_encoder.pth` and `Meta-Transformer_large_patch14_encoder.pth` hold the state of a
`nn.Sequential` of timm blocks, 12 tensors for each, and nothing else: no class token, positions, patch projection nor
norm around the blocks.
"""

from pathlib import Path

from .base import QKV, ForeignCheckpoint, Source
from .files import read_tensors

__all__ = ["OFFICIAL", "read_official"]

OFFICIAL = Source(
    name="official",
    block="{}.",
    inside={
        "norm1.*": "layernorm_before.*",
        "attn.qkv.*": QKV,
        "attn.proj.*": "attention.o_proj.*",
        "norm2.*": "layernorm_after.*",
        "mlp.fc1.*": "mlp.fc1.*",
        "mlp.fc2.*": "mlp.fc2.*",
    },
    outside={},
    features={"use_pre_layernorm": False, "use_final_layernorm": False, "qkv_bias": True, "layer_scale": False},
)

_HEAD_WIDTH = 64  # in both published sizes; the file does not say


def read_official(path: Path) -> ForeignCheckpoint:
    """Describe a file of blocks.

    Raises:
        ValueError: The file is no state of a sequence of blocks.
    """
    tensors = read_tensors([path])
    query, inner = tensors.get("0.attn.qkv.weight"), tensors.get("0.mlp.fc1.weight")
    if query is None or inner is None:
        raise ValueError(
            f"{path} is no official Meta-Transformer file, which holds tensors '0.norm1.weight', '0.attn.qkv.weight' "
            "and so on. Weights of another library are known by their configuration: give the folder that holds both."
        )
    hidden_size = query.shape[-1]
    if hidden_size % _HEAD_WIDTH:
        raise ValueError(f"{path} holds blocks of width {hidden_size}, which is no multiple of {_HEAD_WIDTH}.")
    numbers = {name.partition(".")[0] for name in tensors}
    config = {
        "hidden_size": hidden_size,
        "num_hidden_layers": 1 + max(int(number) for number in numbers if number.isdigit()),
        "num_attention_heads": hidden_size // _HEAD_WIDTH,
        "intermediate_size": inner.shape[0],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "qkv_bias": True,
        "use_pre_layernorm": False,
        "use_final_layernorm": False,
        "layer_scale_init_value": None,
        "pooling": "mean",
    }
    return ForeignCheckpoint(OFFICIAL, str(path), config, lambda skip: tensors)
