"""The README's Python snippets run, in order, as a reader would run them."""

import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "examples" / "digits" / "open_clip_checkpoint"


def test_readme_snippets_run(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from digits.digits_data import held_out_pictures

    picture = held_out_pictures(1)[0]
    picture.image.save(tmp_path / "digits.png")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(snippets) >= 6
    names: dict = {}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)
    assert names["outputs"].image_embeds.shape == (1, names["model"].config.projection_dim)
    printed = capsys.readouterr().out
    assert f"[{{'generated_text': '{picture.caption}'}}]" in printed


def test_readme_links_lead_somewhere():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize("name", ["convert", "caption", "classify", "embed"], ids=str)
def test_readme_commands_exist(name):
    from open_clip_transformers.cli import app

    assert name in {command.name or command.callback.__name__ for command in app.registered_commands}
    assert f"open-clip-transformers {name} " in (ROOT / "README.md").read_text(encoding="utf-8")
