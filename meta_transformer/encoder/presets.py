"""Which of the trunk's own weights train, by name.

- `"all"`: none, all are frozen. `"lora"`: none either; adapters beside them do (Hu et al. 2021).
- `"none"`: all, none is frozen.
- `"last_<k>"`: those of the last k blocks and the norm behind them.
- `"layernorm"`: scale and shift of the norms (Lu et al. 2021, "Pretrained Transformers as Universal Computation
  Engines").
- `"bias"`: all biases, those of the norms among them (Ben Zaken et al. 2021, "BitFit").
"""

__all__ = ["check_preset", "trains"]


def check_preset(preset: str, num_layers: int) -> None:
    """Refuse a name that is no preset, or more blocks than there are, with `ValueError`."""
    if preset in ("all", "none", "layernorm", "bias", "lora"):
        return
    kind, _, count = preset.partition("_")
    if kind != "last" or not count.isdecimal():
        raise ValueError(
            f"freeze_encoder must be 'all', 'none', 'last_<k>' such as 'last_2', 'layernorm', 'bias' or 'lora', got "
            f"{preset!r}."
        )
    if not 1 <= int(count) <= num_layers:
        raise ValueError(
            f"freeze_encoder is {preset!r}, but the trunk has {num_layers} blocks; name 1 to {num_layers} of them, or "
            "'all' to freeze all and 'none' to train all."
        )


def trains(name: str, preset: str, num_layers: int) -> bool:
    """Whether the weight of this name, as of `MetaTransformerEncoder.trunk_parameters`, trains under a preset."""
    check_preset(preset, num_layers)
    match preset:
        case "all" | "lora":
            return False
        case "none":
            return True
        case "layernorm":
            return "layernorm" in name
        case "bias":
            return name.endswith(".bias")
    part, _, rest = name.partition(".")
    first = num_layers - int(preset.removeprefix("last_"))
    return part == "layernorm" or (part == "layers" and int(rest.partition(".")[0]) >= first)
