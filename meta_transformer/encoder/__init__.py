"""The shared trunk: pre-norm ViT blocks, frozen by default. Knows tokens, not modalities."""

from .encoder import MetaTransformerEncoder
from .fingerprint import fingerprint

__all__ = ["MetaTransformerEncoder", "fingerprint"]
