"""The depth of a tower's parameters, and towers locked by it (open_clip: the `lock` methods)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from .batch_norms import batch_norms, freeze_batch_norm


@dataclass(frozen=True)
class Depths:
    """How the parameters of a tower follow one another: patterns of their names, in groups from the input on.

    A name belongs to the first group that its beginning matches.

    Args:
        stem: the first group.
        layers: the groups behind it, one for each value of the pattern's number.
        last: what belongs to the last layer.
        head: the last group.
        free: what stays unlocked whatever is locked.
        can_lock_in_part: whether open_clip can leave groups of such a tower unlocked.
    """

    stem: str
    layers: str
    last: str = "$"
    head: str = "$"
    free: str = "$"
    can_lock_in_part: bool = True

    def groups(self, names: Iterable[str]) -> list[list[str]]:
        """Names in groups, the input's first; names that belong nowhere are left out."""
        names = [name for name in names if not re.match(self.free, name)]
        stem, layers, last, head = [], {}, [], []
        for name in names:
            layer = re.match(self.layers, name)
            if re.match(self.stem, name):
                stem.append(name)
            elif layer:
                layers.setdefault(tuple(map(int, layer.groups())), []).append(name)
            elif re.match(self.last, name):
                last.append(name)
            elif re.match(self.head, name):
                head.append(name)
        blocks = [layers[depth] for depth in sorted(layers)]
        blocks[-1] += last
        return [group for group in (stem, *blocks, head) if group]


_LAYERS = r"encoder\.layers\.(\d+)\."

# model_type -> the depths of a tower's parameters. The attention poolers of open_clip's vision transformer belong to
# no group, and are locked whenever the tower is.
DEPTHS = {
    "open_clip_vit": Depths(r"embeddings\.|pre_layernorm\.", _LAYERS, r"post_layernorm\.", r"projection\."),
    "open_clip_text": Depths(r"embeddings\.", _LAYERS, r"final_layer_norm\.", r"projection\."),
    "open_clip_modern_text": Depths(r"embeddings\.", _LAYERS, r"final_layer_norm\.", r"(pooler|projection)\."),
    "open_clip_siglip_vit": Depths(
        r"embeddings\.|pre_layernorm\.", _LAYERS, r"post_layernorm\.", r"pooler\.|fc_norm\.", free=r"projection\."
    ),
    "open_clip_naflex_vit": Depths(
        r"embeddings\.", _LAYERS, r"post_layernorm\.", r"pooler\.|fc_norm\.", free=r"projection\."
    ),
    "open_clip_modified_resnet": Depths(
        r"embeddings\.", r"encoder\.stages\.(\d+)\.layers\.(\d+)\.", head=r"attn_pool\.", can_lock_in_part=False
    ),
    "open_clip_hf_text": Depths(
        r"hf_model\.(embeddings|embed_tokens)\.",
        r"hf_model\.(?:encoder\.)?(?:layer|layers|block)\.(\d+)\.",
        last=r"hf_model\.",
        free=r"projection\.",
    ),
}


def depth_groups(tower: nn.Module) -> list[list[str]]:
    """Names of a tower's parameters in groups by depth, the input's first.

    Parameters of no group, such as those of an attention pooling, come behind them all.

    Raises:
        ValueError: the layers of the tower are not known.
    """
    if hasattr(tower, "parameters_by_depth"):
        return [[f"timm_model.{name}" for name in group] for group in tower.parameters_by_depth()]
    return _depths(tower).groups(name for name, _ in tower.named_parameters())


def _depths(tower: nn.Module) -> Depths:
    model_type = getattr(getattr(tower, "config", None), "model_type", None)
    if model_type not in DEPTHS:
        raise ValueError(
            f"The layers of {type(tower).__name__} are not known, those of {', '.join(DEPTHS)} are: pass one of our "
            "models."
        )
    return DEPTHS[model_type]


def _free(tower: nn.Module) -> str:
    return r"head\." if hasattr(tower, "parameters_by_depth") else _depths(tower).free


def _lock(tower: nn.Module, unlocked: int, argument: str):
    """Lock a tower but for its last `unlocked` groups, and what stays free."""
    if unlocked < 0:
        raise ValueError(f"{argument} is the number of groups that can still learn, got {unlocked}.")
    free = _free(tower)
    groups = []
    if unlocked:
        if not (hasattr(tower, "parameters_by_depth") or _depths(tower).can_lock_in_part):
            raise ValueError(
                f"{type(tower).__name__} is locked whole or not at all, as in open_clip: {argument} must be 0."
            )
        groups = depth_groups(tower)[-unlocked:]
    still_learn = {name for group in groups for name in group}
    for name, parameter in tower.named_parameters():
        if not re.match(free, name):
            parameter.requires_grad_(name in still_learn)


def lock_image_tower(model: nn.Module, unlocked_groups: int = 0, freeze_bn_stats: bool = False):
    """Lock the vision tower of a dual model (https://arxiv.org/abs/2111.07991), the same parameters as open_clip.

    Args:
        model: a dual model or CoCa.
        unlocked_groups: number of groups at the tower's end that can still learn; open_clip:
            `--lock-image-unlocked-groups`. A vision transformer's are its projection, each of its layers, the last one
            with the norm behind it, and its embeddings. timm says which its models have; what projects them, and the
            projection of a SigLIP tower, can always learn.
        freeze_bn_stats: also keep the running statistics of locked batch norms, for good; open_clip:
            `--lock-image-freeze-bn-stats`.

    Raises:
        ValueError: a negative number of groups, groups of a ResNet, or statistics to freeze of a tower that has none.
    """
    tower = _tower(model, "vision_model")
    norms = batch_norms(tower)
    if freeze_bn_stats and not norms:
        raise ValueError(f"freeze_bn_stats=True: {type(tower).__name__} has no batch norms.")
    _lock(tower, unlocked_groups, "unlocked_groups")
    for norm in norms if freeze_bn_stats else ():
        if not any(parameter.requires_grad for parameter in norm.parameters()):
            freeze_batch_norm(norm)


def lock_text_tower(model: nn.Module, unlocked_layers: int = 0, freeze_layer_norm: bool = True):
    """Lock the text tower of a dual model, the same parameters as open_clip.

    Args:
        model: a dual model or CoCa.
        unlocked_layers: number of groups at the tower's end that can still learn; open_clip:
            `--lock-text-unlocked-layers`. Those of open_clip's transformer are its projection, each of its layers, the
            last one with the norm behind it, and its embeddings; of an encoder of transformers, whose projection can
            always learn, its layers and its embeddings.
        freeze_layer_norm: whether the layer norms of BERT and its like are locked too; open_clip:
            `--lock-text-freeze-layer-norm`.

    Raises:
        ValueError: a negative number of layers, or `freeze_layer_norm=False` for a tower that has no such layer norms.
    """
    tower = _tower(model, "text_model")
    norms = [module for name, module in tower.named_modules() if name.split(".")[-1] == "LayerNorm"]
    if not freeze_layer_norm and not norms:
        raise ValueError(
            f"freeze_layer_norm=False: the layer norms of {type(tower).__name__} are locked with their layers, as in "
            "open_clip."
        )
    _lock(tower, unlocked_layers, "unlocked_layers")
    for norm in () if freeze_layer_norm else norms:
        norm.requires_grad_(True)


def _tower(model: nn.Module, name: str) -> nn.Module:
    if not hasattr(model, name):
        raise ValueError(f"{type(model).__name__} has no {name}: pass a dual model or CoCa.")
    return getattr(model, name)
