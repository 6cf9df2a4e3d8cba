"""Uploads a folder to the Hugging Face Hub, after a plan that says what will change there.

The transfer itself is huggingface_hub's `upload_folder`: files that the repository has are skipped, so that calling
again goes on where an upload was interrupted.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import httpx, validate_repo_id

from .errors import ConversionError, listing


CARD_FILE = "README.md"
# Formats whose loading runs code.
PICKLE_SUFFIXES = {".bin", ".ckpt", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"}
# What a card must say for the Hub to show the model rightly.
CARD_FIELDS = ("library_name", "pipeline_tag")
_ADVICE = {
    401: "The token is wrong or missing: log in with `hf auth login`, or set HF_TOKEN to a token with write access.",
    402: "The account's storage is full, or the plan does not cover this: make room, or upload to another account.",
    403: "The token may not write there: use one with write access to this account or organisation.",
    404: "There is no such repository, or the token may not see it.",
    409: "Somebody else changed the repository meanwhile: push again.",
    413: "The account's storage is full, or a file too large: make room, or convert with a smaller --max-shard-size.",
    429: "The Hub asks to wait: push again later, it goes on where it stopped.",
}


@dataclass(frozen=True)
class PushPlan:
    """What an upload would do.

    Args:
        folder: the folder to upload.
        repo_id: the repository, `"org/name"`.
        revision: the branch.
        is_new: whether the repository will be created.
        sizes: files of the folder -> bytes.
        actions: files of the folder -> `"add"`, `"change"` or `"same"`.
        kept: files that the repository has and the folder does not; they stay.
    """

    folder: Path
    repo_id: str
    revision: str
    is_new: bool
    sizes: Mapping[str, int]
    actions: Mapping[str, str]
    kept: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes to send."""
        return sum(size for name, size in self.sizes.items() if self.actions[name] != "same")

    def __str__(self) -> str:
        state = "new repository" if self.is_new else "repository"
        lines = [f"{self.folder} -> {state} {self.repo_id}, branch {self.revision}"]
        lines += [f"  {self.actions[name]:<7} {_readable(size):>9}  {name}" for name, size in self.sizes.items()]
        lines += [f"  {'keep':<7} {'':>9}  {name}" for name in self.kept]
        counts = ", ".join(f"{list(self.actions.values()).count(action)} to {action}" for action in ("add", "change"))
        return "\n".join([*lines, f"  {counts}, {_readable(self.num_bytes)} to send"])


def plan_push(
    folder: str | os.PathLike, repo_id: str, *, revision: str = "main", token: str | None = None
) -> PushPlan:
    """Compares a folder with a repository, and checks that it can be uploaded.

    Args:
        folder: a folder written by this package, with a model card.
        repo_id: `"org/name"` on the Hub, or a name for the account of the token.
        revision: branch to upload to.
        token: by default the one that huggingface_hub finds.

    Raises:
        ConversionError: no model, no valid card, pickle files, a malformed id, or the Hub refuses.
    """
    folder = Path(folder).expanduser()
    _check_folder(folder)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConversionError(f"{repo_id!r} is no repository id: {error}") from error
    api = HfApi(token=token)
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path, folder))
    local = {path.relative_to(folder).as_posix(): path for path in paths}
    with _explained(repo_id):
        if "/" not in repo_id:
            repo_id = f"{api.whoami()['name']}/{repo_id}"
        remote = _remote_files(api, repo_id, revision)
    actions = {
        name: "add" if name not in (remote or {}) else "same" if _is_same(path, remote[name]) else "change"
        for name, path in local.items()
    }
    return PushPlan(
        folder=folder,
        repo_id=repo_id,
        revision=revision,
        is_new=remote is None,
        sizes={name: path.stat().st_size for name, path in local.items()},
        actions=actions,
        kept=tuple(sorted((remote or {}).keys() - local.keys())),
    )


def push_folder(
    plan: PushPlan,
    *,
    private: bool | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    token: str | None = None,
) -> str:
    """Carries out a plan.

    Args:
        plan: of [`plan_push`].
        private: whether a new repository is private; by default as the account's settings say.
        create_pr: open a pull request instead of writing to the branch.
        commit_message: by default a line that names this package.
        token: by default the one that huggingface_hub finds.

    Returns:
        Address of the commit or of the pull request.

    Raises:
        ConversionError: the Hub refuses, or cannot be reached; what was sent is there, and pushing again goes on.
    """
    api = HfApi(token=token)
    with _explained(plan.repo_id):
        api.create_repo(plan.repo_id, private=private, exist_ok=True)
        if plan.revision != "main":
            api.create_branch(plan.repo_id, branch=plan.revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=plan.repo_id,
            folder_path=plan.folder,
            revision=plan.revision,
            create_pr=create_pr,
            commit_message=commit_message or "Upload with open_clip_transformers",
            allow_patterns=list(plan.sizes),
        )
    return commit.pr_url or commit.commit_url


def _check_folder(folder: Path):
    if not (folder / "config.json").is_file():
        raise ConversionError(f"{folder} has no config.json: give a folder that `convert` wrote.")
    pickles = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in PICKLE_SUFFIXES]
    if pickles:
        raise ConversionError(
            f"{folder} holds files in formats that can run code when they are loaded:{listing(sorted(pickles))}\n"
            "Upload safetensors alone: move these files away."
        )
    if not (folder / CARD_FILE).is_file():
        raise ConversionError(
            f"{folder} has no model card ({CARD_FILE}): write one with `open-clip-transformers card {folder}`."
        )
    try:
        data = ModelCard.load(folder / CARD_FILE).data.to_dict()
    except (ValueError, TypeError) as error:
        raise ConversionError(f"{folder / CARD_FILE}: the metadata at its top cannot be read: {error}") from error
    missing = [name for name in CARD_FIELDS if not data.get(name)]
    if missing:
        raise ConversionError(
            f"{folder / CARD_FILE} lacks {', '.join(missing)} in the metadata at its top: add them, or write the card "
            f"anew with `open-clip-transformers card {folder}`."
        )


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _remote_files(api: HfApi, repo_id: str, revision: str) -> dict[str, object] | None:
    """Name -> what the Hub knows of each file of a branch; `None` where there is no repository."""
    try:
        files = {
            file.rfilename: file for file in api.model_info(repo_id, files_metadata=True, revision=revision).siblings
        }
    except RevisionNotFoundError:
        return {}
    except RepositoryNotFoundError as error:
        # The Hub does not tell a repository that is not there from one that this token may not see.
        if error.response.status_code == 401:
            raise
        return None
    files.pop(".gitattributes", None)
    return files


def _is_same(path: Path, remote) -> bool:
    if remote.size != path.stat().st_size:
        return False
    if remote.lfs is not None:
        return _digest(path, hashlib.sha256()) == remote.lfs.sha256
    # Git's name of a file is a digest of its length and its contents.
    return _digest(path, hashlib.sha1(f"blob {remote.size}\0".encode())) == remote.blob_id


def _digest(path: Path, digest) -> str:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """Turns what can go wrong on the way into a message that says what to do."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        advice = _ADVICE.get(status, "Push again: it goes on where it stopped.")
        raise ConversionError(f"The Hub refuses {repo_id} ({status}). {advice} It says: {error}") from error
    except (OSError, httpx.TransportError) as error:
        raise ConversionError(
            f"The Hub cannot be reached for {repo_id}: {error}. Push again later: what was sent is not sent twice."
        ) from error


def _readable(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError
