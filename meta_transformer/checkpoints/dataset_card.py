"""The dataset card: the `README.md` beside a table of features, which the hub shows as the data set's page.

`meta-transformer embed` writes into the Parquet file what its features are of; all else is read off the table. The text
is in `dataset_card_template.md`.
"""

import json
import shlex
from collections.abc import Sequence
from os.path import abspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from huggingface_hub import DatasetCard, DatasetCardData

from ..extras import needs
from .model_card import describe_source, is_hub_name, marker, table_cell

if TYPE_CHECKING:
    from pyarrow import DataType
    from pyarrow.parquet import ParquetFile

    from ..modeling import MetaTransformerPreTrainedModel
    from ..processing import MetaTransformerProcessor

__all__ = ["DESCRIPTION_KEY", "describe_features", "generate_dataset_card", "read_description"]

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
    fingerprint: str,
    random_tokenizer: bool,
    options: Sequence[str] = (),
) -> dict[str, Any]:
    """Say what features are of, for `generate_dataset_card`. Of paths the last part is told: the rest is private.

    Args:
        model: Its features they are.
        processor: What it gets its tensors from.
        modality: What the samples are.
        data: Where they came from.
        name: Of the model; `None` if its weights are random.
        fingerprint: Of all weights of the model, and of the processor.
        random_tokenizer: Whether the tokenizer of the modality has random weights.
        options: Further ones of the command that made them.

    Returns:
        What JSON can hold.
    """
    part = processor.processors[modality]
    known = {key: value for key, value in part.to_dict().items() if isinstance(value, str | int | float)}
    known.pop("feature_extractor_type", None)
    told = ", ".join(f"{key}={_without_folders(str(value))}" for key, value in known.items())
    source = ["--model", _public(name)] if name else []
    further = [_public_option(option) for option in options]
    command = ["meta-transformer", "embed", _public(data), "--modality", modality, *source, *further]
    return {
        "modality": modality,
        "data": _public(data),
        "model": name and _public(name),
        "fingerprint": model.encoder_fingerprint(),
        "model_and_processor": fingerprint,
        "random_tokenizer": random_tokenizer,
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
        ValueError: As of `read_description`.
    """
    file, description = _read(table)
    schema, rows, data = file.schema_arrow, file.metadata.num_rows, description["data"]
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
        model_and_processor=description.get("model_and_processor"),  # which older tables lack
        random_tokenizer=description.get("random_tokenizer"),
        processor=f"`{table_cell(description['processor'])}`",
        command=description["command"],
    )


def read_description(table: Path) -> dict[str, Any]:
    """Read what a table of features is of.

    Args:
        table: The Parquet file.

    Returns:
        What `describe_features` made, and what was added to it.

    Raises:
        ValueError: There is no file, or no Parquet file, or one that does not say what its features are of.
    """
    return _read(table)[1]


def _read(table: Path) -> tuple["ParquetFile", dict[str, Any]]:
    with needs("pyarrow to read Parquet files", "cli"):
        from pyarrow import ArrowInvalid, parquet
    if not table.is_file():
        raise ValueError(f"there is no file {table}; make it by meta-transformer embed.")
    try:
        file = parquet.ParquetFile(table)
    except (ArrowInvalid, OSError) as error:  # OSError is what a footer that was written over gives
        raise ValueError(f"{table} is no Parquet file, or damaged ({error}).") from error
    described = (file.schema_arrow.metadata or {}).get(DESCRIPTION_KEY.encode())
    if described is None:
        raise ValueError(f"{table} does not say what its features are of; make it by meta-transformer embed.")
    return file, json.loads(described)


def _public(name: str) -> str:
    """The name of a repository, or the last part of a path; of the working folder, `.`, its name."""
    return name if is_hub_name(name) else Path(abspath(name)).name or name


def _public_option(option: str) -> str:
    """`name=value` without the folders of a path; what else stands in a command as it is."""
    name, sign, value = option.partition("=")
    return f"{name}={_without_folders(value)}" if sign else option


def _without_folders(value: str) -> str:
    """A setting; of a path the last part."""
    return value if is_hub_name(value) else Path(value).name or value


def _describe_column(kind: "DataType") -> tuple[str, str]:
    """Type of the values, and their shape in a row."""
    from pyarrow import types

    if types.is_fixed_size_list(kind):
        return np.dtype(kind.value_type.to_pandas_dtype()).name, f"({kind.list_size},)"
    return str(kind), "()"
