"""`info`, `convert`, `push` and `pack`: what a model is, and how it gets to others."""

from pathlib import Path
from typing import Annotated

import typer

from .console import CONFIG

__all__ = ["convert", "info", "pack", "push"]


def info(
    model: Annotated[str | None, typer.Argument(help="Saved model or task pack; without, what there is.")] = None,
) -> None:
    """Show what a model takes, predicts and consists of; or the modalities, heads and extras that there are."""
    from .sharing import describe, describe_package

    describe_package() if model is None else describe(model)


def convert(
    source: Annotated[str, typer.Argument(help="Weights of timm, transformers or OpenCLIP, or an official .pth.")],
    output: Annotated[Path, typer.Argument(help="Folder.")],
) -> None:
    """Make a folder of this package from the weights of another library."""
    from .sharing import convert_weights

    convert_weights(source, output)


def push(
    folder: Annotated[str, typer.Argument(help="Folder of a saved model; or the table of features of embed.")],
    repo_id: Annotated[str, typer.Argument(help="owner/name on the hub, made if absent.")],
    private: Annotated[bool | None, typer.Option(help="Of a new repository.")] = None,
    config: CONFIG = None,
) -> None:
    """Upload a model with processor and card, in one commit; or a table of features as a data set with its card.

    The access token is that of `hf auth login`, or of HF_TOKEN; it is neither printed nor stored.
    """
    from .sharing import push_model, push_table

    push_table(Path(folder), repo_id, private) if Path(folder).is_file() else push_model(folder, repo_id, private)


def pack(
    model: Annotated[str, typer.Argument(help="Folder or name of a saved model.")],
    output: Annotated[Path, typer.Argument(help="Folder of the task pack.")],
    push: Annotated[str | None, typer.Option(help="owner/name on the hub to upload the pack to as well.")] = None,
    private: Annotated[bool | None, typer.Option(help="Of a new repository.")] = None,
    config: CONFIG = None,
) -> None:
    """Save what a task adds to its trunk, a few MB: tokenizer, head and processor."""
    from .sharing import make_pack

    make_pack(model, output, push, private)
