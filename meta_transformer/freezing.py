"""What of the trunk trains: one mechanism for all models, kept in the configuration."""

from typing import TYPE_CHECKING, Any

from torch import nn

from .encoder import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel as Model
else:
    Model = object

__all__ = ["FreezingMixin"]


class FreezingMixin(Model):
    """Freezing, fingerprint and parameters of the trunk of all models."""

    def freeze_encoder(self) -> None:
        """Freeze the trunk: no gradient, no dropout, in this object and whenever it is saved and loaded again."""
        self.config.freeze_encoder = True
        self._apply_freezing()

    def unfreeze_encoder(self) -> None:
        """Undo `freeze_encoder`; the trunk then trains with everything else."""
        self.config.freeze_encoder = False
        self._apply_freezing()

    def _apply_freezing(self) -> None:
        # Not in __init__ alone: from_pretrained replaces the parameters by fresh ones, which take gradients again.
        encoder = getattr(self.base_model, "encoder", None)
        if encoder is not None:
            encoder.freeze() if self.config.freeze_encoder else encoder.unfreeze()
        tokenizers: Any = getattr(self.base_model, "tokenizers", None) or {}
        for tokenizer in tokenizers.values():
            tokenizer.apply_freezing()

    def encoder_fingerprint(self) -> str:
        """Hash of all weights of the trunk: equal for equal weights, and unchanged by training while it is frozen."""
        return fingerprint(self.trunk_parameters())

    def trunk_parameters(self) -> dict[str, nn.Parameter]:
        """As `MetaTransformerEncoder.trunk_parameters`."""
        encoder: Any = self.base_model.encoder
        return encoder.trunk_parameters()

    def enable_input_require_grads(self) -> None:
        """Let gradients pass into the trunk where all in front of it is frozen, as PEFT asks for.

        Reentrant activation checkpointing gives a block no gradient unless its input takes one.
        """
        self.disable_input_require_grads()
        encoder: Any = self.base_model.encoder
        hook = encoder.pre_layernorm.register_forward_hook(lambda module, args, output: output.requires_grad_(True))
        self._require_grads_hooks = [hook]
