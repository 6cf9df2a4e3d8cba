"""Behaviour of the ResNet tower that the generic tests of models do not see."""

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from tiny_configs import tiny_resnet_cfg
from tiny_models import RESNET, tiny_config, tiny_inputs, tiny_model
from transformers import AttentionInterface, AutoModel, modeling_utils

from open_clip_transformers.configuration.configuration_coca import CoCaConfig
from open_clip_transformers.configuration.configuration_modified_resnet import ModifiedResNetConfig
from open_clip_transformers.modeling.modeling_coca import CoCaForConditionalGeneration
from open_clip_transformers.modeling.modeling_modified_resnet import ModifiedResNetBottleneck, ModifiedResNetModel
from open_clip_transformers.modeling.modeling_open_clip import (
    OpenClipForImageClassification,
    OpenClipVisionModelWithProjection,
)


IMAGES, HEADS, TOKENS = 3, 8, 3 * 3


def embeddings(model, pixel_values: torch.Tensor, **kwargs) -> torch.Tensor:
    with torch.no_grad():
        return model(pixel_values, **kwargs).pooler_output


def flash_attention(module, query, key, value, attention_mask, scaling=None, is_causal=None, **kwargs):
    """FlashAttention's contract: one query an image, no mask, (batch, length, heads, dim) out."""
    assert query.shape[:3] == (IMAGES, HEADS, 1) and key.shape == value.shape
    assert attention_mask is None and is_causal is False and isinstance(scaling, float)
    weights = (query @ key.transpose(-1, -2) * scaling).softmax(-1)
    return (weights @ value).transpose(1, 2), None


@pytest.mark.parametrize("implementation", ["sdpa", "flash_attention_of_a_test"])
def test_pooling_is_the_same_with_every_attention_function(implementation, monkeypatch):
    AttentionInterface.register("flash_attention_of_a_test", flash_attention)
    monkeypatch.setattr(modeling_utils, "lazy_import_flash_attention", lambda *args, **kwargs: None)
    model = tiny_model("resnet")
    pixel_values = tiny_inputs(model)["pixel_values"]
    model.set_attn_implementation("eager")
    expected = embeddings(model, pixel_values)
    model.set_attn_implementation(implementation)
    assert torch.allclose(embeddings(model, pixel_values), expected, rtol=1e-4, atol=1e-5)


def test_hidden_states_are_stages_and_attentions_are_the_poolings():
    model = tiny_model("resnet")
    model.set_attn_implementation("eager")
    inputs = tiny_inputs(model)
    with torch.no_grad():
        outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
    sides, channels = (24, 24, 12, 6, 3), (6, 24, 48, 96, 192)
    assert [states.shape for states in outputs.hidden_states] == [
        (IMAGES, width, side, side) for width, side in zip(channels, sides, strict=True)
    ]
    assert torch.equal(outputs.last_hidden_state, outputs.hidden_states[-1].flatten(2).transpose(1, 2))
    (weights,) = outputs.attentions
    assert weights.shape == (IMAGES, HEADS, 1, 1 + TOKENS)
    assert torch.allclose(weights.sum(-1), torch.ones(()))
    assert model.config.hidden_sizes == list(channels[1:])
    assert model.config.token_dim == outputs.last_hidden_state.shape[-1]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 3, 96, 128), r"height and width \(96, 128\), the model expects \(96, 96\).*interpolate_pos_encoding"),
        ((3, 1, 96, 96), r"shape \(3, 1, 96, 96\), the model expects \(batch, 3, height, width\)"),
        ((3, 96, 96), r"shape \(3, 96, 96\), the model expects"),
    ],
    ids=["too_wide", "grey", "no_batch"],
)
def test_images_of_another_shape_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        tiny_model("resnet")(torch.randn(shape))


def test_images_of_another_size_are_taken_with_resized_positions():
    model = tiny_model("resnet")
    same, other = torch.randn(2, 3, 96, 96), torch.randn(2, 3, 64, 160)
    assert torch.equal(embeddings(model, same, interpolate_pos_encoding=True), embeddings(model, same))
    # The same model made for the other size: the mean's position stays, the others are interpolated.
    mean, grid = model.attn_pool.position_embedding.detach().split([1, TOKENS])
    grid = grid.T.view(1, 192, 3, 3)
    grid = F.interpolate(grid, size=(2, 5), mode="bicubic", antialias=True, align_corners=False)
    wide = tiny_model("resnet", image_size=[64, 160])
    positions = {"attn_pool.position_embedding": torch.cat([mean, grid.view(192, 10).T])}
    wide.load_state_dict(model.state_dict() | positions)
    ours = embeddings(model, other, interpolate_pos_encoding=True)
    assert torch.allclose(ours, embeddings(wide, other), rtol=1e-5, atol=1e-6)


def gradients(model, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    outputs = model(pixel_values)
    (outputs.pooler_output.square().mean() + outputs.last_hidden_state.square().mean()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_every_parameter_gets_a_gradient():
    model = tiny_model("resnet").train()
    grads = gradients(model, tiny_inputs(model)["pixel_values"])
    assert [name for name, grad in grads.items() if grad is None or not grad.any()] == []


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_.* is deprecated:FutureWarning")
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non_reentrant"])
def test_gradient_checkpointing_computes_bottlenecks_twice_and_counts_batches_once(reentrant):
    model, plain = tiny_model("resnet").train(), tiny_model("resnet").train()
    pixel_values = tiny_inputs(model)["pixel_values"]
    expected = gradients(plain, pixel_values)
    computed = []
    for module in model.modules():
        if isinstance(module, ModifiedResNetBottleneck):
            module.conv3.register_forward_hook(lambda *_: computed.append(1))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    for name, gradient in gradients(model, pixel_values).items():
        assert torch.allclose(gradient, expected[name], rtol=1e-5, atol=1e-7), name
    assert len(computed) == 2 * 6
    assert all(torch.equal(buffer, plain.get_buffer(name)) for name, buffer in model.named_buffers())
    # Switched off again, every forward counts.
    model.gradient_checkpointing_disable()
    for one in (model, plain):
        gradients(one, pixel_values)
    assert len(computed) == 3 * 6
    assert all(torch.equal(buffer, plain.get_buffer(name)) for name, buffer in model.named_buffers())


def test_new_bottlenecks_hand_on_their_input():
    torch.manual_seed(0)
    model = ModifiedResNetModel(tiny_config(RESNET).vision_config)
    bottlenecks = [module for module in model.modules() if isinstance(module, ModifiedResNetBottleneck)]
    assert len(bottlenecks) == 6
    for layer in bottlenecks:
        assert not layer.normalization.weight.any()
        images = torch.rand(2, layer.conv1.convolution.in_channels, 4, 6)
        assert torch.equal(layer.eval()(images), layer.shortcut(images).relu() if layer.stride > 1 else images) or (
            layer.conv3.out_channels != images.shape[1]
        )


def test_weights_that_a_file_lacks_start_as_new_ones(tmp_path, memory_of_nans):
    model = tiny_model("resnet")
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    tensors = {name: tensor for name, tensor in saved.items() if "stages.3" not in name}
    del tensors["attn_pool.attention.q_proj.weight"], tensors["attn_pool.position_embedding"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = ModifiedResNetModel.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == saved.keys() - tensors.keys()
    for name, tensor in loaded.state_dict().items():
        if name in tensors:
            assert torch.equal(tensor, tensors[name]), name
        assert tensor.isfinite().all(), name
    assert loaded.attn_pool.attention.q_proj.weight.std().item() == pytest.approx(192**-0.5, rel=0.1)
    assert loaded.attn_pool.position_embedding.std().item() == pytest.approx(192**-0.5, rel=0.1)
    for layer in loaded.encoder.stages[3].layers:
        assert not layer.normalization.weight.any()
        assert (layer.normalization.running_var == 1).all() and layer.normalization.num_batches_tracked == 0


def test_counts_of_batches_stay_whole_numbers_in_half_precision(tmp_path):
    model = tiny_model("resnet")
    model.save_pretrained(tmp_path)
    low = ModifiedResNetModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for name, tensor in low.state_dict().items():
        assert tensor.dtype == (torch.int64 if name.endswith("num_batches_tracked") else torch.bfloat16), name
    expected, ours = (embeddings(m, tiny_inputs(model)["pixel_values"]).float() for m in (model, low))
    assert (ours - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize(
    ("model_class", "field"),
    [(OpenClipVisionModelWithProjection, "image_embeds"), (OpenClipForImageClassification, "logits")],
    ids=["with_projection", "classification"],
)
def test_heads_and_the_tower_load_from_the_folder_of_a_whole_model(model_class, field, tmp_path):
    model = tiny_model("clip_resnet")
    model.save_pretrained(tmp_path)
    pixel_values = tiny_inputs(model)["pixel_values"]
    tower, info = ModifiedResNetModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.allclose(embeddings(tower, pixel_values), embeddings(model.vision_model, pixel_values), atol=1e-5)
    head = model_class.from_pretrained(tmp_path)
    with torch.no_grad():
        assert head(pixel_values)[field].isfinite().all()


def test_model_gives_the_same_with_parts_on_disk(tmp_path):
    model = tiny_model("resnet")
    model.save_pretrained(tmp_path)
    device_map = {"embeddings": "cpu", "encoder": "disk", "attn_pool": "disk"}
    offloaded = AutoModel.from_pretrained(tmp_path, device_map=device_map, offload_folder=tmp_path / "offload")
    pixel_values = tiny_inputs(model)["pixel_values"]
    assert torch.allclose(embeddings(offloaded, pixel_values), embeddings(model, pixel_values), rtol=1e-5, atol=1e-6)


def shallow_model() -> ModifiedResNetModel:
    config = tiny_config(RESNET).vision_config
    config.depths = [1, 1, 1, 1]
    return ModifiedResNetModel(config).eval()


def test_forward_compiles_without_a_graph_break():
    torch.compiler.reset()
    model = shallow_model()
    pixel_values = tiny_inputs(model)["pixel_values"]
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.allclose(embeddings(compiled, pixel_values), embeddings(model, pixel_values), atol=1e-6)


def test_forward_exports_with_any_batch_size():
    model = shallow_model()
    inputs = tiny_inputs(model)
    shapes = {"pixel_values": {0: torch.export.Dim("batch", min=2, max=64)}}
    exported = torch.export.export(model, (), inputs, dynamic_shapes=shapes, strict=False).module()
    fewer = inputs["pixel_values"][:2]
    assert torch.allclose(exported(pixel_values=fewer).pooler_output, embeddings(model, fewer), atol=1e-6)


def test_coca_writes_captions_from_feature_maps():
    # open_clip's CoCa wants a tower that returns tokens, which its ResNet does not; ours does.
    vision = tiny_config(RESNET).vision_config
    text = {"hidden_size": 192, "num_hidden_layers": 1, "num_attention_heads": 3, "vocab_size": 97, "embed_cls": True}
    text |= {"projection_dim": 28, "bos_token_id": 95, "eos_token_id": 96, "max_position_embeddings": 10}
    decoder = {"hidden_size": 192, "num_hidden_layers": 1, "num_attention_heads": 3, "vocab_size": 97}
    config = CoCaConfig(vision_config=vision, text_config=text, multimodal_config=decoder)
    model = CoCaForConditionalGeneration(config).eval()
    captions = model.generate(pixel_values=torch.randn(2, 3, 96, 96), max_new_tokens=3)
    assert captions.shape[0] == 2 and (captions[:, 0] == 95).all()


# Fields, and what the message must say.
ERRORS = {
    "three_stages": ({"depths": [1, 2, 3]}, r"four numbers of bottlenecks.*got \[1, 2, 3\]"),
    "empty_stage": ({"depths": [1, 2, 0, 3]}, r"depths must lie in \[1, 1024\], got \[1, 2, 0, 3\]"),
    "three_sizes": ({"image_size": [64, 64, 64]}, r"image_size.*\[height, width\]"),
    "small_image": ({"image_size": [96, 30]}, r"32 or more on both sides, got \[96, 30\]"),
    "heads": ({"num_attention_heads": 7}, r"32 \* embedding_size \(2048\) must be a multiple of .*\(7\)"),
    "dropout": ({"attention_dropout": 1.0}, r"attention_dropout must lie in \[0, 1\), got 1\.0"),
}


@pytest.mark.parametrize(("fields", "message"), ERRORS.values(), ids=ERRORS)
def test_configuration_refuses_what_cannot_be_built(fields, message):
    with pytest.raises((StrictDataclassError, ValueError), match=message):
        ModifiedResNetConfig(**fields)


def test_attention_dropout_acts_in_training_alone():
    model = tiny_model("resnet", attention_dropout=0.5)
    pixel_values = tiny_inputs(model)["pixel_values"]
    assert torch.equal(embeddings(model, pixel_values), embeddings(model, pixel_values))
    for norm in model.modules():
        norm.training = False
    model.attn_pool.attention.training = True
    assert not torch.allclose(embeddings(model, pixel_values), embeddings(model, pixel_values))


def test_tiny_configuration_is_that_of_open_clip():
    config = tiny_config(tiny_resnet_cfg(vision_cfg={"width": 10, "head_width": 16})).vision_config
    assert (config.embedding_size, config.num_attention_heads, config.depths) == (10, 20, [1, 2, 1, 2])
