"""MaMMUT computes the values of LAION's open_clip_mammut: features, logits, losses, and captions token for token.

`tests/data/open_clip_mammut/README.md` tells how the expected values were made. open_clip 4's masked mean is compared
with its definition.
"""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_configs import VOCAB_SIZE, tiny_mammut_4_cfg
from tiny_models import BOS, EOS, PAD, randomized, tiny_inputs
from torch.nn import functional as F
from transformers.generation import EosTokenCriteria

from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint
from open_clip_transformers.convert_scripts.convert_to_open_clip import convert_to_open_clip
from open_clip_transformers.convert_scripts.mapping.config import TokenIds, build_config
from open_clip_transformers.convert_scripts.mapping.plan import plan_conversion
from open_clip_transformers.modeling.modeling_mammut import (
    MaMMUTForConditionalGeneration,
    MaMMUTForZeroShotImageClassification,
    MaMMUTModel,
)


BOUND = 2e-5
DATA = Path(__file__).parents[1] / "data" / "open_clip_mammut"
FOLDERS = {path.parent.name: path.parent for path in sorted(DATA.glob("*/captions.json"))}
CAPTIONS = {name: json.loads((folder / "captions.json").read_text()) for name, folder in FOLDERS.items()}
CALLS = list(next(iter(CAPTIONS.values()))["calls"])


@cache
def load_pair(name: str) -> tuple[MaMMUTModel, dict[str, torch.Tensor]]:
    """Our model of a folder, and the fork's inputs and values."""
    folder, captions = FOLDERS[name], CAPTIONS[name]
    model_cfg = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    ids = TokenIds(captions["sot_token_id"], captions["eos_token_id"], captions["pad_token_id"])
    plan = plan_conversion(build_config(model_cfg, ids), load_file(folder / "open_clip_model.safetensors"))
    model = MaMMUTForConditionalGeneration(plan.model.config).eval()
    model.load_state_dict(dict(plan.converted()))
    return model, load_file(folder / "values.safetensors")


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, name: str):
    assert ours.shape == theirs.shape, name
    difference = (ours - theirs).abs().max() / theirs.abs().max()
    assert difference < BOUND, f"{name}: {difference:.1e}"


@pytest.mark.floor
@pytest.mark.parametrize("name", FOLDERS)
def test_outputs_equal_the_forks(name):
    model, values = load_pair(name)
    with torch.no_grad():
        outputs = model(input_ids=values["input_ids"], pixel_values=values["pixel_values"].float())
    for key in ("image_embeds", "text_embeds", "logits_per_image", "logits"):
        assert_close(outputs[key], values[key], key)


@pytest.mark.parametrize("name", FOLDERS)
def test_losses_equal_the_forks(name):
    model, values = load_pair(name)
    labels = values["input_ids"].masked_fill(values["input_ids"] == model.config.pad_token_id, -100)
    with torch.no_grad():
        inputs = {"input_ids": values["input_ids"], "pixel_values": values["pixel_values"].float()}
        assert_close(model(**inputs, labels=labels).loss, values["caption_loss"], "caption loss")
        assert_close(model(**inputs, return_loss=True).loss, values["contrastive_loss"], "contrastive loss")
        both = 2 * values["caption_loss"] + values["contrastive_loss"]
        assert_close(model(**inputs, labels=labels, return_loss=True).loss, both, "loss")


def generate_arguments(open_clip_kwargs: dict, config) -> dict:
    """Arguments of our `generate` for those of the fork's."""
    kwargs = {"seq_len": 30, "min_seq_len": 5, "generation_type": "beam_search", **open_clip_kwargs}
    arguments = {
        "max_length": kwargs["seq_len"],
        "min_length": kwargs["min_seq_len"],
        "repetition_penalty": kwargs.get("repetition_penalty", 1.0),
    }
    if kwargs["generation_type"] == "beam_search":
        beams = {"num_beams": kwargs.get("num_beams", 6), "num_beam_groups": kwargs.get("num_beam_groups", 3)}
        # Groups without a penalty mean open_clip's search; with one group there is transformers' own to choose from.
        return {**arguments, **beams, **({"open_clip_scores": True} if beams["num_beam_groups"] == 1 else {})}
    # The fork, too, ends a sampled caption at the padding id, and with the end token at the last position.
    ends = EosTokenCriteria([config.eos_token_id, config.pad_token_id])
    top_k, top_p = kwargs.get("top_k", 0), kwargs.get("top_p", 1.0)
    choice = {"do_sample": True, "top_k": top_k, "top_p": top_p} if top_k != 1 else {}
    return {**arguments, **choice, "forced_eos_token_id": config.eos_token_id, "stopping_criteria": [ends]}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", FOLDERS)
def test_generate_gives_the_tokens_of_the_fork(name, call):
    model, values = load_pair(name)
    expected = CAPTIONS[name]["calls"][call]
    arguments = generate_arguments(expected["open_clip_kwargs"], model.config)
    for index, (image, tokens) in enumerate(zip(values["pixel_values"].float(), expected["tokens"])):
        if expected["text"] is not None:
            arguments["input_ids"] = torch.tensor(expected["text"][index])[None]
        torch.manual_seed(index)
        (caption,) = model.generate(pixel_values=image[None], **arguments).tolist()
        assert caption == tokens


@pytest.mark.parametrize("name", FOLDERS)
def test_caches_and_batches_change_no_caption(name):
    model, values = load_pair(name)
    pixel_values = values["pixel_values"].float()
    arguments = {"max_length": 20, "num_beams": 2, "eos_token_id": -1}
    expected = [model.generate(pixel_values=image[None], use_cache=False, **arguments) for image in pixel_values]
    for settings in ({}, {"cache_implementation": "static"}):
        captions = model.generate(pixel_values=pixel_values, **arguments, **settings)
        assert captions.tolist() == torch.cat(expected).tolist()


@pytest.mark.parametrize("name", FOLDERS)
def test_conversion_there_and_back_gives_the_same_tensors(name, tmp_path):
    ours, back = tmp_path / "ours", tmp_path / "back"
    convert_open_clip_checkpoint(FOLDERS[name], ours, with_processor=False, verify="structure")
    convert_to_open_clip(ours, back, with_processor=False, verify="structure")
    before, after = (load_file(folder / "open_clip_model.safetensors") for folder in (FOLDERS[name], back))
    assert before.keys() == after.keys()
    assert [key for key in before if not torch.equal(before[key], after[key])] == []
    given, written = (
        json.loads((folder / "open_clip_config.json").read_text())["model_cfg"] for folder in (FOLDERS[name], back)
    )
    assert build_config(written).to_dict() == build_config(given).to_dict()


@pytest.mark.parametrize("name", FOLDERS)
def test_a_dual_model_of_the_same_folder_has_the_same_similarities(name, tmp_path):
    model, values = load_pair(name)
    model.save_pretrained(tmp_path)
    dual, info = MaMMUTForZeroShotImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        outputs = dual(input_ids=values["input_ids"], pixel_values=values["pixel_values"].float())
    assert_close(outputs.logits_per_image, values["logits_per_image"], "logits_per_image")


def _open_clip_4_model(**multimodal_cfg) -> MaMMUTModel:
    model_cfg = tiny_mammut_4_cfg(multimodal_cfg=multimodal_cfg)
    return randomized(MaMMUTModel(build_config(model_cfg, TokenIds(BOS, EOS, PAD))).eval())


@pytest.mark.floor
def test_masked_mean_is_that_of_the_text_alone():
    """open_clip 4: padding is neither attended to nor pooled, so that a text without any is the same."""
    model = _open_clip_4_model()
    assert model.text_model.ignores_padding
    input_ids = tiny_inputs(model)["input_ids"]
    with torch.no_grad():
        together = model.get_text_features(input_ids)
        for row, pooled in zip(input_ids, together.pooler_output):
            tokens = model.get_text_features(row[row != PAD][None]).last_hidden_state
            assert_close(pooled, tokens.mean(dim=1)[0], "text embedding")


def test_open_clip_4_form_is_read_and_written(tmp_path):
    model = _open_clip_4_model(proj_type="linear")
    folders = [tmp_path / name for name in ("ours", "theirs", "again")]
    model.save_pretrained(folders[0])
    convert_to_open_clip(folders[0], folders[1], with_processor=False, verify="structure")
    model_cfg = json.loads((folders[1] / "open_clip_config.json").read_text())["model_cfg"]
    assert "text_cfg" not in model_cfg and model_cfg["multimodal_cfg"]["cross_attn_ratio"] == 2
    tensors = load_file(folders[1] / "open_clip_model.safetensors")
    assert tensors["text.lm_head"].shape == (36, VOCAB_SIZE) and tensors["text.text_projection"].shape == (36, 36)
    convert_open_clip_checkpoint(folders[1], folders[2], with_processor=False, verify="structure")
    again = MaMMUTModel.from_pretrained(folders[2]).state_dict()
    assert [key for key, tensor in model.state_dict().items() if not torch.equal(tensor, again[key])] == []


def test_the_forks_weights_are_read_under_open_clip_4s_names(tmp_path):
    """open_clip 4 keeps the released weights under names of its own."""
    folder = FOLDERS["layer_scale_quick_gelu"]
    tensors = load_file(folder / "open_clip_model.safetensors")
    tensors["text.lm_head"] = tensors.pop("text.text_projection")
    save_file(tensors, tmp_path / "open_clip_model.safetensors")
    config = json.loads((folder / "open_clip_config.json").read_text())
    cfg = config["model_cfg"]
    text_cfg = cfg.pop("text_cfg")
    del cfg["custom_text"], text_cfg["does_full_decoding"]
    cfg["multimodal_cfg"] = {**text_cfg, "pool_type": "avg_all", "use_pad_mask": False}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    convert_open_clip_checkpoint(tmp_path, tmp_path / "ours", with_processor=False, verify="structure")
    model, values = MaMMUTModel.from_pretrained(tmp_path / "ours"), load_file(folder / "values.safetensors")
    with torch.no_grad():
        outputs = model(input_ids=values["input_ids"], pixel_values=values["pixel_values"].float())
    assert_close(outputs.text_embeds, values["text_embeds"], "text_embeds")
    assert_close(outputs.logits, values["logits"], "logits")


def test_left_padding_changes_nothing():
    model = load_pair("without_mlps")[0]
    values = load_pair("without_mlps")[1]
    input_ids, pixel_values = values["input_ids"][:, :7], values["pixel_values"].float()
    padded = F.pad(input_ids, (3, 0), value=model.config.pad_token_id)
    attention_mask = F.pad(torch.ones_like(input_ids), (3, 0))
    with torch.no_grad():
        expected = model(input_ids=input_ids, pixel_values=pixel_values)
        outputs = model(input_ids=padded, pixel_values=pixel_values, attention_mask=attention_mask)
        assert_close(outputs.text_embeds, expected.text_embeds, "text_embeds")
        assert_close(outputs.logits[:, 3:], expected.logits, "logits")
