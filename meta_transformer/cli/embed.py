"""`embed`: one vector for each sample, to Parquet."""

from pathlib import Path
from typing import Annotated

import typer

from .console import CONFIG, Batch, Seed

__all__ = ["embed"]


def embed(
    data: Annotated[str, typer.Argument(help="Folder of files, at any depth; or a table, or a data set.")],
    modality: Annotated[str | None, typer.Option("--modality", "-m", help="What the samples are.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Parquet file.")] = Path("features.parquet"),
    model: Annotated[str | None, typer.Option(help="Saved model or pretrained trunk; without, random weights.")] = None,
    column: Annotated[str | None, typer.Option(help="Column of the samples in a table.")] = None,
    batch_size: Batch = 32,
    part_size: Annotated[int, typer.Option(min=1, help="Samples between two saves.")] = 4096,
    seed: Seed = 0,
    call: Annotated[list[str] | None, typer.Option(help="Of the processor's call: name=value.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an earlier run has done.")] = False,
    config: CONFIG = None,
) -> None:
    """Embed any number of samples in bounded memory.

    The table has the columns path and features. The same command goes on where it was stopped or killed. What cannot
    be read is listed in <output>.errors.csv; the exit status is 1 then.
    """
    from .embedding import embed_files

    options = {"column": column, "batch_size": batch_size, "part_size": part_size, "seed": seed, "call": call or []}
    raise typer.Exit(embed_files(data, modality, output, model, fresh=fresh, **options))
