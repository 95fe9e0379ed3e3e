"""Uploads to and downloads from the hub, which is a stand-in on this machine; see `tests/support/hub_stand_in.py`."""

import json
import re

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load
from timm.models import save_for_hf
from torch.testing import assert_close

TIMM_SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}

# One process does everything, as starting one takes seconds; each test looks at a part of it.
SESSION = """
from pathlib import Path
import torch
from meta_transformer import MetaTransformerForClassification, MetaTransformerModel, MetaTransformerProcessor
from transformers import AutoModelForImageClassification, AutoProcessor

first, second = (MetaTransformerForClassification.from_pretrained(name) for name in ("first", "second"))
processor = MetaTransformerProcessor.from_pretrained("first")

def describe(info):
    return [type(info).__name__, info.oid, info.pr_url]

result = {
    "together": describe(first.push_to_hub(
        "someone/together", processor=processor, metrics={"accuracy": 0.75}, license="mit", private=True,
        tags=["digits"], commit_message="Share it",
    )),
    "short": describe(first.push_to_hub("short")),
    "sharded": [
        describe(model.push_to_hub("someone/sharded", max_shard_size=size))
        for model, size in ((first, "1GB"), (second, "100KB"), (first, "1GB"), (first, "1GB"))
    ],
    "described": describe(first.push_to_hub("someone/described")),
    "licensed": describe(first.push_to_hub("someone/licensed")),
    "branch": describe(first.push_to_hub("someone/branch", revision="experiment")),
    "request": describe(first.push_to_hub("someone/request", create_pr=True)),
    "saved": first.save_pretrained("saved", push_to_hub=True, processor=processor, commit_message="Save and share"),
    "own-card": first.save_pretrained("own-card", push_to_hub=True, repo_id="someone/own", private=True),
    "processor": describe(processor.push_to_hub("someone/processor")),
    "after": describe(first.push_to_hub("someone/processor")),
    "processor-saved": processor.save_pretrained(Path("processor-saved"), push_to_hub=True),
}

def fingerprint(name, **options):
    return MetaTransformerForClassification.from_pretrained(name, **options).encoder_fingerprint()

result["first shards"] = fingerprint("someone/sharded", revision=result["sharded"][1][1])
result["last"] = fingerprint("someone/sharded")
result["of branch"] = fingerprint("someone/branch", revision="experiment")
model = AutoModelForImageClassification.from_pretrained("someone/together")
processor = MetaTransformerProcessor.from_pretrained("someone/together")
timm_model = MetaTransformerModel.from_pretrained("timm/vit_nano_patch8_32.test")
with torch.no_grad():
    result["logits"] = model(**processor(image=processor.image.dummy_samples(2))).logits.tolist()
    result["features"] = timm_model(pixel_values=torch.load("pixels.pt", weights_only=True)).last_hidden_state.tolist()
result["auto"] = type(AutoProcessor.from_pretrained("someone/together")).__name__
result["source"] = timm_model.config.encoder_name_or_path
"""


@pytest.fixture(scope="module")
def models(make_pair):
    return [make_pair(seed=seed)[0] for seed in (0, 1)]


@pytest.fixture(scope="module")
def timm_model():
    """A tiny model of timm's with random weights, and images for it."""
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, **TIMM_SHAPE).eval(), torch.rand(2, 3, 32, 32)


@pytest.fixture(scope="module")
def session(hub, models, timm_model, make_pair, run_python, tmp_path_factory):
    """What the calls of `SESSION` returned; what they did is in `hub`."""
    root = tmp_path_factory.mktemp("session")
    for name, model in zip(("first", "second"), models, strict=True):
        model.save_pretrained(root / name, processor=make_pair()[1])
    for name, card in (("described", "---\nlicense: mit\n---\n# By hand\n"), ("licensed", "---\nlicense: mit\n---\n")):
        (root / name).mkdir()
        (root / name / "README.md").write_text(card)
        hub.serve(f"someone/{name}", root / name)
    (root / "own-card").mkdir()
    (root / "own-card" / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    # The layout that timm itself uploads: config.json with an architecture, model.safetensors
    save_for_hf(timm_model[0], root / "timm", model_args=TIMM_SHAPE, safe_serialization=True)
    hub.serve("timm/vit_nano_patch8_32.test", root / "timm")
    torch.save(timm_model[1], root / "pixels.pt")
    return {"root": root, **run_python(SESSION, hub=hub, cwd=root)}


def log(hub, name, branch="main"):
    """Messages of the commits of a branch, without the first one, which the hub makes by itself."""
    return [commit.message for commit in hub.repositories[f"someone/{name}"].branches[branch]][1:]


def card(hub, name, revision="main"):
    return ModelCard(hub.files(f"someone/{name}", revision)["README.md"].decode())


def weights(files):
    return sorted(name for name in files if name.startswith("model"))


def test_model_processor_and_card_arrive_in_one_commit(hub, session):
    assert log(hub, "together") == ["Share it"]
    files = hub.files("someone/together")
    assert set(files) == {".gitattributes", "README.md", "config.json", "model.safetensors", "processor_config.json"}
    kind, oid, pull_request = session["together"]
    assert (kind, pull_request) == ("CommitInfo", None)
    assert oid == hub.repositories["someone/together"].branches["main"][-1].oid
    assert hub.repositories["someone/together"].private


def test_weights_travel_as_a_large_file_and_arrive_whole(hub, session, models):
    content = hub.files("someone/together")["model.safetensors"]
    assert any(request.startswith("PUT /large/") for request in hub.requests)
    assert_close(load(content), models[0].state_dict(), rtol=0, atol=0)


def test_the_card_on_the_hub_names_the_repository(hub, session):
    together = card(hub, "together")
    assert (together.data.license, together.data.tags) == ("mit", ["meta-transformer", "image", "digits"])
    assert 'from_pretrained("someone/together")' in together.text
    assert "| accuracy | 0.75 |" in together.text


def test_a_name_without_owner_is_in_the_own_namespace(hub, session):
    assert 'from_pretrained("someone/short")' in card(hub, "short").text


def test_superseded_weights_leave_the_repository_with_the_commit_that_replaces_them(hub, session):
    """A single file would be found before the shards, and loaded in their place."""
    single, sharded, again, unchanged = (weights(hub.files("someone/sharded", info[1])) for info in session["sharded"])
    assert single == again == unchanged == ["model.safetensors"]
    index = json.loads(hub.files("someone/sharded", session["sharded"][1][1])["model.safetensors.index.json"])
    assert sharded == sorted({*index["weight_map"].values(), "model.safetensors.index.json"})
    assert len(log(hub, "sharded")) == 4


def test_a_persons_card_on_the_hub_is_kept(hub, session):
    assert hub.files("someone/described")["README.md"] == b"---\nlicense: mit\n---\n# By hand\n"
    assert "model.safetensors" in hub.files("someone/described")


def test_a_licence_chosen_on_the_hub_is_kept_in_the_generated_card(hub, session):
    assert card(hub, "licensed").data.license == "mit"
    assert "## Encoder" in card(hub, "licensed").text


def test_a_branch_is_made_for_a_revision(hub, session):
    assert weights(hub.files("someone/branch", "experiment")) == ["model.safetensors"]
    assert weights(hub.files("someone/branch")) == []


def test_a_pull_request_leaves_the_main_branch_alone(hub, session):
    assert re.fullmatch(r"http.*/someone/request/discussions/1", session["request"][2])
    assert weights(hub.files("someone/request", "refs/pr/1")) == ["model.safetensors"]
    assert weights(hub.files("someone/request")) == []


def test_saving_with_push_to_hub_uploads_what_was_saved(hub, session):
    assert log(hub, "saved") == ["Save and share"]
    local = {path.name: path.read_bytes() for path in (session["root"] / "saved").iterdir()}
    assert local == {name: content for name, content in hub.files("someone/saved").items() if name != ".gitattributes"}
    assert 'from_pretrained("someone/saved")' in card(hub, "saved").text


def test_a_card_that_a_person_wrote_into_the_folder_is_uploaded(hub, session):
    assert card(hub, "own").text.strip() == "# Mine"
    assert hub.repositories["someone/own"].private


def test_a_processor_goes_alone_and_leaves_the_card_to_the_model(hub, session):
    first, second = hub.repositories["someone/processor"].branches["main"][1:]
    assert set(first.files) == {".gitattributes", "processor_config.json"}
    assert set(second.files) == {*first.files, "README.md", "config.json", "model.safetensors"}
    assert set(hub.files("someone/processor-saved")) == {".gitattributes", "processor_config.json"}


def test_a_model_and_its_processor_load_by_the_name_of_the_repository(session, models, make_pair):
    _, processor = make_pair()
    with torch.no_grad():
        expected = models[0](**processor(image=processor.image.dummy_samples(2))).logits
    assert_close(torch.tensor(session["logits"]), expected, rtol=0, atol=1e-6)
    assert session["auto"] == "MetaTransformerProcessor"


def test_every_revision_loads_its_own_weights(session, models):
    first, second = (model.encoder_fingerprint() for model in models)
    assert (session["first shards"], session["last"], session["of branch"]) == (second, first, first)


def test_a_timm_repository_loads_by_its_name(session, timm_model):
    source, pixels = timm_model
    with torch.no_grad():
        assert_close(torch.tensor(session["features"]), source.forward_features(pixels), rtol=1e-5, atol=1e-5)
    assert session["source"] == "timm/vit_nano_patch8_32.test"
