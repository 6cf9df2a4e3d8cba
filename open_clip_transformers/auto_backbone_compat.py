"""Loading of local folders, which `AutoBackbone` of the supported versions of transformers lacks."""

import functools
import os

from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import AutoBackbone, AutoModel


def let_local_folders_pass():
    """Make `AutoBackbone.from_pretrained` load our towers from folders on this machine.

    Up to 5.24 it asks the Hub about every name first, which fails for paths, and without a network for all others.
    This can go once it looks for a folder before.
    """
    ask_hub = AutoBackbone.from_pretrained.__func__

    @functools.wraps(ask_hub)
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        if not _is_our_folder(pretrained_model_name_or_path):
            return ask_hub(cls, pretrained_model_name_or_path, *args, **kwargs)
        kwargs.pop("use_timm_backbone", None)
        # The method of all other Auto classes.
        return AutoModel.from_pretrained.__func__(cls, pretrained_model_name_or_path, *args, **kwargs)

    AutoBackbone.from_pretrained = classmethod(from_pretrained)


def _is_our_folder(name) -> bool:
    if not os.path.isfile(os.path.join(name, "config.json")):
        return False
    return (PreTrainedConfig.get_config_dict(name)[0].get("model_type") or "").startswith("open_clip")
