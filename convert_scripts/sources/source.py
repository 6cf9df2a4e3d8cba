"""What can be converted: folders, Hub repositories, weights files and pretrained tags, brought to one form.

Mirrors the `local-dir:` and `hf-hub:` schemas and the `pretrained` of open_clip's `create_model`, its
`_find_checkpoint_in_dir` (`factory.py`) and its `download_pretrained` (`pretrained.py`).
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from ..common import ConversionError, listing
from ..json_files import read_json
from ..pretrained import PretrainedTag, get_pretrained, list_pretrained
from .architectures import get_architecture
from .openai import infer_openai_architecture, is_openai
from .weights import INDEX_SUFFIX, WEIGHTS_SUFFIXES, read_checkpoint


CONFIG_FILE = "open_clip_config.json"
# open_clip's order of preference.
WEIGHTS_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
INDEX_FILES = tuple(name + INDEX_SUFFIX for name in WEIGHTS_FILES)
UNREACHABLE = (LocalEntryNotFoundError, ConnectionError)


@dataclass(frozen=True)
class Source:
    """A checkpoint to convert.

    Args:
        name: the source as it was given.
        weights: its weights file.
        model_cfg: open_clip's description of the model.
        preprocess_cfg: open_clip's image settings, empty for its defaults.
        tokenizer_folder: where tokenizer files may lie; `None` where they are those that `model_cfg` names.
        model_name: the built-in architecture that was asked for by its name alone; `None` where the checkpoint, a
            configuration or a pretrained tag describes the model.
        hub: id and revision of the Hub repository that it was downloaded from.
        notes: what was decided about the checkpoint, for the report.
    """

    name: str
    weights: Path
    model_cfg: Mapping[str, Any]
    preprocess_cfg: Mapping[str, Any]
    tokenizer_folder: Path | None = None
    model_name: str | None = None
    hub: tuple[str, str | None] | None = None
    notes: tuple[str, ...] = ()


def open_source(
    source: str | os.PathLike,
    model_name: str | None = None,
    config: str | os.PathLike | Mapping[str, Any] | None = None,
    pretrained: str | None = None,
    revision: str | None = None,
) -> Source:
    """Finds the weights and the configuration of a checkpoint.

    Args:
        source: a folder, a weights file, or a Hub id `"org/name"`, which may end in `@revision`; open_clip's prefixes
            `local-dir:` and `hf-hub:` are understood. With `pretrained` and without `model_name`, open_clip's name of
            a built-in architecture.
        model_name: open_clip's name of a built-in architecture, for weights that do not say it themselves.
        config: the contents or the path of a file like `open_clip_config.json` or like those in open_clip's
            `model_configs/`. With `model_name` it may hold a `preprocess_cfg` alone.
        pretrained: open_clip's tag of the weights, which says where they are, and knows their activation and image
            settings.
        revision: branch, tag or commit of the Hub repository.

    Raises:
        ConversionError: nothing is found, or the architecture is given twice or not at all.
    """
    name = os.fspath(source)
    if pretrained is not None:
        if config is not None:
            raise ConversionError("pretrained knows the architecture and the image settings: leave out config.")
        return _open_pretrained(name, model_name, pretrained, revision)
    given = _given_config(model_name, config)
    name, path, hub = _find(name, revision, needs_config=given is None)
    folder = path if path.is_dir() else path.parent
    own_config = folder / CONFIG_FILE
    if given is not None and path.is_dir() and own_config.is_file():
        raise ConversionError(
            f"{name} has its own {CONFIG_FILE}: leave out model_name and config, or give the weights file instead of "
            "the folder."
        )
    weights = find_weights(path) if path.is_dir() else path
    notes: tuple[str, ...] = ()
    if given is not None:
        own = given
    elif own_config.is_file():
        own = _read_config(own_config)
    else:
        own, notes = _inferred_config(name, weights), ("architecture from the shapes of OpenAI's tensors",)
    return Source(
        name=name,
        weights=weights,
        model_cfg=own["model_cfg"],
        preprocess_cfg=own["preprocess_cfg"],
        tokenizer_folder=folder,
        model_name=model_name,
        hub=hub,
        notes=notes,
    )


def _open_pretrained(name: str, model_name: str | None, pretrained: str, revision: str | None) -> Source:
    """The weights of a tag: those that were given as the source, or where it is an architecture, the Hub's."""
    try:
        tag = get_pretrained(name if model_name is None else model_name, pretrained)
    except ConversionError as error:
        if model_name is None and ("/" in name or Path(name).exists()):
            raise ConversionError(
                f"With pretrained, the source is the name of an architecture, got {name}. For weights that are "
                "already here, give the name as model_name."
            ) from error
        raise
    model_cfg = get_architecture(tag.model)
    notes = []
    if tag.quick_gelu and not model_cfg.get("quick_gelu"):
        model_cfg["quick_gelu"] = True
        notes.append(f"QuickGELU, with which {tag.tag} was trained, in place of the GELU of {tag.model}")
    hub: tuple[str, str | None] | None
    if model_name is None:
        path, hub = _download_pretrained(tag, revision), (tag.hub_id, revision)
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
    """`name` with its revision, the local folder or file, and `Source.hub` of what was downloaded from the Hub."""
    path = Path(name.removeprefix("local-dir:")).expanduser()
    if not name.startswith("hf-hub:") and path.exists():
        if revision is not None:
            raise ConversionError(f"{name} is on this machine and has no revisions: leave out revision={revision!r}.")
        return name, path, None
    if not re.fullmatch(r"(hf-hub:.+|[\w.-]+/[\w.-]+(@.+)?)", name) or path.suffix in WEIGHTS_SUFFIXES:
        raise ConversionError(_not_found(name))
    repo_id, _, own_revision = name.removeprefix("hf-hub:").partition("@")
    if own_revision and revision not in (None, own_revision):
        raise ConversionError(f"The revision is given twice: {name} and {revision!r}.")
    revision = own_revision or revision
    path = _download(repo_id, revision, needs_config)
    return name if own_revision or revision is None else f"{name}@{revision}", path, (repo_id, revision)


def _not_found(name: str) -> str:
    message = f"{name}: there is no such file or folder, and it is not a Hub id (org/name)."
    try:
        get_architecture(name)
    except ConversionError:
        return message
    tags = [entry.tag for entry in list_pretrained(name.replace("/", "-"))]
    example = f"one of its tags as pretrained, such as {tags[-1]!r}, or " if tags else ""
    return f"{message} It is an architecture: give {example}its weights file as the source and {name!r} as model_name."


def _given_config(model_name: str | None, config) -> dict[str, Any] | None:
    if model_name is None and config is None:
        return None
    if model_name is None:
        return _read_config(config)
    given = {"model_cfg": get_architecture(model_name), "preprocess_cfg": {}}
    if config is not None:
        config = config if isinstance(config, Mapping) else read_json(Path(config))
        if set(config) != {"preprocess_cfg"}:
            raise ConversionError(
                f"The architecture is given twice, by model_name={model_name!r} and by config: leave one out, or give "
                "a config that holds a preprocess_cfg alone."
            )
        given |= config
    return given


def _inferred_config(name: str, weights: Path) -> dict[str, Any]:
    """The architecture of OpenAI's archives, the only ones whose tensors say all of it."""
    tensors = read_checkpoint(weights).tensors
    if not is_openai(tensors.keys()):
        raise ConversionError(
            f"The architecture of {name} is not known: there is no {CONFIG_FILE} beside the weights. Say which it is "
            'with model_name, such as "ViT-B-32" or "coca_ViT-L-14", or with config.'
        )
    return {"model_cfg": infer_openai_architecture(tensors), "preprocess_cfg": {}}


def _read_config(config: str | os.PathLike | Mapping[str, Any]) -> dict[str, Any]:
    content = config if isinstance(config, Mapping) else read_json(Path(config))
    model_cfg = content.get("model_cfg", content)
    if not isinstance(model_cfg, Mapping) or not {"embed_dim", "vision_cfg", "text_cfg"} <= model_cfg.keys():
        name = "config" if isinstance(config, Mapping) else config
        raise ConversionError(
            f"{name} is not an open_clip configuration: expected embed_dim, vision_cfg and text_cfg, at top level or "
            f"under model_cfg; found {', '.join(map(str, content)) or 'nothing'}."
        )
    return {"model_cfg": model_cfg, "preprocess_cfg": content.get("preprocess_cfg") or {}}


def find_weights(folder: Path) -> Path:
    """The weights file of a folder, in open_clip's order of preference.

    Raises:
        ConversionError: there is none, or several and none of open_clip's usual names.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS_SUFFIXES and path.is_file())
    preferred = [folder / name for name in WEIGHTS_FILES + INDEX_FILES if (folder / name).is_file()]
    if preferred:
        return preferred[0]
    if list(folder.glob("*.distcp")):
        raise ConversionError(
            f"{folder} is a distributed checkpoint, whose index is a pickle. Where you trust it, make it one file "
            f"with `python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} FILE`, and convert that."
        )
    if len(found) == 1:
        return found[0]
    if found:
        raise ConversionError(
            f"{folder} holds several weights files, none with one of open_clip's "
            f"names:{listing(p.name for p in found)}\nGive one of them as the source, with "
            f"config={folder / CONFIG_FILE}."
        )
    raise ConversionError(
        f"{folder} holds no weights: expected {', '.join(WEIGHTS_FILES[:3])} or another {WEIGHTS_SUFFIXES}."
    )


def _download(repo_id: str, revision: str | None, needs_config: bool) -> Path:
    """Local folder with the configuration, if there is one, and the weights of a Hub repository."""
    offline = False
    try:
        download_file(repo_id, CONFIG_FILE, revision)
    except ConversionError as error:
        if needs_config:
            raise
        offline = isinstance(error.__cause__, UNREACHABLE)
    weights = _download_first(repo_id, WEIGHTS_FILES + INDEX_FILES, revision, offline)
    if weights.name.endswith(INDEX_SUFFIX):
        weight_map = read_json(weights).get("weight_map")
        # What is wrong with an index, reading its files will say.
        for name in sorted(set(weight_map.values())) if isinstance(weight_map, dict) else ():
            download_file(repo_id, name, revision)
    return weights.parent


def _download_pretrained(tag: PretrainedTag, revision: str | None) -> Path:
    """Local file with the weights of a tag. Like open_clip, prefers a safetensors file to another."""
    names: tuple[str, ...] = WEIGHTS_FILES
    if tag.filename is not None:
        names = (f"{Path(tag.filename).stem}.safetensors", tag.filename)
    try:
        return _download_first(tag.hub_id, names, revision)
    except ConversionError as error:
        if not isinstance(error.__cause__, UNREACHABLE):
            raise
        raise ConversionError(_without_network(tag, revision)) from error.__cause__


def _without_network(tag: PretrainedTag, revision: str | None) -> str:
    at = "" if revision is None else f" --revision {revision}"
    downloads = [f"hf download {tag.hub_id}{at} --local-dir FOLDER"]
    tokenizer = get_architecture(tag.model)["text_cfg"].get("hf_tokenizer_name")
    if tokenizer not in (None, tag.hub_id):
        downloads.append(save_tokenizer_command(tokenizer))
    conversion = f"open-clip-transformers convert FOLDER OUTPUT --model {tag.model} --pretrained {tag.tag}"
    return (
        f"The weights of {tag.model} {tag.tag}, {tag.hub_id}, are not in the local cache and the Hugging Face Hub "
        f"cannot be reached. Where there is a network run{listing(downloads)}\nand with that folder"
        f"{listing([conversion])}\n"
        f"or in Python give the folder as the source, with model_name={tag.model!r} and pretrained={tag.tag!r}."
    )


def save_tokenizer_command(hf_name: str) -> str:
    """What writes a tokenizer's files to FOLDER in one form, whichever they have on the Hub."""
    call = f"AutoTokenizer.from_pretrained('{hf_name}').save_pretrained('FOLDER')"
    return f'python -c "from transformers import AutoTokenizer; {call}"'


def _download_first(repo_id: str, names: Sequence[str], revision: str | None, offline: bool = False) -> Path:
    """The first of several files that a Hub repository has."""
    failures = []
    for name in names:
        try:
            return download_file(repo_id, name, revision, local_files_only=offline)
        except ConversionError as error:
            failures.append(error)
            # Waiting for the network once is enough: what follows can only be found in the cache.
            offline = offline or isinstance(error.__cause__, UNREACHABLE)
    raise failures[0]


def download_file(repo_id: str, filename: str, revision: str | None = None, *, local_files_only: bool = False) -> Path:
    """A file of a Hub repository, from the local cache or the network.

    Raises:
        ConversionError: neither has it.
    """
    try:
        return Path(
            huggingface_hub.hf_hub_download(repo_id, filename, revision=revision, local_files_only=local_files_only)
        )
    except UNREACHABLE as error:
        at = "" if revision is None else f" --revision {revision}"
        raise ConversionError(
            f"{filename} of {repo_id} is not in the local cache and the Hugging Face Hub cannot be reached. Where "
            f"there is a network run `hf download {repo_id}{at} --local-dir FOLDER`, and convert that folder."
        ) from error
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError) as error:
        raise ConversionError(f"{filename} of {repo_id} cannot be downloaded: {error}") from error
