"""Task packs: what tasks add to one frozen trunk, saved without it and loaded onto it, several at once.

A loaded pack is a task model with tokenizers and head of its own, around the trunk's weights, which exist once in
memory; see `encoder/view.py`.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import CommitInfo
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_utils import local_torch_dtype
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import install_all_output_capturing_hooks

from ..configuration import MetaTransformerConfig
from ..encoder.view import view_of
from .adapters import add_adapters
from .atomic import atomic_folder
from .hub import Repository
from .model_card import CARD_NAME, check_metrics, generate_card
from .sharing import check_processor, write_card
from .task_pack_files import check_trunk, describe, model_class, own_tensors, read_pack, write_pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel as Model
    from transformers import ProcessorMixin
else:
    Model = object

__all__ = ["TaskPackMixin"]

# How the trunk computes and where it came from, which is the same for all of its task packs.
_OF_THE_TRUNK = (
    "attention_dropout",
    "drop_path_rate",
    "packing",
    "token_merging",
    "encoder_name_or_path",
    "name_or_path",
    "_commit_hash",
)


class TaskPackMixin(Model):
    """Saving, loading and running of task packs, of all models."""

    def save_task_pack(
        self,
        folder: str | os.PathLike,
        *,
        processor: "ProcessorMixin | None" = None,
        metrics: Mapping[str, Any] | None = None,
        license: str | None = None,
        tags: list[str] | str | None = None,
        datasets: list[str] | str | None = None,
    ) -> None:
        """Write what the task adds to the trunk, the processor if given, and a model card: all of them or none.

        Adapters inside the trunk belong to the task. A process that is killed meanwhile leaves what `save_pretrained`
        leaves, and a `README.md` that a person wrote is kept.

        Args:
            folder: A folder, made if absent.
            processor: The processor to save beside the pack.
            metrics: Results for the card, by name: numbers or text.
            license: The hub's word for the licence of the pack, such as `"apache-2.0"`.
            tags: Further tags for the card.
            datasets: Names on the hub of the data sets that the task was trained on, for the card.

        Raises:
            TypeError: A processor or metrics of a wrong type.
            ValueError: The trunk is not frozen, has adapters that are not active or merged, or `folder` is a file or
                holds a whole checkpoint.
        """
        card = {"processor": processor, "metrics": metrics, "license": license, "tags": tags, "datasets": datasets}
        description = self._describe_pack(card)
        _refuse_checkpoint(folder, (Path(folder) / "config.json").is_file())
        if self.should_save_on_this_rank(True):
            self._save_pack(Path(folder), card, description)

    def push_task_pack(
        self,
        repo_id: str,
        *,
        processor: "ProcessorMixin | None" = None,
        metrics: Mapping[str, Any] | None = None,
        license: str | None = None,
        tags: list[str] | str | None = None,
        datasets: list[str] | str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str | None = None,
        commit_description: str | None = None,
    ) -> CommitInfo:
        """Upload what `save_task_pack` writes, in one commit; arguments as of `push_to_hub`.

        Returns:
            The commit: `oid`, `commit_url`, `pr_url`.

        Raises:
            TypeError: As of `save_task_pack`.
            ValueError: As of `save_task_pack`, or the repository holds a whole checkpoint.
        """
        card = {"processor": processor, "metrics": metrics, "license": license, "tags": tags, "datasets": datasets}
        description = self._describe_pack(card)  # or refuse, before a repository is made
        repository = Repository(repo_id, private=private, token=token, revision=revision, create_pr=create_pr)
        present = repository.api.list_repo_files(repository.name, revision=revision)
        _refuse_checkpoint(repository.name, "config.json" in present)
        with TemporaryDirectory() as folder:
            files = self._save_pack(Path(folder), card, description, repository)
            return repository.upload(
                Path(folder), files, commit_message=commit_message, commit_description=commit_description
            )

    def _describe_pack(self, card: dict[str, Any]) -> dict[str, Any]:
        check_processor(card["processor"])
        check_metrics(card["metrics"])
        return describe(self)

    def _save_pack(
        self,
        folder: Path,
        card: dict[str, Any],
        description: dict[str, Any],
        repository: Repository | None = None,
    ) -> list[str]:
        """Write everything to the folder and say which files there are."""
        name = folder.resolve().name if repository is None else repository.name
        path = folder / CARD_NAME
        existing = path.read_text(encoding="utf-8") if path.is_file() else None
        with atomic_folder(folder) as staging:
            write_pack(staging, self, description)
            model: Any = self
            text = generate_card(model, name, trunk=description["trunk"], **card)
            write_card(staging / CARD_NAME, text, (existing, None if repository is None else repository.card()))
            if card["processor"] is not None:
                card["processor"].save_pretrained(staging)
            return [path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file()]

    def load_task_pack(
        self,
        folder_or_repo: str | os.PathLike,
        *,
        name: str | None = None,
        check_fingerprint: bool = True,
        **options: Any,
    ) -> Any:
        """Load a task onto this model's trunk, whose weights the two share from now on.

        Tokenizers and head are the task's own, in the trunk's type and on its device, and so are its adapters: neither
        this model nor other tasks know of them. The pack's model is in evaluation mode, its trunk frozen.

        Args:
            folder_or_repo: What `save_task_pack` or `push_task_pack` wrote.
            name: What it is called in `task_packs`; by default the last part of the folder or repository.
            check_fingerprint: Whether the trunk's weights must be those that the task was trained on; else a trunk of
                the same shape will do, such as the same one in another data type.
            options: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`, `proxies`, `subfolder`.

        Returns:
            The model of the task, which `task_packs[name]` is too.

        Raises:
            TypeError: An unknown option.
            ValueError: The name is taken, the pack is damaged or of another trunk, needs what is not registered, or the
                trunk is not frozen.
            OSError: Neither a folder nor a repository that can be reached.
        """
        source = str(folder_or_repo)
        name = name or Path(source).resolve().name
        if name in self.task_packs:
            raise ValueError(
                f"There is a task pack {name!r} already; give this one another name=, or call "
                f"unload_task_pack({name!r})."
            )
        description, tensors = read_pack(source, options)
        check_trunk(source, description, self, check_fingerprint=check_fingerprint)
        model = _build(description, self.base_model.encoder)
        _fill(source, model, tensors)
        model._apply_freezing()
        self.task_packs[name] = model.eval()
        return model

    @property
    def task_packs(self) -> dict[str, Any]:
        """The models of the task packs that were loaded onto this one, by name. They are no part of it."""
        return vars(self).setdefault("_task_packs", {})

    def unload_task_pack(self, name: str) -> None:
        """Forget a task pack; its own weights go where nothing else refers to its model.

        Raises:
            ValueError: There is none of that name.
        """
        self._known_packs([name])
        del self.task_packs[name]

    def run_task_packs(self, batches: Mapping[str, Mapping[str, Any]]) -> dict[str, ModelOutput]:
        """Run several task packs, their samples together in one pass of the trunk.

        A task whose trunk is not the bare one takes a pass of its own: with adapters, with modalities that go through
        the trunk apart, with a head that reads several layers, or with hidden states or attentions asked for.

        Args:
            batches: By name of the task pack, the arguments of its model: tensors, and labels for a loss.

        Returns:
            The output of each, as its model alone gives it.

        Raises:
            ValueError: There is no pack of a name, or no name.
        """
        from ..joint import run_jointly  # it imports the models

        if not batches:
            raise ValueError(f"Give a batch for at least one of the task packs {list(self.task_packs)}.")
        self._known_packs(batches)
        return run_jointly({name: self.task_packs[name] for name in batches}, batches)

    def _known_packs(self, names: Any) -> None:
        if unknown := [name for name in names if name not in self.task_packs]:
            raise ValueError(
                f"There is no task pack {unknown[0]!r}; loaded are {list(self.task_packs)}. Load it by load_task_pack."
            )


def _refuse_checkpoint(target: Any, present: bool) -> None:
    if present:
        raise ValueError(f"{target} holds a whole checkpoint; give the task pack a folder or repository of its own.")


def _build(description: Mapping[str, Any], trunk: Any) -> Any:
    """The model of a pack around a trunk, its own parts allocated but not filled."""
    weight = next(iter(trunk.trunk_parameters().values()))
    config = MetaTransformerConfig.from_dict(description["config"])
    for field in _OF_THE_TRUNK:
        setattr(config, field, getattr(trunk.config, field, None))
    config.freeze_encoder = True if config.lora is None else "lora"
    config._attn_implementation, config.dtype = trunk.config._attn_implementation, weight.dtype
    with local_torch_dtype(weight.dtype), torch.device("meta"), init.meta_device_safe_creation_ops():
        model = model_class(description["architecture"])(config)
    model.base_model.encoder = nn.Identity()  # out of reach of what follows
    model.to_empty(device=weight.device)
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True
    model.initialize_weights()  # of the rest, which is not saved: buffers
    model.base_model.encoder = view_of(trunk, config)
    model._add_configured_lora()
    add_adapters(model, description["adapters"])
    if getattr(model.base_model, "_output_capturing_hooks_installed", False):
        install_all_output_capturing_hooks(model.base_model)  # the first ones went with the encoder that was taken out
    return model


def _fill(source: str, model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Copy a pack's tensors to the parts that the model does not share."""
    own = own_tensors(model)
    problems = {
        "missing": sorted(own.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - own.keys()),
        "of another shape": sorted(
            name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape
        ),
    }
    if problems := {kind: names for kind, names in problems.items() if names}:
        raise ValueError(
            f"The tensors of {source} are not those of a {type(model).__name__}: {problems}. The pack was made by "
            "another version of the code that defines its model, tokenizers or head; use that, or save it again."
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
