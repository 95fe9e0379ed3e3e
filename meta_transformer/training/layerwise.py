"""Learning rates that fall from the head down to the tokenizers.

What lies deep is general already and should move little; what lies on top is new and should move much (Clark et al.
2020, "ELECTRA"; Bao et al. 2022, "BEiT").
"""

from collections.abc import Collection
from typing import Any

from ..modeling import MetaTransformerForTask, MetaTransformerPreTrainedModel

__all__ = ["layerwise_learning_rates"]


def layerwise_learning_rates(
    model: MetaTransformerForTask,
    learning_rate: float,
    decay: float = 0.75,
    weight_decay: float = 0.0,
    *,
    new_modalities: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Groups of parameters for an optimiser, `torch.optim.AdamW(groups)`; frozen ones are in none.

    With `L` blocks, head and final norm learn at `learning_rate`, block `i` (from 0) at `decay ** (L - i)` of it, and
    what lies in front of the blocks, tokenizers above all, at `decay ** (L + 1)` of it.

    Args:
        model: That is to be trained.
        learning_rate: Of the head.
        decay: From a block to the one in front of it, above 0 and at most 1.
        weight_decay: Of weight matrices; biases, norms and learned tokens have none.
        new_modalities: Whose tokenizers start at random, and learn at `learning_rate`.

    Returns:
        `{"params", "lr", "weight_decay"}`, from the slowest group to the fastest.

    Raises:
        ValueError: Numbers out of range, a modality that the model has not, or nothing that trains.
    """
    if not 0 < decay <= 1 or not learning_rate > 0 or not weight_decay >= 0:
        raise ValueError(
            "learning_rate must be above 0, decay above 0 and at most 1, weight_decay at least 0, got "
            f"{learning_rate}, {decay} and {weight_decay}."
        )
    if unknown := sorted(set(new_modalities) - set(model.config.modalities)):
        raise ValueError(f"new_modalities names {unknown}, but the model has {list(model.config.modalities)}.")
    top = model.config.num_hidden_layers + 1
    groups: dict[tuple[int, float], list[Any]] = {}
    plain: Any = next((each for each in model.modules() if isinstance(each, MetaTransformerPreTrainedModel)), model)
    for name, parameter in plain.named_parameters():  # without the names of what is wrapped around it
        if parameter.requires_grad:
            own_decay = weight_decay if name.endswith("weight") and parameter.dim() > 1 else 0.0
            name = name.replace(".modules_to_save.default.", ".").removeprefix(f"{plain.base_model_prefix}.")
            below = top - _height(name, top, new_modalities)
            groups.setdefault((below, own_decay), []).append(parameter)
    if not groups:
        raise ValueError("no parameter of the model trains; unfreeze some of them.")
    return [
        {"params": parameters, "lr": learning_rate * decay**below, "weight_decay": own_decay}
        for (below, own_decay), parameters in sorted(groups.items(), key=lambda each: each[0], reverse=True)
    ]


def _height(name: str, top: int, new_modalities: Collection[str]) -> int:
    """0 in front of the blocks, `i + 1` for block `i`, `top` behind them."""
    match name.split("."):
        case ["encoder", "layers", number, *_]:
            return int(number) + 1
        case ["encoder", "layernorm", *_] | ["head", *_]:
            return top
        case ["tokenizers" | "modality_embeddings" | "absent_tokens", modality, *_] if modality in new_modalities:
            return top
    return 0
