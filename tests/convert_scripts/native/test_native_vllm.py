"""The files of transformers' own models as vLLM reads them: a stand-in for its loader, which needs a GPU or a build.

It follows vllm/model_executor/models/{registry,clip,siglip}.py of September 2026: the names of parameters that its
modules have, the prefixes that it skips, and what its processors ask of a tokenizer.
"""

import json

import numpy
import pytest
import transformers
from PIL import Image
from reduced_models import reduced_cfg, reduced_timm
from safetensors.torch import load_file
from tiny_configs import save_open_clip_folder, tiny_clip_cfg
from tiny_tokenizers import write_word_tokenizer
from transformers import AutoConfig, AutoProcessor, AutoTokenizer

from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint
from open_clip_transformers.convert_scripts.sources.architectures import get_architecture


# Its class by the first name in `architectures` that it knows.
REGISTRY = {"CLIPModel": transformers.CLIPProcessor, "SiglipModel": transformers.SiglipProcessor}
STACKED = {".q_proj.": ".qkv_proj.", ".k_proj.": ".qkv_proj.", ".v_proj.": ".qkv_proj."}
IGNORED = ("logit_scale", "logit_bias")
LAYER = ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2", "self_attn.out_proj", "self_attn.qkv_proj")
PARTS = {
    "CLIPModel": {
        "text_model.": ("embeddings.token_embedding", "embeddings.position_embedding", "final_layer_norm"),
        "vision_model.": (
            "embeddings.patch_embedding",
            "embeddings.position_embedding",
            "pre_layrnorm",
            "post_layernorm",
        ),
        "": ("text_projection", "visual_projection"),
    },
    "SiglipModel": {
        "text_model.": ("embeddings.token_embedding", "embeddings.position_embedding", "final_layer_norm", "head"),
        "vision_model.": (
            *(
                "embeddings.patch_embedding",
                "embeddings.position_embedding",
                "post_layernorm",
                "head.attention.out_proj",
            ),
            *("head.layernorm", "head.mlp.fc1", "head.mlp.fc2"),
        ),
    },
}
WITHOUT_BIAS = ("token_embedding", "position_embedding", "text_projection", "visual_projection")
PARAMETERS = {
    "CLIPModel": ["vision_model.embeddings.class_embedding"],
    "SiglipModel": [
        f"vision_model.head.{name}" for name in ("probe", "attention.in_proj_weight", "attention.in_proj_bias")
    ],
}


def parameters(architecture, config):
    """Names of the parameters of vLLM's model, all of which its loader has to find."""
    modules = [f"{prefix}{name}" for prefix, names in PARTS[architecture].items() for name in names]
    for prefix, tower in (("text_model.", config.text_config), ("vision_model.", config.vision_config)):
        layers = range(tower.num_hidden_layers)
        modules += [f"{prefix}encoder.layers.{layer}.{name}" for layer in layers for name in LAYER]
    names = {f"{module}.weight" for module in modules} | set(PARAMETERS[architecture])
    biased = {f"{module}.bias" for module in modules if not module.endswith(WITHOUT_BIAS)}
    if architecture == "CLIPModel":
        biased.remove("vision_model.embeddings.patch_embedding.bias")
    return names | biased


@pytest.fixture(scope="module", params=REGISTRY)
def folder(request, tmp_path_factory):
    source = tmp_path_factory.mktemp("native") / "source"
    with reduced_timm():  # as which open_clip builds SigLIP's tower
        if request.param == "CLIPModel":
            # As in all published ones, texts are no wider than embeddings: a buffer of their width holds both.
            save_open_clip_folder(source, tiny_clip_cfg(embed_dim=36, text_cfg={"vocab_size": 49408}))
        else:
            model_cfg = reduced_cfg(get_architecture("ViT-B-16-SigLIP"))
            model_cfg["text_cfg"] |= {"hf_tokenizer_name": "org/words", "tokenizer_kwargs": {"clean": "canonicalize"}}
            save_open_clip_folder(source, model_cfg, preprocess_cfg={"resize_mode": "squash"})
            words = ["<unk>", "</s>", "two", "cats"]
            write_word_tokenizer(source, words, "$A </s>", unk_token="<unk>", eos_token="</s>", pad_token="</s>")
        convert_open_clip_checkpoint(source, source.parent / "out", target="native", verify="none")
    return source.parent / "out"


def test_vllm_finds_the_weights_of_its_modules(folder):
    content = json.loads((folder / "config.json").read_text())
    (architecture,) = content["architectures"]
    assert architecture in REGISTRY and content["model_type"] == architecture.removesuffix("Model").lower()
    names = set()
    for file in folder.glob("*.safetensors"):
        for name in load_file(file):
            for own, stacked in STACKED.items():
                name = name.replace(own, stacked)
            names.add(name)
    names = {name for name in names if not name.startswith(IGNORED) and ".position_ids" not in name}
    assert names == parameters(architecture, AutoConfig.from_pretrained(folder))


def test_vllm_finds_sizes_that_it_can_run(folder):
    config = AutoConfig.from_pretrained(folder)
    text, vision = config.text_config, config.vision_config
    for tower in (text, vision):
        assert tower.hidden_size % tower.num_attention_heads == 0
        assert tower.intermediate_size and tower.layer_norm_eps and tower.hidden_act
    assert vision.image_size % vision.patch_size == 0
    assert text.hidden_size <= (config.projection_dim if config.model_type == "clip" else text.projection_size)
    assert AutoTokenizer.from_pretrained(folder).model_max_length <= text.max_position_embeddings


def test_vllm_finds_a_processor_that_it_can_use(folder):
    processor = AutoProcessor.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    (architecture,) = config.architectures
    assert type(processor) is REGISTRY[architecture]
    size = config.vision_config.image_size
    image = Image.fromarray(numpy.zeros((31, 47, 3), numpy.uint8))
    assert processor(images=image, return_tensors="pt").pixel_values.shape == (1, 3, size, size)
    tokenizer = processor.tokenizer
    # Id 0 stands for an image, whose prompt is empty: only special tokens.
    assert 0 not in tokenizer.all_special_ids or architecture == "SiglipModel"
    assert set(tokenizer("").input_ids) <= set(tokenizer.all_special_ids)
    assert tokenizer("two cats").input_ids[-1] == tokenizer.eos_token_id  # the token that is pooled
