"""What all commands share: where they print, options that several have, and settings from a file."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

__all__ = ["CONFIG", "Batch", "Label", "Seed", "console", "error_console", "pairs", "print_rows", "progress", "say"]

console = Console()
error_console = Console(stderr=True)


def say(text: str) -> None:
    """One line, whatever its length."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def progress() -> Progress:
    """A bar with what is done, what is left and how long that takes; it vanishes when all is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, transient=True)


def print_rows(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """A table; numbers with four digits."""
    table = Table(title=title, box=SIMPLE, title_justify="left")
    for column in columns:
        table.add_column(str(column), overflow="fold")
    for row in rows:
        table.add_row(*(f"{each:.4f}" if isinstance(each, float) else str(each) for each in row))
    console.print(table, markup=False)


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the settings of a YAML file the defaults of a command; flags win."""
    if path is None:
        return None
    import yaml

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise typer.BadParameter(f"cannot read {path}: {error}") from error
    if not isinstance(settings, dict):
        raise typer.BadParameter(f"{path} must hold settings by name, such as 'epochs: 10'.")
    settings = {str(name).replace("-", "_"): value for name, value in settings.items()}
    known = {each.name for each in context.command.params} - {"config", "help"}
    if unknown := sorted(set(settings) - known):
        raise typer.BadParameter(f"{path} has unknown settings {unknown}; {context.info_name} has {sorted(known)}.")
    for name, value in settings.items():
        if isinstance(value, dict):  # options by name, as the flags have them
            settings[name] = [f"{key}={json.dumps(each)}" for key, each in value.items()]
    context.default_map = settings
    return path


def pairs(options: Iterable[str], flag: str) -> dict[str, Any]:
    """`["patch_size=8", "size=[64, 64]"]` as a dict; values are YAML.

    Raises:
        ValueError: One without `=`.
    """
    import yaml

    found = {}
    for option in options:
        name, sign, value = option.partition("=")
        if not sign:
            raise ValueError(f"{flag} takes name=value, such as {flag} dropout=0.1, got {option!r}.")
        found[name.strip()] = yaml.safe_load(value)
    return found


CONFIG = Annotated[
    Path | None,
    typer.Option(help="YAML file with these options by name; flags win.", is_eager=True, callback=_read_config),
]
Batch = Annotated[int, typer.Option(min=1, help="Samples that are processed together.")]
Seed = Annotated[int, typer.Option(help="Of new weights and of all that is drawn.")]
Label = Annotated[str | None, typer.Option(help="Column of the label; of regression several, with commas.")]
