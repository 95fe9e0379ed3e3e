"""`demo`: a page on which one drops a file and sees what a model makes of it."""

from typing import Annotated

import typer

from .console import CONFIG

__all__ = ["demo"]


def demo(
    models: Annotated[list[str], typer.Argument(help="Folders or names of trained models, of any modalities.")],
    gallery: Annotated[
        list[str] | None,
        typer.Option(help="Samples to compare with, for each model: as DATA of train. By default its data."),
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="Trunk of task packs.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Most samples of a gallery.")] = 500,
    host: Annotated[str, typer.Option(help="Address to serve at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 7860,
    config: CONFIG = None,
) -> None:
    """Drop a file: its tokens, the prediction, and its nearest neighbours.

    The page is served on this machine alone, unless --host says otherwise; no file leaves it.
    """
    from .looking import Looker
    from .page import serve

    galleries = gallery or [None] * len(models)
    if len(galleries) != len(models):
        raise ValueError(f"give a --gallery for each of the {len(models)} models, or none, got {len(galleries)}.")
    serve([Looker.load(*each, encoder, limit) for each in zip(models, galleries, strict=True)], host, port)
