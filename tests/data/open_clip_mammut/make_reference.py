"""Writes this folder's models, and what the MaMMUT of LAION's `open_clip_mammut` makes of them.

Needs that fork of open_clip (https://github.com/LAION-AI/open_clip_mammut, commit ed2d1f6) on PYTHONPATH, with
transformers 4.53.3: its `generate` fails on transformers from 4.56 on.

    PYTHONPATH=open_clip_mammut/src python tests/data/open_clip_mammut/make_reference.py

Weights and images are saved, so that the data does not depend on random generators. The script stops if two
continuations have scores so close that another order of additions could swap them.
"""

import copy
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import open_clip.generation_utils
import torch
import transformers
from open_clip.loss import ClipLoss, CoCaLoss
from open_clip.mammut_model import MaMMUT
from safetensors.torch import save_file


FOLDER = Path(__file__).parent
SMALLEST_GAP = 3e-4

GREEDY = {"generation_type": "top_k", "top_k": 1}
# name of the call -> (arguments of `MaMMUT.generate`, length of the prompts or None)
CALLS = {
    "greedy": (GREEDY, None),
    "greedy_short": ({**GREEDY, "seq_len": 9, "min_seq_len": 2}, None),
    "greedy_repetition_penalty": ({**GREEDY, "repetition_penalty": 1.4}, None),
    "greedy_prompts": ({**GREEDY, "seq_len": 19}, 4),
    "top_k": ({"generation_type": "top_k", "top_k": 5}, None),
    "top_p": ({"generation_type": "top_p", "top_p": 0.8, "seq_len": 17}, None),
    "default": ({}, None),
    "groups": ({"num_beams": 4, "num_beam_groups": 2, "seq_len": 13, "min_seq_len": 1}, None),
    "groups_repetition_penalty": ({"repetition_penalty": 1.3, "seq_len": 23}, None),
    "beams": ({"num_beams": 4, "num_beam_groups": 1, "seq_len": 17, "min_seq_len": 3}, None),
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


def _cfg(vocab_size: int, width: int, vision: dict, text: dict, **others) -> dict:
    return {
        "embed_dim": width,
        "vision_cfg": {
            "layers": 2,
            "head_width": 8,
            "image_size": 24,
            "patch_size": 8,
            "output_tokens": True,
            "pool_type": "avg_all",
            "final_ln_after_pool": True,
            **vision,
        },
        "text_cfg": {
            "context_length": 33,
            "vocab_size": vocab_size,
            "width": width,
            "output_tokens": True,
            "does_full_decoding": True,
            **text,
        },
        "custom_text": True,
        **others,
    }


MODELS = {
    "without_mlps": Recipe(
        _cfg(97, 20, {"width": 24}, {"heads": 4, "layers": 4, "cross_attn_ratio": 2, "has_mlp": False}),
        sot_token_id=95,
        eos_token_id=96,
        pad_token_id=0,
        seed=15,
        eos_scale=4.0,
        pad_scale=0.2,
        image_seeds=[2, 3, 4],
    ),
    "layer_scale_quick_gelu": Recipe(
        _cfg(
            101,
            24,
            {"width": 16, "image_size": [16, 24], "patch_size": [8, 6], "ls_init_value": 0.6},
            {"heads": 3, "layers": 6, "cross_attn_ratio": 3, "ls_init_value": 0.7},
            quick_gelu=True,
        ),
        sot_token_id=99,
        eos_token_id=100,
        pad_token_id=0,
        seed=11,
        eos_scale=4.0,
        pad_scale=1.0,
        image_seeds=[2, 3, 5],
    ),
    "every_layer_own_padding": Recipe(
        _cfg(
            211,
            20,
            {"width": 20, "head_width": 5, "pool_type": "tok", "final_ln_after_pool": False},
            {"heads": 2, "layers": 2},
            pad_id=3,
            nonscalar_logit_scale=True,
        ),
        sot_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        seed=15,
        eos_scale=4.0,
        pad_scale=0.2,
        image_seeds=[3, 4, 5],
    ),
}
IMAGES = 3


def make_model(name: str) -> MaMMUT:
    """The fork's model in eval mode, all weights random; the logits of end and padding vary more."""
    recipe = MODELS[name]
    kwargs = copy.deepcopy(recipe.model_cfg)
    del kwargs["custom_text"]
    model = MaMMUT(**kwargs).eval()
    # It takes 49408 ids whatever vocab_size says, and predicts vocab_size.
    text_cfg = recipe.model_cfg["text_cfg"]
    model.text.token_embedding = torch.nn.Embedding(text_cfg["vocab_size"], text_cfg["width"])
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1 and key.endswith((".weight", ".gamma")):
                parameter.copy_(1 + 0.3 * noise)
            elif "embedding" in key:
                parameter.copy_(2 * noise if key.startswith("text.positional") else noise)
            elif "cross_attn" in key or key == "map_viz2txt_kv":
                parameter.copy_(0.6 * noise)
            elif key != "logit_scale":
                parameter.copy_(0.3 * noise)
        head = model.text.text_projection
        head.mul_(3)
        head[:, recipe.eos_token_id] *= recipe.eos_scale
        head[:, recipe.pad_token_id] *= recipe.pad_scale
    return model


def make_image(name: str, seed: int) -> torch.Tensor:
    """(1, 3, height, width) float16, as it is saved; the models get it as float32."""
    size = MODELS[name].model_cfg["vision_cfg"]["image_size"]
    size = size if isinstance(size, list) else [size, size]
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed)).half()


class _Gaps:
    """Smallest differences between scores whose order decides, while `MaMMUT.generate` runs."""

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
                for row in scores.topk(self.top_k + 1).values.tolist():
                    gaps.add(row[-2:])
                return super().__call__(input_ids, scores)

        open_clip.generation_utils.BeamSearchScorer = Scorer
        open_clip.generation_utils.GENERATION_TYPES["top_k"] = TopK


def run_call(model: MaMMUT, image: torch.Tensor, recipe: Recipe, call: str, index: int) -> tuple[list[int], float]:
    """-> the tokens of one image, and the smallest gap; its top-k search takes no more images at once."""
    kwargs, prompt_length = CALLS[call]
    ids = {name: getattr(recipe, name) for name in ("sot_token_id", "eos_token_id", "pad_token_id")}
    text = prompt(recipe, prompt_length, index) if prompt_length else None
    gaps = _Gaps()
    gaps.watch()
    torch.manual_seed(index)
    (tokens,) = model.generate(image.float(), text=text, **ids, **kwargs).tolist()
    return tokens, gaps.smallest


def prompt(recipe: Recipe, length: int, index: int) -> torch.Tensor:
    """(1, length) of ids."""
    vocab_size = recipe.model_cfg["text_cfg"]["vocab_size"]
    generator = torch.Generator().manual_seed(vocab_size + index)
    text = torch.randint(12, vocab_size - 3, (1, length), generator=generator)
    text[:, 0] = recipe.sot_token_id
    return text


def find_images(name: str, model: MaMMUT) -> list[int]:
    """Seeds of images whose captions have no near-ties."""
    found: list[int] = []
    for seed in itertools.count(1):
        if len(found) == IMAGES:
            return found
        image, index = make_image(name, seed), len(found)
        tokens, _ = run_call(model, image, MODELS[name], "greedy", index)
        # The first caption ends early.
        ends = index > 0 or len(tokens) < 30
        # The first call with a near-tie is the last that is made.
        if ends and all(run_call(model, image, MODELS[name], call, index)[1] >= SMALLEST_GAP for call in CALLS):
            found.append(seed)
        if seed > 200:
            raise ValueError(f"{name}: too few images, {found}; choose other scales")
    raise AssertionError


def make_values(model: MaMMUT, images: torch.Tensor, recipe: Recipe) -> dict[str, torch.Tensor]:
    """Inputs and outputs of a forward pass, and the losses of training."""
    vocab_size, length = (recipe.model_cfg["text_cfg"][name] for name in ("vocab_size", "context_length"))
    input_ids = torch.randint(12, vocab_size - 3, (len(images), length), generator=torch.Generator().manual_seed(5))
    input_ids[:, 0] = recipe.sot_token_id
    for row, end in zip(input_ids, range(length - 1, 3, -8)):
        row[end] = recipe.eos_token_id
        row[end + 1 :] = recipe.pad_token_id
    with torch.no_grad():
        outputs = model(images.float(), input_ids)
        logits = model(images.float(), input_ids, is_training=False)["logits"]
        features = outputs["image_features"], outputs["text_features"]
        caption_loss = CoCaLoss(caption_loss_weight=1.0, clip_loss_weight=0.0, pad_id=recipe.pad_token_id)
        return {
            "pixel_values": images,
            "input_ids": input_ids,
            "image_embeds": features[0],
            "text_embeds": features[1],
            "logits_per_image": outputs["logit_scale"] * features[0] @ features[1].T,
            "logits": logits,
            "contrastive_loss": ClipLoss()(*features, outputs["logit_scale"]),
            "caption_loss": caption_loss(*features, outputs["logits"], outputs["labels"], outputs["logit_scale"])[1],
        }


def write_model(name: str) -> None:
    folder, recipe, model = FOLDER / name, MODELS[name], make_model(name)
    folder.mkdir(exist_ok=True)
    seeds = recipe.image_seeds or find_images(name, model)
    images = torch.cat([make_image(name, seed) for seed in seeds])
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    values = make_values(model, images, recipe)
    save_file({key: value.contiguous() for key, value in values.items()}, folder / "values.safetensors")
    config = {"model_cfg": recipe.model_cfg, "preprocess_cfg": {"size": recipe.model_cfg["vision_cfg"]["image_size"]}}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    calls = {}
    for call, (kwargs, length) in CALLS.items():
        results = [run_call(model, image[None], recipe, call, index) for index, image in enumerate(images)]
        smallest = min(gap for _, gap in results)
        if smallest < SMALLEST_GAP:
            raise ValueError(f"{name}, {call}: two scores differ by {smallest:.1e} only; choose another seed")
        text = [prompt(recipe, length, index)[0].tolist() for index in range(len(images))] if length else None
        calls[call] = {"open_clip_kwargs": kwargs, "text": text, "tokens": [tokens for tokens, _ in results]}
    ids = {key: getattr(recipe, key) for key in ("sot_token_id", "eos_token_id", "pad_token_id")}
    lines = json.dumps({**ids, "image_seeds": seeds, "calls": calls})
    lines = lines.replace("}, ", "},\n").replace("], [", "],\n[").replace(', "tokens"', ',\n"tokens"')
    (folder / "captions.json").write_text(lines + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in MODELS:
        write_model(name)
