"""Saving and sharing of models: safetensors, processor and model card together."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo
from torch import Tensor

from .atomic import atomic_folder
from .hub import Repository
from .model_card import CARD_NAME, check_metrics, generate_card, merge_cards

if TYPE_CHECKING:
    from huggingface_hub import ModelCard
    from transformers import PreTrainedModel as Model
    from transformers import ProcessorMixin
else:
    Model = object

__all__ = ["SharingMixin", "check_processor", "write_card"]

_FOR_WEIGHTS = ("variant", "save_peft_format", "save_original_format")
_FOR_REPOSITORY = ("private", "token", "revision", "create_pr")
_FOR_COMMIT = ("commit_message", "commit_description")
# How to write files, in the words of other libraries and of older versions. Here there is one way.
_WITHOUT_EFFECT = ("safe_serialization", "save_function")


class SharingMixin(Model):
    """`save_pretrained` and `push_to_hub` of all models."""

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "5GB",
        *,
        processor: "ProcessorMixin | None" = None,
        metrics: Mapping[str, Any] | None = None,
        license: str | None = None,
        tags: list[str] | str | None = None,
        datasets: list[str] | str | None = None,
        distributed_checkpoint: bool = False,
        **options: Any,
    ) -> None:
        """Write weights, configuration, model card and, if given, the processor: all of them or none.

        A process that is killed meanwhile leaves the earlier checkpoint, the new one, or a folder which
        `from_pretrained` refuses and `finish_save` completes; see `checkpoints/atomic.py`. A `README.md` that a person
        wrote is kept.

        Args:
            save_directory: A folder, made if absent.
            is_main_process: Whether this process writes. Where not, it takes part in gathering sharded weights.
            state_dict: The weights to save in place of the model's own.
            push_to_hub: Whether to upload the files afterwards.
            max_shard_size: Weights that take more are split into several files; bytes, or text such as `"500MB"`.
            processor: The processor to save beside the model.
            metrics: Results for the card, by name: numbers or text.
            license: The hub's word for the licence of the weights, such as `"apache-2.0"`.
            tags: Further tags for the card.
            datasets: Names on the hub of the data sets that the model was trained on, for the card.
            distributed_checkpoint: As of transformers: each process writes its own part, which is not atomic and makes
                no card.
            options: `variant`, `save_peft_format`, `save_original_format` as of transformers; and with `push_to_hub`,
                `repo_id` (by default the name of the folder) and the options of the method of that name.

        Raises:
            TypeError: An unknown option, or a processor or metrics of a wrong type.
            ValueError: `save_directory` is a file, or a format other than safetensors is asked for.
        """
        _check(processor, metrics, options)
        if distributed_checkpoint:
            rest: dict[str, Any] = {name: options[name] for name in options if name not in _WITHOUT_EFFECT}
            rest["distributed_checkpoint"] = True
            super().save_pretrained(save_directory, is_main_process, state_dict, push_to_hub, max_shard_size, **rest)
            return
        weights: dict[str, Any] = {
            "state_dict": state_dict,
            "max_shard_size": max_shard_size,
            **_pick(options, _FOR_WEIGHTS),
        }
        if self.should_save_on_this_rank(is_main_process):
            folder, repository = Path(save_directory), None
            if push_to_hub:
                repo_id = options.get("repo_id") or folder.resolve().name
                repository = Repository(repo_id, **_pick(options, _FOR_REPOSITORY))
            card = {
                "metrics": metrics,
                "license": license,
                "tags": tags,
                "datasets": datasets,
                "state_dict": state_dict,
            }
            files = self._save(folder, repository, processor, weights, card)
            if repository is not None:
                repository.upload(folder, files, supersede=self._weight_files(weights), **_pick(options, _FOR_COMMIT))
        else:
            super().save_pretrained(save_directory, is_main_process=False, **weights)
        # The others may read the folder now; the barrier of the parent's method comes before the files are in place.
        self.barrier_after_gathered_checkpoint_save(getattr(self.config, "distributed_config", None))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        processor: "ProcessorMixin | None" = None,
        metrics: Mapping[str, Any] | None = None,
        license: str | None = None,
        tags: list[str] | str | None = None,
        datasets: list[str] | str | None = None,
        max_shard_size: int | str = "5GB",
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str | None = None,
        commit_description: str | None = None,
    ) -> CommitInfo:
        """Upload weights, configuration, model card and, if given, the processor, in one commit.

        Weights of an earlier upload that the new ones supersede are deleted in the same commit. A card that a person
        wrote is kept.

        Args:
            repo_id: `"owner/name"`, or a name in the own namespace; made if absent.
            processor: The processor to upload beside the model.
            metrics: As of `save_pretrained`, and so are `license`, `tags`, `datasets` and `max_shard_size`.
            private: Whether a new repository is private; `None` for the account's default.
            token: Access token; by default the one of `hf auth login`.
            revision: Branch to commit to, made if absent; `None` for the main one.
            create_pr: Whether to open a pull request in place of a commit.
            commit_message: First line of the commit.
            commit_description: The rest of it.

        Returns:
            The commit: `oid`, `commit_url`, `pr_url`.

        Raises:
            TypeError: A processor or metrics of a wrong type.
        """
        _check(processor, metrics, {})
        repository = Repository(repo_id, private=private, token=token, revision=revision, create_pr=create_pr)
        card = {"metrics": metrics, "license": license, "tags": tags, "datasets": datasets}
        with TemporaryDirectory() as folder:
            weights = {"max_shard_size": max_shard_size}
            files = self._save(Path(folder), repository, processor, weights, card)
            return repository.upload(
                Path(folder),
                files,
                supersede=self._weight_files(weights),
                commit_message=commit_message,
                commit_description=commit_description,
            )

    def _save(
        self,
        folder: Path,
        repository: Repository | None,
        processor: "ProcessorMixin | None",
        weights: dict[str, Any],
        card: dict[str, Any],
    ) -> list[str]:
        """Write everything to the folder and say which files are for the repository, if there is one."""
        name = folder.resolve().name if repository is None else repository.name
        path = folder / CARD_NAME
        local_card = path.read_text(encoding="utf-8") if path.is_file() else None
        remote_card = None if repository is None else repository.card()
        with atomic_folder(folder, self._weight_files(weights)) as staging:
            if not self._is_adapter():  # and before the weights are saved, as that empties state_dict
                model: Any = self
                new_card = generate_card(model, name, processor=processor, **card)
                write_card(staging / CARD_NAME, new_card, (local_card, remote_card))
            super().save_pretrained(staging, **weights)
            if processor is not None:
                processor.save_pretrained(staging)
            files = [path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file()]
        if local_card is not None and remote_card is None and CARD_NAME not in files:
            files.append(CARD_NAME)  # a person's
        return files

    def _is_adapter(self) -> bool:
        """Whether an adapter of PEFT's was added, which is saved without the model."""
        return getattr(self, "_hf_peft_config_loaded", False)

    def _weight_files(self, weights: dict[str, Any]) -> list[str]:
        """Patterns of all files that weights may be in: one, or shards and their index.

        Of these, transformers removes old shards alone. It looks for the single file first: left beside new shards,
        that would be loaded in their place.
        """
        suffix = f".{weights['variant']}" if weights.get("variant") else ""
        stem = "adapter_model" if self._is_adapter() else "model"
        patterns = [f"{stem}{suffix}.safetensors", f"{stem}{suffix}-?????-of-?????.safetensors"]
        return patterns if self._is_adapter() else [*patterns, f"model.safetensors.index{suffix}.json"]


def write_card(path: Path, card: "ModelCard", existing: Sequence[str | None]) -> None:
    """Write the card unless one of those that exist, here and on the hub, is a person's."""
    text: str | None = str(card)
    for other in (other for other in existing if other is not None):
        text = merge_cards(other, card)
        if text is None:
            return
    path.write_text(text, encoding="utf-8")


def check_processor(processor: Any) -> None:
    """Refuse what is no processor with `TypeError`."""
    if processor is not None and not hasattr(processor, "save_pretrained"):
        raise TypeError(f"processor must be a MetaTransformerProcessor, got {processor!r}.")


def _check(processor: Any, metrics: Any, options: dict[str, Any]) -> None:
    """Refuse wrong arguments before anything is written."""
    check_processor(processor)
    check_metrics(metrics)
    known = ("repo_id", *_FOR_WEIGHTS, *_FOR_REPOSITORY, *_FOR_COMMIT, *_WITHOUT_EFFECT)
    if unknown := sorted(set(options) - set(known)):
        raise TypeError(f"save_pretrained has no option {unknown}. Those beside its arguments are {sorted(known)}.")
    if not options.get("safe_serialization", True):
        raise ValueError(
            "safe_serialization=False asks for a pickle; weights are saved as safetensors only. Leave it out."
        )


def _pick(options: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: options[name] for name in names if name in options}
