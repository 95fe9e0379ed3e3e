"""The application: its commands, and how errors are told."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .console import console, error_console
from .demo import demo
from .embed import embed
from .evaluate import evaluate, predict
from .share import convert, info, pack, push
from .train import train

__all__ = ["app"]


class _Commands(TyperGroup):
    """Errors of what a user gave are one sentence, not a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, TypeError, OSError, ImportError) as error:
            if ctx.params.get("traceback"):
                raise
            error_console.print("[red]Error:[/red]", end=" ")
            error_console.print(str(error), markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(1) from error


app = typer.Typer(cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")


@app.callback()
def options(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where in the code an error arose.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True)] = False,
) -> None:
    """One frozen transformer, every modality: train, evaluate, predict, embed, share."""
    if version:
        from .. import __version__

        console.print(__version__)
        raise typer.Exit


for _command in (train, evaluate, predict, embed, info, convert, push, pack, demo):
    app.command()(_command)
