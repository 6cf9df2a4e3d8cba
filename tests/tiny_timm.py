"""timm's models at reduced size, registered with timm as `tiny_<name>`, through timm's own arguments.

Whatever is not a size is the original's, so that open_clip and we build the same switches.
"""

from functools import partial

import timm
from timm.models.vitamin import VitCfg
from tiny_configs import tiny_clip_cfg

from open_clip_transformers.convert_scripts.sources.architectures import get_architecture, list_architectures


_TRANSFORMER = {"depth": 2, "embed_dim": 24, "num_heads": 2}
_FIVE_STAGES = {"layers": (1, 1, 1, 1, 1), "embed_dims": (8, 16, 32, 64, 128)}
_VITAMIN_STEM = VitCfg(embed_dim=(8, 12, 24), depths=(1, 2, 1), stem_width=8, head_type="1d")
# Beginning of a name -> side of the images, and sizes.
_SIZES = {
    "convnext_": (64, {"depths": (1, 1, 2, 1), "dims": (8, 12, 16, 64)}),
    "eva": (42, {**_TRANSFORMER, "patch_size": 14}),
    "fastvit_mci3": (64, _FIVE_STAGES),
    "fastvit_mci4": (64, _FIVE_STAGES),
    "fastvit_": (64, {"layers": (2, 1, 1, 1), "embed_dims": (8, 16, 32, 64)}),
    # Smaller images have no shifted windows.
    "swin_": (224, {"depths": (2, 2, 1, 1), "embed_dim": 8, "num_heads": (1, 2, 2, 4)}),
    # Its stem is 768 wide whatever is asked for.
    "vit_base_mci_": (48, {"depth": 1}),
    "vit_": (48, {**_TRANSFORMER, "patch_size": 16}),
    "vitamin_": (64, {"depth": 1, "embed_dim": 24, "num_heads": 2, "embed_cfg": _VITAMIN_STEM}),
}


def _sizes(name: str) -> tuple[int, dict]:
    return next(sizes for beginning, sizes in _SIZES.items() if name.startswith(beginning))


def _create(name: str, pretrained: bool = False, **kwargs):
    image_size, sizes = _sizes(name)
    if name.startswith(("eva", "vit")):
        sizes = {"img_size": image_size, **sizes}
    kwargs = {key: value for key, value in kwargs.items() if not key.startswith("pretrained_")}
    return timm.create_model(name, pretrained=pretrained, **{**sizes, **kwargs})


def tiny_timm_name(name: str) -> str:
    """`tiny_<name>`, which timm knows from here on."""
    tiny = f"tiny_{name}"
    if not timm.is_model(tiny):
        entrypoint = partial(_create, name)
        entrypoint.__name__, entrypoint.__module__ = tiny, __name__
        timm.models.register_model(entrypoint)
    return tiny


def tiny_timm_cfg(timm_model_name: str, **vision_cfg) -> dict:
    """open_clip `model_cfg` of a tiny CLIP with the reduced form of one of timm's models."""
    timm_fields = {"timm_model_name": tiny_timm_name(timm_model_name), "image_size": _sizes(timm_model_name)[0]}
    return {**tiny_clip_cfg(custom_text=True), "vision_cfg": {**timm_fields, **vision_cfg}}


def timm_vision_cfgs() -> dict[str, dict]:
    """The `vision_cfg` of open_clip's architectures with a tower of timm that has no class here, each only once.

    The key is the name of the first architecture that has it.
    """
    cfgs: dict[str, dict] = {}
    for name in list_architectures(newer=False):
        vision_cfg = get_architecture(name)["vision_cfg"]
        timm_model_name = vision_cfg.get("timm_model_name")
        if timm_model_name and "_siglip_" not in timm_model_name and vision_cfg not in cfgs.values():
            cfgs[name] = vision_cfg
    return cfgs


def tiny_cfg_of(vision_cfg: dict) -> dict:
    """`tiny_timm_cfg` of one of `timm_vision_cfgs`, with its pooling, projection and rates."""
    fields = {name: value for name, value in vision_cfg.items() if name not in ("timm_model_name", "image_size")}
    return tiny_timm_cfg(vision_cfg["timm_model_name"], **fields)


# One of each kind of tower.
FAMILIES = {
    "convnext": tiny_timm_cfg("convnext_base", timm_pool="", timm_proj="mlp"),
    "eva": tiny_timm_cfg("eva_giant_patch14_224", timm_pool="token", timm_proj=None),
    "eva02": tiny_timm_cfg("eva02_large_patch14_clip_224", timm_pool="token", timm_proj=None),
    "fastvit": tiny_timm_cfg("fastvit_mci1", timm_pool="avg", timm_proj=None),
    "mci": tiny_timm_cfg("vit_base_mci_224", timm_pool="token", timm_proj=None),
    "pe_core": tiny_timm_cfg("vit_pe_core_base_patch16_224", timm_pool="map", timm_proj=None),
    "relpos": tiny_timm_cfg("vit_relpos_medium_patch16_cls_224", timm_pool="", timm_proj="linear"),
    "swin": tiny_timm_cfg("swin_base_patch4_window7_224", timm_pool="", timm_proj="linear"),
    "vitamin": tiny_timm_cfg("vitamin_large_224", timm_pool="", timm_proj="linear", timm_drop_path=0.1),
}
