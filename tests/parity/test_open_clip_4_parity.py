"""Models of open_clip 4 compute its values: features, logits, losses, and captions token for token.

`tests/data/open_clip_4/README.md` tells how the expected values were made.
"""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.modeling_utils import PreTrainedModel

from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint
from open_clip_transformers.convert_scripts.convert_to_open_clip import convert_to_open_clip
from open_clip_transformers.convert_scripts.mapping.config import TokenIds, build_config
from open_clip_transformers.convert_scripts.mapping.plan import plan_conversion
from open_clip_transformers.convert_scripts.processors.image import image_processor_settings
from open_clip_transformers.modeling.modeling_mammut import MaMMUTForConditionalGeneration
from open_clip_transformers.processing.image_processing_naflex import NaFlexImageProcessor
from open_clip_transformers.processing.image_processing_pil_naflex import NaFlexImageProcessorPil


BOUND = 2e-5
DATA = Path(__file__).parents[1] / "data" / "open_clip_4"
FOLDERS = {path.parent.name: path.parent for path in sorted(DATA.glob("*/values.safetensors"))}
CAPTIONERS = [name for name, folder in FOLDERS.items() if (folder / "captions.json").is_file()]
NAFLEX = [name for name in FOLDERS if name.startswith("naflex_")]
CALLS = ["greedy", "greedy_long", "beams", "default"]


@cache
def captions_of(folder: Path) -> dict:
    path = folder / "captions.json"
    return json.loads(path.read_text()) if path.is_file() else {}


@cache
def load_pair(name: str) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    """Our model of a folder, and open_clip's inputs and values."""
    folder = FOLDERS[name]
    model_cfg = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    if "hf_model_name" in model_cfg.get("text_cfg", {}):
        model_cfg["text_cfg"]["hf_model_name"] = str(folder / model_cfg["text_cfg"]["hf_model_name"])
    captions = captions_of(folder)
    ids = TokenIds(captions["sot_token_id"], captions["eos_token_id"], captions["pad_token_id"]) if captions else None
    plan = plan_conversion(build_config(model_cfg, ids), load_file(folder / "open_clip_model.safetensors"))
    model = type(plan.model)(plan.model.config).eval()
    model.load_state_dict(dict(plan.converted()))
    return model, load_file(folder / "values.safetensors")


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, name: str):
    assert ours.shape == theirs.shape, name
    difference = (ours - theirs).abs().max() / theirs.abs().max()
    assert difference < BOUND, f"{name}: {difference:.1e}"


@pytest.mark.floor
@pytest.mark.parametrize("name", FOLDERS)
def test_outputs_equal_open_clip_4(name):
    model, values = load_pair(name)
    patches = {key: values[key] for key in ("pixel_attention_mask", "spatial_shapes") if key in values}
    with torch.no_grad():
        outputs = model(input_ids=values["input_ids"], pixel_values=values["pixel_values"].float(), **patches)
    expected = values.keys() & {"image_embeds", "text_embeds", "logits_per_image", "logits"}
    assert len(expected) >= 3
    for key in expected:
        assert_close(outputs[key], values[key], key)


@pytest.mark.floor
@pytest.mark.parametrize(
    "processor_class", [NaFlexImageProcessor, NaFlexImageProcessorPil], ids=["torchvision", "pil"]
)
@pytest.mark.parametrize("name", NAFLEX)
def test_patches_equal_open_clip_4_bit_for_bit(name, processor_class):
    model, values = load_pair(name)
    images = [Image.fromarray(values[f"image_{index}"].numpy()) for index in range(4)]
    image_processor = processor_class(**image_processor_settings({}, model.config))
    inputs = image_processor(images, return_tensors="pt")
    assert {key: torch.equal(tensor, values[key]) for key, tensor in inputs.items()} == {
        "pixel_values": True,
        "pixel_attention_mask": True,
        "spatial_shapes": True,
    }


@pytest.mark.parametrize("name", CAPTIONERS)
def test_losses_equal_open_clip_4(name):
    """open_clip 4 shifts the labels outside of the model, as transformers does inside."""
    model, values = load_pair(name)
    labels = values["input_ids"].masked_fill(values["input_ids"] == captions_of(FOLDERS[name])["pad_token_id"], -100)
    with torch.no_grad():
        outputs = model(
            input_ids=values["input_ids"],
            pixel_values=values["pixel_values"].float(),
            labels=labels,
            return_loss=True,
        )
    assert_close(outputs.loss, values["loss"], "loss")


def generate_arguments(open_clip_kwargs: dict) -> dict:
    """Arguments of our `generate` for those of open_clip 4's, whose beams are transformers' own."""
    kwargs = {"min_seq_len": 5, "repetition_penalty": 1.0, "generation_type": "beam_search", **open_clip_kwargs}
    arguments = {
        "max_length": kwargs["seq_len"],
        "min_length": kwargs["min_seq_len"],
        "repetition_penalty": kwargs["repetition_penalty"],
    }
    beams = {} if kwargs["generation_type"] == "top_k" else {"num_beams": kwargs.get("num_beams", 6)}
    return arguments | beams


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", CAPTIONERS)
def test_captions_equal_open_clip_4(name, call):
    model, values = load_pair(name)
    expected = captions_of(FOLDERS[name])["calls"][call]
    arguments = generate_arguments(expected["open_clip_kwargs"])
    sequences = model.generate(pixel_values=values["pixel_values"].float(), **arguments)
    assert sequences.tolist() == expected["tokens"]


@pytest.mark.parametrize("kept", ["text.lm_head.weight", "text.token_embedding.weight"])
def test_one_of_two_tied_tensors_is_enough(kept, tmp_path):
    """safetensors and transformers write tied tensors once, under one name or the other."""
    folder = FOLDERS["mammut_modern_end_tied"]
    (tmp_path / "open_clip_config.json").write_text((folder / "open_clip_config.json").read_text())
    tensors = load_file(folder / "open_clip_model.safetensors")
    other = {"text.lm_head.weight", "text.token_embedding.weight"} - {kept}
    without = {name: tensor for name, tensor in tensors.items() if name not in other}
    save_file(without, tmp_path / "open_clip_model.safetensors")
    convert_open_clip_checkpoint(tmp_path, tmp_path / "ours", with_processor=False)
    model = MaMMUTForConditionalGeneration.from_pretrained(tmp_path / "ours")
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert torch.equal(model.lm_head.weight, tensors[kept])
    model.save_pretrained(tmp_path / "saved")
    assert "lm_head.weight" not in load_file(tmp_path / "saved" / "model.safetensors")
    convert_to_open_clip(tmp_path / "saved", tmp_path / "back", with_processor=False)
    back = load_file(tmp_path / "back" / "open_clip_model.safetensors")
    assert back.keys() == tensors.keys() and all(torch.equal(back[name], tensors[name]) for name in tensors)
    save_file({**tensors, kept: tensors[kept] + 1}, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(ConversionError, match="tie_lm_head is true, and"):
        convert_open_clip_checkpoint(tmp_path, tmp_path / "others", with_processor=False)


@pytest.mark.parametrize("name", FOLDERS)
def test_conversion_there_and_back_gives_the_same_tensors(name, tmp_path, monkeypatch):
    monkeypatch.chdir(FOLDERS[name])  # where a relative `hf_model_name` is
    ours, back = tmp_path / "ours", tmp_path / "back"
    report = convert_open_clip_checkpoint(FOLDERS[name], ours, with_processor=False)
    assert report.verification.mode == "full" or "it needs open_clip 4 for " in report.verification.detail
    convert_to_open_clip(ours, back, with_processor=False, verify="structure")
    before, after = (load_file(folder / "open_clip_model.safetensors") for folder in (FOLDERS[name], back))
    # timm's classifier goes back as the projection that it is.
    before = {key.replace("visual.trunk.head.", "visual.head.proj."): tensor for key, tensor in before.items()}
    assert before.keys() == after.keys()
    assert [key for key in before if not torch.equal(before[key], after[key])] == []
    given, written = (
        json.loads((folder / "open_clip_config.json").read_text())["model_cfg"] for folder in (FOLDERS[name], back)
    )
    if "hf_model_name" in given.get("text_cfg", {}):
        given["text_cfg"]["hf_model_name"] = written["text_cfg"]["hf_model_name"]  # made absolute
    assert build_config(written).to_dict() == build_config(given).to_dict()
