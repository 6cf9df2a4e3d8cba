"""The tower of timm: what no checkpoint holds is filled, whatever way the model was made; its outputs, its errors."""

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_inputs, tiny_model, tiny_timm_config
from tiny_timm import FAMILIES

from open_clip_transformers.configuration.configuration_timm_vision import TimmVisionConfig
from open_clip_transformers.convert_scripts.mapping.config import build_config
from open_clip_transformers.modeling.modeling_open_clip import OpenClipModel
from open_clip_transformers.modeling.modeling_timm_vision import TimmVisionModel


every_family = pytest.mark.parametrize("family", FAMILIES)
# Those with tables that no checkpoint holds, and one with running statistics that it does hold.
TABLES = ["eva", "eva02", "pe_core", "relpos", "swin", "fastvit"]


def family_config(family: str, **fields) -> TimmVisionConfig:
    config = build_config(FAMILIES[family]).vision_config
    for name, value in fields.items():
        setattr(config, name, value)
    return config


def family_model(family: str, **fields) -> TimmVisionModel:
    """A model in eval mode with weights, positions and statistics that no new model has."""
    model = TimmVisionModel(family_config(family, **fields)).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        is_scale = parameter.ndim == 1 and name.endswith("weight")
        parameter.data = float(is_scale) + 0.2 * torch.randn(parameter.shape, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5, generator=generator)
    return model


def random_images(model: TimmVisionModel) -> torch.Tensor:
    size = model.config.image_size
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def embeddings(model: TimmVisionModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(random_images(model)).pooler_output


def assert_equal_outputs(model: TimmVisionModel, reference: TimmVisionModel):
    assert torch.allclose(embeddings(model), embeddings(reference), rtol=1e-5, atol=1e-6)
    expected = dict(reference.named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, expected[name]), name


@every_family
def test_loaded_model_equals_the_saved_one(family, tmp_path, memory_of_nans):
    model = family_model(family)
    model.save_pretrained(tmp_path)
    loaded, info = TimmVisionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert_equal_outputs(loaded, model)


@pytest.mark.parametrize("family", TABLES)
def test_model_built_on_the_meta_device_gets_its_tables(family):
    model = family_model(family)
    weights = model.state_dict()
    with torch.device("meta"):
        assigned, emptied = (TimmVisionModel(model.config) for _ in range(2))
    assert {tensor.device.type for tensor in assigned.state_dict().values()} == {"meta"}
    assigned.load_state_dict(weights, assign=True)
    assert_equal_outputs(assigned, model)

    emptied.to_empty(device="cpu")
    for tensor in (*emptied.parameters(), *emptied.buffers()):
        tensor.data.fill_(7)
    emptied.init_weights()
    emptied.load_state_dict(weights)
    assert_equal_outputs(emptied, model)


@pytest.mark.parametrize("family", ["eva02", "fastvit"])
def test_new_weights_are_timms_whatever_way_the_model_was_made(family, tmp_path, memory_of_nans):
    config = family_config(family, projection_dim=7, proj_type="linear")
    torch.manual_seed(0)
    fresh = TimmVisionModel(config)
    with torch.device("meta"):
        emptied = TimmVisionModel(config)
    emptied.to_empty(device="cpu").init_weights()
    fresh.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    dropped = {name for name in weights if "blocks.1" in name or "stages.2" in name or name.startswith("head.")}
    kept = {name: tensor for name, tensor in weights.items() if name not in dropped}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    loaded, info = TimmVisionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == dropped and dropped
    for model in (emptied, loaded):
        for name, tensor in model.state_dict().items():
            expected = fresh.state_dict()[name]
            assert tensor.isfinite().all(), name
            if tensor.unique().numel() < 3 or (model is loaded and name in kept):
                assert torch.equal(tensor, expected), name
            else:
                assert 0.5 < tensor.std() / expected.std() < 2, name
        assert embeddings(model).isfinite().all()
    assert 0.01 < fresh.head.proj.weight.std() < 0.03


def test_missing_running_statistics_are_those_of_a_new_model(tmp_path, memory_of_nans):
    family_model("fastvit").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.endswith("running_mean")}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = TimmVisionModel.from_pretrained(tmp_path)
    for name, buffer in loaded.named_buffers():
        assert (buffer == 0).all() if name.endswith("running_mean") else torch.equal(buffer, weights[name]), name


def test_timms_model_is_never_split_over_devices():
    for name in ("timm_vision", "clip_timm_vision"):
        assert "Eva" in tiny_model(name)._no_split_modules


@pytest.mark.parametrize("family", ["eva02", "pe_core", "swin", "relpos"])
def test_tables_in_half_precision_are_those_of_fp32_rounded(family, tmp_path):
    model = family_model(family)
    model.save_pretrained(tmp_path)
    low = TimmVisionModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    new = TimmVisionModel._from_config(model.config, dtype=torch.bfloat16)
    cast = family_model(family).to(torch.bfloat16)
    for other in (low, new):
        for (name, ours), expected in zip(other.named_buffers(), cast.buffers(), strict=True):
            assert ours.dtype == expected.dtype and torch.equal(ours, expected), name
    assert {parameter.dtype for parameter in (*low.parameters(), *new.parameters())} == {torch.bfloat16}
    expected = embeddings(model)
    assert (embeddings(low).float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_building_on_the_meta_device_takes_no_memory_of_weights(monkeypatch):
    # 600 million parameters: were they filled, this would take seconds and 2.5 GB.
    import resource

    config = TimmVisionConfig(architecture="eva_giant_patch14_224", hidden_size=1408, model_args={"depth": 24})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.device("meta"):
        model = TimmVisionModel(config)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert model.num_parameters() > 5e8
    assert grown < 500_000


def test_building_on_the_meta_device_leaves_other_modules_alone():
    with torch.device("meta"):
        TimmVisionModel(tiny_timm_config())
    assert torch.nn.Linear(2, 3).weight.device.type == "cpu"
    assert torch.nn.Linear(2, 3).weight.stride() == (2, 1)


@every_family
def test_tokens_are_timms_features_in_rows(family):
    model = family_model(family)
    images = random_images(model)
    with torch.no_grad():
        tokens = model(images).last_hidden_state
        features = model.timm_model.forward_features(images)
    assert tokens.shape[2] == model.config.token_dim
    if features.ndim == 3:
        assert torch.equal(tokens, features)
    else:
        channels_last = family == "swin"
        maps = features if channels_last else features.permute(0, 2, 3, 1)
        assert torch.equal(tokens.view(maps.shape), maps)
        assert maps.shape[3] == model.config.token_dim


@every_family
def test_gradients_reach_hidden_states_and_change_no_value(family):
    model = family_model(family)
    expected = model(random_images(model), output_hidden_states=False).pooler_output
    with torch.no_grad():
        of_timm = model(random_images(model), output_hidden_states=True).hidden_states
    outputs = model(random_images(model), output_hidden_states=True)
    assert torch.equal(outputs.pooler_output, expected)
    # Through each, and not beside it, what the later ones are made of goes on; the last only counts if it is pooled.
    for states, later in zip(outputs.hidden_states, [*outputs.hidden_states[1:], outputs.last_hidden_state]):
        assert torch.autograd.grad(later.square().sum(), states, retain_graph=True)[0].any()
    for states, same in zip(outputs.hidden_states, of_timm, strict=True):
        assert torch.allclose(states, same, rtol=1e-4, atol=1e-5)


def test_models_with_several_feature_maps_give_their_embedding_alone():
    config = TimmVisionConfig(architecture="coat_tiny", hidden_size=216, proj_type="linear")
    outputs = TimmVisionModel(config)(torch.zeros(1, 3, 224, 224))
    assert outputs.last_hidden_state is None and outputs.pooler_output.shape == (1, 512)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
@pytest.mark.parametrize("whole_model", [False, True], ids=["tower", "dual_model"])
def test_gradient_checkpointing_recomputes_timms_layers(whole_model):
    model = tiny_model("clip_timm_vision" if whole_model else "timm_vision").train()
    tower = model.vision_model if whole_model else model
    pixel_values = tiny_inputs(model)["pixel_values"]
    forwards = []
    for block in tower.timm_model.blocks:
        block.register_forward_pre_hook(lambda *_: forwards.append(1))

    def gradients() -> list[torch.Tensor]:
        tower.zero_grad()
        (tower(pixel_values).pooler_output ** 2).sum().backward()
        return [parameter.grad.clone() for parameter in tower.parameters()]

    expected = gradients()
    assert len(forwards) == 2
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    assert all(torch.equal(ours, reference) for ours, reference in zip(gradients(), expected))
    assert len(forwards) == 2 + 4
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    gradients()
    assert len(forwards) == 2 + 4 + 2


def test_gradient_checkpointing_of_a_model_without_it_warns(monkeypatch, warnings_of_transformers):
    model = tiny_model("timm_vision")

    def refuse(enable: bool):
        assert not enable, "gradient checkpointing not supported"

    monkeypatch.setattr(model.timm_model, "set_grad_checkpointing", refuse)
    model.gradient_checkpointing = True
    assert not model.gradient_checkpointing
    assert any("no gradient checkpointing" in record.getMessage() for record in warnings_of_transformers.records)


@pytest.mark.parametrize("implementation", ["eager", "sdpa", None])
def test_attention_implementation_of_a_dual_model_is_accepted(implementation, tmp_path):
    model = tiny_model("clip_timm_vision")
    model.save_pretrained(tmp_path)
    loaded = OpenClipModel.from_pretrained(tmp_path, attn_implementation=implementation)
    with torch.no_grad():
        expected = model(**tiny_inputs(model)).logits_per_image
        assert torch.allclose(loaded(**tiny_inputs(model)).logits_per_image, expected, atol=1e-5)


def test_input_layer_is_where_adapters_hook_in():
    model = tiny_model("timm_vision")
    model.enable_input_require_grads()
    for parameter in model.parameters():
        parameter.requires_grad = False
    assert model(**tiny_inputs(model)).pooler_output.requires_grad


@pytest.mark.filterwarnings("ignore:.*device_map keys do not match any submodules")
@pytest.mark.parametrize(
    "places",
    [{"vision_model": "disk"}, {"vision_model.timm_model": "disk", "vision_model.head": "cpu"}],
    ids=["tower", "part_of_it"],
)
def test_model_on_disk_gives_the_same(places, tmp_path):
    model = tiny_model("clip_timm_vision")
    model.save_pretrained(tmp_path)
    places = {**places, "text_model": "cpu", "logit_scale": "cpu"}
    offloaded = OpenClipModel.from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "offload")
    with torch.no_grad():
        expected = model(**tiny_inputs(model)).logits_per_image
        assert torch.allclose(offloaded(**tiny_inputs(model)).logits_per_image, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_reparameterized_model_gives_the_same_and_is_saved_in_this_form(dtype, tmp_path):
    model = family_model("fastvit").to(dtype)
    expected = embeddings(model)
    model.reparameterize()
    fused = embeddings(model)
    assert model.config.reparameterized and model.dtype == dtype
    assert not any("conv_kxk" in name for name in model.state_dict())
    if dtype == torch.float32:
        assert (fused - expected).abs().max() < 1e-5 * expected.abs().max()
    else:
        exact = embeddings(family_model("fastvit"))
        assert (fused - exact).abs().max() <= 2 * (expected - exact).abs().max()
    model.save_pretrained(tmp_path)
    loaded, info = TimmVisionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert torch.allclose(embeddings(loaded), fused, rtol=1e-5, atol=1e-6)
    loaded.reparameterize()  # a second time changes nothing
    assert loaded.state_dict().keys() == model.state_dict().keys()


def test_another_image_size_is_refused_unless_asked_for():
    model = family_model("convnext")
    images = torch.randn(1, 3, 96, 64)
    with pytest.raises(ValueError, match=r"\(96, 64\), the model expects \(64, 64\)"):
        model(images)
    with pytest.raises(ValueError, match="batch, 3, height, width"):
        model(images[:, :1])
    assert model(images, interpolate_pos_encoding=True).last_hidden_state.shape == (1, 3 * 2, 64)
    dynamic = tiny_timm_config()
    dynamic.model_args["dynamic_img_size"] = True
    outputs = TimmVisionModel(dynamic)(torch.randn(1, 3, 32, 40), interpolate_pos_encoding=True)
    assert outputs.last_hidden_state.shape == (1, 1 + 4 * 5, 24)


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18", "local-dir:/tmp/x", "org/name", "../x", "resnet18.", ""])
def test_configuration_refuses_addresses(name):
    with pytest.raises(Exception, match="must be the name of a model that timm knows"):
        TimmVisionConfig(architecture=name)


@pytest.mark.parametrize(
    "model_args",
    [
        {"pretrained": True},
        {"checkpoint_path": "weights.pth"},
        {"pretrained_cfg": {"url": "http://example.com"}},
        {"cache_dir": "/tmp"},
        {"num_classes": 3},
        {"features_only": True},
    ],
    ids=lambda args: next(iter(args)),
)
def test_configuration_refuses_other_arguments_than_sizes_rates_and_switches(model_args):
    with pytest.raises(Exception, match="model_args may hold"):
        TimmVisionConfig(model_args=model_args)


def test_configuration_refuses_values_that_are_no_numbers():
    with pytest.raises(Exception, match="must be a number"):
        TimmVisionConfig(model_args={"depth": "2"})


def test_nothing_is_downloaded(monkeypatch):
    calls = []
    create_model = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *args, **kwargs: calls.append(kwargs) or create_model(*args, **kwargs)
    )
    TimmVisionModel(tiny_timm_config())
    assert calls and all(call["pretrained"] is False for call in calls)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "resnet_of_tomorrow"}, "Unknown model.*upgrade timm"),
        ({"model_args": {"reg_tokens": 3}}, "reg_tokens"),
        ({"pool_type": "median"}, "pool_type='median'"),
        ({"pool_type": "abs_attn", "architecture": "vit_base_patch16_224"}, "its features are no maps"),
        ({"input_size": 96}, "input_size=96"),
        ({"architecture": "mobilenetv3_small_050"}, "its pooling makes 1024 channels of the 288.*proj_type=None"),
    ],
    ids=["unknown_model", "unknown_argument", "unknown_pool", "no_maps", "no_other_size", "wider_head"],
)
def test_what_timm_cannot_build_is_said(fields, message):
    with torch.device("meta"), pytest.raises(ValueError, match=f"(?s)timm .* cannot build an image tower.*{message}"):
        TimmVisionModel(TimmVisionConfig(**{"architecture": "convnext_tiny", "hidden_size": 768, **fields}))


def test_missing_timm_is_said(monkeypatch):
    from transformers.utils import import_utils

    monkeypatch.setattr(import_utils, "is_timm_available", lambda: False)
    monkeypatch.setitem(import_utils.BACKENDS_MAPPING, "timm", (lambda: False, import_utils.TIMM_IMPORT_ERROR))
    with pytest.raises(ImportError, match="pip install timm"):
        TimmVisionModel(tiny_timm_config())
