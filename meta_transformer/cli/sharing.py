"""The work of `info`, `convert`, `push` and `pack`."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import MetaTransformerModel, MetaTransformerProcessor, __version__
from ..checkpoints.dataset_card import generate_dataset_card
from ..checkpoints.hub import Repository
from ..checkpoints.model_card import CARD_NAME, merge_cards
from ..checkpoints.task_pack_files import read_pack
from ..registry import HEADS, MODALITIES
from .console import print_rows, say
from .models import is_pack, load_model, load_task
from .runs import RESULTS_FILE, parameter_rows, quiet

__all__ = ["convert_weights", "describe", "describe_package", "make_pack", "push_model", "push_table"]


def describe_package() -> None:
    """Print modalities, heads, and the extras with whether they are installed."""
    from packaging.requirements import Requirement

    say(f"meta_transformer {__version__}")
    print_rows(
        "Modalities", ("modality", "tensors"), [(each.name, ", ".join(each.model_input_names)) for each in MODALITIES]
    )
    print_rows("Heads", ("head", "module"), [(each.name, each.head_class.__module__) for each in HEADS])
    requirements = [Requirement(line) for line in metadata.requires("meta_transformer") or ()]
    rows = []
    for extra in metadata.metadata("meta_transformer").get_all("Provides-Extra") or ():
        own = [each for each in requirements if each.marker and each.marker.evaluate({"extra": extra})]
        absent = [each.name for each in own if each.name != "meta_transformer" and not _installed(each.name)]
        rows.append((extra, "yes" if not absent else f"lacks {', '.join(absent)}"))
    print_rows("Extras", ("extra", "installed"), rows)


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def describe(name: str) -> None:
    """Print what a saved model or task pack is.

    Args:
        name: Folder or repository.

    Raises:
        ValueError: There is neither.
    """
    quiet()
    if is_pack(name):
        _describe_pack(name)
        return
    model = load_model(name)
    config = model.config
    labels = ", ".join(config.id2label.values()) if getattr(model, "head_name", "") == "classification" else "-"
    rows = [
        ("class", type(model).__name__),
        ("task", getattr(model, "head_name", "none: features alone")),
        ("modalities", ", ".join(config.modalities)),
        ("labels", labels),
        ("trunk", f"{config.hidden_size} wide, {config.num_hidden_layers} deep, {config.num_attention_heads} heads"),
        ("weights of the trunk", config.encoder_name_or_path or "random"),
    ]
    print_rows(name, ("", ""), rows)
    say(f"Fingerprint of the trunk: {model.encoder_fingerprint()}")  # in no table, which may fold it
    print_rows("Parameters", ("part", "trained", "frozen"), parameter_rows(model))
    _list_files(name)


def _describe_pack(name: str) -> None:
    description, tensors = read_pack(name, {})
    config, trunk = description["config"], description["trunk"]
    rows = [
        ("task pack of", description["architecture"]),
        ("modalities", ", ".join(config["modalities"])),
        ("labels", ", ".join((config["id2label"] or {}).values()) if "classification" in config["heads"] else "-"),
        ("parameters", f"{sum(each.numel() for each in tensors.values()):,}"),
        ("trunk", trunk["name"] or "random"),
    ]
    print_rows(name, ("", ""), rows)
    say(f"Fingerprint of the trunk: {trunk['fingerprint']}")
    _list_files(name)


def _list_files(name: str) -> None:
    folder = Path(name)
    if folder.is_dir():
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        print_rows("Files", ("file", "bytes"), [(path.name, f"{path.stat().st_size:,}") for path in files])


def convert_weights(source: str, output: Path) -> None:
    """Save the weights of another library as ours, with the preprocessing of images that belongs to them."""
    quiet()
    model: Any = MetaTransformerModel.from_pretrained(source)
    try:
        processor = MetaTransformerProcessor.from_pretrained(source)
    except (ValueError, OSError) as error:
        say(f"Without a processor: {error}")
        processor = None
    model.save_pretrained(output, processor=processor)
    say(f"Written to {output}; fingerprint of the trunk: {model.encoder_fingerprint()}")


def push_model(folder: str, repo_id: str, private: bool | None) -> None:
    """Upload a saved model with its processor, card and results."""
    quiet()
    commit = load_model(folder).push_to_hub(repo_id, processor=_processor(folder), **_results(folder), private=private)
    say(f"Uploaded: {commit.commit_url}")


def push_table(table: Path, repo_id: str, private: bool | None) -> None:
    """Upload features with their card; a card that a person wrote is kept."""
    generate_dataset_card(table, repo_id)  # or refuse, before a repository is made
    repository = Repository(repo_id, private=private, kind="dataset")
    card = merge_cards(repository.card(), generate_dataset_card(table, repository.name))
    contents = {} if card is None else {CARD_NAME: card.encode()}
    say(f"Uploaded: {repository.upload(table.parent, [table.name], contents=contents).commit_url}")


def _processor(name: str) -> MetaTransformerProcessor | None:
    known = not Path(name).is_dir() or (Path(name) / "processor_config.json").is_file()
    return MetaTransformerProcessor.from_pretrained(name) if known else None


def _results(name: str) -> dict[str, Any]:
    """For the card: metrics, and data sets of the hub."""
    path = Path(name) / RESULTS_FILE
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    metrics = {metric: round(value, 4) for metric, value in found["metrics"].items()}
    return {"metrics": metrics, "datasets": found.get("datasets")}


def make_pack(name: str, output: Path, repo_id: str | None, private: bool | None) -> None:
    """Save a task pack, upload it on request, and print what is in it."""
    model, processor, _ = load_task(name)
    options: dict[str, Any] = {"processor": processor, **_results(name)}
    model.save_task_pack(output, **options)
    _list_files(str(output))
    say(f"Written to {output}; it belongs to the trunk {model.encoder_fingerprint()}")
    if repo_id:
        commit = model.push_task_pack(repo_id, private=private, **options)
        say(f"Uploaded: {commit.commit_url}")
