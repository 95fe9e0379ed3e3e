"""A task pack of every head on every modality, loaded onto the trunk of another model."""

import pytest
import torch
from torch.testing import assert_close

from meta_transformer import MetaTransformerModel


def trunk_of(model, case):
    """A model of its own with the same trunk and nothing else in common."""
    trunk = MetaTransformerModel(case.config()).eval()
    trunk.encoder.load_state_dict(model.model.encoder.state_dict())
    return trunk


@pytest.fixture
def poisoned(monkeypatch):
    """Memory that was not filled is NaN, so that nothing can be right by chance."""
    empty_like = torch.empty_like

    def poison(tensor, **options):
        return empty_like(tensor, **options).fill_(float("nan") if tensor.is_floating_point() else 77)

    monkeypatch.setattr(torch, "empty_like", poison)


def test_a_loaded_pack_gives_what_its_model_gave(case, tmp_path, poisoned):
    model, batch = case.lively_model(), case.batch()
    model.save_task_pack(tmp_path / "pack")
    pack = trunk_of(model, case).load_task_pack(tmp_path / "pack")
    assert type(pack) is type(model)
    assert_close(pack(**batch).to_tuple(), model(**batch).to_tuple(), rtol=0, atol=0)
    assert_close(dict(pack.named_buffers()), dict(model.named_buffers()), rtol=0, atol=0)


def test_packs_run_together_give_what_they_give_alone(costly_case, tmp_path):
    case, model = costly_case, costly_case.lively_model()
    model.save_task_pack(tmp_path / "pack")
    trunk = trunk_of(model, case)
    batches = {"first": {**case.batch(4), "labels": case.labels(4)}, "second": case.batch(3, seed=1)}
    alone = {name: trunk.load_task_pack(tmp_path / "pack", name=name)(**batches[name]) for name in batches}
    together = trunk.run_task_packs(batches)
    assert together.keys() == alone.keys()
    for name, output in together.items():
        assert type(output) is type(alone[name])
        assert_close(output.to_tuple(), alone[name].to_tuple(), rtol=1e-5, atol=1e-5)
    assert together["first"].loss is not None
