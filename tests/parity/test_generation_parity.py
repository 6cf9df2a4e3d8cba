"""Captions equal to open_clip 3.3.0's, token for token (its `CoCa.generate` ran up to transformers 4.55).

`tests/data/open_clip_generation/README.md` tells how the expected tokens were made and what each call means.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers.generation import EosTokenCriteria

from open_clip_transformers.convert_scripts.mapping.config import TokenIds, build_config
from open_clip_transformers.convert_scripts.mapping.plan import plan_conversion
from open_clip_transformers.modeling.modeling_coca import CoCaModel


DATA = Path(__file__).parents[1] / "data" / "open_clip_generation"
FOLDERS = sorted(path.parent for path in DATA.glob("*/expected.json"))
CASES = {
    f"{folder.name}-{name}": (folder, name)
    for folder in FOLDERS
    for name in json.loads((folder / "expected.json").read_text())["calls"]
}


@pytest.fixture(scope="module")
def load_model():
    models = {}

    def load(folder: Path) -> tuple[CoCaModel, torch.Tensor, dict]:
        if folder not in models:
            expected = json.loads((folder / "expected.json").read_text())
            model_cfg = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
            if "hf_model_name" in model_cfg["text_cfg"]:
                model_cfg["text_cfg"]["hf_model_name"] = str(folder / model_cfg["text_cfg"]["hf_model_name"])
            ids = TokenIds(bos=expected["sot_token_id"], eos=expected["eos_token_id"], pad=expected["pad_token_id"])
            config = build_config(model_cfg, ids)
            tensors = load_file(folder / "open_clip_model.safetensors")
            model = CoCaModel(config)
            model.load_state_dict(dict(plan_conversion(config, tensors).converted()))
            pixel_values = load_file(folder / "images.safetensors")["images"].float()
            models[folder] = model.eval(), pixel_values, expected
        return models[folder]

    return load


def generate_arguments(open_clip_kwargs: dict, model: CoCaModel) -> dict:
    """Arguments of our `generate` for those of open_clip's."""
    kwargs = {"seq_len": 30, "min_seq_len": 5, "generation_type": "beam_search", **open_clip_kwargs}
    arguments = {
        "max_length": kwargs["seq_len"],
        "min_length": kwargs["min_seq_len"],
        "repetition_penalty": kwargs.get("repetition_penalty", 1.0),
    }
    if kwargs["generation_type"] == "top_k":
        # open_clip also ends a sampled caption at the padding id, and always with the end token at the last position.
        ends = EosTokenCriteria([model.config.eos_token_id, model.config.pad_token_id])
        return {**arguments, "forced_eos_token_id": model.config.eos_token_id, "stopping_criteria": [ends]}
    beams = {"num_beams": kwargs.get("num_beams", 6), "num_beam_groups": kwargs.get("num_beam_groups", 3)}
    # Groups without a penalty mean open_clip's search; with one group there is transformers' own to choose from.
    return {**arguments, **beams, **({"open_clip_scores": True} if beams["num_beam_groups"] == 1 else {})}


@pytest.mark.parametrize(("folder", "name"), CASES.values(), ids=CASES)
def test_generate_gives_the_tokens_of_open_clip(folder, name, load_model):
    model, pixel_values, expected = load_model(folder)
    call = expected["calls"][name]
    arguments = generate_arguments(call["open_clip_kwargs"], model)
    if call["text"] is not None and "stopping_criteria" in arguments:  # beam search ignores prompts in open_clip
        arguments["input_ids"] = torch.tensor(call["text"])
    sequences = model.generate(pixel_values=pixel_values, **arguments)

    tokens = torch.tensor(call["tokens"])
    if call["open_clip_kwargs"].get("fixed_output_length"):
        missing = tokens.shape[1] - sequences.shape[1]
        sequences = torch.nn.functional.pad(sequences, (0, missing), value=expected["pad_token_id"])
    assert sequences.tolist() == tokens.tolist()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_generate_returns_equal_groups_once(folder, load_model):
    # All groups are one search without a diversity penalty: two beams find what open_clip's six in three groups find.
    model, pixel_values, expected = load_model(folder)
    tokens = model.generate(pixel_values=pixel_values, num_beams=2, max_length=30, min_length=5, open_clip_scores=True)
    assert tokens.tolist() == expected["calls"]["default"]["tokens"]
