"""Compilation and export of every head on every modality, on uniform batches.

One layer is enough: `tests/encoder/` compiles the trunk at more.
"""

import torch
from torch.testing import assert_close


def test_compiles_to_one_graph(costly_case):
    torch._dynamo.reset()  # else all cases together exceed the number of graphs that one function may have
    model, batch = costly_case.model(num_hidden_layers=1), costly_case.rows(1)[0]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(compiled(**batch).to_tuple(), model(**batch).to_tuple())


def test_exports(costly_case):
    model, batch = costly_case.model(num_hidden_layers=1), costly_case.rows(1)[0]
    program = torch.export.export(model, (), batch)
    assert_close(program.module()(**batch).to_tuple(), model(**batch).to_tuple())
