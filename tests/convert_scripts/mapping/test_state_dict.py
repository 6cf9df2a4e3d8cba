"""Operations of rename tables, and the resolution of tables in both directions."""

import pytest
import torch

from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.mapping.state_dict import Rename, SplitKV, SplitQKV, Transpose, resolve


TABLE = (
    Rename("blocks.{n}.norm.{p}", "layers.{n}.layer_norm.{p}"),
    SplitQKV("blocks.{n}.in_proj_{p}", "layers.{n}.{qkv}_proj.{p}"),
    Transpose("proj", "projection.weight"),
)
KEYS = ["blocks.10.norm.bias", "blocks.3.in_proj_weight", "proj"]


@pytest.mark.parametrize(
    ("operation", "shape", "targets"),
    [
        (Rename("a", "b"), (3, 5), [(3, 5)]),
        (Transpose("a", "b"), (3, 5), [(5, 3)]),
        (SplitQKV("a", "{qkv}"), (9, 5), [(3, 5)] * 3),
        (SplitQKV("a", "{qkv}"), (9,), [(3,)] * 3),
        (SplitKV("a", "{kv}"), (6, 5), [(3, 5)] * 2),
    ],
    ids=["rename", "transpose", "split-weight", "split-bias", "split-keys-values"],
)
def test_operation_invert_undoes_apply(operation, shape, targets):
    tensor = torch.randn(shape)
    applied = operation.apply((tensor,))
    assert [tuple(t.shape) for t in applied] == targets
    (restored,) = operation.invert(applied)
    assert torch.equal(restored, tensor)


def test_split_qkv_orders_queries_keys_values():
    operation = SplitQKV("in", "{qkv}.weight")
    assert operation.targets == ("q.weight", "k.weight", "v.weight")
    queries, keys, values = operation.apply((torch.arange(6),))
    assert (queries.tolist(), keys.tolist(), values.tolist()) == ([0, 1], [2, 3], [4, 5])


def test_split_kv_orders_keys_values():
    operation = SplitKV("kv", "{kv}.weight")
    assert operation.targets == ("k.weight", "v.weight")
    keys, values = operation.apply((torch.arange(4),))
    assert (keys.tolist(), values.tolist()) == ([0, 1], [2, 3])


def test_operation_apply_copies_nothing():
    tensor = torch.randn(6, 2)
    for operation in (Rename("a", "b"), Transpose("a", "b"), SplitQKV("a", "{qkv}"), SplitKV("a", "{kv}")):
        storages = {t.untyped_storage().data_ptr() for t in operation.apply((tensor,))}
        assert storages == {tensor.untyped_storage().data_ptr()}


def test_operation_under_moves_both_sides():
    moved = Rename("a.{n}", "b.{n}").under("x.", "y.")
    assert isinstance(moved, Rename)
    assert (moved.source, moved.target) == ("x.a.{n}", "y.b.{n}")


def test_resolve_fills_numbers_and_parameter_names():
    steps, unmatched = resolve(KEYS, TABLE, "sources")
    assert unmatched == []
    assert [(step.sources, step.targets) for step in steps] == [
        (("blocks.10.norm.bias",), ("layers.10.layer_norm.bias",)),
        (("blocks.3.in_proj_weight",), tuple(f"layers.3.{x}_proj.weight" for x in "qkv")),
        (("proj",), ("projection.weight",)),
    ]


def test_resolve_backwards_collects_the_targets_of_one_step():
    forwards, _ = resolve(KEYS, TABLE, "sources")
    targets = [target for step in forwards for target in step.targets]
    backwards, unmatched = resolve(reversed(targets), TABLE, "targets")
    assert unmatched == []
    assert sorted(backwards, key=str) == sorted(forwards, key=str)


@pytest.mark.parametrize("key", ["blocks.x.norm.bias", "blocks.1.norm.scale", "xproj", "proj.weight"])
def test_resolve_names_keys_without_a_row(key):
    assert resolve([key], TABLE, "sources") == ([], [key])


def test_resolve_refuses_a_key_with_two_rows():
    with pytest.raises(ConversionError, match=r"(?s)more than one row.*\n  proj"):
        resolve(["proj"], (*TABLE, Rename("proj", "other")), "sources")
