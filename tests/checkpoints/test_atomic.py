"""A save that is killed at any moment leaves the old checkpoint, the new one, or one that is refused and repairable."""

import json
import os
import time
from pathlib import Path

import pytest
import torch

from meta_transformer import MetaTransformerForClassification, MetaTransformerProcessor
from meta_transformer.checkpoints.atomic import atomic_folder, finish_save, refuse_unfinished

# Saves the checkpoint in `new` over copies of the one in `old`, in processes of which the n-th is killed before its
# n-th step: renaming or removing a file or folder, as Python's audit events report it, and in the middle of writing
# weights.
KILLER = """
import os, shutil, signal, sys
from pathlib import Path
import transformers.modeling_utils
from meta_transformer import MetaTransformerForClassification, MetaTransformerProcessor

def save(target, last):
    steps = 0
    def step():
        nonlocal steps
        steps += 1
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)
    def audit(event, arguments):
        if event in ("os.rename", "os.remove", "os.rmdir"):
            step()
    write = transformers.modeling_utils.safe_save_file
    def write_in_two(tensors, filename, **options):
        write(tensors, filename, **options)
        content = Path(filename).read_bytes()
        Path(filename).write_bytes(content[: len(content) // 2])
        step()
        Path(filename).write_bytes(content)
    transformers.modeling_utils.safe_save_file = write_in_two
    sys.addaudithook(audit)
    model.save_pretrained(target, processor=processor, max_shard_size=shard_size)

model = MetaTransformerForClassification.from_pretrained(new)
processor = MetaTransformerProcessor.from_pretrained(new)
status, result = 1, -1
while status:
    result += 1
    target = Path("killed") / str(result + 1)
    target.parent.mkdir(exist_ok=True)
    if old:
        shutil.copytree(old, target)
    pid = os.fork()
    if pid == 0:
        try:
            save(target, result + 1)
            os._exit(0)
        finally:
            os._exit(2)
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL), status
"""
SIZES = {"single": "1GB", "sharded": "150KB"}
SCENARIOS = [
    ("single", "single"),
    ("sharded", "sharded"),
    ("single", "sharded"),
    ("sharded", "single"),
    ("none", "sharded"),
]


# The fast tier has the scenario with the most kinds of steps: a new index and shards, and a file that goes.
PARAMS = [pytest.param(each, marks=() if each == ("single", "sharded") else pytest.mark.slow) for each in SCENARIOS]


@pytest.fixture(scope="module", params=PARAMS, ids="-".join)
def killed(request, make_pair, run_python, tmp_path_factory):
    """The old and the new kind, a folder with both and in it `killed` with one for each step, and how many steps."""
    old, new = request.param
    root = tmp_path_factory.mktemp("killed")
    for index, name in enumerate(("old", "new")):
        model, processor = make_pair(seed=index, id2label={0: name, 1: "other"})
        processor.image.image_mean = index / 4
        for kind, size in SIZES.items():
            model.save_pretrained(root / f"{name}-{kind}", processor=processor, max_shard_size=size)
    scenario = ("" if old == "none" else f"old-{old}", f"new-{new}", SIZES[new])
    return old, new, root, run_python(f"old, new, shard_size = {scenario!r}\n{KILLER}", cwd=root)


def load(folder):
    """Everything that a checkpoint holds: weights, a word of the configuration, a setting of the processor."""
    model = MetaTransformerForClassification.from_pretrained(folder)
    processor = MetaTransformerProcessor.from_pretrained(folder)
    return model.state_dict(), model.config.id2label[0], processor.image.image_mean


def is_same(checkpoint, expected):
    weights, *rest = checkpoint
    expected_weights, *expected_rest = expected
    return rest == expected_rest and all(
        torch.equal(weights[name], expected_weights[name]) for name in expected_weights
    )


def test_a_killed_save_leaves_old_or_new_or_is_refused_and_can_be_finished(killed):
    old, new, root, steps = killed
    before = None if old == "none" else load(root / f"old-{old}")
    after = load(root / f"new-{new}")
    found = []
    for step in range(1, steps + 1):
        folder = root / "killed" / str(step)
        unfinished = (folder / ".unfinished-save").exists()
        try:
            checkpoint = load(folder)
        except (ValueError, OSError) as error:
            assert unfinished == ("was interrupted" in str(error)), error
            assert unfinished or before is None, f"step {step} lost the old checkpoint: {error}"
            found.append("refused" if unfinished else "none")
            finish_save(folder)
            if unfinished:
                assert is_same(load(folder), after), f"step {step} is not the new checkpoint after finish_save"
            continue
        assert not unfinished, f"step {step} was loaded though it is unfinished"
        assert (before and is_same(checkpoint, before)) or is_same(checkpoint, after), f"step {step} is a mixture"
        found.append("old" if before and is_same(checkpoint, before) else "new")
    # Each stage was hit, in this order.
    assert list(dict.fromkeys(found)) == ["none" if before is None else "old", "refused", "new"]


def test_a_save_that_was_not_killed_leaves_nothing_else_behind(killed):
    _, new, root, steps = killed
    folder = root / "killed" / str(steps + 1)
    weights = {"model.safetensors"}
    if new == "sharded":
        index = folder / "model.safetensors.index.json"
        weights = {index.name, *json.loads(index.read_text())["weight_map"].values()}
    assert set(os.listdir(folder)) == {"config.json", "processor_config.json", "README.md", *weights}


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A folder with the file `b` of an earlier save and the file `a` of one that failed before it moved `b`."""
    with atomic_folder(tmp_path) as folder:
        for name in "ab":
            (folder / name).write_text("old")
    replace = os.replace

    def fail_at_b(source, target):
        if Path(source).name == "b":
            raise OSError("disk gone")
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk gone"):
        patch.setattr(os, "replace", fail_at_b)
        with atomic_folder(tmp_path) as folder:
            for name in "ab":
                (folder / name).write_text("new")
    assert [(tmp_path / name).read_text() for name in "ab"] == ["new", "old"]
    return tmp_path


def test_an_unfinished_save_is_refused_with_the_remedy(interrupted):
    with pytest.raises(ValueError, match=r"interrupted while its files were replaced.*finish_save\("):
        refuse_unfinished(interrupted)
    with pytest.raises(ValueError, match="interrupted"):
        refuse_unfinished(interrupted.parent, interrupted.name)
    finish_save(interrupted)
    refuse_unfinished(interrupted)
    assert {path.name: path.read_text() for path in interrupted.iterdir()} == {"a": "new", "b": "new"}


def test_shards_are_never_under_an_index_of_another_save(tmp_path, monkeypatch):
    """For programs that know nothing of the marker, such as a `Trainer` that resumes: they fail without an index."""
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    for save in range(2):
        moved = []
        with monkeypatch.context() as patch, atomic_folder(tmp_path) as folder:
            for name in names:
                (folder / name).write_text(f"save {save}")
            patch.setattr(os, "replace", record_moves(os.replace, moved))
        assert moved == [(names[0], False), (names[1], False), (names[2], False)]


def record_moves(replace, moved):
    """`os.replace` that notes the name of the file, and whether there is an index beside it."""

    def replace_and_note(source, target):
        moved.append((Path(target).name, (Path(target).parent / "model.safetensors.index.json").exists()))
        replace(source, target)

    return replace_and_note


def test_what_is_no_unfinished_folder_passes(tmp_path):
    for name in (None, tmp_path, str(tmp_path), "owner/name", tmp_path / "absent"):
        refuse_unfinished(name)
        if name is not None:
            finish_save(name)


def test_the_next_save_finishes_the_interrupted_one_first(interrupted):
    with atomic_folder(interrupted) as folder:
        (folder / "a").write_text("newer")
    assert {path.name: path.read_text() for path in interrupted.iterdir()} == {"a": "newer", "b": "new"}


def test_a_body_that_fails_changes_nothing(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path, ["*"]) as folder:
        (folder / "a").write_text("new")
        raise RuntimeError
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


def test_superseded_files_go_and_others_stay(tmp_path):
    for name in ("model-1", "model-2", "optimizer"):
        (tmp_path / name).write_text("old")
    with atomic_folder(tmp_path, ["model-*"]) as folder:
        (folder / "model-2").write_text("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"model-2": "new", "optimizer": "old"}


def test_subfolders_are_merged(tmp_path):
    for text in ("old", "new"):
        with atomic_folder(tmp_path) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / text).write_text(text)
    assert sorted(path.name for path in (tmp_path / "sub").iterdir()) == ["new", "old"]


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "model").write_text("")
    with pytest.raises(ValueError, match="is a file; give the name of a folder"), atomic_folder(tmp_path / "model"):
        pass


def test_staging_folders_are_removed_when_nobody_can_be_at_work_in_them(tmp_path):
    for name, age in (("young", 3600), ("old", 7 * 24 * 3600)):
        (tmp_path / f".saving-{name}").mkdir()
        os.utime(tmp_path / f".saving-{name}", (time.time() - age,) * 2)
    with atomic_folder(tmp_path):
        pass
    assert os.listdir(tmp_path) == [".saving-young"]


def test_weights_may_be_read_by_whom_the_umask_says(make_pair, tmp_path):
    (tmp_path / "reference").touch()
    make_pair()[0].save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "reference").stat().st_mode
