"""Guards against the one setting that no shape gives away: QuickGELU or GELU."""

import re
from pathlib import Path

from .common import ConversionError
from .sources.architectures import QUICK_GELU_SUFFIX
from .sources.openai import OPENAI_KEYS, is_openai
from .sources.source import Source
from .sources.weights import Checkpoint


# Weights trained with QuickGELU say so in their names, as open_clip's tags do (DFNDR is another data set than DFN),
QUICK_GELU_NAMES = re.compile(r"openai|dfn(?!dr)|metaclip|quick_?gelu", re.IGNORECASE)
# but for these tags, which were trained with GELU,
GELU_NAMES = re.compile(r"39b|altogether", re.IGNORECASE)
# and these models, all of whose tags were.
GELU_MODELS = {"ViT-H-14-worldwide-378", "ViT-bigG-14-worldwide", "ViT-bigG-14-worldwide-378"}


def check_activation(source: Source, checkpoint: Checkpoint):
    """Refuses to take weights for a GELU model on a built-in name alone when they look like QuickGELU's.

    A configuration, the checkpoint's own or one that the user gave, is taken at its word: it states the activation.

    Raises:
        ConversionError: the file, the training run or the keys speak of QuickGELU and the built-in name does not.
    """
    if source.model_name is None or source.model_name in GELU_MODELS or source.model_cfg.get("quick_gelu"):
        return
    reason = None
    for name in (Path(source.name).name, source.weights.name, checkpoint.run_name or ""):
        normalized = name.replace("-", "_")
        if QUICK_GELU_NAMES.search(normalized) and not GELU_NAMES.search(normalized):
            reason = f"the name {name!r} says so"
    if is_openai(checkpoint.tensors.keys()):
        reason = f"it has the keys of OpenAI's archives, {', '.join(sorted(OPENAI_KEYS))}"
    if reason is not None:
        raise ConversionError(
            f"{source.name} looks like weights trained with QuickGELU ({reason}), but {source.model_name} uses GELU, "
            "and nothing in the tensors tells the two apart. For QuickGELU give "
            f"model_name={source.model_name + QUICK_GELU_SUFFIX!r}; "
            f'for GELU give config with the architecture of {source.model_name} and "quick_gelu": false.'
        )
