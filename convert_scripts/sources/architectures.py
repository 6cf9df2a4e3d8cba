"""open_clip's built-in architectures and pretrained tags by name, without open_clip or torch (its
`model_configs/*.json` and `pretrained.py`, release 3.3.0, and what open_clip 4 and LAION's MaMMUT added)."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from ..common import MAX_NUM_PATCHES, ConversionError, argument, data_table, listing


# Of open_clip 3.3.0; those of open_clip 4 that can be converted are in tables of their own.
ARCHITECTURES = "open_clip_architectures"
PRETRAINED = "open_clip_pretrained"
TOWERS = "open_clip_towers"
ARCHITECTURES_4 = "open_clip_4_architectures"
PRETRAINED_4 = "open_clip_4_pretrained"
TOWERS_4 = "open_clip_4_towers"
# Names of open_clip 4 that cannot be converted -> what they are; the first that fits.
UNSUPPORTED = {
    "CLAP-*": "a model of audio and text, and models of images and texts alone are supported",
    "naflexclap_*": "a model of audio and text, and models of images and texts alone are supported",
    "naflexgenlip_*": "a GenLIP, one generative transformer over images and texts, which has no towers to convert",
    "naflexgenlap_*": "a GenLAP, one generative transformer over audio and texts, which has no towers to convert",
    "mammut2-*naflex*": "a MaMMUT whose images are of any shape (NaFlex), which is not supported yet",
    "coca2-*naflex*": "a CoCa whose images are of any shape (NaFlex), which is not supported yet",
}
QUICK_GELU_SUFFIX = "-quickgelu"
TIMM_TOWER = "open_clip_timm_vision"
NAFLEX_TOWER = "open_clip_naflex_vit"


@cache
def _architectures(newer: bool = True) -> dict[str, dict[str, Any]]:
    return {**data_table(ARCHITECTURES), **(data_table(ARCHITECTURES_4) if newer else {})}


def list_architectures(newer: bool = True) -> list[str]:
    """Names of the built-in architectures; `newer=False` leaves out those that came after open_clip 3.3.0."""
    return sorted(_architectures(newer))


def get_architecture(name: str) -> dict[str, Any]:
    """open_clip's `model_cfg` of a built-in architecture.

    Args:
        name: open_clip's name, such as `"coca_ViT-L-14"`; a slash is read as a dash, as open_clip does. Every name
            may end in `-quickgelu`, which is open_clip's `force_quick_gelu`.

    Raises:
        ConversionError: there is no such architecture; close names are listed.
    """
    if name.endswith(".json"):
        raise ConversionError(
            f"{name!r} is a file and not the name of an architecture: give it with {argument('config', name)}."
        )
    name = name.replace("/", "-")
    architectures = _architectures()
    if name in architectures:
        return deepcopy(architectures[name])
    base = name.removesuffix(QUICK_GELU_SUFFIX)
    if base in architectures:
        return {**deepcopy(architectures[base]), "quick_gelu": True}
    unsupported = find_unsupported(base)
    if unsupported is not None:
        raise ConversionError(f"{name} is {unsupported}.")
    close = _close(name, architectures, cutoff=0.5)
    hint = f"Did you mean {', '.join(close)}?" if close else f"Known names: {', '.join(list_architectures())}."
    raise ConversionError(
        f"{name!r} is not among the {len(architectures)} architectures that are known. "
        f"{hint} For another architecture give its configuration with {argument('config', 'FILE')}."
    )


def is_architecture(name: str) -> bool:
    """Whether `get_architecture` takes `name`."""
    return name.replace("/", "-").removesuffix(QUICK_GELU_SUFFIX) in _architectures()


def find_unsupported(name: str) -> str | None:
    """Return a description of an architecture of open_clip 4 that cannot be converted; `None` for any other name."""
    return next((what for pattern, what in UNSUPPORTED.items() if fnmatchcase(name, pattern)), None)


@dataclass(frozen=True)
class PretrainedTag:
    """Weights that open_clip knows by name.

    Args:
        model: open_clip's name of the architecture.
        tag: name of the weights.
        hub_id: the Hub repository that holds them.
        filename: the weights file in it; `None` for one of open_clip's usual names.
        url: where they were first published, if that is another place.
        quick_gelu: whether they were trained with QuickGELU.
        preprocess_cfg: open_clip's image settings: `mean`, `std`, `interpolation`, `resize_mode`.
    """

    model: str
    tag: str
    hub_id: str
    filename: str | None
    url: str | None
    quick_gelu: bool
    preprocess_cfg: Mapping[str, Any]


@cache
def _pretrained() -> dict[str, dict[str, PretrainedTag]]:
    return {
        model: {tag: _read_tag(model, tag, dict(fields)) for tag, fields in tags.items()}
        for model, tags in {**data_table(PRETRAINED), **data_table(PRETRAINED_4)}.items()
    }


def _read_tag(model: str, tag: str, fields: dict[str, Any]) -> PretrainedTag:
    # open_clip's tags say it only where the weights differ from their architecture, and then only "yes".
    quick_gelu = fields.pop("quick_gelu", False) or get_architecture(model).get("quick_gelu", False)
    hub_id, filename, url = fields.pop("hub_id"), fields.pop("filename", None), fields.pop("url", None)
    return PretrainedTag(model, tag, hub_id, filename, url, quick_gelu, fields)


def list_pretrained(model: str | None = None) -> list[PretrainedTag]:
    """The tags of an architecture, by default of all, in open_clip's order; empty for one that has none."""
    return [entry for name, tags in _pretrained().items() if model in (None, name) for entry in tags.values()]


def get_pretrained(model: str, tag: str) -> PretrainedTag:
    """Weights by name. As open_clip does, dashes in a tag are read as underscores, and its case does not matter.

    Raises:
        ConversionError: there is no such architecture or it has no such tag; its tags and close names are listed.
    """
    get_architecture(model)
    model = model.replace("/", "-")
    tags = _pretrained().get(model, {})
    cleaned = tag.lower().replace("-", "_")
    if cleaned in tags:
        return tags[cleaned]
    if not tags:
        raise ConversionError(f"{model} has no pretrained tags in open_clip, so {tag!r} is not one of them.")
    close = difflib.get_close_matches(cleaned, tags, n=3, cutoff=0.6)
    others = [name for name, other in _pretrained().items() if cleaned in other]
    raise ConversionError(
        f"{model} has no pretrained tag {tag!r}. "
        + (f"Did you mean {' or '.join(close)}? " if close else "")
        + (f"These models have it: {', '.join(others)}. " if others else "")
        + f"Tags of {model}:{listing(tags, limit=30)}"
    )


def find_published(model_name: str | None, model_cfg: Mapping[str, Any]) -> list[PretrainedTag]:
    """The tags of an architecture: of that name, or, without one, of the built-in ones described alike."""
    if model_name is None:
        names = [name for name, cfg in _architectures().items() if cfg == model_cfg]
    else:
        name = model_name.replace("/", "-")
        names = [name if name in _architectures() else name.removesuffix(QUICK_GELU_SUFFIX)]
    return [tag for name in names for tag in list_pretrained(name)]


@dataclass(frozen=True)
class ListedModel:
    """An architecture, with one of its pretrained tags where it has any.

    Args:
        model: open_clip's name of the architecture.
        pretrained: a tag of it.
        vision_tower: `model_type` of our configuration of its vision tower.
        text_tower: `model_type` of our configuration of its text tower.
        vision_parameters: numbers in the vision tower.
        text_parameters: numbers in the text tower.
        parameters: numbers in the whole model.
        image_size: pixels, (height, width) where they differ; of a NaFlex tower those that its positions are for.
        max_num_patches: most patches of an image for a NaFlex tower, which takes images of any shape; else `None`.
        context_length: tokens of a text.
        timm_model: timm's name of the vision tower where timm is needed for it.
        tokenizer: Hub id of the tokenizer whose files are needed, or tiktoken's name of it; `None` for CLIP's, which
            is built in.
    """

    model: str
    pretrained: PretrainedTag | None
    vision_tower: str
    text_tower: str
    vision_parameters: int
    text_parameters: int
    parameters: int
    image_size: int | list[int]
    max_num_patches: int | None
    context_length: int
    timm_model: str | None
    tokenizer: str | None


def list_models(pattern: str | None = None, tags: bool = True) -> Iterator[ListedModel]:
    """Architectures by name, each with its tags in open_clip's order.

    Args:
        pattern: part of the name of an architecture or a tag, or a pattern with `*`, `?` or `[...]` for the whole of
            one; upper and lower case are not told apart. By default everything is listed.
        tags: `False` lists each architecture once, whether or not it has tags.
    """
    for model in list_architectures():
        entries = list_pretrained(model)
        if not _matches(pattern, model):
            entries = [entry for entry in entries if _matches(pattern, entry.tag)]
            if not entries:
                continue
        for entry in entries if tags and entries else [None]:
            yield _listed(model, entry)


def close_names(pattern: str) -> list[str]:
    """Names of architectures and tags that are like `pattern`."""
    names = (name for tag in list_pretrained() for name in (tag.tag, tag.model))
    return _close(pattern, [*names, *list_architectures()], cutoff=0.6)


def _close(name: str, names: Iterable[str], cutoff: float) -> list[str]:
    """The five of `names` that are most like `name`, whatever the case of letters."""
    written = {each.casefold(): each for each in names}
    return [written[each] for each in difflib.get_close_matches(name.casefold(), written, n=5, cutoff=cutoff)]


def _matches(pattern: str | None, name: str) -> bool:
    if pattern is None:
        return True
    pattern, name = pattern.casefold(), name.casefold()
    return fnmatchcase(name, pattern) if any(sign in pattern for sign in "*?[") else pattern in name


def _listed(model: str, pretrained: PretrainedTag | None) -> ListedModel:
    model_cfg, towers = get_architecture(model), {**data_table(TOWERS), **data_table(TOWERS_4)}[model]
    # open_clip 4 has the text tower of a MaMMUT in the other part.
    vision_cfg, text_cfg = model_cfg["vision_cfg"], model_cfg.get("text_cfg") or model_cfg["multimodal_cfg"]
    tower = towers["vision_tower"]
    return ListedModel(
        model=model,
        pretrained=pretrained,
        **towers,
        image_size=vision_cfg.get("image_size", 224),
        max_num_patches=vision_cfg.get("image_seq_len", MAX_NUM_PATCHES) if tower == NAFLEX_TOWER else None,
        context_length=text_cfg.get("context_length", 77),
        timm_model=vision_cfg["timm_model_name"] if tower == TIMM_TOWER else None,
        tokenizer=text_cfg.get("hf_tokenizer_name") or _tiktoken_name(text_cfg),
    )


def _tiktoken_name(text_cfg: Mapping[str, Any]) -> str | None:
    return text_cfg["tiktoken_name"] if text_cfg.get("tokenizer_type") == "tiktoken" else None
