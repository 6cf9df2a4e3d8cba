"""SigLIP checkpoints of big_vision: the tensors that open_clip makes of the same file, and the model around them."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.convert import load_big_vision_weights
from reduced_models import reduced_cfg, reduced_timm
from transformers import AutoImageProcessor, AutoModel

import open_clip_transformers  # noqa: F401  registers the Auto classes
from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint
from open_clip_transformers.convert_scripts.mapping.config import build_config
from open_clip_transformers.convert_scripts.mapping.state_dict import resolve
from open_clip_transformers.convert_scripts.sources.architectures import get_architecture
from open_clip_transformers.convert_scripts.sources.big_vision import big_vision_table, big_vision_to_open_clip


@pytest.fixture
def model_cfg():
    """`model_cfg` of a SigLIP at reduced size, within which timm builds its tower so."""
    with reduced_timm():
        yield reduced_cfg(get_architecture("ViT-B-16-SigLIP"))


class Arrays(dict):
    """Arrays of a checkpoint as Flax names and shapes them, with random values."""

    def __init__(self):
        self.generator = np.random.default_rng(0)

    def add(self, name: str, *shape: int):
        self[name] = (0.1 * self.generator.standard_normal(shape)).astype(np.float32)

    def dense(self, name: str, width_in: int, width_out: int):
        self.add(f"{name}/kernel", width_in, width_out)
        self.add(f"{name}/bias", width_out)

    def norm(self, name: str, width: int):
        self.add(f"{name}/scale", width)
        self.add(f"{name}/bias", width)

    def attention(self, name: str, width: int, heads: int):
        for part in ("query", "key", "value"):
            self.add(f"{name}/{part}/kernel", width, heads, width // heads)
            self.add(f"{name}/{part}/bias", heads, width // heads)
        self.add(f"{name}/out/kernel", heads, width // heads, width)
        self.add(f"{name}/out/bias", width)

    def mlp(self, name: str, width: int, width_inside: int):
        self.dense(f"{name}/Dense_0", width, width_inside)
        self.dense(f"{name}/Dense_1", width_inside, width)

    def layers(self, name: str, config):
        for i in range(config.num_hidden_layers):
            block, width = f"{name}/encoderblock_{i}", config.hidden_size
            self.norm(f"{block}/LayerNorm_0", width)
            self.attention(f"{block}/MultiHeadDotProductAttention_0", width, config.num_attention_heads)
            self.norm(f"{block}/LayerNorm_1", width)
            self.mlp(f"{block}/MlpBlock_0", width, config.intermediate_size)
        self.norm(f"{name}/encoder_norm", config.hidden_size)


def make_arrays(config) -> Arrays:
    arrays, vision, text = Arrays(), config.vision_config, config.text_config
    width, side = vision.hidden_size, vision.image_size // vision.patch_size
    arrays.add("img/embedding/kernel", vision.patch_size, vision.patch_size, 3, width)
    arrays.add("img/embedding/bias", width)
    arrays.add("img/pos_embedding", 1, side**2, width)
    arrays.layers("img/Transformer", vision)
    arrays.add("img/MAPHead_0/probe", 1, 1, width)
    arrays.attention("img/MAPHead_0/MultiHeadDotProductAttention_0", width, vision.num_attention_heads)
    arrays.norm("img/MAPHead_0/LayerNorm_0", width)
    arrays.mlp("img/MAPHead_0/MlpBlock_0", width, vision.intermediate_size)
    arrays.add("txt/Embed_0/embedding", text.vocab_size, text.hidden_size)
    arrays.add("txt/pos_embedding", 1, text.max_position_embeddings, text.hidden_size)
    arrays.layers("txt/Encoder_0", text)
    arrays.dense("txt/head", text.hidden_size, text.projection_dim)
    arrays |= {"t": np.array([2.1], np.float32), "b": np.array([-9.7], np.float32)}
    return arrays


def stacked(arrays: dict) -> dict:
    """The same arrays with all layers of a tower in one."""
    result = {}
    for name, array in arrays.items():
        tower, block, rest = name.partition("/encoderblock_")
        if not block:
            result[name] = array
            continue
        result.setdefault(f"{tower}/encoderblock/{rest.partition('/')[2]}", []).append(array)
    return {name: np.stack(array) if isinstance(array, list) else array for name, array in result.items()}


def training_checkpoint(arrays: dict) -> dict:
    return {**{f"params/{name}": array for name, array in arrays.items()}, "opt/0/count": np.array(7)}


FORMS = {
    "layers-apart": lambda arrays: arrays,
    "layers-stacked": stacked,
    "training-checkpoint": lambda arrays: training_checkpoint(stacked(arrays)),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_tensors_and_outputs_are_open_clips(tmp_path, model_cfg, form):
    np.savez(tmp_path / "siglip.npz", **form(make_arrays(build_config(model_cfg))))
    report = convert_open_clip_checkpoint(
        tmp_path / "siglip.npz", tmp_path / "out", config=model_cfg, with_processor=False, verify="full"
    )
    assert "the checkpoint has the layout of big_vision's SigLIP" in report.notes
    kwargs = {key: value for key, value in model_cfg.items() if key != "custom_text"}
    reference = open_clip.model.CustomTextCLIP(**kwargs).eval()
    load_big_vision_weights(reference, str(tmp_path / "siglip.npz"))
    config = build_config(model_cfg)
    tensors = {key: torch.from_numpy(array) for key, array in np.load(tmp_path / "siglip.npz").items()}
    ours, theirs = big_vision_to_open_clip(tensors, config), reference.state_dict()
    assert ours.keys() == theirs.keys()
    assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    images, texts = torch.randn(2, 3, 224, 224), torch.randint(1, 97, (2, config.text_config.max_position_embeddings))
    with torch.inference_mode():
        expected, _ = reference.get_logits(images, texts)
        logits = model(pixel_values=images, input_ids=texts).logits_per_image
    assert (logits - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_table_is_read_backwards(model_cfg):
    config = build_config(model_cfg)
    arrays = {name: torch.from_numpy(array) for name, array in make_arrays(config).items()}
    tensors = big_vision_to_open_clip(arrays, config)
    steps, unmatched = resolve(tensors, big_vision_table(config), "targets")
    assert unmatched == []
    back = {}
    for step in steps:
        back |= zip(step.sources, step.operation.invert(tuple(tensors[name] for name in step.targets)))
    assert back.keys() == arrays.keys()
    assert all(torch.equal(back[name], arrays[name]) for name in arrays)


def test_image_settings_are_siglips(tmp_path, model_cfg):
    model_cfg["text_cfg"] |= {"hf_tokenizer_name": None, "tokenizer_kwargs": None, "vocab_size": 49408}
    np.savez(tmp_path / "siglip.npz", **make_arrays(build_config(model_cfg)))
    convert_open_clip_checkpoint(tmp_path / "siglip.npz", tmp_path / "out", config=model_cfg, verify="none")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    assert (processor.resize_mode, list(processor.image_mean)) == ("squash", [0.5] * 3)


def test_keys_without_a_place_are_named(tmp_path, model_cfg):
    arrays = make_arrays(build_config(model_cfg))
    arrays.add("img/wings/kernel", 3)
    del arrays["txt/Encoder_0/encoderblock_1/MultiHeadDotProductAttention_0/key/bias"]
    np.savez(tmp_path / "siglip.npz", **arrays)
    with pytest.raises(
        ConversionError, match=r"(?s)img/wings/kernel.*missing:\n  txt/Encoder_0/encoderblock_1/.*key/bias"
    ):
        convert_open_clip_checkpoint(tmp_path / "siglip.npz", tmp_path / "out", config=model_cfg, with_processor=False)


def test_other_architectures_are_refused(tmp_path, model_cfg):
    np.savez(tmp_path / "siglip.npz", **make_arrays(build_config(model_cfg)))
    with pytest.raises(ConversionError, match="SigLIP of big_vision, and the architecture is another"):
        convert_open_clip_checkpoint(
            tmp_path / "siglip.npz", tmp_path / "out", model_name="ViT-B-32", with_processor=False
        )


def test_arrays_of_objects_are_not_unpickled(tmp_path, model_cfg):
    path = Path(tmp_path / "siglip.npz")
    np.savez(path, **{"img/embedding/kernel": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(ConversionError, match="cannot be read"):
        convert_open_clip_checkpoint(path, tmp_path / "out", config=model_cfg, with_processor=False)
