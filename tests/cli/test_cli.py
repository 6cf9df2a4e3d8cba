"""The command line as a whole: help, versions, exit codes, and how it starts."""

import subprocess
import sys
from pathlib import Path

import pytest
from subprocess_output import own_output

import open_clip_transformers


ROOT = Path(__file__).parents[2]
OPTIONS = {
    "convert": "--model --config --pretrained --revision --dtype --max-shard-size --verify --no-processor",
    "caption": "--num-beams --num-beam-groups --diversity-penalty --top-k --top-p --temperature --max-new-tokens "
    "--prompt --batch-size --device --dtype --seed --json",
    "classify": "--labels --labels-file --template --top --batch-size --device --dtype --json",
    "embed": "--output --text --texts-file --batch-size --device --dtype",
    "models": "--tags --no-tags --json",
}


def python(*arguments, **kwargs):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=120, **kwargs
    )


@pytest.mark.parametrize("command", OPTIONS)
def test_help_names_every_option(run, command):
    text = run(command, "--help").stdout
    assert not [option for option in OPTIONS[command].split() if option not in text]


def test_help_lists_the_commands(run):
    assert all(command in run("-h").stdout for command in OPTIONS)


def test_version_is_printed(run):
    assert run("--version").stdout == f"{open_clip_transformers.__version__}\n"


@pytest.mark.parametrize("arguments", [["capton"], ["caption"], ["caption", "model"]], ids=" ".join)
def test_usage_errors_exit_with_2(run, arguments):
    assert run(*arguments, exit_code=2).stderr.startswith("Usage: ")


def test_command_line_starts_without_torch():
    code = "import sys, open_clip_transformers.cli; print({'torch', 'transformers'} & set(sys.modules))"
    assert python("-c", code).stdout == "set()\n"


def test_module_runs_the_command_line():
    result = python("-m", "open_clip_transformers", "--help")
    assert (result.returncode, own_output(result.stderr)) == (0, "")
    assert result.stdout.startswith("Usage: open-clip-transformers ")


def test_module_captions(coca, images):
    """Run as users do: names that stdout cannot encode do not stop it, and nothing but captions is printed."""
    image = images[0].rename(images[0].with_name("ünïcode ✓.png"))
    result = python("-m", "open_clip_transformers", "caption", coca, image, env={"PYTHONIOENCODING": "ascii"})
    assert (result.returncode, own_output(result.stderr)) == (0, "")
    name, _ = result.stdout.removesuffix("\n").split("\t")
    assert name == str(image).encode("ascii", "backslashreplace").decode()


def test_reader_that_leaves_early_is_no_error(images, coca):
    command = (
        f"'{sys.executable}' -m open_clip_transformers caption '{coca}' '{images[0].parent}' --batch-size 1 | head -1"
    )
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.stdout.startswith(f"{images[0]}\t")
    assert own_output(result.stderr) == ""


def test_traceback_is_shown_on_request(coca):
    result = python("-m", "open_clip_transformers", "caption", coca, "missing.png", "--traceback")
    assert result.returncode != 0
    assert "Traceback (most recent call last)" in result.stderr
    assert "UsageError: There is no image to work on" in result.stderr
