"""Image towers of timm, which reads open_clip's weights."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import timm
import torch

from contestants.encoder_common import Encoder
from contestants.model_inputs import architecture
from contestants.weights import weights_folder


MODELS = {
    "ViT-B-32": "vit_base_patch32_clip_224",
    "ViT-B-16": "vit_base_patch16_clip_224",
    "ViT-L-14": "vit_large_patch14_clip_224",
    "ViT-SO400M-14-SigLIP": "vit_so400m_patch14_siglip_224",
    "RN50": "resnet50_clip",
}


def shape(settings: dict) -> dict:
    """timm's arguments that differ from those of the named model."""
    model_cfg = architecture(settings)
    vision = model_cfg["vision_cfg"]
    arguments = {"num_classes": 0 if vision.get("timm_proj") == "none" else model_cfg["embed_dim"]}
    if settings["reduced"]:
        arguments |= {"img_size": vision["image_size"], "embed_dim": vision["width"], "depth": vision["layers"]}
        arguments["num_heads"] = vision["width"] // vision["head_width"]
    return arguments


@lru_cache(maxsize=1)
def load(name: str, path: Path, dtype: str, device: str, **arguments) -> torch.nn.Module:
    # A head of another size than the configuration's would not be loaded.
    source = {"file": str(path / "open_clip_model.safetensors"), "num_classes": arguments["num_classes"]}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=source, **arguments)
    return model.to(device, getattr(torch, dtype)).eval()


class Timm(Encoder):
    """The model itself, whose head is open_clip's projection."""

    def load(self) -> Callable[[torch.Tensor], torch.Tensor]:
        path = weights_folder("open_clip", self.settings, self.folder)
        name = MODELS[self.settings["model"]]
        return load(name, path, self.settings["dtype"], self.settings["device"], **shape(self.settings))


CONTESTANTS = {"timm": Timm}
