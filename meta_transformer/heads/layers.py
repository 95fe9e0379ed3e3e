"""Which layers of the trunk a head reads, an option that heads share.

The last layer of a frozen trunk is tuned to what it was pretrained on. What is far from that is often told apart better
by earlier ones, or by a learned mixture of all.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization as init

__all__ = ["LayerMixture", "layer_numbers"]


def layer_numbers(layers: str | list[int], num_hidden_layers: int) -> list[int]:
    """Numbers of hidden states from an option: 0 is what enters the first block, `n` what leaves the `n`-th.

    Args:
        layers: `"last"`, `"all"`, or numbers, of which negative ones count from the end.
        num_hidden_layers: Blocks of the trunk.

    Raises:
        ValueError: A number out of range.
    """
    if isinstance(layers, str):
        return [num_hidden_layers] if layers == "last" else list(range(num_hidden_layers + 1))
    numbers = [layer + num_hidden_layers + 1 if layer < 0 else layer for layer in layers]
    for layer, number in zip(layers, numbers, strict=True):
        if not 0 <= number <= num_hidden_layers:
            raise ValueError(
                f"layers names layer {layer}, but the trunk has {num_hidden_layers}: 0 is what enters the first, "
                f"{num_hidden_layers} or -1 what leaves the last."
            )
    return numbers


class LayerMixture(nn.Module):
    """A weighted sum of hidden states, each normalised; the weights are a softmax and learned.

    The scalar mixture of ELMo (Peters et al. 2018, equation 1, with the layer normalisation of its section 3.2),
    without its overall factor, which the norm of every head would take away. It starts as the mean.

    Args:
        layers: As of `layer_numbers`.
        num_hidden_layers: Blocks of the trunk.
        eps: Of the normalisation.
    """

    def __init__(self, layers: str | list[int], num_hidden_layers: int, eps: float) -> None:
        super().__init__()
        self.numbers = layer_numbers(layers, num_hidden_layers)
        self.eps = eps
        self.weights = nn.Parameter(torch.zeros(len(self.numbers))) if len(self.numbers) > 1 else None

    def init_parameters(self, std: float) -> None:
        if self.weights is not None:
            init.zeros_(self.weights)

    def forward(self, hidden_states: tuple[Tensor, ...]) -> Tensor:
        """From the hidden states of all layers to `(batch, tokens, hidden)`."""
        return self.mix(self.normalise(hidden_states))

    def normalise(self, hidden_states: tuple[Tensor, ...]) -> list[Tensor]:
        """The layers that are mixed, from the hidden states of all."""
        chosen = [hidden_states[number] for number in self.numbers]
        return [functional.layer_norm(state, state.shape[-1:], eps=self.eps) for state in chosen]

    def mix(self, normalised: list[Tensor]) -> Tensor:
        """Their weighted sum."""
        if self.weights is None:
            return normalised[0]
        shares = self.weights.softmax(dim=0).to(normalised[0].dtype)
        return torch.stack([share * state for share, state in zip(shares, normalised, strict=True)]).sum(dim=0)
