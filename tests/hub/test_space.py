"""Spaces: what is written, what is sent, and that the page runs where this package is not installed."""

import configparser
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hub_server import READER, Blob
from PIL import Image
from tiny_configs import tiny_clip_cfg
from tiny_families import save_tiny_family
from tiny_folders import save_tiny_folder
from transformers import CLIPConfig

from open_clip_transformers.convert_scripts.hub import space
from open_clip_transformers.convert_scripts.hub.card import build_model_card, write_model_card


ROOT = Path(__file__).parents[2]
MODEL, SPACE = "some-org/tiny-clip", "some-org/tiny-page"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("space") / "model"
    save_tiny_folder(folder, tiny_clip_cfg())
    write_model_card(folder, MODEL, license="mit")
    return folder


def metadata_of(card: bytes) -> dict:
    return yaml.safe_load(card.decode().split("---")[1])


def uploaded(hub) -> dict[str, bytes]:
    tree = hub.repos[f"spaces/{SPACE}"].tree()
    return {name: blob.content for name, blob in tree.items() if name != ".gitattributes"}


def test_space_is_pushed_in_one_commit_and_not_again(hub, folder, run):
    run("push", folder, MODEL)
    planned = run("space", folder, SPACE, "--dry-run").stdout
    assert f"spaces/{SPACE}" not in hub.repos
    assert planned.startswith(f"{MODEL} -> new Space {SPACE}\n")
    for name in ("README.md", "app.py", "requirements.txt", "open_clip_transformers/"):
        assert any(line.split()[0] == "add" and name in line.split() for line in planned.splitlines()[1:])
    stdout = run("space", folder, SPACE, "--private").stdout
    assert stdout == f"{planned}{hub.endpoint}/spaces/{SPACE}\n"
    assert hub.created[-1] == {**hub.created[-1], "type": "space", "sdk": "gradio", "name": "tiny-page"}
    repo = hub.repos[f"spaces/{SPACE}"]
    assert repo.private and len(repo.commits) == 2
    assert uploaded(hub) == space.space_files(folder, SPACE)
    hub.requests.clear()
    assert "0 to add, 0 to change, 0 to remove, 0 B to send" in run("space", folder, SPACE).stdout
    assert len(repo.commits) == 2 and {method for method, _ in hub.requests} == {"GET"}


def test_space_keeps_files_of_its_own_and_removes_old_code(hub, folder, run):
    run("push", folder, MODEL)
    run("space", folder, SPACE)
    repo = hub.repos[f"spaces/{SPACE}"]
    old = Blob(b"old", False)
    repo.commit(
        "main", {**repo.tree(), "open_clip_transformers/old.py": old, "cat.png": old, "app.py": old}, "by hand"
    )
    stdout = run("space", folder, SPACE).stdout
    assert "0 to add, 1 to change, 1 to remove" in stdout
    assert uploaded(hub) == {**space.space_files(folder, SPACE), "cat.png": b"old"}


def test_space_of_a_private_model_asks_for_a_token(hub, folder, run):
    run("push", folder, MODEL, "--private")
    assert f"{MODEL} is private: give the Space a secret HF_TOKEN" in run("space", folder, SPACE, "--dry-run").stdout


def test_space_card_says_what_the_hub_reads(folder, tmp_path, run):
    gradio = pytest.importorskip("gradio")
    assert run("space", folder, SPACE, "-o", tmp_path / "page").stdout == f"{tmp_path / 'page'}\n"
    written = {
        path.relative_to(tmp_path / "page").as_posix(): path.read_bytes()
        for path in (tmp_path / "page").rglob("*")
        if path.is_file()
    }
    assert written == space.space_files(folder, SPACE)
    data = metadata_of(written["README.md"])
    assert data == {
        "title": "tiny-clip",
        "emoji": "🔎",
        "colorFrom": "indigo",
        "colorTo": "blue",
        "sdk": "gradio",
        "sdk_version": gradio.__version__,
        "python_version": "3.12",
        "app_file": "app.py",
        "license": "mit",
        "models": [MODEL],
        "tags": ["open_clip", "zero-shot-image-classification"],
    }


def test_space_written_without_gradio_asks_for_the_oldest(folder, monkeypatch):
    def missing(name):
        raise space.PackageNotFoundError(name)

    monkeypatch.setattr(space, "version", missing)
    oldest = metadata_of(space.space_files(folder, SPACE)["README.md"])["sdk_version"]
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["options.extras_require"]["demo"].startswith(f"gradio>={oldest.removesuffix('.0')}")


def test_space_has_the_package_as_it_is_installed(folder):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packages = {*setup["options"]["packages"].split()} - {"open_clip_transformers.model_cards"}
    modules = {
        f"{package.replace('.', '/')}/{path.name}"
        for package in packages
        for place in {package, package.partition(".")[2] or package}
        for path in (ROOT / place.replace(".", "/")).glob("*.py")
    }
    files = space.space_files(folder, SPACE)
    assert {name for name in files if name.endswith(".py")} == modules | {"app.py"}
    assert files["open_clip_transformers/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert not any("__pycache__" in name for name in files)


def test_space_requirements_are_those_of_the_package(folder, monkeypatch):
    lines = space.space_files(folder, SPACE)["requirements.txt"].decode().splitlines()
    assert {"torch>=2.6", "typer", "Pillow>=10.1"} <= set(lines)
    assert [line for line in lines if line.startswith("transformers")] == ["transformers<6,<=5.24.99,>=5.5"]
    monkeypatch.setattr(space, "project_address", lambda: "git+https://example.org/package")
    files = space.space_files(folder, SPACE)
    assert set(files) == {"README.md", "app.py", "requirements.txt"}
    assert files["requirements.txt"] == b"open-clip-transformers @ git+https://example.org/package\n"


def test_space_of_a_timm_tower_needs_timm(tmp_path):
    save_tiny_family("timm", tmp_path / "model")
    assert b"timm>=1.0.17\n" in space.space_files(tmp_path / "model", SPACE, MODEL)["requirements.txt"]


def test_model_card_links_to_its_space(folder):
    plain, linked = str(build_model_card(folder, MODEL)), str(build_model_card(folder, MODEL, space=SPACE))
    link = f"Try it in the browser: [{SPACE}](https://huggingface.co/spaces/{SPACE}).\n\n"
    assert link not in plain and linked.replace(link, "") == plain
    with pytest.raises(ValueError, match="is no repository id"):
        build_model_card(folder, MODEL, space="a b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing", SPACE], "there is no such folder"),
        (["{folder}", "no space"], "is no repository id"),
        (["{folder}", SPACE, "--model-id", "tiny-clip"], "no whole id of a model"),
        (["{folder}", SPACE, "--model-id", "a b/c"], "no id of a model"),
        (["{folder}", SPACE, "-o", "page", "--private"], "--output pushes nothing"),
        (["{folder}", SPACE, "-o", "page", "--dry-run"], "--output pushes nothing"),
    ],
    ids=["folder", "space", "short_model", "model", "private_output", "dry_output"],
)
def test_space_refuses_what_cannot_work(run, folder, arguments, message):
    arguments = [argument.format(folder=folder) for argument in arguments]
    assert message in run("space", *arguments, exit_code=2).stderr


def test_space_refuses_folders_without_a_page(run, folder, tmp_path):
    def refused(*options):
        return run("space", tmp_path, SPACE, "-o", tmp_path / "page", *options, exit_code=1).stderr

    assert "has no config.json" in refused()
    CLIPConfig().save_pretrained(tmp_path)
    assert "which is transformers' own" in refused()
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    card = tmp_path / "README.md"
    card.write_text(card.read_text().replace(MODEL, "model"))
    assert "load model. Give --model-id org/name" in refused()
    card.unlink()
    assert "it has no card that says so. Give --model-id org/name" in refused()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["OpenClipForImageClassification"]}))
    assert "holds an image classifier" in refused("--model-id", MODEL)
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in ("processor_config.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    assert "has no processor" in refused("--model-id", MODEL)
    assert not (tmp_path / "page").exists()


def test_space_says_what_the_hub_refuses(hub, folder, run, monkeypatch):
    stderr = run("space", folder, SPACE, exit_code=1).stderr
    assert f"The Hub has no model {MODEL}" in stderr and f"push {folder} {MODEL}" in stderr
    run("push", folder, MODEL)
    monkeypatch.setenv("HF_TOKEN", READER)
    assert "The token may not write there" in run("space", folder, SPACE, exit_code=1).stderr
    assert f"spaces/{SPACE}" not in hub.repos


def test_space_is_planned_without_a_network(folder, run):
    stdout = run("space", folder, SPACE, "--dry-run").stdout
    assert "note: the Hub was not asked what it has already" in stdout


def test_space_runs_with_nothing_but_its_own_code(hub, run, tmp_path):
    client = pytest.importorskip("gradio_client")
    pytest.importorskip("gradio")
    save_tiny_family("coca", tmp_path / "model")
    write_model_card(tmp_path / "model", MODEL)
    run("push", tmp_path / "model", MODEL)
    run("space", tmp_path / "model", SPACE, "-o", tmp_path / "page")
    with (tmp_path / "page" / "app.py").open("r+") as app:
        code = app.read()
        app.seek(0)
        app.write("import open_clip_transformers\nprint(open_clip_transformers.__path__, flush=True)\n" + code)
    Image.radial_gradient("L").resize((61, 43)).convert("RGB").save(tmp_path / "image.png")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "HF_HOME": str(tmp_path / "cache")}
    environment.pop("PYTHONPATH", None)
    with (tmp_path / "log").open("w") as log:
        page = subprocess.Popen(
            [sys.executable, "app.py"], cwd=tmp_path / "page", env=environment, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 120
        while "Running on local URL" not in (tmp_path / "log").read_text():
            assert page.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
        visitor = client.Client(f"http://127.0.0.1:{port}", verbose=False)
        image = client.handle_file(str(tmp_path / "image.png"))
        found = visitor.predict(image, "Greedy", "", 6, 3, 0.5, 50, 0.95, 1, 1, 0, 8, api_name="/caption")
    finally:
        page.terminate()
        page.wait(timeout=30)
    assert (tmp_path / "log").read_text().startswith(f"['{tmp_path / 'page' / 'open_clip_transformers'}']\n")
    caption = run("caption", tmp_path / "model", tmp_path / "image.png", "--max-new-tokens", 8).stdout
    assert found == [caption.rstrip("\n").split("\t")[1]]
