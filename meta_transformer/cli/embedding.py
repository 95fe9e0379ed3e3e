"""The work of `embed`: parts of a table that are written whole, and put together when all are there.

`<output>.parts/` holds `settings.json`, which says what the features are of, and `part-<number>.parquet`. A run that
was killed left whole parts; what they hold is not computed again. Of a million samples, 8 bytes each stay in memory,
the hash of the name.
"""

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from transformers import set_seed

from .. import MetaTransformerConfig, MetaTransformerModel, MetaTransformerProcessor
from ..checkpoints.dataset_card import DESCRIPTION_KEY, describe_features, read_description
from ..extras import needs
from ..registry import MODALITIES
from ..training import DataCollatorForMetaTransformer
from ..training.sources import Collection, Rows, files_below, is_table, read_file
from .batches import device_of, read_batches, to_device
from .console import pairs, progress, say
from .models import only_modality, use_device
from .predicting import rows_of
from .runs import make_folder, quiet, write_json

__all__ = ["embed_files"]


def embed_files(
    data: str,
    modality: str | None,
    output: Path,
    name: str | None,
    *,
    column: str | None,
    batch_size: int,
    part_size: int,
    seed: int,
    call: list[str],
    fresh: bool,
) -> int:
    """Embed, or go on with it, or say that it is done.

    Args:
        data: Folder, table or data set.
        modality: What the samples are; by default that of the model.
        output: Parquet file.
        name: Of the model.
        column: Of the samples in a table.
        batch_size: Samples of a batch.
        part_size: Samples of a part.
        seed: Of weights that are random.
        call: Arguments of the processor's call, `name=value`.
        fresh: Whether to forget what is there.

    Returns:
        The exit status: 1 if some of the samples could not be read.

    Raises:
        ValueError: The output or the parts are of other features, or a model or modality is missing.
    """
    quiet()
    parts, errors = output.with_name(output.name + ".parts"), output.with_name(output.name + ".errors.csv")
    set_seed(seed)
    model, processor, modality, random = _load(name, modality)
    settings = {"data": data, "modality": modality, "model": name, "column": column, "call": call}
    settings["fingerprint"] = _fingerprint(model, processor)
    identity = _digest(json.dumps(settings, sort_keys=True))
    if fresh:
        output.unlink(missing_ok=True)
        shutil.rmtree(parts, ignore_errors=True)
    if output.exists():
        _check_finished(output, identity)
        shutil.rmtree(parts, ignore_errors=True)  # of a run that was killed as it cleared up
        say(f"{output} is finished; --fresh computes it anew.")
        return 0
    make_folder(output.parent)
    _open(parts, settings, output)
    done = _done(parts)
    if len(done):
        say(f"Going on: {len(done):,} samples are done.")
    collator = DataCollatorForMetaTransformer(processor, pairs(call, "--call"))
    samples, read = _samples(data, modality, column, done)

    def rows_of_part(part: list[tuple[str, Any]]) -> Rows:
        return Rows(modality, Collection([value for _, value in part], [name for name, _ in part], read=read))

    chunks = iter(lambda: list(islice(samples, part_size)), [])
    failed = _embed(map(rows_of_part, chunks), model, collator, parts, errors, batch_size)
    told = [*(["--column", column] if column else []), *(word for each in call for word in ("--call", each))]
    told += ["--seed", str(seed)] if random or seed else []
    facts = {"fingerprint": settings["fingerprint"], "random_tokenizer": random, "options": told}
    description = describe_features(model, processor, modality, data=data, name=name, **facts)
    count = _assemble(parts, output, {**description, "settings": identity})
    say(f"Written: {count:,} vectors to {output}")
    if failed:
        say(f"{failed:,} could not be read, see {errors}")
    return 1 if failed else 0


def _load(name: str | None, modality: str | None) -> tuple[Any, MetaTransformerProcessor, str, bool]:
    """The model and the processor, where they are new for the modality alone; whether its tokenizer is random."""
    if name is None:
        if modality is None:
            raise ValueError("say what the samples are by --modality, or name a saved model by --model.")
        processor = MetaTransformerProcessor(**{modality: True})
        config = MetaTransformerConfig.tiny(
            num_hidden_layers=4, initializer_range=0.1, modalities=processor.tokenizer_configs()
        )
        say("Trunk and tokenizer: nano, random weights; --model takes a trained or pretrained one.")
        return use_device(MetaTransformerModel(config).eval()), processor, modality, True
    try:
        processor = MetaTransformerProcessor.from_pretrained(name)
    except (ValueError, OSError):
        processor = None
    options: dict[str, Any] = {}
    if processor is not None and (modality is None or modality in processor.processors):
        modality = only_modality(processor, modality)
    elif modality is None:
        raise ValueError(f"{name} has no processor; say what the samples are by --modality.")
    else:
        processor = MetaTransformerProcessor(**{modality: True})
        options = {"modalities": processor.tokenizer_configs(), "ignore_mismatched_sizes": True}
    model: Any
    model, info = MetaTransformerModel.from_pretrained(name, output_loading_info=True, **options)
    new = (*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"]))
    random = any(key.startswith(f"tokenizers.{modality}.") for key in new)
    if random:
        say(f"Trunk: {name}; it has no tokenizer for {modality} that fits, so that one has random weights.")
    return use_device(model.eval()), processor, modality, random


def _fingerprint(model: Any, processor: MetaTransformerProcessor) -> str:
    """Of all weights and statistics, and of what the processor does."""
    from ..encoder import fingerprint

    return _digest(fingerprint(model.state_dict()) + json.dumps(processor.to_dict(), sort_keys=True))


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _check_finished(output: Path, identity: str) -> None:
    """Make sure that a table is of these settings; one that does not say so, such as an older one, is kept too."""
    try:
        known = read_description(output).get("settings")
    except ValueError:
        known = None
    if known != identity:
        raise ValueError(
            f"{output} holds other features, or does not say which; --fresh deletes it, or choose another --output."
        )


def _open(parts: Path, settings: dict[str, Any], output: Path) -> None:
    """Begin a folder of parts, or make sure that it is of the same features."""
    known = parts / "settings.json"
    if known.exists() and json.loads(known.read_text(encoding="utf-8")) != settings:
        raise ValueError(f"{parts} holds parts of other features; --fresh deletes them, or choose another --output.")
    write_json(known, settings)
    for unfinished in parts.glob(".*.unfinished"):
        unfinished.unlink()
    for unfinished in output.parent.glob(f".{output.name}.unfinished"):
        unfinished.unlink()


def _samples(
    data: str, modality: str, column: str | None, done: np.ndarray
) -> tuple[Iterator[tuple[str, Any]], Callable[[Any], Any]]:
    """Names and values that are not done yet, and what reads a value.

    Of a folder they come in no order, so that its names need not be in memory.
    """
    path = Path(data)
    if modality not in MODALITIES:
        raise ValueError(f"--modality must be one of {MODALITIES.names()}, got {modality!r}.")
    if path.is_dir() and modality != "tabular" and not (path / "dataset_info.json").exists():
        files = (file for file in files_below(path) if not _is_list(path, file, modality))
        found: Any = ((file, file) for file in files)
        read: Callable[[Any], Any] = partial(read_file, modality)
    else:
        collection = rows_of([data], modality, column).collection
        found, read = zip(collection.names, collection.values, strict=True), collection.read
    return (each for each in found if not _holds(done, _hash(each[0]))), read


def _is_list(folder: Path, file: str, modality: str) -> bool:
    """Whether a file is not a sample but says which there are."""
    return Path(file).parent == folder and is_table(file) and modality not in ("time_series", "imu")


def _embed(chunks: Iterable[Rows], model: Any, collator: Any, parts: Path, errors: Path, batch_size: int) -> int:
    """Write a part for each chunk; return how many samples could not be read, which are listed in `errors`."""
    number = max((int(path.stem.partition("-")[2]) for path in parts.glob("part-*.parquet")), default=0)
    failed = 0
    errors.unlink(missing_ok=True)
    with progress() as bar:
        task = bar.add_task("Embedding", total=None)
        for rows in chunks:
            names, vectors, problems = [], [], []
            for numbers, batch, unread in read_batches(rows, collator, batch_size):
                problems += [(rows.name(place), why) for place, why in unread]
                if batch is not None:
                    vectors.append(model.get_features(**to_device(batch, device_of(model))).float().cpu().numpy())
                    names += [rows.name(place) for place in numbers]
                bar.advance(task, len(numbers) + len(unread))
            if names:
                number += 1
                _write_part(parts / f"part-{number:06}.parquet", names, np.concatenate(vectors))
            if problems:
                failed += len(problems)
                _append(errors, problems)
    return failed


def _write_part(path: Path, names: list[str], vectors: np.ndarray) -> None:
    with needs("pyarrow to write Parquet files", "cli"):
        import pyarrow
        from pyarrow import parquet
    flat = pyarrow.array(vectors.reshape(-1))
    features = pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    unfinished = path.with_name(f".{path.name}.unfinished")
    parquet.write_table(pyarrow.table({"path": names, "features": features}), unfinished)
    os.replace(unfinished, path)


def _append(path: Path, problems: list[tuple[str, str]]) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([("path", "error")] if new else [])
        writer.writerows(problems)


def _done(parts: Path) -> np.ndarray:
    """Hashes of the names in all parts, sorted."""
    with needs("pyarrow to read Parquet files", "cli"):
        from pyarrow import parquet
    hashes = [
        np.fromiter((_hash(name) for name in parquet.read_table(part, columns=["path"])["path"].to_pylist()), np.uint64)
        for part in sorted(parts.glob("part-*.parquet"))
    ]
    return np.sort(np.concatenate(hashes)) if hashes else np.zeros(0, np.uint64)


def _hash(name: str) -> int:
    return int.from_bytes(blake2b(os.fsencode(name), digest_size=8).digest(), "big")


def _holds(hashes: np.ndarray, value: int) -> bool:
    place = int(np.searchsorted(hashes, np.uint64(value)))
    return place < len(hashes) and int(hashes[place]) == value


def _assemble(parts: Path, output: Path, description: dict[str, Any]) -> int:
    """All parts as one file, part by part, which says what it holds; return the number of rows."""
    from pyarrow import parquet

    found = sorted(parts.glob("part-*.parquet"))
    if not found:
        raise ValueError("no sample could be embedded; see the errors beside the output.")
    unfinished, count = output.with_name(f".{output.name}.unfinished"), 0
    schema = parquet.read_schema(found[0]).with_metadata({DESCRIPTION_KEY: json.dumps(description)})
    with parquet.ParquetWriter(unfinished, schema) as writer:
        for part in found:
            table = parquet.read_table(part)
            writer.write_table(table.cast(schema))
            count += len(table)
    os.replace(unfinished, output)
    shutil.rmtree(parts)
    return count
