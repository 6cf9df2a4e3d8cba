"""Sources of checkpoints: folders, Hub repositories, weights files and pretrained tags, in one form.

Mirrors the `local-dir:` and `hf-hub:` schemas and the `pretrained` of open_clip's `create_model` (`factory.py`).
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from ..common import ConversionError, argument, hub_id_of_address, read_json, user_path
from ..mapping.config_table import text_fields_of
from ..mapping.hints import explain_keys
from ..towers.base import VISION_DEFAULTS
from .architectures import QUICK_GELU_SUFFIX, get_architecture, get_pretrained, is_architecture, list_pretrained
from .hub import download_pretrained, download_repository
from .openai import OPENAI_KEYS, infer_openai_architecture, is_openai
from .weights import CONFIG_FILE, WEIGHTS_SUFFIXES, Weights, find_weights, read_weights


# Weights trained with QuickGELU say so in their names, as open_clip's tags do (DFNDR is another data set than DFN),
QUICK_GELU_NAMES = re.compile(r"openai|dfn(?!dr)|metaclip|quick_?gelu", re.IGNORECASE)
# but for these tags, which were trained with GELU,
GELU_NAMES = re.compile(r"39b|altogether", re.IGNORECASE)
# and these models, all of whose tags were.
GELU_MODELS = {"ViT-H-14-worldwide-378", "ViT-bigG-14-worldwide", "ViT-bigG-14-worldwide-378"}

# Fields that every description of a model has.
_ARCHITECTURE = {"embed_dim", "vision_cfg", "text_cfg"}
# Fields of an image tower in which checkpoints of one architecture differ.
_OPTIONAL = {"image_size", "patch_dropout", "output_tokens", "timm_model_pretrained", "timm_drop", "timm_drop_path"}


@dataclass(frozen=True)
class SourceOptions:
    """A checkpoint as a user names it.

    Args:
        source: a folder, a weights file, or a Hub id `"org/name"`, which may end in `@revision`; open_clip's prefixes
            `local-dir:` and `hf-hub:` are understood. With `pretrained` and without `model_name`, open_clip's name of
            a built-in architecture.
        model_name: open_clip's name of a built-in architecture, for weights that do not say it themselves.
        config: the contents or the path of a file like `open_clip_config.json` or like those in open_clip's
            `model_configs/`. With `model_name` it holds what differs from that architecture, and a `preprocess_cfg`.
        pretrained: open_clip's tag of the weights, which says where they are, and knows their activation and image
            settings.
        revision: branch, tag or commit of the Hub repository.
        ema: take the averaged weights of a training checkpoint.
        reparameterize: fuse the branches that some of timm's image towers have in training.
    """

    source: str | os.PathLike
    model_name: str | None = None
    config: str | os.PathLike | Mapping[str, Any] | None = None
    pretrained: str | None = None
    revision: str | None = None
    ema: bool = False
    reparameterize: bool = False


@dataclass(frozen=True)
class Source:
    """A checkpoint to convert.

    Args:
        name: the source as it was given.
        weights: its weights file.
        model_cfg: open_clip's description of the model, empty for one of transformers itself.
        preprocess_cfg: open_clip's image settings as they are stated, empty where none are.
        tokenizer_folder: where tokenizer files may lie; `None` where they are those that `model_cfg` names.
        named_tokenizer_folder: the local folder that `hf_tokenizer_name` stands for; `None` for a Hub id.
        model_name: the built-in architecture that was asked for by its name; `None` where the checkpoint, a
            configuration or a pretrained tag describes the model.
        has_own_config: whether its own open_clip_config.json describes it.
        hub: id and revision of the Hub repository that it was downloaded from.
        notes: decisions about the checkpoint, for the report.
    """

    name: str
    weights: Path
    model_cfg: Mapping[str, Any]
    preprocess_cfg: Mapping[str, Any]
    tokenizer_folder: Path | None = None
    named_tokenizer_folder: Path | None = None
    model_name: str | None = None
    has_own_config: bool = False
    hub: tuple[str, str | None] | None = None
    notes: tuple[str, ...] = ()


def open_source(options: SourceOptions) -> Source:
    """Find the weights and the configuration of a checkpoint.

    Raises:
        ConversionError: nothing is found, or the architecture is given twice or not at all.
    """
    name = os.fspath(options.source)
    if options.pretrained is not None:
        if options.config is not None:
            raise ConversionError(
                f"{argument('pretrained')} knows the architecture and the image settings: leave out "
                f"{argument('config')}."
            )
        return _open_pretrained(name, options.model_name, options.pretrained, options.revision)
    given = _given_config(options.model_name, options.config)
    name, path, hub = _find(name, options.revision, needs_config=given is None)
    folder = path if path.is_dir() else path.parent
    own_config = folder / CONFIG_FILE
    if given is not None and path.is_dir() and own_config.is_file():
        raise ConversionError(
            f"{name} has its own {CONFIG_FILE}: leave out {argument('model_name')} and {argument('config')}, or give "
            "the weights file instead of the folder."
        )
    weights = find_weights(path) if path.is_dir() else path
    notes: tuple[str, ...] = ()
    config_folder = folder if given is None else _config_folder(options.config)
    if given is not None:
        own = given
        if hub is None and own_config.is_file():
            beside, notes = _settings_beside(own_config, given["model_cfg"])
            own = {**given, "preprocess_cfg": {**beside, **given["preprocess_cfg"]}}
    elif own_config.is_file():
        own = read_config(own_config)
    else:
        own, notes = _inferred_config(name, weights), ("architecture from the shapes of OpenAI's tensors",)
    model_cfg, named_folder = own["model_cfg"], None
    if given is not None or hub is None:  # what comes from the Hub reads no local folders
        model_cfg = _with_local_folders(model_cfg, config_folder)
        named_folder = _named_tokenizer_folder(model_cfg)
    return Source(
        name=name,
        weights=weights,
        model_cfg=model_cfg,
        preprocess_cfg=own["preprocess_cfg"],
        tokenizer_folder=folder if given is None or named_folder is None else named_folder,
        named_tokenizer_folder=named_folder,
        model_name=options.model_name,
        has_own_config=given is None and own_config.is_file(),
        hub=hub,
        notes=notes,
    )


def _open_pretrained(name: str, model_name: str | None, pretrained: str, revision: str | None) -> Source:
    """Find the weights of a tag: those that were given as the source, or where it is an architecture, the Hub's."""
    try:
        tag = get_pretrained(name if model_name is None else model_name, pretrained)
    except ConversionError as error:
        if model_name is None and ("/" in name or Path(name).exists()):
            raise ConversionError(
                f"With {argument('pretrained')}, the source is the name of an architecture, got {name}. For weights "
                f"that are already here, give the name with {argument('model_name')}."
            ) from error
        raise
    model_cfg = get_architecture(tag.model)
    notes = []
    if tag.quick_gelu and not model_cfg.get("quick_gelu"):
        model_cfg["quick_gelu"] = True
        notes.append(f"QuickGELU, with which {tag.tag} was trained, in place of the GELU of {tag.model}")
    hub: tuple[str, str | None] | None
    if model_name is None:
        path, hub = download_pretrained(tag, revision), (tag.hub_id, revision)
        name = f"{tag.model} {tag.tag} ({tag.hub_id}{'' if revision is None else f'@{revision}'})"
    else:
        name, path, hub = _find(name, revision, needs_config=False)
    return Source(
        name=name,
        weights=find_weights(path) if path.is_dir() else path,
        model_cfg=model_cfg,
        preprocess_cfg=tag.preprocess_cfg,
        tokenizer_folder=None if model_name is None else path if path.is_dir() else path.parent,
        hub=hub,
        notes=tuple(notes),
    )


def _find(name: str, revision: str | None, needs_config: bool) -> tuple[str, Path, tuple[str, str | None] | None]:
    """Find or download a source: `name` with its revision, the local folder or file, and `Source.hub`."""
    path = user_path(name.removeprefix("local-dir:"))
    if not name.startswith("hf-hub:") and path.exists():
        if not path.is_file() and not path.is_dir():
            raise ConversionError(f"{name} is neither a file nor a folder, but a pipe or a device: give a file.")
        if revision is not None:
            raise ConversionError(
                f"{name} is on this machine and has no revisions: leave out {argument('revision', revision)}."
            )
        return name, path, None
    if not re.fullmatch(r"(hf-hub:.+|[\w.-]+/[\w.-]+(@.+)?)", name) or path.suffix in WEIGHTS_SUFFIXES:
        raise ConversionError(_not_found(name))
    repo_id, _, own_revision = name.removeprefix("hf-hub:").partition("@")
    if own_revision and revision not in (None, own_revision):
        raise ConversionError(f"The revision is given twice: {name} and {revision!r}.")
    revision = own_revision or revision
    path = download_repository(repo_id, revision, needs_config)
    return name if own_revision or revision is None else f"{name}@{revision}", path, (repo_id, revision)


def _not_found(name: str) -> str:
    message = f"{name}: there is no such file or folder, and it is not a Hub id (org/name)."
    if (hub_id := hub_id_of_address(name)) is not None:
        return f"{message} Give {hub_id} instead of its address."
    try:
        get_architecture(name)
    except ConversionError:
        return message
    tags = [entry.tag for entry in list_pretrained(name.replace("/", "-"))]
    example = f"one of its tags as {argument('pretrained')}, such as {tags[-1]!r}, or " if tags else ""
    return (
        f"{message} It is an architecture: give {example}its weights file as the source and {name!r} as "
        f"{argument('model_name')}."
    )


def _given_config(model_name: str | None, config) -> dict[str, Any] | None:
    if model_name is None and config is None:
        return None
    if model_name is None:
        return read_config(config)
    model_cfg = get_architecture(model_name)
    if config is None:
        return {"model_cfg": model_cfg, "preprocess_cfg": {}}
    config = _content(config)
    rest = {key: value for key, value in config.items() if key not in ("preprocess_cfg", "version")}
    changes = rest.pop("model_cfg") if "model_cfg" in rest else {**rest}
    if not isinstance(changes, Mapping) or ("model_cfg" in config and rest):
        raise ConversionError(
            f"Beside a name, {argument('config')} holds what differs from the architecture, at top level or under "
            f"model_cfg, and a preprocess_cfg; got {', '.join(map(str, config))}."
        )
    if _describes_model(changes):
        raise ConversionError(
            f"The architecture is given twice, by {argument('model_name', model_name)} and by {argument('config')}: "
            "leave one out, or give no more in the configuration than what differs, and a preprocess_cfg."
        )
    return {"model_cfg": _changed(model_cfg, changes), "preprocess_cfg": _preprocess_cfg(config)}


def _changed(model_cfg: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`model_cfg` with `changes` merged in, one level deep."""
    parts = {
        key: {**model_cfg[key], **value}
        for key, value in changes.items()
        if isinstance(value, Mapping) and isinstance(model_cfg.get(key), Mapping)
    }
    return {**model_cfg, **changes, **parts}


def _settings_beside(path: Path, model_cfg: Mapping[str, Any]) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Image settings in the file `path` beside weights whose architecture was given otherwise, and a note."""
    content = read_json(path)
    settings = _preprocess_cfg(content)
    if not settings:
        return {}, ()
    theirs = content.get("model_cfg", {})
    if theirs and _image_tower(theirs) != _image_tower(model_cfg):
        return {}, (f"image settings of {path.name} beside the weights left out: it has another image tower",)
    return settings, (f"image settings of {path.name} beside the weights",)


def _image_tower(model_cfg: Any) -> Any:
    """The settings by which image towers differ, without options of training and of single checkpoints."""
    if not isinstance(model_cfg, Mapping) or not isinstance(model_cfg.get("vision_cfg"), Mapping):
        return model_cfg
    return {
        key: value for key, value in {**VISION_DEFAULTS, **model_cfg["vision_cfg"]}.items() if key not in _OPTIONAL
    }


def _config_folder(config) -> Path | None:
    """Where paths in a given configuration start: its own folder; `None` for a Python object or a name."""
    return None if config is None or isinstance(config, Mapping) else user_path(config).absolute().parent


def _with_local_folders(model_cfg: Mapping[str, Any], base: Path | None) -> Mapping[str, Any]:
    """`model_cfg` whose text tower names local folders by their whole paths; they may be relative to `base`."""
    part = "text_cfg" if model_cfg.get("text_cfg") is not None else "multimodal_cfg"
    text_cfg = model_cfg.get(part)
    if not isinstance(text_cfg, Mapping):
        return model_cfg
    folders = {key: _local_folder(text_cfg.get(key), base) for key in ("hf_tokenizer_name", "hf_model_name")}
    folders = {key: folder for key, folder in folders.items() if folder}
    return {**model_cfg, part: {**text_cfg, **folders}} if folders else model_cfg


def _local_folder(name: Any, base: Path | None) -> str | None:
    if not isinstance(name, str) or not name:
        return None
    path = user_path(name)
    path = path if base is None else base.absolute() / path
    return str(path) if path.is_absolute() and path.is_dir() else None


def _named_tokenizer_folder(model_cfg: Mapping[str, Any]) -> Path | None:
    """The local folder that `hf_tokenizer_name` stands for; `None` where it is a Hub id, or there is none."""
    text_cfg = text_fields_of(model_cfg)
    name = text_cfg.get("hf_tokenizer_name") if isinstance(text_cfg, Mapping) else None
    return Path(name) if isinstance(name, str) and Path(name).is_absolute() else None


def _inferred_config(name: str, weights: Path) -> dict[str, Any]:
    """The architecture of OpenAI's archives, the only ones whose tensors say all of it."""
    tensors = read_weights(weights).tensors
    if not is_openai(tensors.keys()):
        raise ConversionError(
            f"The architecture of {name} is not known: there is no {CONFIG_FILE} beside the weights. Say which it is "
            f"with {argument('model_name')}, such as ViT-B-32 or coca_ViT-L-14, or with {argument('config')}."
            f"{explain_keys(tensors)}"
        )
    return {"model_cfg": infer_openai_architecture(tensors), "preprocess_cfg": {}}


def _describes_model(model_cfg: Mapping[str, Any]) -> bool:
    """Whether all parts are there; open_clip 4 has a MaMMUT's text tower in `multimodal_cfg`."""
    return model_cfg.keys() >= _ARCHITECTURE or model_cfg.keys() >= _ARCHITECTURE - {"text_cfg"} | {"multimodal_cfg"}


def read_config(config: str | os.PathLike | Mapping[str, Any]) -> dict[str, Any]:
    """Read `model_cfg` and `preprocess_cfg` of a file like open_clip_config.json or like those in `model_configs/`.

    Raises:
        ConversionError: it cannot be read, or describes no model.
    """
    content = _content(config)
    model_cfg = content.get("model_cfg", content)
    if not isinstance(model_cfg, Mapping) or not _describes_model(model_cfg):
        name = "config" if isinstance(config, Mapping) else config
        raise ConversionError(
            f"{name} is not an open_clip configuration: expected embed_dim, vision_cfg and text_cfg, at top level or "
            f"under model_cfg; found {', '.join(map(str, content)) or 'nothing'}."
        )
    return {"model_cfg": model_cfg, "preprocess_cfg": _preprocess_cfg(content)}


def _content(config: str | os.PathLike | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(config, Mapping):
        return config
    path = user_path(config)
    if not os.path.lexists(path) and is_architecture(os.fspath(config)):
        raise ConversionError(
            f"{config} is no file, but the name of an architecture: give it with "
            f"{argument('model_name', os.fspath(config))} instead of {argument('config')}."
        )
    return read_json(path)


def _preprocess_cfg(content: Mapping[str, Any]) -> Mapping[str, Any]:
    cfg = content.get("preprocess_cfg")
    if cfg is not None and not isinstance(cfg, Mapping):
        raise ConversionError(f"preprocess_cfg must be a JSON object or null, got {brief(cfg)}.")
    return cfg or {}


def check_activation(source: Source, weights: Weights):
    """Refuse to take weights for a GELU model on a built-in name alone when they look like QuickGELU's.

    A configuration, the checkpoint's own or one that the user gave, is taken at its word: it states the activation.

    Raises:
        ConversionError: the file, the training run or the keys speak of QuickGELU and the built-in name does not.
    """
    if source.model_name is None or source.model_name in GELU_MODELS or "quick_gelu" in source.model_cfg:
        return
    reason = None
    for name in (Path(source.name).name, source.weights.name, weights.run_name or ""):
        normalized = name.replace("-", "_")
        if QUICK_GELU_NAMES.search(normalized) and not GELU_NAMES.search(normalized):
            reason = f"the name {name!r} says so"
    if is_openai(weights.tensors.keys()):
        reason = f"it has the keys of OpenAI's archives, {', '.join(sorted(OPENAI_KEYS))}"
    if reason is not None:
        raise ConversionError(
            f"{source.name} looks like weights trained with QuickGELU ({reason}), but {source.model_name} uses GELU, "
            "and nothing in the tensors tells the two apart. For QuickGELU give "
            f"{argument('model_name', source.model_name + QUICK_GELU_SUFFIX)}; for GELU give "
            f'{argument("config")} with {{"quick_gelu": false}} too.'
        )
