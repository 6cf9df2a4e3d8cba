"""Writes this folder's models and what open_clip 3.3.0's `CoCa.generate` makes of them.

Needs open_clip_torch 3.3.0 with transformers 4.53.3: `CoCa.generate` fails on transformers from 4.56 on.

    python tests/data/open_clip_generation/make_reference.py

Weights and images are saved, so that the data does not depend on random generators. The script stops if two
continuations have scores so close that another order of additions could swap them.
"""

import copy
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import open_clip.coca_model
import torch
import transformers
from safetensors.torch import save_file


FOLDER = Path(__file__).parent
SMALLEST_GAP = 1e-3
# Within a model's folder, and in its `hf_model_name` instead of the path from the root, which open_clip needs.
ENCODER_FOLDER = "encoder"
POSITIONS = ("text.positional", "text.transformer.embeddings.position")

GREEDY = {"generation_type": "top_k", "top_k": 1}
# name of the call -> (arguments of `CoCa.generate`, length of the prompts or None)
CALLS = {
    "greedy": (GREEDY, None),
    "greedy_short": ({**GREEDY, "seq_len": 9, "min_seq_len": 2}, None),
    "greedy_repetition_penalty": ({**GREEDY, "repetition_penalty": 1.4}, None),
    "greedy_fixed_output_length": ({**GREEDY, "seq_len": 27, "fixed_output_length": True}, None),
    "greedy_prompts": ({**GREEDY, "seq_len": 19}, 4),
    "default": ({}, None),
    "default_fixed_output_length": ({"fixed_output_length": True}, None),
    "groups": ({"num_beams": 4, "num_beam_groups": 2, "seq_len": 13, "min_seq_len": 1}, None),
    "groups_repetition_penalty": ({"repetition_penalty": 1.3, "seq_len": 23}, None),
    "groups_of_one": ({"num_beams": 3, "num_beam_groups": 3, "seq_len": 17}, None),
    "beams": ({"num_beams": 4, "num_beam_groups": 1, "seq_len": 17, "min_seq_len": 3}, None),
    "beams_repetition_penalty": ({"num_beams": 3, "num_beam_groups": 1, "repetition_penalty": 0.8}, None),
}


def _cfg(vocab_size: int, width: int, vision: dict, text: dict, multimodal: dict, **others) -> dict:
    return {
        "embed_dim": width,
        "vision_cfg": {
            "layers": 2,
            "head_width": 8,
            "image_size": 24,
            "patch_size": 8,
            "output_tokens": True,
            **vision,
        },
        "text_cfg": {
            "context_length": 33,
            "vocab_size": vocab_size,
            "width": width,
            "layers": 2,
            "embed_cls": True,
            "output_tokens": True,
            **text,
        },
        "multimodal_cfg": {"context_length": 33, "vocab_size": vocab_size, "width": width, "layers": 2, **multimodal},
        "custom_text": True,
        **others,
    }


@dataclass
class Recipe:
    model_cfg: dict
    sot_token_id: int
    eos_token_id: int
    pad_token_id: int
    seed: int
    eos_scale: float  # how much more than others the logits of the end and of the padding vary: how often they win
    pad_scale: float
    image_seeds: list[int]  # of captions without near-ties, some of which end early
    encoder: dict | None = None  # `config.json` of a Hugging Face text tower


MODELS = {
    "attentional_pool": Recipe(
        _cfg(
            97,
            20,
            {"width": 24, "attentional_pool": True, "attn_pooler_heads": 5, "attn_pooler_queries": 7},
            {"heads": 4},
            {"heads": 5},
        ),
        sot_token_id=95,
        eos_token_id=96,
        pad_token_id=0,
        seed=2,
        eos_scale=2.4,
        pad_scale=1.0,
        image_seeds=[1, 7, 11, 13, 16],
    ),
    "no_attentional_pool_quick_gelu": Recipe(
        _cfg(
            131,
            24,
            {"width": 24, "image_size": [16, 24], "patch_size": [8, 6], "mlp_ratio": 2.5},
            {"heads": 3, "mlp_ratio": 3.0},
            {"heads": 4, "layers": 1},
            embed_dim=18,
            quick_gelu=True,
        ),
        sot_token_id=129,
        eos_token_id=130,
        pad_token_id=0,
        seed=1,
        eos_scale=1.9,
        pad_scale=1.0,
        image_seeds=[5, 7, 9, 10, 15],
    ),
    "parallel_layer_scale": Recipe(
        _cfg(
            157,
            20,
            {
                "width": 20,
                "head_width": 5,
                "layers": 1,
                "ls_init_value": 0.6,
                "attentional_pool": "parallel",
                "attn_pooler_heads": 4,
                "attn_pooler_queries": 5,
            },
            {"heads": 2, "ls_init_value": 0.7},
            {"heads": 4, "ls_init_value": 0.8},
        ),
        sot_token_id=7,
        eos_token_id=11,
        pad_token_id=0,
        seed=6,
        eos_scale=2.4,
        pad_scale=1.0,
        image_seeds=[7, 11, 12, 14, 15],
    ),
    "cascade_own_padding": Recipe(
        _cfg(
            211,
            16,
            {"width": 16, "attentional_pool": "cascade", "attn_pooler_heads": 2, "attn_pooler_queries": 6},
            {"heads": 2, "layers": 3, "pad_id": 3},
            {"heads": 8, "layers": 1},
            pad_id=3,
        ),
        sot_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        seed=15,
        eos_scale=3.0,
        pad_scale=1.0,
        image_seeds=[2, 10, 11, 12],
    ),
    "padding_inside_captions": Recipe(
        _cfg(
            101,
            20,
            {"width": 24, "attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 9},
            {"heads": 5},
            {"heads": 4},
        ),
        sot_token_id=99,
        eos_token_id=100,
        pad_token_id=0,
        seed=7,
        eos_scale=2.4,
        pad_scale=2.5,
        image_seeds=[1, 6, 7, 8, 10, 16],
    ),
    "roberta_text": Recipe(
        {
            "embed_dim": 18,
            "vision_cfg": {
                "width": 20,
                "head_width": 5,
                "layers": 2,
                "image_size": 24,
                "patch_size": 8,
                "output_tokens": True,
            },
            "text_cfg": {
                "context_length": 33,
                "vocab_size": 113,
                "hf_model_name": ENCODER_FOLDER,
                "hf_model_pretrained": False,
                "hf_proj_type": "linear",
                "output_tokens": True,
            },
            "multimodal_cfg": {"context_length": 32, "width": 20, "heads": 4, "layers": 1},
            "custom_text": True,
        },
        sot_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        seed=13,
        eos_scale=1.8,
        pad_scale=2.0,
        image_seeds=[1, 4, 9, 11, 14, 18],
        encoder={
            "model_type": "roberta",
            "vocab_size": 115,
            "hidden_size": 20,
            "num_hidden_layers": 2,
            "num_attention_heads": 5,
            "intermediate_size": 30,
            "max_position_embeddings": 40,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,
        },
    ),
}


def make_model(name: str) -> open_clip.coca_model.CoCa:
    """open_clip's model in eval mode, all weights random; the logits of end and padding vary more."""
    recipe = MODELS[name]
    kwargs = copy.deepcopy(recipe.model_cfg)
    del kwargs["custom_text"]
    if recipe.encoder is not None:
        kwargs["text_cfg"]["hf_model_name"] = str(FOLDER / name / ENCODER_FOLDER)
    model = open_clip.coca_model.CoCa(**kwargs).eval()
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = parameter.ndim == 1 and (key.endswith(".weight") or key.endswith(".gamma"))
            if is_scale:
                parameter.copy_((8 if "LayerNorm" in key else 1) * (1 + 0.3 * noise))
            elif "embedding" in key or key.endswith("cls_emb"):
                parameter.copy_(2 * noise if key.startswith(POSITIONS) else noise)
            elif "cross_attn" in key or "attn_pool" in key:
                parameter.copy_(0.6 * noise)
            elif key != "logit_scale":
                parameter.copy_(0.3 * noise)
        projection = model.text_decoder.text_projection
        projection.mul_(3)
        projection[:, recipe.eos_token_id] *= recipe.eos_scale
        projection[:, recipe.pad_token_id] *= recipe.pad_scale
    return model


def make_images(name: str) -> torch.Tensor:
    """(images, 3, height, width) float16, as they are saved; the models get them as float32."""
    size = MODELS[name].model_cfg["vision_cfg"]["image_size"]
    size = size if isinstance(size, list) else [size, size]
    generators = [torch.Generator().manual_seed(seed) for seed in MODELS[name].image_seeds]
    return torch.stack([torch.randn(3, *size, generator=generator) for generator in generators]).half()


class _Gaps:
    """Smallest differences between scores whose order decides, while `CoCa.generate` runs."""

    def __init__(self):
        self.smallest = float("inf")

    def add(self, scores: list[float]) -> None:
        scores = sorted(score for score in scores if score > -1e8)
        self.smallest = min([self.smallest, *(b - a for a, b in itertools.pairwise(scores))])

    def watch(self) -> None:
        gaps = self

        class Scorer(transformers.BeamSearchScorer):
            def process(self, input_ids, next_scores, *args, group_index=0, **kwargs):
                for batch, scores in enumerate(next_scores.tolist()):
                    if not self._done[batch * self.num_beam_groups + group_index]:
                        gaps.add(scores)
                return super().process(input_ids, next_scores, *args, group_index=group_index, **kwargs)

            def finalize(self, *args, **kwargs):
                output = super().finalize(*args, **kwargs)
                for group in self._beam_hyps:
                    gaps.add([score for score, _, _ in group.beams])
                return output

        class TopK(transformers.TopKLogitsWarper):
            def __call__(self, input_ids, scores):
                for row in scores.topk(2).values.tolist():
                    gaps.add(row)
                return super().__call__(input_ids, scores)

        open_clip.coca_model.BeamSearchScorer = Scorer
        open_clip.coca_model.GENERATION_TYPES["top_k"] = TopK


def run_call(model: open_clip.coca_model.CoCa, images: torch.Tensor, recipe: Recipe, call: str) -> dict:
    """-> one entry of `expected.json`."""
    kwargs, prompt_length = CALLS[call]
    ids = {name: getattr(recipe, name) for name in ("sot_token_id", "eos_token_id", "pad_token_id")}
    text = None
    if prompt_length is not None:
        vocab_size = model.text.vocab_size
        generator = torch.Generator().manual_seed(vocab_size)
        text = torch.randint(12, vocab_size - 3, (len(images), prompt_length), generator=generator)
        text[:, 0] = recipe.sot_token_id
    gaps = _Gaps()
    gaps.watch()
    tokens = model.generate(images.float(), text=text, **ids, **kwargs).tolist()
    if gaps.smallest < SMALLEST_GAP:
        raise ValueError(f"{call}: two scores differ by {gaps.smallest:.1e} only; choose another seed")
    eos = recipe.eos_token_id
    # with beams padding can be a token like any other, otherwise it ends the caption
    captions = [row[: row.index(eos)] if eos in row else row for row in tokens]
    return {
        "open_clip_kwargs": kwargs,
        "text": None if text is None else text.tolist(),
        "tokens": tokens,
        "rows_with_padding": [i for i, row in enumerate(captions) if recipe.pad_token_id in row],
        "rows_without_end": [i for i, row in enumerate(tokens) if eos not in row],
        "smallest_gap": round(gaps.smallest, 5),
    }


def write_model(name: str) -> None:
    folder = FOLDER / name
    folder.mkdir(exist_ok=True)
    recipe = MODELS[name]
    if recipe.encoder is not None:
        (folder / ENCODER_FOLDER).mkdir(exist_ok=True)
        (folder / ENCODER_FOLDER / "config.json").write_text(json.dumps(recipe.encoder, indent=2) + "\n")
    model, images = make_model(name), make_images(name)
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    save_file({"images": images}, folder / "images.safetensors")
    config = {"model_cfg": recipe.model_cfg, "preprocess_cfg": {"size": recipe.model_cfg["vision_cfg"]["image_size"]}}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    expected = {
        "sot_token_id": recipe.sot_token_id,
        "eos_token_id": recipe.eos_token_id,
        "pad_token_id": recipe.pad_token_id,
        "calls": {call: run_call(model, images, recipe, call) for call in CALLS},
    }
    lines = json.dumps(expected).replace("}, ", "},\n").replace("], [", "],\n[").replace(', "tokens"', ',\n"tokens"')
    (folder / "expected.json").write_text(lines + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in MODELS:
        write_model(name)
