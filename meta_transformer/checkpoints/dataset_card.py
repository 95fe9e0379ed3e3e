"""The dataset card: the `README.md` beside a table of features, which the hub shows as the data set's page.

`meta-transformer embed` writes into the Parquet file what its features are of; all else is read off the table. The text
is in `dataset_card_template.md`.
"""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from huggingface_hub import DatasetCard, DatasetCardData

from ..extras import needs
from .model_card import describe_source, is_hub_name, marker, table_cell

if TYPE_CHECKING:
    from pyarrow import DataType

    from ..modeling import MetaTransformerPreTrainedModel
    from ..processing import MetaTransformerProcessor

__all__ = ["DESCRIPTION_KEY", "describe_features", "generate_dataset_card"]

DESCRIPTION_KEY = "meta_transformer"  # in the metadata of the table
_TEMPLATE = Path(__file__).with_name("dataset_card_template.md")
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B")  # the hub's words


def describe_features(
    model: "MetaTransformerPreTrainedModel",
    processor: "MetaTransformerProcessor",
    modality: str,
    *,
    data: str,
    name: str | None,
    options: Sequence[str] = (),
) -> dict[str, Any]:
    """Say what features are of, for `generate_dataset_card`. Of paths the last part is told: the rest is private.

    Args:
        model: Its features they are.
        processor: What it gets its tensors from.
        modality: What the samples are.
        data: Where they came from.
        name: Of the model; `None` if its weights are random.
        options: Further ones of the command that made them.

    Returns:
        What JSON can hold.
    """
    part = processor.processors[modality]
    known = {key: value for key, value in part.to_dict().items() if isinstance(value, str | int | float)}
    known.pop("feature_extractor_type", None)
    told = ", ".join(f"{key}={_public(value) if isinstance(value, str) else value}" for key, value in known.items())
    source = ["--model", _public(name)] if name else []
    command = ["meta-transformer", "embed", _public(data), "--modality", modality, *source, *options]
    return {
        "modality": modality,
        "data": _public(data),
        "model": name and _public(name),
        "fingerprint": model.encoder_fingerprint(),
        "processor": f"{type(part).__name__}({told})",
        "command": shlex.join(command),
    }


def generate_dataset_card(table: Path, name: str) -> DatasetCard:
    """Make the card of a table of features.

    Args:
        table: The Parquet file, as `meta-transformer embed` writes it.
        name: Of the repository.

    Returns:
        The card; `str(card)` is the text of the file.

    Raises:
        ValueError: No Parquet file, or one that does not say what its features are of.
    """
    with needs("pyarrow to read Parquet files", "cli"):
        from pyarrow import ArrowInvalid, parquet
    try:
        file = parquet.ParquetFile(table)
    except ArrowInvalid as error:
        raise ValueError(f"{table} is no Parquet file, or damaged ({error}).") from error
    schema, rows = file.schema_arrow, file.metadata.num_rows
    described = (schema.metadata or {}).get(DESCRIPTION_KEY.encode())
    if described is None:
        raise ValueError(f"{table} does not say what its features are of; make it by meta-transformer embed.")
    description = json.loads(described)
    data = description["data"]
    metadata = DatasetCardData(
        tags=["meta-transformer", description["modality"]],
        task_categories=["feature-extraction"],
        size_categories=_SIZES[min(max(len(str(rows)) - 3, 0), len(_SIZES) - 1)],
        source_datasets=[data] if is_hub_name(data) else None,
    )
    return DatasetCard.from_template(
        metadata,
        template_path=str(_TEMPLATE),
        marker=marker("table"),
        name=name,
        quoted=json.dumps(name),
        file=json.dumps(table.name),
        modality=description["modality"],
        rows=f"{rows:,}",
        bytes=f"{table.stat().st_size:,}",
        columns=[(f"`{table_cell(field.name)}`", *_describe_column(field.type)) for field in schema],
        samples=table_cell(data),
        source=table_cell(describe_source(description["model"])),
        fingerprint=description["fingerprint"],
        processor=f"`{table_cell(description['processor'])}`",
        command=description["command"],
    )


def _public(name: str) -> str:
    """The name of a repository, or the last part of a path."""
    return name if is_hub_name(name) else Path(name).name


def _describe_column(kind: "DataType") -> tuple[str, str]:
    """Type of the values, and their shape in a row."""
    from pyarrow import types

    if types.is_fixed_size_list(kind):
        return np.dtype(kind.value_type.to_pandas_dtype()).name, f"({kind.list_size},)"
    return str(kind), "()"
