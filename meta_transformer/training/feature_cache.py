"""What is frozen is computed once: the features that a head reads, kept in files.

    rows  ->  processor, tokenizers, trunk  ->  features, in files  ->  `HeadModel`, step by step

The features of a sample are found by all that they depend on: weights and options of tokenizers and trunk, the
processor and its arguments, what the head reads, and the sample. A change to any of these misses the cache.
"""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from transformers.utils import logging

from ..encoder.fingerprint import fingerprint
from ..heads.base import TaskHead
from ..modeling import MetaTransformerForTask
from .collator import DataCollatorForMetaTransformer
from .content_hash import content_hash
from .feature_files import FeatureFile, FeatureWriter, index_features
from .features import SampleFeatures, flatten, gather, reduce

__all__ = ["CachedFeatures", "FeatureCache"]

logger = logging.get_logger(__name__)

# Of the configuration, what features do not depend on.
_NO_MATTER = ("heads", "id2label", "label2id", "problem_type", "freeze_encoder", "packing", "modality_dropout")
_NO_MATTER += ("architectures", "transformers_version", "_name_or_path", "encoder_name_or_path", "dtype")


class CachedFeatures(Dataset):
    """Features and labels of a data set, for `HeadModel`; made by `FeatureCache.features`.

    Attributes:
        misses: How many samples had to be encoded for it.
        bytes: What the files take that hold its features.
    """

    def __init__(
        self,
        places: list[tuple[Path, int]],
        others: list[dict[str, Any]],
        collator: DataCollatorForMetaTransformer,
        misses: int,
    ) -> None:
        self._places, self._others, self._collator = places, others, collator
        self._files: dict[Path, FeatureFile] = {}
        self.misses = misses
        self.bytes = sum(path.stat().st_size for path in {path for path, _ in places})

    def __str__(self) -> str:
        hits = len(self) - self.misses
        return f"{len(self):,} samples: {hits:,} from the cache, {self.misses:,} encoded; {self.bytes / 1e6:,.1f} MB"

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, row = self._places[index]
        if path not in self._files:
            self._files[path] = FeatureFile(path)
        return {"features": self._files[path].sample(row), **self._others[index]}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}  # each worker of a loader opens the files for itself

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch for `HeadModel`: `features` by part, as of `gather`, and labels; for `data_collator`."""
        parts: dict[str, list[SampleFeatures]] = {}
        for name in dict.fromkeys(name for sample in samples for name in sample["features"]):
            own = [sample["features"][name] for sample in samples]
            if any(len(each.places) for each in own):
                parts[name] = own
        features = {name: gather(own) for name, own in parts.items()}
        return {"features": features, **self._collator.collate_others(samples)}


class FeatureCache:
    """A folder of features. One process at a time may add to it.

    Args:
        folder: Made if absent.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)

    def features(
        self,
        model: MetaTransformerForTask,
        rows: Any,
        collator: DataCollatorForMetaTransformer,
        *,
        keys: Sequence[str] | None = None,
        dtype: torch.dtype | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        progress: bool = True,
    ) -> CachedFeatures:
        """Compute the features that are not there yet.

        For heads that pool by the class token or the mean they are two tokens for each sample, for others all tokens.
        Where this is interrupted, the next call goes on; at most a minute's work is lost.

        Args:
            model: Its tokenizers and trunk are taken as they are, in evaluation mode, whether they are frozen or not.
            rows: A data set with a length; samples as the collator takes them.
            collator: That of the training, with the processor.
            keys: A text for each sample that no other sample has, in place of a hash of its contents.
            dtype: Of the files, such as `torch.bfloat16` for half the size; by default the model's.
            batch_size: Samples that are encoded together.
            num_workers: Of the loader of samples.
            progress: Whether to show progress bars.

        Returns:
            Features and labels, as many as `rows`.

        Raises:
            TypeError: Data without a length; samples that cannot be told apart, so that `keys` are needed.
            ValueError: The head reads layouts, there is no sample, or not one key for each.
        """
        _check(model, rows, keys)
        folder = self.folder / self._key(model, collator, dtype)
        hashes, others = [], []
        for number in logging.tqdm(range(len(rows)), desc="Looking up", disable=not progress):
            raw, rest = _split(rows[number], collator)
            hashes.append(content_hash(raw if keys is None else str(keys[number])))
            others.append(rest)
        known = index_features(folder)
        missing = list({key: number for number, key in enumerate(hashes) if key not in known}.values())
        if missing:
            loader: Any = DataLoader(
                Subset(rows, missing), batch_size, collate_fn=_Inputs(collator), num_workers=num_workers
            )
            with FeatureWriter(folder) as writer:
                for batch in logging.tqdm(loader, desc="Encoding", disable=not progress):
                    for sample in _encode(model, batch, dtype):
                        writer.add(hashes[missing[writer.count]], sample)
            known = index_features(folder)
        found = CachedFeatures([known[key] for key in hashes], others, collator, len(missing))
        logger.info(str(found))
        return found

    @staticmethod
    def _key(model: MetaTransformerForTask, collator: DataCollatorForMetaTransformer, dtype: torch.dtype | None) -> str:
        """A hash of all but the sample that features depend on."""
        from .. import __version__

        config = {name: value for name, value in model.config.to_dict().items() if name not in _NO_MATTER}
        head: list[Any] = [model.head.config.layers, model.head.config.modalities, model.head.joins_modalities]
        adapters = [
            [name, layer.active_adapters, layer.disable_adapters, getattr(layer, "scaling", None)]
            for name, layer in model.model.named_modules()
            if hasattr(layer, "adapter_layer_names")  # of PEFT's layers
        ]
        processor = [collator.processor.to_dict(), collator.processor_kwargs]
        read = [*head, _pools(model.head), str(dtype)]
        return content_hash([__version__, config, read, adapters, processor, fingerprint(model.model.state_dict())])

    def sizes(self) -> dict[str, dict[str, int]]:
        """Bytes and samples of what is kept, by model and processor."""
        return {
            folder.name: {
                "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
                "samples": len(index_features(folder)),
            }
            for folder in sorted(self.folder.glob("*/"))
            if re.fullmatch(r"[0-9a-f]{32}", folder.name)  # nothing else that may lie there
        }

    def clear(self, keep: Sequence[str] = ()) -> None:
        """Delete the features of all models and processors but those of the names in `sizes` that are to be kept."""
        for name in set(self.sizes()) - set(keep):
            shutil.rmtree(self.folder / name)


class _Inputs:
    """A collator of what is encoded, without labels."""

    def __init__(self, collator: DataCollatorForMetaTransformer) -> None:
        self.collator = collator

    def __call__(self, samples: list[Any]) -> dict[str, Any]:
        return self.collator([_split(sample, self.collator)[0] for sample in samples])


def _split(row: Any, collator: DataCollatorForMetaTransformer) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a row holds of modalities, and the rest of it."""
    known = collator.processor.processors
    raw = {name: row[name] for name in row if name in known}
    return raw, {name: row[name] for name in row if name not in known}


@torch.no_grad()
def _encode(
    model: MetaTransformerForTask, batch: dict[str, Any], dtype: torch.dtype | None
) -> list[dict[str, SampleFeatures]]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        inputs = {name: each.to(model.device) if isinstance(each, Tensor) else each for name, each in batch.items()}
        with torch.autocast(model.device.type, enabled=False):
            encoded, _ = model.encode_parts(**inputs)
    finally:
        for module, mode in modes:
            module.training = mode
    parts = {}
    for name, sequence in encoded.items():
        if not model.head.joins_modalities:
            model.head.refuse_missing(sequence, sequence.modalities)
        layers = model.head.read_layers(sequence)
        layers = [reduce(layer) for layer in layers] if _pools(model.head) else layers
        parts[name] = [
            SampleFeatures(own.tokens.to("cpu", dtype), own.places.cpu()) for own in flatten(layers, model.config)
        ]
    return [dict(zip(parts, own, strict=True)) for own in zip(*parts.values(), strict=True)]


def _pools(head: TaskHead) -> bool:
    """Whether class token and mean are all that the head reads."""
    return head.pools and getattr(head.config, "pooling", None) in ("cls", "mean")


def _check(model: MetaTransformerForTask, rows: Any, keys: Sequence[str] | None) -> None:
    head = model.head
    if head.layouts or sum(isinstance(each, TaskHead) for each in head.modules()) > 1:
        raise ValueError(
            f"{type(head).__name__} reads what is not kept: where tokens lie in the sample, or what several tasks "
            "read. Train it with the trunk, or the heads of several tasks one by one."
        )
    if not all(isinstance(value, Tensor) for value in model.state_dict().values()):
        raise ValueError("the model is quantised, so that features depend on the batch; compute them before.")
    if not hasattr(rows, "__len__"):
        raise TypeError(f"features are kept for data with a length, got {type(rows).__name__}; make it a list.")
    if not len(rows):
        raise ValueError("there is no sample to compute features of.")
    if keys is not None and len(keys) != len(rows):
        raise ValueError(f"keys must be {len(rows)} texts, one for each sample, got {len(keys)}.")
    if keys is not None and len(set(map(str, keys))) != len(rows):
        raise ValueError("keys must differ from each other: the same key would stand for two samples.")
