"""Where files of weights lie and how they are split, pickled or damaged."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from meta_transformer import MetaTransformerModel


@pytest.fixture
def folder(make: ModuleType, tmp_path: Path) -> Path:
    """A vision transformer in timm's hub layout."""
    return make.save_timm(make.timm_model(), tmp_path / "vit")


@pytest.fixture
def fingerprint(folder: Path) -> str:
    """Of the trunk in `folder`."""
    return MetaTransformerModel.from_pretrained(folder).encoder_fingerprint()


def split_in_two(file: Path) -> None:
    """Replace a safetensors file by two parts and an index, as large checkpoints come."""
    tensors = load_file(file)
    index: dict[str, str] = {}
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), start=1):
        part = file.with_name(f"{file.stem}-{number:05}-of-00002.safetensors")
        save_file({name: tensors[name] for name in names}, part, {"format": "pt"})
        index |= dict.fromkeys(names, part.name)
    file.with_name(f"{file.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    file.unlink()


@pytest.mark.parametrize("case", ["timm ViT", "ViT", "CLIP", "DINOv2", "OpenCLIP"], indirect=True)
@pytest.mark.parametrize("kind", ["split", "pickled"])
def test_split_and_pickled_files_load_as_well(case: Any, kind: str, tmp_path: Path) -> None:
    name = case.save(case.build(), tmp_path)
    expected = MetaTransformerModel.from_pretrained(name).state_dict()
    file = next(tmp_path.glob("*.safetensors"))
    if kind == "split":
        split_in_two(file)
    else:
        pickled = "open_clip_pytorch_model.bin" if case.source == "open_clip" else "pytorch_model.bin"
        torch.save(load_file(file), tmp_path / pickled)
        file.unlink()
    loaded = MetaTransformerModel.from_pretrained(name).state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.items())


def cache_as_the_hub_would(folder: Path, cache: Path, name: str) -> str:
    """Lay a folder into a cache of huggingface_hub as repository `name`, and return its only commit."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = cache / f"models--{name.replace('/', '--')}"
    for part in ("refs", "snapshots"):
        (repository / part).mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    folder.rename(repository / "snapshots" / commit)
    return commit


def test_a_name_on_the_hub_is_found_in_the_cache(fingerprint: str, folder: Path, tmp_path: Path) -> None:
    commit = cache_as_the_hub_would(folder, tmp_path / "cache", "timm/vit_nano")
    for revision in ("main", commit):
        model = MetaTransformerModel.from_pretrained(
            "timm/vit_nano", cache_dir=tmp_path / "cache", revision=revision, local_files_only=True
        )
        assert model.encoder_fingerprint() == fingerprint
        assert model.config.encoder_name_or_path == model.name_or_path == "timm/vit_nano"


def test_a_name_that_cannot_be_reached_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Cannot find nobody/nothing"):
        MetaTransformerModel.from_pretrained("nobody/nothing", cache_dir=tmp_path, local_files_only=True)


def test_weights_out_of_reach_are_an_oserror(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    cache_as_the_hub_would(folder, tmp_path / "cache", "timm/vit_nano")
    with pytest.raises(OSError, match="Cannot find timm/vit_nano"):
        MetaTransformerModel.from_pretrained("timm/vit_nano", cache_dir=tmp_path / "cache", local_files_only=True)


def test_a_path_to_nothing_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing/here is no folder, no file, and no name of a repository"):
        MetaTransformerModel.from_pretrained(tmp_path / "nothing" / "here")


def test_a_subfolder_can_be_named(fingerprint: str, folder: Path) -> None:
    model = MetaTransformerModel.from_pretrained(folder.parent, subfolder=folder.name)
    assert model.encoder_fingerprint() == fingerprint


def test_a_variant_can_be_named(fingerprint: str, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.fp32.safetensors")
    assert MetaTransformerModel.from_pretrained(folder, variant="fp32").encoder_fingerprint() == fingerprint
    with pytest.raises(ValueError, match=r"holds no weights: none of the files \['model.safetensors'"):
        MetaTransformerModel.from_pretrained(folder)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def scramble(file: Path) -> None:
    file.write_bytes(b"not weights at all, but a page that says so" * 9)


@pytest.mark.parametrize("damage", [truncate, scramble])
@pytest.mark.parametrize("kind", ["safetensors", "pickle", "official"])
def test_a_damaged_file_is_an_error_that_names_it(kind: str, damage: Any, folder: Path) -> None:
    file = folder / "model.safetensors"
    if kind != "safetensors":
        torch.save(load_file(file), folder / "pytorch_model.bin")
        file.unlink()
        file = folder / "pytorch_model.bin"
    damage(file)
    with pytest.raises(ValueError, match=rf"{file.name} is truncated, damaged.*ownload"):
        MetaTransformerModel.from_pretrained(file if kind == "official" else folder)


def test_a_pickle_that_would_run_code_is_refused(folder: Path, tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "harm",))

    (folder / "model.safetensors").unlink()
    torch.save({"cls_token": Harmful()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds more than tensors, which is not read for safety"):
        MetaTransformerModel.from_pretrained(folder)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("contents", [[torch.zeros(2)], {"state_dict": {"cls_token": torch.zeros(2)}}])
def test_a_pickle_of_something_else_than_named_tensors_is_refused(contents: Any, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(contents, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds no tensors by name at its top level"):
        MetaTransformerModel.from_pretrained(folder)
