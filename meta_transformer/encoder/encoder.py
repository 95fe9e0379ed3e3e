"""The trunk: a stack of pre-norm blocks between two optional norms, which can be frozen."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask, packed_sequence_mask_function

from .attention import SelfAttention
from .bottleneck import Exchange
from .layer import DropPath, MetaTransformerLayer
from .packing import Packing
from .presets import trains
from .token_merging import TokenMerging

__all__ = ["MetaTransformerEncoder"]


class MetaTransformerEncoder(nn.Module):
    """Encode tokens of any origin; the one part that all modalities and tasks share.

    A frozen encoder takes no gradient and draws no dropout, also in training mode. Gradients still flow through it to
    the tokens, so that a tokenizer in front of it can learn.

    Args:
        config: A `MetaTransformerConfig`.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config
        self.frozen = False
        self._silent: set[int] = set()  # numbers of the blocks that draw no noise
        norm = (config.hidden_size, config.layer_norm_eps)
        # CLIP normalises the tokens before the first block ("ln_pre")
        self.pre_layernorm = nn.LayerNorm(*norm) if config.use_pre_layernorm else nn.Identity()
        rates = torch.linspace(0, config.drop_path_rate, config.num_hidden_layers, device="cpu").tolist()
        self.layers = nn.ModuleList(MetaTransformerLayer(config, rate) for rate in rates)
        self.layernorm = nn.LayerNorm(*norm) if config.use_final_layernorm else nn.Identity()

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None = None,
        *,
        blocks: Tensor | None = None,
        packing: Packing | None = None,
        exchange: Exchange | None = None,
        merging: TokenMerging | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Run the blocks.

        Args:
            hidden_states: Tokens, `(batch, tokens, hidden)`; packed, `(1, real tokens, hidden)`.
            mask: `(batch, tokens)`, true for real tokens; `None` when nothing is padded.
            blocks: `(tokens,)` numbers: tokens attend to those of the same number; `None` for one block.
            packing: How the tokens were packed; it stands for `mask` and `blocks`.
            exchange: What happens between two layers.
            merging: How tokens are merged inside layers; it stands for `mask`.
            kwargs: Passed on to the attention function.

        Returns:
            Encoded tokens in the shape in which they came. Columns of padding hold undefined values.
        """
        hidden_states = self.pre_layernorm(hidden_states)
        attention_mask = None
        if merging is not None:
            hidden_states = merging.begin(hidden_states)
        elif packing is None:
            own = None if blocks is None else packed_sequence_mask_function(blocks.expand(len(hidden_states), -1))
            attention_mask = create_bidirectional_mask(
                config=self.config, inputs_embeds=hidden_states, attention_mask=mask, and_mask_function=own
            )
        for number, layer in enumerate(self.layers):
            hidden_states = layer(hidden_states, attention_mask, packing, merging, **kwargs)
            if exchange is not None and number >= exchange.first_layer:
                hidden_states = exchange(hidden_states)
        hidden_states = self.layernorm(hidden_states)
        return hidden_states if merging is None else merging.restore(hidden_states)

    def train(self, mode: bool = True) -> "MetaTransformerEncoder":
        """Set the training mode of all parts, except that blocks of which nothing trains stay silent.

        The layers themselves do enter training mode, because activation checkpointing asks for it, and so does what
        PEFT has put inside them, whose dropout belongs to the adapter.
        """
        super().train(mode)
        self.training = mode and not self.frozen
        for number in self._silent:
            for module in self.layers[number].modules():
                if isinstance(module, SelfAttention | DropPath):
                    module.training = False
        return self

    def freeze(self, preset: str = "all") -> None:
        """Stop gradients for those of the trunk's own weights that a preset freezes, and the noise of frozen blocks.

        Args:
            preset: See `presets.py`.
        """
        own = self.trunk_parameters()
        trained = {name for name in own if trains(name, preset, len(self.layers))}
        for name, parameter in own.items():
            parameter.requires_grad_(name in trained)
        self.frozen = not trained
        noisy = {int(name.split(".")[1]) for name in trained if name.startswith("layers.")}
        self._silent = set(range(len(self.layers))) - noisy
        self.train(any(layer.training for layer in self.layers))

    def unfreeze(self) -> None:
        """Undo `freeze`."""
        self.freeze("none")

    def trunk_parameters(self) -> dict[str, nn.Parameter]:
        """The trunk's own weights by name, with or without PEFT adapters around them."""
        adapters = tuple(
            f"{path}.{name}."
            for path, module in self.named_modules()
            for kind in ("adapter_layer_names", "other_param_names")  # of PEFT's layers
            for name in getattr(module, kind, ())
        )
        return {
            name.replace(".base_layer.", ".").replace(".original_module.", "."): parameter
            for name, parameter in self.named_parameters()
            if not name.startswith(adapters) and ".modules_to_save." not in name
        }
