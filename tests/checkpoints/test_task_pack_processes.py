"""Task packs between processes: uploaded and downloaded, and saved by a process that is killed."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from torch.testing import assert_close

# One process does everything, as starting one takes seconds; each test looks at a part of it.
SESSION = """
import re
import torch
from huggingface_hub import ModelCard
from meta_transformer import MetaTransformerForClassification, MetaTransformerModel, MetaTransformerProcessor

trunk = MetaTransformerForClassification.from_pretrained("trunk")
trunk.push_to_hub("someone/trunk")
processor = MetaTransformerProcessor.from_pretrained("trunk")
trunk = MetaTransformerModel.from_pretrained("someone/trunk")
pack = trunk.load_task_pack("digits")
result = {"trunk revision": trunk.config._commit_hash}
info = pack.push_task_pack(
    "someone/digits", processor=processor, metrics={"accuracy": 0.75}, license="mit", private=True,
    commit_message="Share it",
)
result["commit"] = [type(info).__name__, info.oid]
first = pack.push_task_pack("someone/branch", revision="experiment").oid
with torch.no_grad():
    pack.head.classifier.bias += 1
pack.push_task_pack("someone/branch", revision="experiment")
again = trunk.load_task_pack("someone/digits", name="again")
branch = trunk.load_task_pack("someone/branch", revision="experiment")
older = trunk.load_task_pack("someone/branch", name="older", revision=first)
batch = MetaTransformerProcessor.from_pretrained("someone/digits")(image=processor.image.dummy_samples(2))
with torch.no_grad():
    result["logits"] = again(**batch).logits.tolist()
    result["branch"] = [branch(**batch).logits.tolist(), older(**batch).logits.tolist()]
result["names"] = list(trunk.task_packs)
snippet, names = re.search(r"```python\\n(.*?)```", ModelCard.load("someone/digits").content, re.DOTALL)[1], {}
exec(snippet, names)
result["snippet"] = list(names["output"].logits.shape)
result["whole"] = []
for call in (trunk.load_task_pack, pack.push_task_pack):
    try:
        call("someone/trunk")
    except ValueError as error:
        result["whole"].append(str(error))
"""


@pytest.fixture(scope="module")
def models(make_pair, make_on):
    trunk, _ = make_pair()
    return trunk, make_on(trunk, id2label={0: "zero", 1: "one", 2: "two"})


@pytest.fixture(scope="module")
def session(hub, models, make_pair, run_python, tmp_path_factory):
    """What `SESSION` found out; what it uploaded is in `hub`."""
    root = tmp_path_factory.mktemp("session")
    models[0].save_pretrained(root / "trunk", processor=make_pair()[1])
    models[1].save_task_pack(root / "digits")
    return run_python(SESSION, hub=hub, cwd=root)


def test_pack_processor_and_card_arrive_in_one_commit(hub, session):
    files = hub.files("someone/digits", "main")
    assert {"README.md", "processor_config.json", "task_pack.json", "task_pack.safetensors"} <= set(files)
    assert not {"model.safetensors", "config.json"} & set(files)
    commits = hub.repositories["someone/digits"].branches["main"]
    assert [commit.message for commit in commits][1:] == ["Share it"]
    assert session["commit"][0] == "CommitInfo"
    card = ModelCard(files["README.md"].decode())
    assert (card.data.license, card.data.base_model) == ("mit", "someone/trunk")
    assert "| accuracy | 0.75 |" in card.text


def test_a_fresh_process_loads_it_from_the_hub_with_the_same_numbers(session, models, make_pair):
    _, processor = make_pair()
    with torch.no_grad():
        expected = models[1](**processor(image=processor.image.dummy_samples(2))).logits
    assert_close(torch.tensor(session["logits"]), expected, rtol=0, atol=1e-6)
    assert_close(torch.tensor(session["branch"]), torch.stack([expected + 1, expected]), rtol=0, atol=1e-6)
    assert session["names"] == ["digits", "again", "branch", "older"]


def test_the_trunks_name_and_revision_are_in_the_description(hub, session):
    trunk = json.loads(hub.files("someone/digits", "main")["task_pack.json"])["trunk"]
    assert trunk["name"] == "someone/trunk"
    assert trunk["revision"] == session["trunk revision"] is not None


def test_a_whole_checkpoint_on_the_hub_is_no_pack_and_none_is_put_beside_it(hub, session):
    loading, pushing = session["whole"]
    assert "is a whole checkpoint, not a task pack" in loading
    assert "someone/trunk holds a whole checkpoint" in pushing
    assert "task_pack.json" not in hub.files("someone/trunk", "main")


def test_the_snippet_of_the_card_runs(session):
    assert session["snippet"] == [2, 3]


# Saves the pack of `new` over a copy of that of `old`, in processes of which the n-th is killed before its n-th step:
# renaming or removing a file or folder, as Python's audit events report it, and in the middle of writing tensors.
KILLER = """
import os, shutil, signal, sys
from pathlib import Path
from meta_transformer import MetaTransformerForClassification
from meta_transformer.checkpoints import task_pack_files

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
    write = task_pack_files.save_file
    def write_in_two(tensors, filename, **options):
        write(tensors, filename, **options)
        content = Path(filename).read_bytes()
        Path(filename).write_bytes(content[: len(content) // 2])
        step()
        Path(filename).write_bytes(content)
    task_pack_files.save_file = write_in_two
    sys.addaudithook(audit)
    model.save_task_pack(target)

model = MetaTransformerForClassification.from_pretrained("new")
status, result = 1, 0
while status:
    result += 1
    shutil.copytree("old", f"killed/{result}")
    pid = os.fork()
    if pid == 0:
        try:
            save(f"killed/{result}", result)
            os._exit(0)
        finally:
            os._exit(2)
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL), status
"""


@pytest.mark.slow
def test_a_killed_save_leaves_the_old_pack_the_new_one_or_one_that_is_refused(make_pair, make_on, run_python, tmp_path):
    trunk, _ = make_pair()
    old, new = make_on(trunk, seed=1), make_on(trunk, seed=2)
    old.save_task_pack(tmp_path / "old")
    new.save_pretrained(tmp_path / "new")
    pixels = torch.rand(2, 3, 32, 32)
    expected = {name: model(pixel_values=pixels).logits for name, model in (("old", old), ("new", new))}
    found = []
    for step in range(1, run_python(KILLER, cwd=tmp_path) + 1):
        folder = tmp_path / "killed" / str(step)
        unfinished = (folder / ".unfinished-save").exists()
        try:
            logits = trunk.load_task_pack(folder)(pixel_values=pixels).logits
        except ValueError as error:
            assert unfinished
            assert "was interrupted" in str(error)
            found.append("refused")
            continue
        assert not unfinished
        found.append(next(name for name, value in expected.items() if torch.equal(value, logits)))
    assert list(dict.fromkeys(found)) == ["old", "refused", "new"]
    assert found[-1] == "new"
