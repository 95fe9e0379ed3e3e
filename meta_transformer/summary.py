"""Which parameters of a model train."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

__all__ = ["ParameterGroup", "ParameterSummary"]


@dataclass(frozen=True)
class ParameterGroup:
    """The parameters of one part of a model."""

    name: str
    trainable: int
    frozen: int


@dataclass(frozen=True)
class ParameterSummary:
    """Counts of trainable and frozen parameters, by part; prints as a table."""

    groups: tuple[ParameterGroup, ...]

    @classmethod
    def of(cls, model: nn.Module, prefix: str = "") -> "ParameterSummary":
        """Count the parameters of `model`, with `prefix` taken off their names."""
        counts: dict[str, list[int]] = {}
        for name, parameter in model.named_parameters():
            part, _, rest = name.removeprefix(prefix).partition(".")
            if part == "tokenizers":
                part = f"{part}.{rest.partition('.')[0]}"
            elif part == "encoder" and ".lora_" in rest:
                part = "encoder.lora"  # adapters, which are no weights of the trunk
            counts.setdefault(part, [0, 0])[not parameter.requires_grad] += parameter.numel()
        return cls(tuple(ParameterGroup(name, *count) for name, count in counts.items()))

    @property
    def trainable(self) -> int:
        return sum(group.trainable for group in self.groups)

    @property
    def frozen(self) -> int:
        return sum(group.frozen for group in self.groups)

    def __iter__(self) -> Iterator[ParameterGroup]:
        return iter(self.groups)

    def __str__(self) -> str:
        rows = [("part", "trainable", "frozen")]
        rows += [(group.name, f"{group.trainable:,}", f"{group.frozen:,}") for group in self.groups]
        rows.append(("total", f"{self.trainable:,}", f"{self.frozen:,}"))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join(f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows)
