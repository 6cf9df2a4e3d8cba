"""Outputs of a converted model and of open_clip's, on the same fixed inputs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers.configuration_utils import PreTrainedConfig

from ..configuration.configuration_common import height_and_width
from .conversion_plan import ConversionPlan
from .errors import ConversionError
from .open_clip_reference import load_open_clip_model


Outputs = dict[str, torch.Tensor]


def verification_inputs(config: PreTrainedConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Fixed inputs for a model: `pixel_values` (2, 3, height, width) and `input_ids` (2, context length).

    The second text is short, so that padding is in the picture.
    """
    generator = torch.Generator().manual_seed(0)
    vision, text = config.vision_config, config.text_config
    pixel_values = torch.randn(2, 3, *height_and_width(vision.image_size), generator=generator)
    length = config.text_config.max_position_embeddings
    end = text.eos_token_id if text.pool_type == "eos" else text.vocab_size - 1
    padding = 0 if text.pad_token_id is None else text.pad_token_id
    words = [token for token in range(text.vocab_size) if token not in (end, padding)]
    input_ids = torch.tensor(words)[torch.randint(len(words), (2, length), generator=generator)]
    input_ids[0, -1] = input_ids[1, length // 2] = end
    input_ids[1, length // 2 + 1 :] = padding
    return pixel_values, input_ids


def _with_similarities(outputs: Outputs, logit_scale: torch.Tensor, logit_bias: torch.Tensor | None) -> Outputs:
    image, text = outputs["image features"], outputs["text features"]
    if image.ndim == text.ndim == 2:  # not with pool_type="none"
        logits = logit_scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
        outputs["logits"] = logits if logit_bias is None else logits + logit_bias
    return outputs


@torch.inference_mode()
def open_clip_outputs(model_cfg: Mapping[str, Any], plan: ConversionPlan, dtype: torch.dtype) -> Outputs:
    """Outputs of open_clip's model in fp32, with the checkpoint's tensors rounded to `dtype`.

    Raises:
        Exception: open_clip is not installed, or cannot build, load or run the model.
    """
    model = load_open_clip_model(model_cfg, plan, dtype)
    pixel_values, input_ids = verification_inputs(plan.model.config)
    is_coca = hasattr(model, "text_decoder")
    image_features, image_tokens = model.visual(pixel_values) if is_coca else (model.encode_image(pixel_values), None)
    outputs = {"image features": image_features, "text features": model.encode_text(input_ids, normalize=False)}
    if is_coca:
        input_ids = input_ids[:, : plan.model.config.max_position_embeddings]
        captions = model(pixel_values, input_ids, image_features, image_tokens, output_labels=False)
        outputs["caption logits"] = captions["logits"]
    if getattr(model.visual, "attn_pool_contrastive", None) is not None:
        outputs["image features"] = image_features.squeeze(1)  # open_clip keeps the axis of the one contrastive query
    return _with_similarities(outputs, model.logit_scale, model.logit_bias)


@torch.inference_mode()
def our_outputs(folder: Path, plan: ConversionPlan) -> Outputs:
    """Outputs of the converted folder's model in fp32. Raises `ConversionError` where it does not load as a whole."""
    model, info = type(plan.model).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    problems = {what: keys for what, keys in info.items() if keys}
    if problems:
        raise ConversionError(f"The converted model does not load as a whole: {problems}")
    pixel_values, input_ids = verification_inputs(model.config)
    vision_outputs = model.get_image_features(pixel_values)
    outputs = {
        "image features": vision_outputs.pooler_output,
        "text features": model.get_text_features(input_ids).pooler_output,
    }
    if hasattr(model, "lm_head"):
        input_ids = input_ids[:, : model.config.max_position_embeddings]
        captions = model(input_ids, image_hidden_states=vision_outputs.last_hidden_state)
        outputs["caption logits"] = captions.logits
    return _with_similarities(outputs, model.logit_scale, model.logit_bias)


def relative_differences(ours: Outputs, reference: Outputs) -> dict[str, float]:
    """Output -> max|ours - reference| / max|reference|; infinite where the shapes differ."""

    def difference(a: torch.Tensor, b: torch.Tensor) -> float:
        return ((a - b).abs().max() / b.abs().max()).item() if a.shape == b.shape else float("inf")

    return {name: difference(ours[name], output) for name, output in reference.items()}
