"""The least work of a model: FLOPs counted on the meta device, and bytes that must be read from memory."""

import re
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, DynamicCache, PreTrainedModel

from contestants.model_inputs import input_ids, pixel_values


# Groups of beams that search alike need one search: of open_clip's 6 beams in 3 groups, 2 are different.
DIFFERENT_BEAMS = {"beams": 2}
# Weights that a step of decoding does not read; those of the keys and values of images are read in the first step.
UNREAD = re.compile(r"logit_|vision_model\.|text_model\.(embeddings|final_layer_norm|projection)\.")
READ_ONCE = re.compile(r"cross_attn\.[kv]_proj\.|layer_norm1_kv\.")


def meta_model(folder: str) -> PreTrainedModel:
    """Our model of a folder, on the meta device."""
    with torch.device("meta"):
        return AutoModel.from_config(AutoConfig.from_pretrained(folder)).eval()


def count_flops(run: Callable[[], object]) -> int:
    """Count the FLOPs of the matrix products, convolutions and attentions of a call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def numbers(model: PreTrainedModel, is_read: Callable[[str], bool]) -> int:
    """Count the numbers in the weights of those names, without the token table, of which few rows are read."""
    named = model.named_parameters()
    return sum(weight.numel() for name, weight in named if is_read(name) and "token_embedding" not in name)


def tower_bound(model: PreTrainedModel, settings: dict) -> dict:
    """One pass of the `image` or `text` tower of a `meta_model`; of its bytes, the weights."""
    on_meta = {**settings, "device": "meta"}
    if settings["tower"] == "image":
        prefix, flops = "vision_model.", count_flops(lambda: model.get_image_features(pixel_values(on_meta).float()))
    else:
        prefix, flops = "text_model.", count_flops(lambda: model.get_text_features(input_ids(on_meta)))
    return _work(settings, flops, numbers(model, lambda name: name.startswith(prefix)))


def caption_bound(model: PreTrainedModel, settings: dict) -> list[dict]:
    """The image tower, then a step for each token but the first: weights, and the keys and values that are kept."""
    pixels = pixel_values({**settings, "device": "meta"}).float()
    image = model.get_image_features(pixels).last_hidden_state
    cache = model.wrap_cache(DynamicCache(config=model.config), image)
    rows = settings["batch"] * DIFFERENT_BEAMS.get(settings["strategy"], 1)
    token = torch.zeros((rows, 1), dtype=torch.long, device="meta")
    # From the second step on, each has as much more to attend to as the one before.
    first, second, third = (
        count_flops(lambda: model(token, image_hidden_states=image, cache=cache)) for _ in range(3)
    )
    once = numbers(model, lambda name: READ_ONCE.search(name) is not None)
    step = numbers(model, lambda name: not UNREAD.match(name)) - once + _cache_size(cache.cross_attention_cache)
    position = _cache_size(cache.self_attention_cache) // 3
    steps = [(first, step + once)]
    steps += [(second + i * (third - second), step + (i + 1) * position) for i in range(settings["length"] - 2)]
    tower = tower_bound(model, {**settings, "tower": "image"})
    return [tower, *(_work(settings, flops, count) for flops, count in steps)]


def _work(settings: dict, flops: int, count: int) -> dict:
    itemsize = getattr(torch, settings["dtype"]).itemsize
    return {"flops": flops, "bytes": count * itemsize, "dtype": settings["dtype"]}


def _cache_size(cache: DynamicCache) -> int:
    return sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
