"""The page of `demo`: inputs, and what `Looker` finds."""

from pathlib import Path
from typing import Any

from ..extras import needs
from .console import say
from .looking import Looker
from .predicting import PROBABILITY

__all__ = ["make_page", "serve"]

_PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp")
_TYPED = ("text", "graph")  # of these, a sample may be typed


def make_page(lookers: list[Looker]) -> Any:
    """The page as `gradio.Blocks`.

    Args:
        lookers: At least one, each of its own name.

    Raises:
        ValueError: Two of them have the same name.
    """
    with needs("gradio for the demo", "app"):
        import gradio
    by_name = {looker.name: looker for looker in lookers}
    if len(by_name) < len(lookers):
        raise ValueError(f"models must have different names, got {[looker.name for looker in lookers]}.")

    def look(name: str, file: str | None, typed: str) -> tuple[Any, ...]:
        sample = file or typed
        if not sample:
            raise gradio.Error("Drop a file first.")
        try:
            figure, records, neighbours = by_name[name].look(sample)
        except (ValueError, TypeError, OSError) as error:
            raise gradio.Error(str(error)) from error
        near = [[str(Path(*Path(each).parts[-2:])), round(similarity, 4)] for each, similarity in neighbours]
        pictures = [(each, Path(each).name) for each, _ in neighbours if each.lower().endswith(_PICTURES)]
        return figure, _table(records), near, gradio.Gallery(pictures, visible=bool(pictures))

    def choose(name: str) -> tuple[Any, Any]:
        modality = by_name[name].modality
        return gradio.File(label=f"File, {_words(modality)}"), gradio.Textbox(visible=modality in _TYPED)

    first = lookers[0]
    with gradio.Blocks(title="meta_transformer") as page:
        gradio.Markdown("# One frozen transformer, every modality")
        with gradio.Row():
            with gradio.Column(scale=1):
                names = [(f"{looker.name} ({_words(looker.modality)})", looker.name) for looker in lookers]
                model = gradio.Dropdown(names, value=first.name, label="Model", interactive=True)
                file = gradio.File(label=f"File, {_words(first.modality)}", type="filepath")
                typed = gradio.Textbox(label="Or type it", visible=first.modality in _TYPED)
                button = gradio.Button("Look", variant="primary")
            with gradio.Column(scale=2):
                prediction = gradio.Dataframe(label="Prediction", interactive=False)
                gradio.Markdown("Tokens in front of the trunk and behind it; those that are alike have like colours")
                tokens = gradio.Plot(show_label=False)
                near = gradio.Dataframe(headers=["neighbour", "cosine similarity"], label="Nearest", interactive=False)
                pictures = gradio.Gallery(label="Nearest pictures", visible=False, columns=8, height=160)
        model.change(choose, model, [file, typed])
        inputs, outputs = [model, file, typed], [tokens, prediction, near, pictures]
        button.click(look, inputs, outputs, api_name="look")
        file.upload(look, inputs, outputs, api_visibility="private")
    return page


def serve(lookers: list[Looker], host: str, port: int) -> None:
    """Show the page until Ctrl-C.

    Args:
        lookers: As of `make_page`.
        host: Address; one that other machines reach shows them the page, and the files of the galleries.
        port: 0 takes a free one.
    """
    page = make_page(lookers)
    folders = [str(Path(name).parent) for looker in lookers for name in looker.names if Path(name).is_file()]
    _, address, _ = page.launch(
        server_name=host,
        server_port=port or None,
        prevent_thread_lock=True,
        quiet=True,
        allowed_paths=sorted(set(folders)),
        enable_monitoring=False,
    )
    say(f"Open {address} in a browser; Ctrl-C ends it.")
    try:
        page.block_thread()
    finally:
        page.close()


def _words(modality: str) -> str:
    return modality.replace("_", " ")


def _table(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Records for `gradio.Dataframe`: classes one below the other, the most likely first."""
    if "probability" in records[0]:
        known = {name: value for name, value in records[0].items() if name.startswith(PROBABILITY)}
        ranked = sorted(known.items(), key=lambda each: -each[1])
        return {
            "headers": ["class", "probability"],
            "data": [[name.removeprefix(PROBABILITY), round(value, 4)] for name, value in ranked],
        }
    columns = list(records[0])
    shown = [[record[each] for each in columns] for record in records]
    return {
        "headers": columns,
        "data": [[round(each, 4) if isinstance(each, float) else str(each) for each in row] for row in shown],
    }
