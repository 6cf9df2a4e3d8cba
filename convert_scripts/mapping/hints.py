"""The next step where the keys of a checkpoint are not those of the model: what they look like, and what to do."""

import re
from collections import Counter
from collections.abc import Collection


# transformers' models, and ours, keep their towers below these.
_TOWERS = ("vision_model.", "text_model.")
# Modules of open_clip's models.
_MODULES = {"visual", "text", "text_decoder", "transformer"}
# More than a student with its teachers.
MOST_MODELS = 3
# Beginnings of the names that PEFT gives to what its methods learn.
_METHODS = (
    "lora adaption_prompt adamss beft boft bone c3a delora fourierft glora gralora hada hira hra ia3 ln_tuning lokr "
    "miss oft osf psoft pvera randlora road shira tinylora trainable_tokens unilora vblora vera waveft xlora"
)
_ADAPTERS = re.compile(rf"(?:^|\.)(?:({'|'.join(_METHODS.split())})_|base_layer\.|modules_to_save\.)", re.IGNORECASE)


def explain_keys(keys: Collection[str], needed: Collection[str] = ()) -> str:
    """Lines that say what kind of names a checkpoint's keys are, and what to do; empty where nothing is recognised.

    Args:
        keys: of the checkpoint.
        needed: those that the architecture needs, where it is known.
    """
    hints = [_explain_adapters(keys), _explain_transformers(keys), _explain_prefixes(keys, set(needed))]
    return "".join(f"\n{hint}" for hint in hints if hint)


def has_names_of_transformers(keys: Collection[str]) -> bool:
    """Whether a checkpoint's keys are those of transformers' dual models, whatever lies around these."""
    return any(f".{key}".find(f".{tower}") >= 0 for key in keys for tower in _TOWERS)


def _explain_adapters(keys: Collection[str]) -> str:
    methods = {(match[1] or "lora").lower() for key in keys if (match := _ADAPTERS.search(key))}
    if not methods:
        return ""
    whose = "LoRA's" if "lora" in methods else f"adapters' ({', '.join(f'{method}_' for method in sorted(methods))})"
    return (
        f"Some keys are {whose}: merge the adapters into the model first (PEFT: `model.merge_and_unload()`), and save "
        "its state dict."
    )


def _explain_transformers(keys: Collection[str]) -> str:
    if not has_names_of_transformers(keys):
        return ""
    return (
        "Keys with vision_model. and text_model. are names of transformers' models: give the folder with their "
        "config.json as the source, instead of the weights file and an architecture."
    )


def _explain_prefixes(keys: Collection[str], needed: set[str]) -> str:
    if needed and needed <= set(keys):
        return _explain_others({key for key in keys if key not in needed})
    counts = Counter(prefix for key in keys for prefix in _prefixes_before(key, needed))
    # Where only a few fit by chance, nothing is said.
    prefixes = [prefix for prefix, count in counts.items() if 2 * count >= max(counts.values())]
    if not prefixes and not needed:
        prefixes = [prefix] if (prefix := _common_prefix(keys)) else []
    if not prefixes:
        return ""
    listed = " and ".join(repr(prefix) for prefix in prefixes)
    if len(prefixes) == 1:
        whose = "All keys" if all(key.startswith(prefixes[0]) for key in keys) else "The keys of the model"
        return (
            f"{whose} begin with {listed}: save them without it, such as with "
            f"`{{key.removeprefix({listed}): t for key, t in state_dict.items() if key.startswith({listed})}}`."
        )
    return f"The keys below {listed} are a model each: save those of one, without that beginning."


def _explain_others(keys: Collection[str]) -> str:
    """Advice on keys beside those of a whole model."""
    roots = sorted({key.partition(".")[0] for key in keys} - _MODULES)
    if not roots or len(roots) > MOST_MODELS or not all("." in key for key in keys):
        return ""
    listed = " and ".join(repr(f"{root}.") for root in roots)
    return f"The keys that begin with {listed} are another model's beside this one: save the state dict without them."


def _prefixes_before(key: str, needed: set[str]) -> list[str]:
    """The prefix of a key that is needed, the place of a text tower aside."""
    starts = (position + 1 for position, letter in enumerate(key) if letter == ".")
    prefixes = (key[:start].removesuffix("text.") for start in starts if key not in needed and key[start:] in needed)
    # Layers of one tower are called like those of another.
    return [prefix for prefix in prefixes if prefix and prefix.split(".")[-2] not in _MODULES][:1]


def _common_prefix(keys: Collection[str]) -> str:
    """The modules around all keys, none of which is a part of open_clip's models."""
    first, last = min(keys).split("."), max(keys).split(".")
    shared = [a for a, b in zip(first[:-1], last) if a == b]
    modules = []
    for name in shared:
        if name in _MODULES:
            break
        modules.append(f"{name}.")
    return "".join(modules)
