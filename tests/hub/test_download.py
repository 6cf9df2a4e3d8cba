"""Repositories that were pushed, downloaded again: with and without this package, offline, and pinned to a commit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import Blob
from PIL import Image
from tiny_configs import save_open_clip_folder, tiny_clip_cfg
from tiny_families import save_tiny_family
from tiny_folders import randomize
from tiny_tokenizers import save_tiny_tokenizer
from transformers import AutoModelForImageTextToText, AutoProcessor

from open_clip_transformers.convert_scripts.hub.card import write_model_card


pytestmark = pytest.mark.floor

REPO = "some-org/tiny-coca"
ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("use_from_hub.py")


@torch.inference_mode()
def generated(model, folder: Path) -> list[list[int]]:
    processor = AutoProcessor.from_pretrained(folder)
    image = Image.radial_gradient("L").resize((61, 43)).convert("RGB")
    return model.eval().generate(**processor(images=image, return_tensors="pt")).tolist()


def in_a_process_of_its_own(cache: Path, *arguments: str, **environment: str) -> dict:
    environment = {**os.environ, "HF_HOME": str(cache), "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, SCRIPT, *arguments]
    run = subprocess.run(command, cwd=cache, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_repository_works_with_and_without_the_package_pinned_and_offline(hub, run, tmp_path):
    folder, caches = tmp_path / "model", [tmp_path / "a", tmp_path / "b"]
    [cache.mkdir() for cache in caches]
    # Weights and code of the main branch change after the commit.
    first = generated(save_tiny_family("coca", folder), folder)
    write_model_card(folder, REPO)
    run("push", folder, REPO)
    commit = hub.repos[REPO].refs["main"]
    model = randomize(AutoModelForImageTextToText.from_pretrained(folder), seed=1)
    second = generated(model, folder)
    model.save_pretrained(folder)
    run("push", folder, REPO)
    for path in folder.glob("*.py"):
        path.write_text(f'{path.read_text()}\n\nMARK = "new"\n')
    run("push", folder, REPO, "--no-bundle")

    results = in_a_process_of_its_own(caches[0], "transformers-alone", REPO, commit, f"{REPO}-again")
    assert results["main"]["ids"] == second != first == results["pinned"]["ids"]
    assert set(results["main"]["marks"].values()) == {"new"}
    assert set(results["pinned"]["marks"].values()) == {"old"}
    assert {"ImageToTextPipeline", "OpenClipTokenizer", "OpenClipImageProcessor"} <= results["main"]["marks"].keys()
    for result in results.values():
        assert result["packages"] == ["transformers_modules"]
    hub.requests.clear()
    offline = in_a_process_of_its_own(caches[0], "transformers-alone", REPO, commit, HF_HUB_OFFLINE="1")
    assert offline == results
    assert not hub.requests

    installed = in_a_process_of_its_own(caches[1], "installed", REPO, commit, f"{REPO}-plain")
    for name in ("main", "pinned"):
        assert installed[name]["ids"] == results[name]["ids"]
        assert installed[name]["caption"] == results[name]["caption"]
        assert installed[name]["packages"] == ["open_clip_transformers"]
    assert not [path for _, path in hub.requests if path.endswith(".py")]

    # What `push_to_hub` sent: of a model that came with code, all of it.
    pinned, again, plain = (hub.repos[name] for name in (REPO, f"{REPO}-again", f"{REPO}-plain"))
    for copy in (again, plain):
        assert copy.tree()["model.safetensors"].sha256 == pinned.tree(commit)["model.safetensors"].sha256
    code = {name: blob.content for name, blob in pinned.tree(commit).items() if name.endswith(".py")}
    assert {name: blob.content for name, blob in again.tree().items() if name.endswith(".py")} == code
    assert set(again.tree()) == set(pinned.tree(commit))
    assert b"--" not in again.tree()["config.json"].content  # it names its own code, not another repository's
    assert set(plain.tree()) == set(pinned.tree(commit)) - code.keys()
    for name, blob in plain.tree().items():
        assert not name.endswith("config.json") or b"auto_map" not in blob.content


def test_commands_take_a_revision(hub, run, tmp_path):
    folder, image = tmp_path / "model", tmp_path / "image.png"
    Image.radial_gradient("L").resize((61, 43)).convert("RGB").save(image)
    model = save_tiny_family("coca", folder)
    write_model_card(folder, REPO)
    run("push", folder, REPO)
    commit = hub.repos[REPO].refs["main"]
    commands = [
        ("caption", image),
        ("classify", image, "--labels", "a cat,two dogs", "--top", "2"),
        ("attention", image, "-o", tmp_path / "sheet.png"),
    ]
    expected = [run(command, folder, *arguments).stdout for command, *arguments in commands]
    randomize(model, seed=1).save_pretrained(folder)
    run("push", folder, REPO)
    for (command, *arguments), output in zip(commands, expected):
        assert run(command, REPO, *arguments, "--revision", commit).stdout == output != ""
        assert run(command, REPO, *arguments).stdout == run(command, folder, *arguments).stdout != output
        stderr = run(command, folder, *arguments, "--revision", commit, exit_code=2).stderr
        assert f"is on this machine and has no revisions: leave out --revision {commit}" in stderr
    outputs = [tmp_path / f"{name}.safetensors" for name in ("pinned", "main")]
    for output, revision in zip(outputs, (commit, "main")):
        run("embed", REPO, image, "-o", output, "--revision", revision)
    assert outputs[0].read_bytes() != outputs[1].read_bytes()
    stderr = run("caption", REPO, image, "--revision", "nowhere", exit_code=2).stderr
    assert "nowhere is not a valid git identifier" in stderr


def test_conversion_takes_weights_and_tokenizer_of_a_revision(hub, run, tmp_path):
    repo = hub.create("some-org/open-clip")
    text_cfg = {"vocab_size": 700, "hf_tokenizer_name": "some-org/open-clip"}
    save_open_clip_folder(tmp_path / "first", tiny_clip_cfg(text_cfg=text_cfg))
    save_tiny_tokenizer("roberta", tmp_path / "first")
    save_open_clip_folder(tmp_path / "second", tiny_clip_cfg(text_cfg=text_cfg, embed_dim=24))
    save_tiny_tokenizer("xlm_roberta", tmp_path / "second")
    commits = [
        repo.commit("main", {path.name: Blob(path.read_bytes(), False) for path in folder.iterdir()}, "Upload")
        for folder in (tmp_path / "first", tmp_path / "second")
    ]
    for commit, name in zip(commits, ("first", "second")):
        local = tmp_path / f"{name}-local"
        run("convert", tmp_path / name, local, "--verify", "none")
        for number, source in enumerate(
            [("some-org/open-clip", "--revision", commit), (f"hf-hub:some-org/open-clip@{commit}",)]
        ):
            output = tmp_path / f"{name}-{number}"
            run("convert", *source, "--verify", "none", output)
            for file in ("model.safetensors", "config.json", "tokenizer.json"):
                assert (output / file).read_bytes() == (local / file).read_bytes()
            provenance = json.loads((output / "conversion.json").read_text())
            assert provenance["source"].endswith(f"some-org/open-clip@{commit}")
