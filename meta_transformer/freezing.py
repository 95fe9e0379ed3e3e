"""What of the trunk trains: one mechanism for all models, kept in the configuration."""

import json
from typing import TYPE_CHECKING, Any

from torch import nn

from .encoder import fingerprint
from .encoder.lora import add_lora, lora_layers, merge_lora
from .encoder.presets import check_preset

if TYPE_CHECKING:
    from transformers import PreTrainedModel as Model
else:
    Model = object

__all__ = ["FreezingMixin"]


class FreezingMixin(Model):
    """Freezing, adapters, fingerprint and parameters of the trunk of all models."""

    def freeze_encoder(self, preset: str = "all", **lora: Any) -> None:
        """Choose what of the trunk trains, in this object and whenever it is saved and loaded again.

        Blocks of which nothing trains draw no noise either. Tokenizers and head train with every preset.

        Args:
            preset: `"all"` freezes all of it, `"none"` nothing; `"last_<k>"` all but the last k blocks and the final
                norm; `"layernorm"` all but the norms, `"bias"` all but the biases; `"lora"` all, and adds low-rank
                adapters, which train. They are part of the model: `save_pretrained` writes them with the rest.
            lora: Options of `peft.LoraConfig`; by default it adapts `q_proj` and `v_proj`.

        Raises:
            ImportError: `"lora"` without peft.
            TypeError: Options without `"lora"`, some that `LoraConfig` does not know, or that JSON cannot store.
            ValueError: No preset, more blocks than there are, options that reach beyond the adapters, or others than
                those of the adapters that the model has.
        """
        check_preset(preset, self.config.num_hidden_layers)
        if lora and preset != "lora":
            raise TypeError(f"the options {sorted(lora)} are for the preset 'lora', got {preset!r}.")
        encoder: Any = getattr(self.base_model, "encoder", None)
        if preset == "lora" and not (self.config.lora is not None and lora in ({}, self.config.lora)):
            if self.config.lora is not None:
                raise ValueError(
                    f"the trunk has adapters with the options {self.config.lora}, got {lora}; leave the options out, "
                    "or take the adapters in by merge_lora() first."
                )
            _check_json(lora)
            add_lora(encoder, lora)
            self.config.lora = lora
        self.config.freeze_encoder = preset
        self._apply_freezing()

    def unfreeze_encoder(self) -> None:
        """As `freeze_encoder("none")`: the trunk trains with everything else."""
        self.freeze_encoder("none")

    def merge_lora(self) -> None:
        """Add what the adapters have learned to the trunk's own weights, and take them away; the trunk is then another.

        Raises:
            ValueError: The trunk has no adapters.
        """
        if self.config.lora is None:
            raise ValueError("the trunk has no adapters; freeze_encoder('lora') adds them.")
        encoder: Any = self.base_model.encoder
        merge_lora(encoder)
        self.config.lora = None
        if self.config.freeze_encoder == "lora":
            self.config.freeze_encoder = "all"
        self._apply_freezing()

    def _add_configured_lora(self) -> None:
        """Adapters that the configuration asks for and the trunk has not yet."""
        encoder: Any = getattr(self.base_model, "encoder", None)
        if self.config.freeze_encoder == "lora" and self.config.lora is None:
            self.config.lora = {}
        if encoder is not None and self.config.lora is not None and not lora_layers(encoder):
            add_lora(encoder, self.config.lora)

    def _apply_freezing(self) -> None:
        # Not in __init__ alone: from_pretrained replaces the parameters by fresh ones, which take gradients again.
        encoder = getattr(self.base_model, "encoder", None)
        if encoder is not None:
            encoder.freeze(self.config.freeze_preset)
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


def _check_json(options: dict[str, Any]) -> None:
    """Refuse now what would keep the configuration from being saved after training."""
    try:
        json.dumps(options)
    except TypeError as error:
        raise TypeError(
            f"options of adapters must be numbers, text, lists or dicts, got {options}: {error}."
        ) from error
