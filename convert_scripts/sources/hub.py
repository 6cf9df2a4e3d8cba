"""Downloads from the Hugging Face Hub, from the local cache where there is no network (open_clip:
`download_pretrained` in `pretrained.py`)."""

from collections.abc import Sequence
from pathlib import Path
from shlex import quote

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import httpx, validate_repo_id

from ..common import ConversionError, listing, read_json
from .architectures import PretrainedTag, get_architecture
from .weights import CONFIG_FILE, INDEX_FILES, INDEX_SUFFIX, WEIGHTS_FILES


UNREACHABLE = (LocalEntryNotFoundError, ConnectionError, TimeoutError, httpx.TransportError)


def download_file(repo_id: str, filename: str, revision: str | None = None, *, local_files_only: bool = False) -> Path:
    """Download a file of a Hub repository, or find it in the local cache.

    Raises:
        ConversionError: neither has it.
    """
    try:
        return Path(
            huggingface_hub.hf_hub_download(repo_id, filename, revision=revision, local_files_only=local_files_only)
        )
    except UNREACHABLE as error:
        raise ConversionError(
            f"{filename} of {repo_id} is not in the local cache and the Hugging Face Hub cannot be reached. Where "
            f"there is a network run `{_download_command(repo_id, revision)}`, and convert that folder."
        ) from error
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError) as error:
        raise ConversionError(f"{filename} of {repo_id} cannot be downloaded: {error}") from error


def _download_first(repo_id: str, names: Sequence[str], revision: str | None, offline: bool = False) -> Path:
    """Download the first of several files that a Hub repository has."""
    failures = []
    for name in names:
        try:
            return download_file(repo_id, name, revision, local_files_only=offline)
        except ConversionError as error:
            failures.append(error)
            # Waiting for the network once is enough: other files can only be found in the cache.
            offline = offline or isinstance(error.__cause__, UNREACHABLE)
    raise failures[0]


def download_repository(repo_id: str, revision: str | None, needs_config: bool) -> Path:
    """Download the weights of a Hub repository and its configuration, if there is one; the local folder of both."""
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
        # A damaged index is reported when its files are read.
        for name in sorted(set(weight_map.values())) if isinstance(weight_map, dict) else ():
            download_file(repo_id, name, revision)
    return weights.parent


def download_pretrained(tag: PretrainedTag, revision: str | None) -> Path:
    """Download the weights of a tag; like open_clip, rather a safetensors file than another."""
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
    downloads = [_download_command(tag.hub_id, revision)]
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


def _download_command(repo_id: str, revision: str | None) -> str:
    at = "" if revision is None else f" --revision {quote(revision)}"
    return f"hf download {quote(repo_id)}{at} --local-dir FOLDER"


def save_tokenizer_command(hf_name: str) -> str:
    """Shell command that writes a tokenizer's files to FOLDER in one form, whichever they have on the Hub.

    Raises:
        ConversionError: the Hub has no such names; what a file says must not become a command.
    """
    try:
        validate_repo_id(hf_name)
    except HFValidationError as error:
        raise ConversionError(
            f"hf_tokenizer_name is {hf_name!r}, which is no id of a repository on the Hub (org/name): correct it, or "
            "put the tokenizer's files beside the weights."
        ) from error
    call = f"AutoTokenizer.from_pretrained('{hf_name}').save_pretrained('FOLDER')"
    return f'python -c "from transformers import AutoTokenizer; {call}"'
