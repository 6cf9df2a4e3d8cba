"""open_clip's own model of a checkpoint, against which conversions are verified (open_clip: `create_model`).

open_clip is imported here only, and only when a function is called.
"""

import hashlib
import inspect
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.initialization import no_init_weights

from ...configuration.configuration_common import height_and_width
from ...modeling.modeling_timm_factory import import_timm, reparameterize
from ..common import ConversionError
from ..mapping.config_table import text_fields_of
from ..mapping.plan import ConversionPlan
from ..towers.base import TEXT_DEFAULTS_4
from ..towers.timm_vision import is_fused


OPEN_CLIP_VERSION = "3.3.0"


def require_open_clip() -> str:
    """`"open_clip 3.3.0"`, the reference by name and version. Raise `ConversionError` where it is not installed."""
    if find_spec("open_clip") is None:
        raise ConversionError(
            "Outputs are compared with open_clip's, which is not installed: "
            f"`pip install open_clip_torch=={OPEN_CLIP_VERSION}`."
        )
    return f"open_clip {version('open_clip_torch')}"


def build_open_clip_model(model_cfg: Mapping[str, Any], config: PreTrainedConfig | None = None) -> torch.nn.Module:
    """Build open_clip's model of a configuration, in eval mode, whose parameters are not initialised.

    Buffers hold their values. Nothing is downloaded: timm and Hugging Face towers are built without weights.

    Args:
        model_cfg: contents of a file in open_clip's `model_configs/`.
        config: our configuration of the model; a Hugging Face text tower is built from the configuration stored there.
            Without it, `hf_model_name` must be a local folder or in the cache of the Hub.

    Raises:
        Exception: open_clip is not installed, or cannot build the model.
    """
    _check_release(model_cfg, config)
    kwargs = {key: value for key, value in deepcopy(dict(model_cfg)).items() if value is not None}
    vision_cfg, text_cfg = kwargs["vision_cfg"], text_fields_of(kwargs)
    is_hf_text = bool(text_cfg.get("hf_model_name"))
    custom_text = kwargs.pop("custom_text", False) or is_hf_text or text_cfg.get("text_arch") == "modern"
    if vision_cfg.get("timm_model_name"):
        vision_cfg["timm_model_pretrained"] = False
    # open_clip 3 has no such fields: the first changes no value, and the second can be said in another way.
    vision_cfg.pop("image_seq_len", None)
    if timm_model_kwargs := vision_cfg.pop("timm_model_kwargs", None):
        vision_cfg["timm_model_name"] = _timm_model_with(timm_model_kwargs, vision_cfg["timm_model_name"])
    model_class = _model_class(kwargs, custom_text)
    # Random values would cost time, and change the caller's random state.
    with torch.random.fork_rng(devices=[]), no_init_weights():
        if not is_hf_text:
            return model_class(**kwargs).eval()
        text_cfg["hf_model_pretrained"] = False
        with _hf_config_folder(config) as folder:
            text_cfg["hf_model_name"] = folder or text_cfg["hf_model_name"]
            return model_class(**kwargs).eval()


def _timm_model_with(arguments: Mapping[str, Any], name: str) -> str:
    """A name that timm knows, from here on, for its model `name` with other defaults of its arguments."""
    timm = import_timm()
    digest = hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()
    own_name = f"{name.split('.')[0]}_{digest[:16]}"
    if not timm.is_model(own_name):

        def create(pretrained: bool = False, **kwargs) -> torch.nn.Module:
            kwargs = {key: value for key, value in kwargs.items() if not key.startswith("pretrained_")}
            return timm.create_model(name, pretrained=pretrained, **{**arguments, **kwargs})

        create.__name__ = own_name
        timm.models.register_model(create)
    return own_name


def _check_release(model_cfg: Mapping[str, Any], config: PreTrainedConfig | None):
    """Raise `ConversionError` where a model is of open_clip 4, and an earlier one is installed."""
    import open_clip

    if int(open_clip.__version__.partition(".")[0]) >= 4:
        return
    parts = [model_cfg["vision_cfg"], text_fields_of(model_cfg), model_cfg.get("multimodal_cfg") or {}]
    defaults = {**TEXT_DEFAULTS_4, "correct_cls_mask": False}
    newer = [name for name, default in defaults.items() if any(part.get(name, default) != default for part in parts)]
    if not getattr(getattr(config, "vision_config", None), "use_projection", True):
        newer.append("attentional_pool without a projection")
    if newer:
        raise ConversionError(f"it needs open_clip 4 for {', '.join(newer)}, and {open_clip.__version__} is installed")


def _model_class(model_cfg: Mapping[str, Any], custom_text: bool) -> type[torch.nn.Module]:
    from open_clip.coca_model import CoCa
    from open_clip.model import CLIP, CustomTextCLIP

    text_cfg = model_cfg.get("text_cfg")
    if text_cfg is None or text_cfg.get("does_full_decoding"):
        return _mammut_class("multimodal_cfg" if text_cfg is None else "text_cfg")
    return CoCa if "multimodal_cfg" in model_cfg else CustomTextCLIP if custom_text else CLIP


class MissingModelError(ConversionError):
    """The installed open_clip has no model of this kind."""


def _mammut_class(part: str) -> type[torch.nn.Module]:
    """open_clip's MaMMUT, if the installed open_clip has one that is described by `part` of a `model_cfg`."""
    try:
        from open_clip.mammut_model import MaMMUT
    except ImportError as error:
        raise MissingModelError(
            f"{require_open_clip()} has no MaMMUT; that of LAION, open_clip_mammut, has"
        ) from error
    if part not in inspect.signature(MaMMUT).parameters:
        raise MissingModelError(f"the MaMMUT of {require_open_clip()} takes no {part}")
    return MaMMUT


def is_mammut(model: torch.nn.Module) -> bool:
    """Whether a model of open_clip is a MaMMUT."""
    return hasattr(model, "map_viz2txt_kv")


def mammut_caption_logits(model: torch.nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    """Predict the token behind each of texts, (images, length, vocab_size), by open_clip's MaMMUT.

    Args:
        model: that of LAION, whose forward in training leaves out the last token, or that of open_clip 4.
        inputs: images, texts, and perhaps the image features and tokens.
    """
    whole = {"is_training": False} if "is_training" in inspect.signature(model.forward).parameters else {}
    return model(*inputs, **whole)["logits"]


def text_prefix(model: torch.nn.Module) -> str:
    """Prefix of the text tower in open_clip's model: none in its `CLIP`, else `text.`"""
    return "text." if hasattr(model, "text") else ""


@contextmanager
def _hf_config_folder(config: PreTrainedConfig | None) -> Iterator[str | None]:
    """A temporary folder with the `config.json` of a Hugging Face text tower; `None` where it is not known."""
    text_config = None if config is None else config.text_config
    inner = [getattr(text_config, name) for name in getattr(text_config, "sub_configs", ())]
    if not inner:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        inner[0].save_pretrained(folder)
        yield folder


@torch.no_grad()
def load_open_clip_model(
    model_cfg: Mapping[str, Any], plan: ConversionPlan, dtype: torch.dtype = torch.float32
) -> torch.nn.Module:
    """Build open_clip's model with the tensors of a checkpoint, in fp32 and eval mode.

    Args:
        model_cfg: open_clip's configuration of it.
        plan: the checkpoint. Its tensors are brought to the model's form by open_clip's own functions, as its
            `load_checkpoint` does, and not by ours.
        dtype: the tensors are rounded to it before.

    Raises:
        Exception: open_clip is not installed, or cannot build or load the model.
    """
    if any(key.startswith("text.") for key in plan.source_tensors):
        model_cfg = {**model_cfg, "custom_text": True}  # as the run that wrote them had it
    model = build_open_clip_model(model_cfg, plan.model.config)
    state_dict = {
        key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in plan.source_tensors.items()
    }
    config = plan.model.config.vision_config
    if getattr(config, "reparameterized", False) and is_fused(state_dict):
        reparameterize(model.visual.trunk)
    _load_state_dict(model, state_dict)
    _set_image_size(model, config)
    if getattr(config, "reparameterized", False) and dtype != torch.float32:
        # The fused weights are rounded.
        reparameterize(model.visual.trunk)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.to(dtype))
    return model


def _set_image_size(model: torch.nn.Module, config: PreTrainedConfig):
    """Set the image size of timm's models, as open_clip's `create_model` does for `force_image_size`."""
    patch_embed = getattr(getattr(model.visual, "trunk", None), "patch_embed", None)
    image_size = height_and_width(config.image_size)
    if getattr(patch_embed, "img_size", None) not in (None, image_size):
        model.visual.set_input_size(image_size)


def _load_state_dict(model: torch.nn.Module, state_dict: dict[str, torch.Tensor]):
    """Load tensors as open_clip's `load_checkpoint` does once the file is read."""
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed

    if "positional_embedding" in state_dict and not hasattr(model, "positional_embedding"):
        state_dict = convert_to_custom_text_state_dict(state_dict)
    state_dict["logit_scale"] = state_dict["logit_scale"].reshape(model.logit_scale.shape)
    if model.logit_bias is not None:
        state_dict.setdefault("logit_bias", torch.zeros_like(state_dict["logit_scale"]))
        state_dict["logit_bias"] = state_dict["logit_bias"].reshape(model.logit_bias.shape)
    resize_pos_embed(state_dict, model)
    resize_text_pos_embed(state_dict, model)
    model.load_state_dict(state_dict)
