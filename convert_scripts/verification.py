"""Proof that a conversion is right: the written folder against open_clip's outputs, or tensor by tensor."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.nn import functional as F
from transformers.configuration_utils import PreTrainedConfig

from ..configuration.configuration_common import height_and_width
from .conversion_plan import ConversionPlan
from .errors import ConversionError, listing


# Largest accepted max|ours - reference| / max|reference| in fp32.
BOUND = 2e-5
MODES = ("auto", "full", "structure", "none")
Outputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Verification:
    """What was verified.

    Args:
        mode: `"full"` where outputs were compared with open_clip's, `"structure"` where tensors were compared with the
            checkpoint's, `"none"`.
        detail: the reference, or why there was none.
        differences: output -> max|ours - open_clip's| / max|open_clip's|, in fp32.
    """

    mode: str
    detail: str = ""
    differences: Mapping[str, float] = field(default_factory=dict)


def verify_conversion(folder: Path, plan: ConversionPlan, model_cfg: Mapping[str, Any], mode: str) -> Verification:
    """Verifies a converted folder.

    Every written tensor must equal what the plan makes of the checkpoint. With open_clip the outputs are compared too,
    in fp32 on the values that were written: a conversion to half precision is held to the same bound, because the
    reference gets the same rounded weights.

    Args:
        folder: what was written.
        plan: where it came from.
        model_cfg: open_clip's configuration, from which the reference is built.
        mode: `"auto"` compares outputs where open_clip is installed and can run the model; `"full"` demands it;
            `"structure"` leaves it out; `"none"` skips everything.

    Raises:
        ConversionError: the folder is not what it should be, or `"full"` and open_clip cannot run the model.
    """
    if mode == "none":
        return Verification("none", "not asked for")
    dtype = _check_tensors(folder, plan)
    if mode == "structure":
        return Verification("structure", "every tensor equals the checkpoint's")
    try:
        reference = _open_clip_outputs(model_cfg, plan, dtype)
        detail = f"open_clip {version('open_clip_torch')}"
    except Exception as error:  # whatever keeps open_clip from running this model
        missing = isinstance(error, ModuleNotFoundError | PackageNotFoundError)
        reason = "open_clip is not installed" if missing else f"open_clip cannot run this model ({error})"
        if mode == "full":
            raise ConversionError(
                f"Not verified, because {reason}: verify='structure' checks the tensors alone."
            ) from error
        return Verification("structure", f"every tensor equals the checkpoint's; {reason}")
    differences = _differences(_our_outputs(folder, plan), reference)
    # Written this way round, NaN is a failure.
    wrong = [f"{name}: {value:.2e}" for name, value in differences.items() if not value <= BOUND]
    if wrong:
        raise ConversionError(
            f"The converted model differs from {detail} by more than {BOUND:.0e} (relative):{listing(wrong)}\n"
            "Nothing was written. Please report this with the checkpoint's configuration."
        )
    return Verification("full", detail, differences)


def _check_tensors(folder: Path, plan: ConversionPlan) -> torch.dtype:
    """The dtype of the folder's weights, all of which are found to be the plan's."""
    shapes, expected = plan.shapes, dict(plan.converted())
    missing, wrong = set(shapes), []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118  not a dict
                tensor = weights.get_tensor(name)
                missing.discard(name)
                right = tensor.shape == shapes.get(name) and torch.equal(tensor, expected[name].to(tensor.dtype))
                wrong += [] if right else [name]
    if wrong or missing:
        raise ConversionError(
            f"These tensors were not written as they should be:{listing(sorted({*wrong, *missing}))}"
        )
    return tensor.dtype


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


def _scaled_similarities(outputs: Outputs, logit_scale: torch.Tensor, logit_bias: torch.Tensor | None) -> torch.Tensor:
    image, text = (F.normalize(outputs[name], dim=-1) for name in ("image features", "text features"))
    logits = logit_scale.exp() * image @ text.T
    return logits if logit_bias is None else logits + logit_bias


@torch.inference_mode()
def _open_clip_outputs(model_cfg: Mapping[str, Any], plan: ConversionPlan, dtype: torch.dtype) -> Outputs:
    with torch.random.fork_rng(devices=[]):  # new models are initialised at random
        model = _open_clip_model(model_cfg, plan).eval()
    for parameter in model.parameters():
        parameter.copy_(parameter.to(dtype))
    pixel_values, input_ids = verification_inputs(plan.model.config)
    image_features = model.encode_image(pixel_values, normalize=False)
    if getattr(model.visual, "attn_pool_contrastive", None) is not None:
        image_features = image_features.squeeze(1)  # open_clip keeps the axis of the one contrastive query
    outputs = {"image features": image_features, "text features": model.encode_text(input_ids, normalize=False)}
    if outputs["image features"].ndim == outputs["text features"].ndim == 2:
        outputs["logits"] = _scaled_similarities(outputs, model.logit_scale, model.logit_bias)
    if hasattr(model, "text_decoder"):
        input_ids = input_ids[:, : plan.model.config.max_position_embeddings]
        outputs["caption logits"] = model(pixel_values, input_ids, output_labels=False)["logits"]
    return outputs


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
def _our_outputs(folder: Path, plan: ConversionPlan) -> Outputs:
    model, info = type(plan.model).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    problems = {what: keys for what, keys in info.items() if keys}
    if problems:
        raise ConversionError(f"The converted model does not load as a whole: {problems}")
    pixel_values, input_ids = verification_inputs(model.config)
    outputs = {
        "image features": model.get_image_features(pixel_values).pooler_output,
        "text features": model.get_text_features(input_ids).pooler_output,
    }
    if outputs["image features"].ndim == outputs["text features"].ndim == 2:
        outputs["logits"] = _scaled_similarities(outputs, model.logit_scale, model.logit_bias)
    if hasattr(model, "lm_head"):
        input_ids = input_ids[:, : model.config.max_position_embeddings]
        outputs["caption logits"] = model(input_ids=input_ids, pixel_values=pixel_values).logits
    return outputs


def _differences(ours: Outputs, reference: Outputs) -> dict[str, float]:
    def difference(a: torch.Tensor, b: torch.Tensor) -> float:
        return ((a - b).abs().max() / b.abs().max()).item() if a.shape == b.shape else float("inf")

    return {name: difference(ours[name], output) for name, output in reference.items()}
