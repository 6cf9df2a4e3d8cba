"""Outputs of a converted model and of open_clip's, on the same fixed inputs."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers.configuration_utils import PreTrainedConfig
from transformers.initialization import no_init_weights

from ..configuration.configuration_common import height_and_width
from .conversion_plan import ConversionPlan
from .errors import ConversionError


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
    # Every parameter is loaded: random ones would cost time, and change the caller's random state.
    with torch.random.fork_rng(devices=[]), no_init_weights():
        model = _open_clip_model(model_cfg, plan).eval()
    for parameter in model.parameters():
        parameter.copy_(parameter.to(dtype))
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


def _open_clip_model(model_cfg: Mapping[str, Any], plan: ConversionPlan) -> torch.nn.Module:
    """open_clip's model with the checkpoint's tensors, loaded as open_clip's `load_checkpoint` does."""
    from open_clip.coca_model import CoCa
    from open_clip.model import (
        CLIP,
        CustomTextCLIP,
        convert_to_custom_text_state_dict,
        resize_pos_embed,
        resize_text_pos_embed,
    )

    kwargs = {key: value for key, value in deepcopy(dict(model_cfg)).items() if value is not None}
    custom_text = kwargs.pop("custom_text", False)
    model = (CoCa if "multimodal_cfg" in kwargs else CustomTextCLIP if custom_text else CLIP)(**kwargs)
    state_dict = {key: tensor.float() for key, tensor in plan.source_tensors.items()}
    if "positional_embedding" in state_dict and not hasattr(model, "positional_embedding"):
        state_dict = convert_to_custom_text_state_dict(state_dict)
    if model.logit_bias is not None:
        state_dict.setdefault("logit_bias", torch.zeros_like(state_dict["logit_scale"]))
        state_dict["logit_bias"] = state_dict["logit_bias"].reshape(model.logit_bias.shape)
    state_dict["logit_scale"] = state_dict["logit_scale"].reshape(model.logit_scale.shape)
    resize_pos_embed(state_dict, model)
    resize_text_pos_embed(state_dict, model)
    model.load_state_dict(state_dict)
    return model


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
