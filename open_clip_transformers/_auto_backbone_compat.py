"""What `AutoBackbone` of the supported versions of transformers lacks."""

import functools
import os

from transformers import PreTrainedConfig
from transformers.models.auto import modeling_auto
from transformers.models.auto.auto_factory import _BaseAutoBackboneClass


def let_local_folders_pass():
    """Makes `AutoBackbone.from_pretrained` load our towers from folders on this machine.

    Up to 5.23 it asks the Hub about every name first, which fails for paths, and without a network for all others.
    This can go once it looks for a folder before.
    """
    ask_hub = modeling_auto.AutoBackbone.from_pretrained.__func__

    @functools.wraps(ask_hub)
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        if not _is_our_folder(pretrained_model_name_or_path):
            return ask_hub(cls, pretrained_model_name_or_path, *args, **kwargs)
        kwargs.pop("use_timm_backbone", None)
        # What the method of the base class does once the Hub has answered.
        return super(_BaseAutoBackboneClass, cls).from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    modeling_auto.AutoBackbone.from_pretrained = classmethod(from_pretrained)


def _is_our_folder(name) -> bool:
    if not os.path.isfile(os.path.join(name, "config.json")):
        return False
    return (PreTrainedConfig.get_config_dict(name)[0].get("model_type") or "").startswith("open_clip")
