"""A small server with the part of the Hugging Face Hub's HTTP interface that uploads and downloads of models use.

What the calls and answers look like is read from huggingface_hub. Everything is kept in memory: repositories as
commits of whole trees, and large files by their SHA-256. Faults are made by `Hub.on_request`.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


WRITER, READER, WRONG = "hf_writer", "hf_reader", "hf_wrong"
USERS = {WRITER: "writer", READER: "reader"}
# Who may write to which account.
ACCOUNTS = {"writer": {"writer", "some-org"}, "reader": {"reader"}}
LFS_SUFFIXES = (".safetensors", ".bin", ".pt")


class Refusal(Exception):
    """Ends a request with an error as the Hub sends it."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}


@dataclass(frozen=True)
class Blob:
    """A file of a commit."""

    content: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        lines = (
            "version https://git-lfs.github.com/spec/v1",
            f"oid sha256:{self.sha256}",
            f"size {len(self.content)}",
        )
        return "".join(f"{line}\n" for line in lines).encode()

    @property
    def oid(self) -> str:
        """Git's name of the file, of a large one that of its pointer."""
        stored = self.pointer if self.is_lfs else self.content
        return hashlib.sha1(f"blob {len(stored)}\0".encode() + stored).hexdigest()

    @property
    def description(self) -> dict:
        if not self.is_lfs:
            return {"size": len(self.content), "oid": self.oid}
        lfs = {"sha256": self.sha256, "oid": self.sha256, "size": len(self.content), "pointerSize": len(self.pointer)}
        return {"size": len(self.content), "oid": self.oid, "lfs": lfs}


Tree = dict[str, Blob]


@dataclass
class Repo:
    """Commits, each a whole tree, and the branches and pull requests that name some of them."""

    private: bool = False
    commits: dict[str, Tree] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, ref: str, tree: Tree, message: str) -> str:
        listing = "".join(f"{path} {blob.oid}\n" for path, blob in sorted(tree.items()))
        oid = hashlib.sha1(f"{self.refs.get(ref)} {len(self.commits)} {message}\n{listing}".encode()).hexdigest()
        self.commits[oid] = tree
        self.refs[ref] = oid
        self.messages.append(message)
        return oid

    def find(self, revision: str) -> str:
        oid = self.refs.get(revision, revision)
        if oid not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid

    def tree(self, revision: str = "main") -> Tree:
        return self.commits[self.find(revision)]


def _nothing(method: str, path: str):
    pass


@dataclass
class Hub:
    """The state of a server.

    Args:
        endpoint: its address.
        repos: repositories by id, those of Spaces under `spaces/`.
        large_files: contents of uploaded large files by their SHA-256, committed or not.
        requests: method and path of every request, in order.
        created: what was asked for of each repository that a client created.
        received: for each SHA-256, how many bytes came in.
        on_request: called with method and path before a request is answered; may wait, or raise a [`Refusal`].
    """

    endpoint: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    large_files: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    created: list[dict] = field(default_factory=list)
    received: dict[str, int] = field(default_factory=dict)
    on_request: Callable[[str, str], None] = _nothing

    def create(self, repo_id: str, private: bool = False) -> Repo:
        self.repos[repo_id] = repo = Repo(private)
        repo.commit("main", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)}, "initial commit")
        return repo

    def names(self, method: str, part: str = "") -> list[str]:
        """Paths of the requests with `method` that hold `part`."""
        return [path for name, path in self.requests if name == method and part in path]


def _upload_mode(path: str, size: int) -> str:
    return "lfs" if path.endswith(LFS_SUFFIXES) or size > 10_000_000 else "regular"


class Handler(BaseHTTPRequestHandler):
    """Finds the method below whose route matches; it returns what is sent as JSON, or sends its answer itself."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self):
        url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.body = self.read_body()
        self.hub.requests.append((self.command, url.path))
        try:
            self.hub.on_request(self.command, url.path)
            result = self.route(url.path)
            if result is not None:
                self.send_json(result)
        except Refusal as refusal:
            self.send_json({"error": str(refusal)}, refusal.status, refusal.headers)
        except OSError:  # the client has left
            self.close_connection = True

    def route(self, path: str):
        for method, pattern, function in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                found = {name: unquote(value) for name, value in match.groupdict().items() if value}
                if found.pop("kind", "models") == "spaces":
                    found["repo_id"] = f"spaces/{found['repo_id']}"
                return function(self, **found)
        raise Refusal(404, f"No such route: {self.command} {path}")

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send_json(self, content, status: int = 200, headers: Mapping[str, str] = MappingProxyType({})):
        self.send(status, json.dumps(content).encode(), {"Content-Type": "application/json", **headers})

    def send(self, status: int, content: bytes, headers: dict[str, str]):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    @property
    def user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in USERS:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return USERS.get(token)

    def repo(self, repo_id: str, write: bool = False) -> Repo:
        account = repo_id.removeprefix("spaces/").partition("/")[0]
        allowed = account in ACCOUNTS.get(self.user or "", ())
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and not allowed):
            status = 401 if self.user is None else 404
            raise Refusal(status, "Repository not found", None if self.user is None else "RepoNotFound")
        if write and not allowed:
            status = 401 if self.user is None else 403
            raise Refusal(status, "You don't have the rights to write to this repository")
        return repo

    def whoami(self):
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        return {"type": "user", "name": self.user, "orgs": [], "auth": {"type": "access_token"}}

    def create_repo(self):
        asked = json.loads(self.body)
        account = asked.get("organization") or self.user
        if account not in ACCOUNTS.get(self.user or "", ()):
            status = 401 if self.user is None else 403
            raise Refusal(status, f"You don't have the rights to create a model under the namespace {account!r}")
        repo_id = f"{'spaces/' if asked.get('type') == 'space' else ''}{account}/{asked['name']}"
        answer = {"url": f"{self.hub.endpoint}/{repo_id}", "name": repo_id, "id": repo_id}
        if repo_id in self.hub.repos:
            self.send_json({"error": "You already created this model repo", **answer}, status=409)
            return None
        self.hub.created.append(asked)
        self.hub.create(repo_id, private=asked.get("private") or asked.get("visibility") == "private")
        return answer

    def model_info(self, repo_id: str, revision: str = "main"):
        repo = self.repo(repo_id)
        siblings = [
            {"rfilename": path, **({"blobId": blob.oid, **blob.description} if "blobs" in self.query else {})}
            for path, blob in sorted(repo.tree(revision).items())
        ]
        tags = ["transformers"]
        info = {"id": repo_id, "sha": repo.find(revision), "private": repo.private, "siblings": siblings, "tags": tags}
        return {"_id": "0", "modelId": repo_id, "downloads": 0, "likes": 0, **info}

    def tree(self, repo_id: str, revision: str, folder: str = ""):
        tree = self.repo(repo_id).tree(revision)
        entries = {path: blob for path, blob in sorted(tree.items()) if path.startswith(folder)}
        if folder and not entries:
            raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
        return [{"type": "file", "path": path, **blob.description} for path, blob in entries.items()]

    def refs(self, repo_id: str):
        refs = self.repo(repo_id).refs.items()
        branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": oid} for n, oid in refs if "/" not in n]
        return {"branches": branches, "tags": [], "converts": []}

    def create_branch(self, repo_id: str, branch: str):
        repo = self.repo(repo_id, write=True)
        if branch in repo.refs:
            raise Refusal(409, "Reference already exists")
        repo.refs[branch] = repo.find(json.loads(self.body).get("startingPoint", "main"))
        return {}

    def validate_yaml(self):
        content = json.loads(self.body)["content"]
        try:
            yaml.safe_load(content.split("---")[1])
        except yaml.YAMLError as error:
            self.send_json({"errors": [{"message": str(error)}], "warnings": []}, status=400)
            return None
        return {"errors": [], "warnings": []}

    def preupload(self, repo_id: str, revision: str):
        tree = self.repo(repo_id, write="create_pr" not in self.query).tree(revision)
        answers = []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            oid = {"oid": tree[path].oid} if path in tree else {}
            mode = _upload_mode(path, file["size"])
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **oid})
        return {"files": answers}

    def lfs_batch(self, repo_id: str):
        self.repo(repo_id)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            oid = wanted["oid"]
            verify = {"href": f"{self.hub.endpoint}/lfs/verify", "header": {}}
            actions = {"upload": {"href": f"{self.hub.endpoint}/lfs/{oid}", "header": {}}, "verify": verify}
            objects.append({**wanted, **({} if oid in self.hub.large_files else {"actions": actions})})
        return {"transfer": "basic", "objects": objects}

    def lfs_upload(self, oid: str):
        self.hub.received[oid] = self.hub.received.get(oid, 0) + len(self.body)
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "The contents are not those of the object")
        self.hub.large_files[oid] = self.body
        self.send(200, b"", {"ETag": f'"{oid}"'})

    def lfs_verify(self):
        wanted = json.loads(self.body)
        if len(self.hub.large_files.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refusal(404, "No such object")
        return {}

    def commit(self, repo_id: str, revision: str):
        is_pull_request = "create_pr" in self.query
        repo = self.repo(repo_id, write=not is_pull_request)
        header, *lines = (json.loads(line) for line in self.body.splitlines())
        tree = dict(repo.tree(revision))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = Blob(base64.b64decode(value["content"]), is_lfs=False)
            elif line["key"] == "lfsFile":
                tree[value["path"]] = Blob(self.hub.large_files[value["oid"]], is_lfs=True)
            elif line["key"] == "deletedFile":
                del tree[value["path"]]
        number = 1 + sum(name.startswith("refs/pr/") for name in repo.refs)
        ref = f"refs/pr/{number}" if is_pull_request else revision
        oid = repo.commit(ref, tree, header["value"]["summary"])
        url = f"{self.hub.endpoint}/{repo_id}"
        pull_request = f"{url}/discussions/{number}" if is_pull_request else None
        return {"commitUrl": f"{url}/commit/{oid}", "commitOid": oid, "pullRequestUrl": pull_request}

    def resolve(self, repo_id: str, revision: str, path: str):
        repo = self.repo(repo_id)
        oid = repo.find(revision)
        headers = {"X-Repo-Commit": oid, "Content-Type": "application/octet-stream"}
        if path not in repo.commits[oid]:
            refusal = Refusal(404, "Entry not found", "EntryNotFound")
            refusal.headers |= headers
            raise refusal
        blob = repo.commits[oid][path]
        headers["ETag"] = f'"{blob.oid}"'
        if blob.is_lfs:
            headers |= {"X-Linked-ETag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
        start = re.fullmatch(r"bytes=(\d+)-.*", self.headers.get("Range", "bytes=0-"))[1]
        self.send(200 if start == "0" else 206, blob.content[int(start) :], headers)


_ID = r"(?P<repo_id>[\w.-]+/[\w.-]+)"
_MODEL = rf"/api/(?P<kind>models|spaces)/{_ID}"
_REVISION = r"(?P<revision>[^/]+)"
ROUTES = (
    (("GET",), "/api/whoami-v2", Handler.whoami),
    (("POST",), "/api/repos/create", Handler.create_repo),
    (("POST",), "/api/validate-yaml", Handler.validate_yaml),
    (("GET",), _MODEL, Handler.model_info),
    (("GET",), f"{_MODEL}/revision/{_REVISION}", Handler.model_info),
    (("GET",), rf"{_MODEL}/tree/{_REVISION}(/(?P<folder>.+))?", Handler.tree),
    (("GET",), f"{_MODEL}/refs", Handler.refs),
    (("POST",), f"{_MODEL}/branch/(?P<branch>.+)", Handler.create_branch),
    (("POST",), f"{_MODEL}/preupload/{_REVISION}", Handler.preupload),
    (("POST",), f"{_MODEL}/commit/{_REVISION}", Handler.commit),
    (("POST",), rf"/{_ID}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    (("POST",), "/lfs/verify", Handler.lfs_verify),
    (("PUT",), r"/lfs/(?P<oid>\w+)", Handler.lfs_upload),
    (("GET", "HEAD"), rf"/{_ID}/(resolve|raw)/{_REVISION}/(?P<path>.+)", Handler.resolve),
)


class Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        pass  # clients that leave are part of the tests


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A server on a free port of this machine."""
    hub = Hub()
    handler = type("HubHandler", (Handler,), {"hub": hub})
    with Server(("127.0.0.1", 0), handler) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hub
        server.shutdown()
