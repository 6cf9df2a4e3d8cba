"""Uploads over real HTTP: what is planned, what is sent, and what is said when it goes wrong."""

import hashlib
import json
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hub_server import READER, WRONG, Refusal
from huggingface_hub import constants
from tiny_configs import tiny_clip_cfg
from tiny_folders import save_tiny_folder
from transformers import CLIPConfig

from open_clip_transformers.convert_scripts.hub.card import write_model_card
from open_clip_transformers.convert_scripts.hub.push import plan_push, push_folder


pytestmark = pytest.mark.floor

REPO = "some-org/tiny-clip"
FULL = "Private repository storage limit reached, please upgrade your plan."


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A converted folder whose weights are three large files."""
    folder = tmp_path_factory.mktemp("push") / "model"
    model = save_tiny_folder(folder, tiny_clip_cfg())
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="140KB")
    write_model_card(folder, REPO)
    return folder


@pytest.fixture
def folder(template, tmp_path):
    return shutil.copytree(template, tmp_path / "model")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def uploaded(hub, repo_id: str = REPO, revision: str = "main") -> dict[str, bytes]:
    tree = hub.repos[repo_id].tree(revision)
    return {name: blob.content for name, blob in tree.items() if name != ".gitattributes"}


def test_push_creates_a_repository_with_the_folder_and_its_code(hub, folder, run):
    stdout = run("push", folder, REPO).stdout
    assert uploaded(hub) == contents(folder)
    assert {"modeling_open_clip.py", "model-00001-of-00003.safetensors"} <= uploaded(hub).keys()
    tree = hub.repos[REPO].tree()
    assert {name for name, blob in tree.items() if blob.is_lfs} == {path.name for path in folder.glob("*.safetensors")}
    assert f"{folder} -> new repository {REPO}, branch main" in stdout
    for path in folder.iterdir():
        assert any(line.split()[0] == "add" and line.endswith(path.name) for line in stdout.splitlines()[1:-2])
    assert f"{len(uploaded(hub))} to add, 0 to change" in stdout
    assert stdout.splitlines()[-1] == f"{hub.endpoint}/{REPO}/commit/{hub.repos[REPO].refs['main']}"


def test_push_again_sends_nothing(hub, folder, run):
    run("push", folder, REPO)
    commits, hub.requests[:] = dict(hub.repos[REPO].commits), []
    stdout = run("push", folder, REPO).stdout
    assert "0 to add, 0 to change, 0 B to send" in stdout
    assert hub.repos[REPO].commits == commits
    assert {method for method, _ in hub.requests} == {"GET"}


def test_push_sends_what_has_changed_and_keeps_what_is_there(hub, folder, run):
    run("push", folder, REPO)
    (folder / "LICENSE").write_text("All of it.")
    (folder / "generation_config.json").write_text("{}")
    run("push", folder, REPO)
    (folder / "LICENSE").unlink()
    (folder / "generation_config.json").write_text("[]")
    changed = folder / "model-00002-of-00003.safetensors"
    changed.write_bytes(changed.read_bytes()[::-1])
    hub.requests.clear()
    stdout = run("push", folder, REPO).stdout
    lines = [line.split() for line in stdout.splitlines()]
    assert [line[-1] for line in lines if line[0] == "change"] == ["generation_config.json", changed.name]
    assert ["keep", "LICENSE"] in lines
    assert f"0 to add, 2 to change, {changed.stat().st_size / 1000 + 0.002:.1f} kB to send" in stdout
    assert hub.names("PUT") == [f"/lfs/{hashlib.sha256(changed.read_bytes()).hexdigest()}"]
    assert uploaded(hub) == {**contents(folder), "LICENSE": b"All of it."}


def test_dry_run_changes_nothing_here_or_there(hub, folder, run):
    before = contents(folder)
    stdout = run("push", folder, REPO, "--dry-run").stdout
    assert contents(folder) == before
    assert hub.repos == {}
    assert {method for method, _ in hub.requests} == {"GET"}
    # The plan is that of the push itself, whose code is not there yet.
    assert "modeling_open_clip.py" in stdout
    assert "modeling_open_clip.py" not in run("push", folder, REPO, "--no-bundle", "--dry-run").stdout
    assert run("push", folder, REPO).stdout.startswith(stdout)


def test_push_without_code(hub, folder, run):
    run("push", folder, REPO, "--no-bundle")
    assert uploaded(hub) == contents(folder)
    assert not any(name.endswith(".py") for name in uploaded(hub))
    assert "auto_map" not in json.loads(uploaded(hub)["config.json"])


def test_push_leaves_hidden_files_out(hub, folder, run):
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "evil.bin").write_bytes(b"")
    (folder / "logs [old]").mkdir()
    (folder / "logs [old]" / "a*.txt").write_text("b")
    run("push", folder, REPO)
    assert {name for name in uploaded(hub) if "/" in name} == {"logs [old]/a*.txt"}


def test_push_as_a_pull_request_needs_no_rights(hub, folder, run):
    hub.create("reader/model")
    stdout = run("push", folder, "reader/model", "--create-pr").stdout
    assert stdout.splitlines()[-1] == f"{hub.endpoint}/reader/model/discussions/1"
    assert uploaded(hub, "reader/model", "refs/pr/1") == contents(folder)
    assert uploaded(hub, "reader/model") == {}


def test_push_to_a_branch_that_is_not_there_creates_it_from_main(hub, folder, run):
    run("push", folder, REPO)
    before = uploaded(hub)
    (folder / "LICENSE").write_text("All of it.")
    stdout = run("push", folder, REPO, "--revision", "v2/fp16").stdout
    assert stdout.startswith(f"{folder} -> repository {REPO}, new branch v2/fp16")
    assert "1 to add, 0 to change" in stdout
    assert uploaded(hub) == before
    assert uploaded(hub, revision="v2/fp16") == {**before, "LICENSE": b"All of it."}
    (folder / "LICENSE").write_text("Part of it.")
    assert "0 to add, 1 to change" in run("push", folder, REPO, "--revision", "v2/fp16").stdout
    assert uploaded(hub, revision="v2/fp16")["LICENSE"] == b"Part of it."


def test_push_to_a_branch_of_a_new_repository(hub, folder, run):
    run("push", folder, REPO, "--revision", "dev")
    assert uploaded(hub, revision="dev") == contents(folder)
    assert uploaded(hub) == {}


@pytest.mark.parametrize("option", ["--private", "--public"])
def test_push_creates_a_repository_as_private_as_asked(hub, folder, run, option):
    run("push", folder, REPO, option)
    assert hub.repos[REPO].private == (option == "--private")
    assert "0 B to send" in run("push", folder, REPO).stdout


def test_push_to_a_name_of_your_own(hub, folder, run):
    assert f"{folder} -> new repository writer/mine, branch main" in run("push", folder, "mine").stdout
    assert uploaded(hub, "writer/mine") == contents(folder)


def test_push_of_a_model_of_transformers_needs_no_code(hub, folder):
    CLIPConfig().save_pretrained(folder)
    plan = plan_push(folder, REPO, with_code=True)
    assert not plan.code
    push_folder(plan, commit_message="Native")
    assert uploaded(hub) == contents(folder)
    assert hub.repos[REPO].messages == ["initial commit", "Native"]


def test_push_goes_on_after_a_large_file_was_refused(hub, folder, run):
    large = sorted(folder.glob("*.safetensors"))
    oids = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in large}
    bad = next(oid for oid, path in oids.items() if path == large[1])

    def refuse(method, path):
        if method == "PUT" and path.endswith(bad):
            raise Refusal(403, "Request has expired")

    hub.on_request = refuse
    stderr = run("push", folder, REPO, exit_code=1).stderr
    assert f"The Hub refuses {REPO} (403)" in stderr and "Request has expired" in stderr
    assert uploaded(hub) == {}
    hub.on_request = lambda method, path: None
    before = dict(hub.received)
    run("push", folder, REPO)
    assert uploaded(hub) == contents(folder)
    missing = {oid: path.stat().st_size for oid, path in oids.items() if oid not in hub.large_files or oid == bad}
    sent = {oid: size - before.get(oid, 0) for oid, size in hub.received.items() if size != before.get(oid)}
    assert sent == missing


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills a process as POSIX systems do")
def test_push_goes_on_after_its_process_was_killed(hub, folder, run):
    first, *others = sorted(folder.glob("*.safetensors"))
    size = {hashlib.sha256(path.read_bytes()).hexdigest(): path.stat().st_size for path in (first, *others)}
    begun, stopped = threading.Event(), threading.Event()

    def stop_after_the_first(method, path):
        if method != "PUT" or path == f"/lfs/{next(iter(size))}":
            return
        while len(hub.large_files) < 1 and not stopped.wait(0.01):
            pass
        begun.set()
        stopped.wait()
        raise OSError

    hub.on_request = stop_after_the_first
    command = [sys.executable, "-m", "open_clip_transformers", "push", folder, REPO]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL) as process:
        assert begun.wait(300)
        process.kill()
    stopped.set()
    hub.on_request = lambda method, path: None
    # What was stored before, and not what was on its way.
    stored = set(hub.large_files)
    assert len(stored) == 1 and uploaded(hub) == {}
    hub.received.clear()
    run("push", folder, REPO)
    assert hub.received == {oid: size for oid, size in size.items() if oid not in stored}
    assert uploaded(hub) == contents(folder)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# Name -> what the Hub answers to which requests, and what the user is told.
REFUSALS = {
    "no rights": ("POST", "/api/repos/create", 403, "You cannot create this.", "The token may not write there"),
    "no rights to write": ("POST", "/preupload/", 403, "You cannot write here.", "The token may not write there"),
    "full at once": ("POST", "/preupload/", 402, "Payment required.", "storage of the account is full"),
    "full": ("POST", "/objects/batch", 403, FULL, "storage of the account is full"),
    "full at the end": ("POST", "/commit/", 403, FULL, "storage of the account is full"),
    "too large": ("PUT", "/lfs/", 413, "Payload Too Large", "smaller --max-shard-size"),
    "somebody else": ("POST", "/commit/", 409, "A commit has happened since.", "Somebody else changed the repository"),
    "another fault": ("POST", "/commit/", 418, "I am a teapot.", "Push again: it goes on where it stopped"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_push_says_what_to_do_where_the_hub_refuses(hub, folder, run, name):
    wanted_method, part, status, says, advice = REFUSALS[name]

    def refuse(method, path):
        if method == wanted_method and part in path:
            raise Refusal(status, says)

    hub.on_request = refuse
    stderr = run("push", folder, REPO, "--no-bundle", exit_code=1).stderr
    assert stderr.startswith(f"Error: The Hub refuses {REPO} ({status}).")
    assert advice in stderr and says in stderr
    assert REPO not in hub.repos or uploaded(hub) == {}


TOKENS = {
    "wrong": (WRONG, REPO),
    "wrong, own account": (WRONG, "mine"),
    "none": ("", REPO),
    "none, own account": ("", "mine"),
    "somebody else's": (READER, REPO),
}


@pytest.mark.parametrize("name", TOKENS)
def test_push_says_what_is_wrong_with_the_token(hub, folder, run, monkeypatch, name):
    token, repo_id = TOKENS[name]
    monkeypatch.setenv("HF_TOKEN", token)
    stderr = run("push", folder, repo_id, exit_code=1).stderr
    advice = "use one with write access" if token == READER else "log in with `hf auth login`"
    assert advice in stderr
    assert hub.repos == {}


def test_push_with_a_token_for_reading_alone(hub, folder, run, monkeypatch):
    hub.create(REPO)
    monkeypatch.setenv("HF_TOKEN", READER)
    assert "The token may not write there" in run("push", folder, REPO, exit_code=1).stderr
    assert uploaded(hub) == {}


def test_push_without_network(hub, folder, run, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    stderr = run("push", folder, REPO, exit_code=1).stderr
    assert stderr.startswith(f"Error: The Hub cannot be reached for {REPO}:")
    assert "Push again when there is a network" in stderr


@pytest.mark.parametrize("repo_id", [REPO, "mine"])
def test_dry_run_needs_no_network(hub, folder, run, monkeypatch, repo_id):
    before, online = contents(folder), run("push", folder, REPO, "--dry-run").stdout
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    stdout = run("push", folder, repo_id, "--dry-run").stdout
    assert f"note: the Hub was not asked what it has already: The Hub cannot be reached for {repo_id}" in stdout
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in run("push", folder, repo_id, "--dry-run").stdout
    assert contents(folder) == before
    files = [line for line in online.splitlines() if line.startswith("  add") and "README.md" not in line]
    assert len(files) > 10 and set(files) <= set(stdout.splitlines())


def test_dry_run_under_a_name_of_your_own_needs_no_token(hub, folder, run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    assert "There is no token for the Hub" in run("push", folder, "mine", "--dry-run").stdout


def test_push_in_offline_mode(hub, folder, run, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set: unset it to upload" in run("push", folder, REPO, exit_code=1).stderr
    assert not hub.requests


@pytest.mark.parametrize("repo_id", ["a/b/c", "org/na me", "org/-name", "", "org/name.git"])
def test_push_refuses_what_is_no_repository_id(hub, folder, run, repo_id):
    assert "is no repository id, expected org/name" in run("push", folder, repo_id, exit_code=2).stderr
    assert not hub.requests


@pytest.mark.parametrize("branch", ["a b", "-b", "a..b", "v1/", "a~1", ""])
def test_push_refuses_what_is_no_branch(hub, folder, run, branch):
    arguments = ("push", folder, REPO, "--dry-run", f"--revision={branch}")
    assert "cannot be the name of a branch: expected one such as main" in run(*arguments, exit_code=2).stderr
    assert not hub.requests


def test_push_refuses_options_that_contradict_each_other(hub, folder, run):
    stderr = run("push", folder, REPO, "--create-pr", "--revision", "dev", exit_code=2).stderr
    assert "leave out --revision or --create-pr" in stderr
    with pytest.raises(ValueError, match="A pull request is for the branch main"):
        push_folder(plan_push(folder, REPO, revision="dev"), create_pr=True)


def test_push_refuses_what_is_no_folder(hub, tmp_path, run):
    assert "there is no such folder" in run("push", tmp_path / "nowhere", REPO, exit_code=2).stderr


# Files that would run code when loaded, by name or by contents.
PICKLES = {
    "pytorch_model.bin": b"",
    "checkpoint-7/optimizer.pt": b"",
    "scores.npy": b"",
    "state": pickle.dumps({"a": 1}),
    "tokenizer.model": b"PK\x03\x04 an archive",
}


@pytest.mark.parametrize("name", PICKLES)
def test_push_refuses_files_that_can_run_code(hub, folder, run, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(PICKLES[name])
    stderr = run("push", folder, REPO, exit_code=1).stderr
    assert f"formats that can run code when they are loaded:\n  {name}\nMove these files away" in stderr
    assert not hub.requests


CARDS = {
    "missing": (None, "has no model card (README.md): write one with `open-clip-transformers card"),
    "without metadata": ("# A model\n", "lacks library_name, pipeline_tag in the metadata at its top"),
    "without a task": ("---\nlibrary_name: transformers\n---\n", "lacks pipeline_tag in the metadata"),
    "broken": ("---\nlibrary_name: [transformers\n---\n", "the metadata at its top cannot be read"),
    "no mapping": ("---\n- transformers\n---\n", "the metadata at its top cannot be read"),
}


@pytest.mark.parametrize("name", CARDS)
def test_push_refuses_a_folder_without_a_valid_card(hub, folder, run, name):
    card, message = CARDS[name]
    (folder / "README.md").unlink()
    if card is not None:
        (folder / "README.md").write_text(card)
    assert message in run("push", folder, REPO, exit_code=1).stderr
    assert not hub.requests


def test_push_refuses_a_folder_without_a_model(hub, folder, run):
    (folder / "config.json").unlink()
    assert "has no config.json: give a folder that `convert` wrote" in run("push", folder, REPO, exit_code=1).stderr
    assert not hub.requests


def test_push_says_what_the_hub_finds_wrong_with_the_card(hub, folder, run):
    def refuse(method, path):
        if path == "/api/validate-yaml":
            raise Refusal(400, "license must be one of those that the Hub knows")

    hub.on_request = refuse
    assert "license must be one of those" in run("push", folder, REPO, exit_code=1).stderr


EXAMPLE = 'print("it")\nmodel = AutoModel.from_pretrained("{0}")\npipeline("image-to-text", model=\'{0}\')\n'
METADATA = "---\nlibrary_name: transformers\npipeline_tag: zero-shot-image-classification\n---\n"


def write_card(folder: Path, *names: str) -> str:
    """A card that tells of the names, with an example for each; returns its text."""
    examples = "".join(f"```python\n{EXAMPLE.format(name)}```\n" for name in names)
    text = f'{METADATA}# {names}\n{examples}\nAs model="{names[0]}".\n'
    (folder / "README.md").write_text(text)
    return text


@pytest.mark.parametrize("names", [["model"], ["elsewhere/model"], ["model", "a/base"]], ids=", ".join)
def test_push_has_the_examples_of_a_card_load_the_repository(hub, folder, run, names):
    before = write_card(folder, *names)
    stdout = run("push", folder, REPO, "--dry-run").stdout
    assert f"note: the examples in README.md load {names[0]}; there and here they will load {REPO}" in stdout
    assert (folder / "README.md").read_text() == before
    run("push", folder, REPO)
    expected = before.replace(EXAMPLE.format(names[0]), EXAMPLE.format(REPO))
    assert expected != before and uploaded(hub)["README.md"].decode() == expected
    assert uploaded(hub) == contents(folder)
    assert "note:" not in run("push", folder, REPO).stdout


@pytest.mark.parametrize("names", [[REPO], [REPO, "a/base"]], ids=", ".join)
def test_push_leaves_a_card_that_loads_the_repository(hub, folder, run, names):
    before = write_card(folder, *names)
    assert "note:" not in run("push", folder, REPO).stdout
    assert uploaded(hub)["README.md"].decode() == before


def test_push_refuses_a_card_that_loads_several_other_models(hub, folder, run):
    before = write_card(folder, "a/first", "b/second")
    stderr = run("push", folder, REPO, exit_code=1).stderr
    assert f"load a/first, b/second, and not {REPO}: name it there" in stderr
    assert f"card {folder} --model-id {REPO} --force" in stderr
    assert hub.repos == {} and (folder / "README.md").read_text() == before
