"""Spaces: the demo's page of a model, on the Hub.

A Space is a repository whose `app.py` the Hub runs. Where this package can be installed from an address, its
requirements name that. Otherwise the Space has the package's own source files beside `app.py`, unchanged and laid out
as they are once installed: the page is then made by the code that wrote it, whatever becomes of this package.
"""

import configparser
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, SpaceCardData
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from packaging.requirements import Requirement
from transformers.configuration_utils import PreTrainedConfig

from ..common import PACKAGE, ConversionError, checks_types, project_address, user_path
from ..outputs import new_folder
from .bundle import PREPROCESSOR_FILE, PROCESSOR_FILE, TOKENIZER_FILE, has_own_code, read_config
from .bundle_code import TESTED_TRANSFORMERS
from .push import (
    CARD_FILE,
    MAIN,
    OutOfReachError,
    action_of,
    check_repo_id,
    explained,
    find_repository,
    loaded_names,
    readable,
)


SPACE = "space"
# Folders that are sub-packages: beside the package in a checkout, inside it once it is installed.
SUB_PACKAGES = ("configuration", "modeling", "processing", "convert_scripts", "training")
# `model_type` of a tower -> the extra that it needs.
_EXTRAS = {"open_clip_timm_vision": "timm", "open_clip_hf_text": "sentencepiece"}
_APP = '''"""The page of {model_id}, written by `open-clip-transformers space`."""

from {package}.demo import build_demo, launch_demo


page = build_demo("{model_id}")

if __name__ == "__main__":
    launch_demo(page)
'''
_CARD = """---
{data}
---

# {name}

Try [{model_id}](https://huggingface.co/{model_id}) on images and texts of your own.

The page is that of `open-clip-transformers demo`, and loads the model from its repository. {code}
{private}
"""
_PRIVATE = "Where the model's repository is private, the Space needs a secret `HF_TOKEN`, a token that may read it."
_OF_THE_PACKAGE = "`requirements.txt` installs the package that it is part of."
_BESIDE = "The folder `{package}` holds the code, version {version} of that package."


@dataclass(frozen=True)
class SpacePlan:
    """Plan of an upload of a Space.

    Args:
        repo_id: the Space, `"org/name"`.
        model_id: the model that it shows.
        is_new: whether the Space will be created.
        files: contents by name.
        actions: files -> `"add"`, `"change"`, `"same"`, or `"remove"` for code of an older version.
        notes: what there is to say about the plan.
    """

    repo_id: str
    model_id: str
    is_new: bool
    files: Mapping[str, bytes]
    actions: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def changes(self) -> list[str]:
        """The files to send."""
        return [name for name, action in self.actions.items() if action in ("add", "change")]

    def __str__(self) -> str:
        lines = [f"{self.model_id} -> {'new ' if self.is_new else ''}Space {self.repo_id}"]
        # The many files of the package in a line.
        groups: dict[tuple[str, str], list[int]] = {}
        for name, action in self.actions.items():
            top, slash, _ = name.partition("/")
            groups.setdefault((action, top + slash), []).append(len(self.files.get(name, b"")))
        for (action, name), sizes in groups.items():
            count = f" ({len(sizes)} files)" if name.endswith("/") else ""
            lines.append(f"  {action:<7} {readable(sum(sizes)):>9}  {name}{count}")
        lines += [f"  note: {note}" for note in self.notes]
        number = Counter(self.actions.values())
        counts = ", ".join(f"{number[action]} to {action}" for action in ("add", "change", "remove"))
        return "\n".join(
            [*lines, f"  {counts}, {readable(sum(len(self.files[name]) for name in self.changes))} to send"]
        )


@checks_types
def space_files(folder: str | os.PathLike, repo_id: str, model_id: str | None = None) -> dict[str, bytes]:
    """The files of a Space that shows the model of a folder.

    Args:
        folder: a folder written by this package, whose model is or will be on the Hub.
        repo_id: the Space, `"org/name"` or a name for the account of the token.
        model_id: Hub id of the model, by default the one that the examples of the folder's card load.

    Returns:
        Contents by name: `app.py`, `requirements.txt`, the card, and the package where no address is known for it.

    Raises:
        ConversionError: the folder holds no model that the page can show, an id is malformed, or no model is named.
    """
    folder = user_path(folder)
    config = _checked_config(folder)
    check_repo_id(repo_id)
    model_id = model_id or _published_id(folder)
    check_model_id(model_id)
    address = project_address()
    extras = sorted({_EXTRAS[kind] for kind in _model_types(config) & _EXTRAS.keys()})
    needed = list(requirements(extras))
    code = {}
    if address:
        needed = [f"{PACKAGE.replace('_', '-')}{f'[{chr(44).join(extras)}]' if extras else ''} @ {address}"]
    else:
        code = {f"{PACKAGE}/{name}": content for name, content in package_files().items()}
    files = {
        CARD_FILE: _card(folder, model_id, bool(code)).encode(),
        "app.py": _APP.format(package=PACKAGE, model_id=model_id).encode(),
        "requirements.txt": "".join(f"{line}\n" for line in needed).encode(),
    }
    return {**files, **code}


@checks_types
def write_space(
    folder: str | os.PathLike, repo_id: str, output: str | os.PathLike, model_id: str | None = None
) -> Path:
    """Write the files of a Space into a new folder. For the arguments and errors see [`space_files`]."""
    files = space_files(folder, repo_id, model_id)
    with new_folder(user_path(output)) as unfinished:
        for name, content in files.items():
            path = unfinished / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return user_path(output)


@checks_types
def plan_space(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    model_id: str | None = None,
    token: str | None = None,
    without_network: bool = False,
) -> SpacePlan:
    """Compare the files of a Space with what the Hub has. Nothing is changed here or there.

    Args:
        folder: as for [`space_files`], like `repo_id` and `model_id`.
        token: by default the one that huggingface_hub finds.
        without_network: where the Hub is out of reach, plan as for a new Space, and say so in the notes. Such a plan
            is for reading.

    Raises:
        ConversionError: as [`space_files`], or the Hub has no such model, refuses, or is out of reach.
    """
    files = space_files(folder, repo_id, model_id)
    model_id = model_id or _published_id(user_path(folder))
    notes = []
    try:
        repo_id, is_new, _, remote = find_repository(repo_id, MAIN, token, SPACE)
        if _is_private(model_id, token, user_path(folder)):
            notes.append(f"{model_id} is private: give the Space a secret HF_TOKEN, a token that may read it.")
    except OutOfReachError as error:
        if not without_network:
            raise
        is_new, remote = True, {}
        notes.append(f"the Hub was not asked what it has already: {error}")
    # Code that stayed would be imported in place of the package that is installed.
    stale = sorted(name for name in remote.keys() - files.keys() if name.startswith(f"{PACKAGE}/"))
    actions = {name: action_of(content, remote.get(name)) for name, content in files.items()}
    return SpacePlan(repo_id, model_id, is_new, files, {**actions, **dict.fromkeys(stale, "remove")}, tuple(notes))


@checks_types
def push_space(plan: SpacePlan, *, private: bool | None = None, token: str | None = None) -> str:
    """Carry out a plan, in one commit.

    Args:
        plan: of [`plan_space`].
        private: whether a new Space is private; by default as the account's settings say.
        token: by default the one that huggingface_hub finds.

    Returns:
        Address of the Space.

    Raises:
        ConversionError: the Hub refuses, or cannot be reached.
    """
    api = HfApi(token=token)
    operations: list = [CommitOperationAdd(name, plan.files[name]) for name in plan.changes]
    operations += [CommitOperationDelete(name) for name, action in plan.actions.items() if action == "remove"]
    with explained(plan.repo_id):
        if plan.is_new:
            api.create_repo(plan.repo_id, repo_type=SPACE, space_sdk="gradio", private=private, exist_ok=True)
        if operations:
            message = f"Show {plan.model_id} with open_clip_transformers"
            api.create_commit(plan.repo_id, operations, repo_type=SPACE, commit_message=message)
    return f"{api.endpoint}/spaces/{plan.repo_id}"


def package_files() -> dict[str, bytes]:
    """The source files of this package by their names inside it, with its licence."""
    package = Path(str(import_module(PACKAGE).__file__)).parent
    roots = {"": package} | {f"{name}/": Path(import_module(f"{PACKAGE}.{name}").__path__[0]) for name in SUB_PACKAGES}
    files = {
        prefix + path.relative_to(root).as_posix(): path.read_bytes()
        for prefix, root in roots.items()
        for path in root.rglob("*")
        if path.is_file()
        and not any(part == "__pycache__" or part.startswith(".") for part in path.parts[len(root.parts) :])
    }
    return {name: files[name] for name in sorted(files)} | {"LICENSE": _license(package).encode()}


def requirements(extras: list[str]) -> Iterator[str]:
    """Yield the package's requirements and those of `extras`, with no newer transformers than it was tested with."""
    for requirement in map(Requirement, _declared(extras)):
        if requirement.name == "transformers":
            requirement.specifier &= f"<={TESTED_TRANSFORMERS[-1]}.99"
        requirement.marker = None
        yield str(requirement)


def _gradio_version() -> str:
    """The installed gradio, or the oldest that the page is made for."""
    needed = next(line for line in map(Requirement, _declared(["demo"])) if line.name == "gradio").specifier
    try:
        installed = version("gradio")
    except PackageNotFoundError:
        installed = None
    if installed and needed.contains(installed):
        return installed
    oldest = next(each.version for each in needed if each.operator == ">=")
    return ".".join([*oldest.split("."), "0"][:3])


def _declared(extras: list[str]) -> list[str]:
    setup = _checkout() / "setup.cfg"
    if setup.is_file():
        parser = configparser.ConfigParser()
        parser.read(setup, encoding="utf-8")
        texts = [parser["options"]["install_requires"], *(parser["options.extras_require"][name] for name in extras)]
        return [line.strip() for text in texts for line in text.splitlines() if line.strip() and "#" not in line]
    lines = map(Requirement, requires(PACKAGE) or ())
    return [
        str(line)
        for line in lines
        if line.marker is None or any(line.marker.evaluate({"extra": name}) for name in extras)
    ]


def _checkout() -> Path:
    """The folder of the project, where the package is not installed but in a checkout."""
    return Path(str(import_module(PACKAGE).__file__)).parents[1]


def _license(package: Path) -> str:
    if (path := _checkout() / "LICENSE").is_file():
        return path.read_text(encoding="utf-8")
    if (path := package / "LICENSE").is_file():  # a copy in a Space
        return path.read_text(encoding="utf-8")
    try:
        return distribution(PACKAGE).read_text("licenses/LICENSE") or ""
    except PackageNotFoundError:
        return ""


def _model_types(config: PreTrainedConfig) -> set[str]:
    return {config.model_type, *(getattr(config, name).model_type for name in config.sub_configs)}


def _checked_config(folder: Path) -> PreTrainedConfig:
    """The configuration of a folder whose model the page can show."""
    if not folder.is_dir():
        raise ConversionError(f"{folder}: there is no such folder; expected one that `convert` has written.")
    config = read_config(folder)
    if not has_own_code(folder):
        raise ConversionError(
            f"{folder} holds a model of type {config.model_type!r}, which is transformers' own: the page shows models "
            "of this package, as `convert` writes them without --target native."
        )
    if any(name.endswith("ForImageClassification") for name in config.architectures or ()):
        raise ConversionError(
            f"{folder} holds an image classifier ({', '.join(config.architectures)}), for which there is no page: it "
            "shows captioners, models of two towers, and single towers."
        )
    if not any((folder / name).is_file() for name in (PROCESSOR_FILE, PREPROCESSOR_FILE, TOKENIZER_FILE)):
        raise ConversionError(f"{folder} has no processor, without which the page can show nothing of the model.")
    return config


def check_model_id(model_id: str):
    """Raise `ConversionError` unless `model_id` is the whole id of a repository, `"org/name"`."""
    try:
        validate_repo_id(model_id)
    except HFValidationError as error:
        raise ConversionError(f"{model_id!r} is no id of a model, expected org/name. {error}") from error
    if "/" not in model_id:
        raise ConversionError(f"{model_id!r} is no whole id of a model on the Hub, expected org/name.")


def _published_id(folder: Path) -> str:
    """The Hub id that the examples of a folder's card load."""
    card = folder / CARD_FILE
    names = loaded_names(card.read_bytes().decode(errors="replace")) if card.is_file() else set()
    published = sorted(name for name in names if name.count("/") == 1)
    if len(published) != 1:
        found = f"the examples of its card load {', '.join(sorted(names))}" if names else "it has no card that says so"
        raise ConversionError(
            f"Which model on the Hub {folder} is, is not known: {found}. Give --model-id org/name (model_id), or push "
            "it first, which writes the id into its card."
        )
    return published[0]


def _is_private(model_id: str, token: str | None, folder: Path) -> bool:
    """Whether the model is private. Raises `ConversionError` where the Hub has no such model."""
    with explained(model_id):
        try:
            return bool(HfApi(token=token).model_info(model_id).private)
        except RepositoryNotFoundError as error:
            # The Hub does not tell a repository that is not there from one that needs a token.
            if error.response.status_code == 401:
                raise
    raise ConversionError(
        f"The Hub has no model {model_id}, or the token may not see it: push it first with "
        f"`open-clip-transformers push {shlex.quote(str(folder))} {model_id}`, or give another --model-id."
    )


def _card(folder: Path, model_id: str, has_code: bool) -> str:
    name = model_id.rpartition("/")[2]
    card = folder / CARD_FILE
    stated = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict() if card.is_file() else {}
    data = SpaceCardData(
        title=name,
        emoji="🔎",
        colorFrom="indigo",
        colorTo="blue",
        sdk="gradio",
        sdk_version=_gradio_version(),
        python_version="3.12",
        app_file="app.py",
        models=[model_id],
        license=stated.get("license"),
        tags=["open_clip", *([stated["pipeline_tag"]] if stated.get("pipeline_tag") else [])],
    )
    code = _BESIDE.format(package=PACKAGE, version=import_module(PACKAGE).__version__) if has_code else _OF_THE_PACKAGE
    return _CARD.format(data=data.to_yaml(), name=name, model_id=model_id, code=code, private=_PRIVATE)
