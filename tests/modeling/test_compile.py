"""torch.compile and torch.export take the models whole."""

import pytest
import torch
from tiny_models import main_outputs, tiny_inputs, tiny_model


# Compiling a whole model compiles its towers.
@pytest.mark.parametrize("name", [pytest.param("clip", marks=pytest.mark.slow), "coca"])
def test_forward_compiles_without_a_graph_break(name):
    torch.compiler.reset()
    model = tiny_model(name)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    inputs = tiny_inputs(model)
    with torch.no_grad():
        for ours, expected in zip(main_outputs(compiled(**inputs)), main_outputs(model(**inputs)), strict=True):
            assert torch.allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize("name", [pytest.param("clip", marks=pytest.mark.slow), "coca"])
def test_forward_exports_with_any_batch_size(name):
    model = tiny_model(name)
    inputs, fewer = tiny_inputs(model, batch=3), tiny_inputs(model, batch=2)
    batch = torch.export.Dim("batch", min=2, max=64)
    with torch.no_grad():
        exported = torch.export.export(
            model, (), inputs, dynamic_shapes={key: {0: batch} for key in inputs}, strict=False
        )
        outputs = exported.module()(**fewer)
        for ours, expected in zip(main_outputs(outputs), main_outputs(model(**fewer)), strict=True):
            assert torch.allclose(ours, expected, atol=1e-5)
