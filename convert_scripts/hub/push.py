"""Uploads a folder to the Hugging Face Hub, after a plan that says what will change there.

The transfer itself is huggingface_hub's `upload_folder`, which does not send again what the Hub has already: calling
again goes on where an upload was interrupted.
"""

import glob
import hashlib
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import httpx, validate_repo_id

from ..common import ConversionError, checks_types, listing, user_path
from ..outputs import write_files
from .bundle import bundled_files, has_own_code


CARD_FILE = "README.md"
MAIN = "main"
# Formats whose loading can run code, by their names and by how pickles and zip archives (torch's, numpy's) begin.
PICKLE_SUFFIXES = frozenset(
    {".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pt2", ".pth", ".zip"}
)
_PICKLE_BEGINNING = re.compile(rb"\x80[\x02-\x05]|PK\x03\x04")
# What git allows in no name of a branch (git-check-ref-format).
_NO_BRANCH = re.compile(r"^$|^[-/]|[\x00-\x20\x7f~^:?*\[\\]|\.\.|//|@\{|(^|/)\.|\.lock(/|$)|[./]$|^@$")
# What a card must say for the Hub to show the model rightly.
CARD_FIELDS = ("library_name", "pipeline_tag")

# Examples of a card, and what they load: from_pretrained("org/name"), model="org/name".
_EXAMPLE = re.compile(r"^```(?:py|python)\n.*?^```", re.MULTILINE | re.DOTALL)
_LOADED = re.compile(r"""(?P<call>from_pretrained\(\s*|\bmodel\s*=\s*)(?P<quote>["'])(?P<name>[^"'\n]+)(?P=quote)""")

_LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token with write access"
_FULL = (
    "The storage of the account is full, or a file too large: make room, upload to another account, or convert with a "
    "smaller --max-shard-size."
)
_ADVICE = {
    401: f"The token is wrong or missing: {_LOGIN}.",
    402: _FULL,
    403: "The token may not write there: use one with write access to this account or organisation.",
    404: "There is no such repository or account, or the token may not see it.",
    409: "Somebody else changed the repository meanwhile: push again.",
    413: _FULL,
    429: "The Hub asks to wait: push again later, it goes on where it stopped.",
}
# The Hub's words for storage that is full, which it sends with several statuses.
_ABOUT_STORAGE = re.compile(r"storage|quota|too large", re.IGNORECASE)


@dataclass(frozen=True)
class PushPlan:
    """Plan of an upload: files to add, to change, and those that stay.

    Args:
        folder: the folder to upload.
        repo_id: the repository, `"org/name"`.
        revision: the branch.
        is_new: whether the repository will be created.
        is_new_branch: whether the branch will be created, from the main one.
        sizes: files -> bytes.
        actions: files -> `"add"`, `"change"` or `"same"`.
        kept: files that the repository has and the folder does not; they stay.
        code: contents of files that are written into the folder first, those of the model's code.
        card: contents of the card that is written first, whose examples name the repository; `None` where they do.
        notes: what there is to say about the plan.
    """

    folder: Path
    repo_id: str
    revision: str
    is_new: bool
    is_new_branch: bool
    sizes: Mapping[str, int]
    actions: Mapping[str, str]
    kept: tuple[str, ...] = ()
    code: Mapping[str, str] = field(default_factory=dict)
    card: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def changes(self) -> list[str]:
        """The files to send."""
        return [name for name, action in self.actions.items() if action != "same"]

    @property
    def num_bytes(self) -> int:
        """Bytes to send."""
        return sum(self.sizes[name] for name in self.changes)

    def __str__(self) -> str:
        repository, branch = ("new " if is_new else "" for is_new in (self.is_new, self.is_new_branch))
        lines = [f"{self.folder} -> {repository}repository {self.repo_id}, {branch}branch {self.revision}"]
        lines += [f"  {self.actions[name]:<7} {readable(size):>9}  {name}" for name, size in self.sizes.items()]
        lines += [f"  {'keep':<7} {'':>9}  {name}" for name in self.kept]
        lines += [f"  note: {note}" for note in self.notes]
        counts = ", ".join(f"{list(self.actions.values()).count(action)} to {action}" for action in ("add", "change"))
        return "\n".join([*lines, f"  {counts}, {readable(self.num_bytes)} to send"])


def check_repo_id(repo_id: str):
    """Raises `ConversionError` unless `repo_id` is one that the Hub could have."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConversionError(
            f"{repo_id!r} is no repository id, expected org/name, or a name for one of your own. {error}"
        ) from error


def check_branch(revision: str):
    """Raises `ConversionError` unless git could have a branch `revision`."""
    if _NO_BRANCH.search(revision):
        raise ConversionError(
            f"{revision!r} cannot be the name of a branch: expected one such as {MAIN} or fine-tuned/v2, without "
            "spaces and signs that git does not take."
        )


@checks_types
def plan_push(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    revision: str = MAIN,
    with_code: bool = False,
    token: str | None = None,
    without_network: bool = False,
) -> PushPlan:
    """Compares a folder with a repository, and checks that it can be uploaded. Nothing is changed here or there.

    Args:
        folder: a folder written by this package, with a model card.
        repo_id: `"org/name"` on the Hub, or a name for the account of the token.
        revision: branch to upload to.
        with_code: also upload the model's code, as `bundle_folder` puts it beside the weights. A model of
            transformers' own needs none.
        token: by default the one that huggingface_hub finds.
        without_network: where the Hub is out of reach, plan as for a new repository, and say so in the notes. Such a
            plan is for reading.

    Raises:
        ConversionError: no model, no valid card, one whose examples load other models, pickle files, a malformed id
            or branch, or the Hub refuses or is out of reach.
    """
    folder = user_path(folder)
    check_repo_id(repo_id)
    check_branch(revision)
    local: dict[str, Path | bytes] = dict(_files_of(folder))
    _check_files(folder, list(local))
    code = bundled_files(folder) if with_code and has_own_code(folder) else {}
    notes = []
    try:
        repo_id, is_new, is_new_branch, remote = find_repository(repo_id, revision, token)
    except OutOfReachError as error:
        if not without_network:
            raise
        is_new, is_new_branch, remote = True, revision != MAIN, {}
        notes.append(f"the Hub was not asked what it has already: {error}")
    card, renamed = _card_for(folder, repo_id)
    if renamed:
        notes.append(f"the examples in {CARD_FILE} load {', '.join(renamed)}; there and here they will load {repo_id}")
    written = code if card is None else {**code, CARD_FILE: card}
    local = dict(sorted({**local, **{name: content.encode() for name, content in written.items()}}.items()))
    return PushPlan(
        folder=folder,
        repo_id=repo_id,
        revision=revision,
        is_new=is_new,
        is_new_branch=is_new_branch,
        sizes={name: _size(content) for name, content in local.items()},
        actions={name: action_of(content, remote.get(name)) for name, content in local.items()},
        kept=tuple(sorted(remote.keys() - local.keys())),
        code=code,
        card=card,
        notes=tuple(notes),
    )


@checks_types
def push_folder(
    plan: PushPlan,
    *,
    private: bool | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    token: str | None = None,
) -> str:
    """Carries out a plan: writes the model's code into the folder, and sends what the repository does not have.

    Args:
        plan: of [`plan_push`].
        private: whether a new repository is private; by default as the account's settings say.
        create_pr: open a pull request for the main branch instead of writing to it.
        commit_message: by default a line that names this package.
        token: by default the one that huggingface_hub finds.

    Returns:
        Address of the commit or of the pull request; of the repository where there is nothing to send.

    Raises:
        ConversionError: the Hub refuses, or cannot be reached; what was sent is there, and pushing again goes on.
        OSError: a file cannot be read, or the code not be written.
    """
    if create_pr and plan.revision != MAIN:
        raise ConversionError(f"A pull request is for the branch {MAIN}: leave out the revision {plan.revision!r}.")
    write_files(plan.folder, {name: content for name, content in plan.code.items() if name in plan.changes})
    if plan.card is not None:
        write_files(plan.folder, {CARD_FILE: plan.card})
    api = HfApi(token=token)
    with explained(plan.repo_id):
        if plan.is_new:
            api.create_repo(plan.repo_id, private=private, exist_ok=True)
        if plan.is_new_branch:
            api.create_branch(plan.repo_id, branch=plan.revision, exist_ok=True)
        if not plan.changes:
            return f"{api.endpoint}/{plan.repo_id}"
        commit = api.upload_folder(
            repo_id=plan.repo_id,
            folder_path=plan.folder,
            revision=plan.revision,
            create_pr=create_pr,
            commit_message=commit_message or "Upload with open_clip_transformers",
            allow_patterns=[glob.escape(name) for name in plan.changes],
        )
    return commit.pr_url or commit.commit_url


def _files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and path of the files of a folder that are uploaded: all but the hidden ones."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            yield relative.as_posix(), path


def _check_files(folder: Path, names: list[str]):
    if "config.json" not in names:
        raise ConversionError(f"{folder} has no config.json: give a folder that `convert` wrote.")
    if pickles := [name for name in names if _can_run_code(folder / name)]:
        raise ConversionError(
            f"{folder} holds files in formats that can run code when they are loaded:{listing(pickles)}\n"
            "Move these files away; the weights belong in safetensors files, as `convert` writes them."
        )
    if CARD_FILE not in names:
        raise ConversionError(
            f"{folder} has no model card ({CARD_FILE}): write one with `open-clip-transformers card {folder}`."
        )
    try:
        data = ModelCard.load(folder / CARD_FILE).data.to_dict()
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ConversionError(f"{folder / CARD_FILE}: the metadata at its top cannot be read: {error}") from error
    if missing := [name for name in CARD_FIELDS if not data.get(name)]:
        raise ConversionError(
            f"{folder / CARD_FILE} lacks {', '.join(missing)} in the metadata at its top: add them, or move the card "
            f"away and write it anew with `open-clip-transformers card {folder}`."
        )


def _card_for(folder: Path, repo_id: str) -> tuple[str | None, list[str]]:
    """The card with examples that load `repo_id`, or `None` where they do already, and the names that they had.

    Raises:
        ConversionError: they load several other models, of which it does not show which is this one.
    """
    text = (folder / CARD_FILE).read_bytes().decode()
    names = loaded_names(text)
    # The one that all of them load, or the name that a new card has by default.
    candidates = names if len(names) == 1 else names & {folder.resolve().name}
    own = sorted(candidates - {repo_id})
    if not own and names and repo_id not in names:
        raise ConversionError(
            f"The examples in {folder / CARD_FILE} load {', '.join(sorted(names))}, and not {repo_id}: name it there, "
            "or write the card anew with `open-clip-transformers card "
            f"{shlex.quote(str(folder))} --model-id {repo_id} --force`."
        )

    def load_repo(match: re.Match) -> str:
        name = repo_id if match["name"] in own else match["name"]
        return f"{match['call']}{match['quote']}{name}{match['quote']}"

    card = _EXAMPLE.sub(lambda example: _LOADED.sub(load_repo, example[0]), text)
    return (card if own else None), own


def loaded_names(card: str) -> set[str]:
    """The folders and Hub ids that the examples of a card load."""
    return {match["name"] for example in _EXAMPLE.findall(card) for match in _LOADED.finditer(example)}


def _can_run_code(path: Path) -> bool:
    if path.suffix.lower() in PICKLE_SUFFIXES:
        return True
    # What is loaded as safetensors is never unpickled; the length that it begins with may look like a pickle.
    if path.suffix == ".safetensors":
        return False
    with path.open("rb") as file:
        return _PICKLE_BEGINNING.match(file.read(4)) is not None


class OutOfReachError(ConversionError):
    """The Hub cannot be asked: no network, offline mode, or no token to ask whose account it is."""


def find_repository(
    repo_id: str, revision: str, token: str | None, repo_type: str = "model"
) -> tuple[str, bool, bool, dict[str, RepoSibling]]:
    """The id with its account, and what `_remote_files` finds."""
    api = HfApi(token=token)
    with explained(repo_id):
        if "/" not in repo_id:
            repo_id = f"{api.whoami()['name']}/{repo_id}"
        return repo_id, *_remote_files(api, repo_id, revision, repo_type)


def _remote_files(
    api: HfApi, repo_id: str, revision: str, repo_type: str
) -> tuple[bool, bool, dict[str, RepoSibling]]:
    """Whether repository and branch are new, and name -> what the Hub knows of each file that the branch has."""
    is_new_branch = False
    try:
        try:
            info = api.repo_info(repo_id, files_metadata=True, revision=revision, repo_type=repo_type)
        except RevisionNotFoundError:
            info, is_new_branch = api.repo_info(repo_id, files_metadata=True, repo_type=repo_type), True
    except RepositoryNotFoundError as error:
        # The Hub does not tell a repository that is not there from one that this token may not see.
        if error.response.status_code == 401:
            raise
        return True, revision != MAIN, {}
    files = {file.rfilename: file for file in info.siblings or ()}
    files.pop(".gitattributes", None)
    return False, is_new_branch, files


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def action_of(content: Path | bytes, remote: RepoSibling | None) -> str:
    """Name the action of uploading a file, given the Hub's entry of that name or `None`."""
    if remote is None:
        return "add"
    if remote.size != _size(content):
        return "change"
    if remote.lfs is not None:
        is_same = _digest(content, hashlib.sha256()) == remote.lfs.sha256
    else:  # git's name of a file is a digest of its length and its contents
        is_same = _digest(content, hashlib.sha1(f"blob {remote.size}\0".encode())) == remote.blob_id
    return "same" if is_same else "change"


def _digest(content: Path | bytes, digest) -> str:
    if isinstance(content, bytes):
        digest.update(content)
        return digest.hexdigest()
    with content.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def explained(repo_id: str) -> Iterator[None]:
    """Turns what can go wrong on the way into a message that says what to do."""
    try:
        yield
    except Exception as error:
        explained = _explanation(error, repo_id)
        if explained is None:
            raise
        raise explained from error


def _explanation(error: Exception, repo_id: str) -> ConversionError | None:
    """Error for the user; `None` for errors that speak for themselves, such as those of local files."""
    cause: BaseException | None = error
    while cause is not None:  # huggingface_hub raises errors of its own from those of a large file
        if isinstance(cause, LocalTokenNotFoundError):
            return OutOfReachError(f"There is no token for the Hub: {_LOGIN}.")
        if isinstance(cause, OfflineModeIsEnabled):
            return OutOfReachError(
                f"The Hub cannot be reached for {repo_id}, as HF_HUB_OFFLINE is set: unset it to upload."
            )
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            says = (cause.server_message or str(cause)).strip()
            advice = _ADVICE.get(status, "Push again: it goes on where it stopped.")
            advice = _FULL if _ABOUT_STORAGE.search(says) else advice
            return ConversionError(f"The Hub refuses {repo_id} ({status}). {advice}\n{says}")
        if isinstance(cause, (httpx.TransportError, ConnectionError, TimeoutError)):
            return OutOfReachError(
                f"The Hub cannot be reached for {repo_id}: {cause}. Push again when there is a network: what was sent "
                "is not sent again."
            )
        cause = cause.__cause__
    if isinstance(error, OSError):
        return None
    advice = _FULL if _ABOUT_STORAGE.search(str(error)) else "Push again: it goes on where it stopped."
    return ConversionError(f"Uploading to {repo_id} failed. {advice}\n{type(error).__name__}: {error}")


def readable(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
