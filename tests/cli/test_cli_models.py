"""`open-clip-transformers models`: what it lists, and how it looks to people and to programs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
NAFLEX = ("ViT-B-16-SigLIP2-naflex", "ViT-SO400M-16-SigLIP2-naflex")
OF_OPEN_CLIP_4 = {
    *NAFLEX,
    *(f"naflex_ViT-B-{patch}" for patch in (16, 32)),
    *(f"moderntext-naflex_ViT-{size}" for size in ("B-16", "B-32", "B-deep-16", "SO150M2-16")),
    *("coca2_ViT-B-32", "gte-modernbert-base-ViT-B-32-256", "mammut2_ViT-B-32", "moderntext-ViT-B-32-256"),
    *(f"{captioner}-moderntext_ViT-B-32" for captioner in ("coca2", "mammut2")),
    *(f"mammut_ViT-{size}-{patch}" for size in "SMBLH" for patch in (14, 16, 32)),
}


def table(text):
    """Lines of a table as dictionaries, cut where the columns of the header begin."""
    header, *lines = text.splitlines()
    assert all(len(line) == len(line.rstrip()) for line in lines)
    return [dict(zip(header.split(), line.split(maxsplit=len(header.split()) - 1))) for line in lines]


def test_models_lists_every_architecture_and_tag(run):
    import open_clip

    rows = table(run("models").stdout)
    tags = {*open_clip.list_pretrained(), *((name, "webli") for name in NAFLEX)}
    assert {(row["MODEL"], row["TAG"]) for row in rows if row["TAG"] != "-"} == tags
    assert {row["MODEL"] for row in rows} == set(open_clip.list_models()) | OF_OPEN_CLIP_4
    without = {row["MODEL"] for row in rows if row["TAG"] == "-"}
    assert len(rows) == 196 + len(NAFLEX) + len(without)


def test_models_says_what_each_is_made_of_and_needs(run):
    rows = {row["MODEL"]: row for row in table(run("models", "*B-32*").stdout)}
    assert rows["xlm-roberta-base-ViT-B-32"] == {
        "MODEL": "xlm-roberta-base-ViT-B-32",
        "TAG": "laion5b_s13b_b90k",
        "VISION": "vit",
        "TEXT": "hf_text",
        "PARAMETERS": "366.1M",
        "IMAGE": "224",
        "CONTEXT": "77",
        "NEEDS": "tokenizer xlm-roberta-base",
    }
    assert rows["ViT-B-32-256"]["IMAGE"] == "256"
    assert rows["ViT-B-32-256"]["NEEDS"] == "-"
    assert rows["coca_ViT-B-32"]["CONTEXT"] == "76"
    assert rows["moderntext-ViT-B-32-256"]["NEEDS"] == "tokenizer r50k_base"
    assert rows["mammut2-moderntext_ViT-B-32"]["NEEDS"] == "tokenizer r50k_base"
    assert rows["coca2-moderntext_ViT-B-32"]["TEXT"] == "modern_text"
    assert rows["gte-modernbert-base-ViT-B-32-256"]["NEEDS"] == "tokenizer Alibaba-NLP/gte-modernbert-base"
    assert table(run("models", "ViT-B-16-SigLIP2-naflex").stdout)[0]["IMAGE"] == "576-patches"
    assert table(run("models", "MobileCLIP-S1").stdout)[0]["NEEDS"] == "timm"


def test_models_aligns_its_columns(run):
    lines = run("models", "EVA02-L-14").stdout.splitlines()
    assert len(lines) == 3
    for name in ("TAG", "VISION", "TEXT", "NEEDS"):
        start = lines[0].index(name)
        assert all(line[start - 1] == " " and line[start] != " " for line in lines)
    for name in ("PARAMETERS", "IMAGE", "CONTEXT"):
        end = lines[0].index(name) + len(name)
        assert all(line[end] == " " and line[end - 1] != " " for line in lines)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("dfn2b_s39b", [("ViT-L-14", "dfn2b_s39b")]),
        (
            "COCA_vit-l",
            [("coca_ViT-L-14", "laion2b_s13b_b90k"), ("coca_ViT-L-14", "mscoco_finetuned_laion2b_s13b_b90k")],
        ),
        ("mscoco*", [(f"coca_ViT-{size}", "mscoco_finetuned_laion2b_s13b_b90k") for size in ("B-32", "L-14")]),
        ("RN50x?", [("RN50x4", "openai")]),
        ("ViT-S-16*", [("ViT-S-16", "-"), ("ViT-S-16-alt", "-")]),
        ("mammut*S-1?", [("mammut_ViT-S-14", "-"), ("mammut_ViT-S-16", "-")]),
    ],
    ids=["tag", "part-of-a-model", "pattern-of-tags", "pattern-of-models", "models-without-tags", "laions-mammut"],
)
def test_models_takes_patterns(run, pattern, expected):
    assert [(row["MODEL"], row["TAG"]) for row in table(run("models", pattern).stdout)] == expected


def test_models_lists_architectures_once_without_tags(run):
    rows = table(run("models", "--no-tags").stdout)
    assert len(rows) == len({row["MODEL"] for row in rows}) == 144 + len(OF_OPEN_CLIP_4)
    assert "TAG" not in rows[0]
    assert [row["MODEL"] for row in table(run("models", "--no-tags", "dfn2b_s39b").stdout)] == ["ViT-L-14"]


def test_models_prints_json(run):
    first, second = map(json.loads, run("models", "--json", "RN50-quickgelu").stdout.splitlines()[:2])
    assert (first["model"], first["tag"], second["tag"]) == ("RN50-quickgelu", "openai", "yfcc15m")
    assert first["hub_id"] == "timm/resnet50_clip.openai"
    assert first["preprocess_cfg"]["resize_mode"] == "shortest"
    assert first["parameters"] == first["vision_parameters"] + first["text_parameters"] + 1 == 102007137
    assert (first["vision_tower"], first["quick_gelu"], first["timm_model"]) == (
        "open_clip_modified_resnet",
        True,
        None,
    )
    assert json.loads(run("models", "--json", "ViT-S-16-alt").stdout)["tag"] is None


def test_models_says_that_nothing_matches(run):
    result = run("models", "inception", exit_code=2)
    assert result.stdout == ""
    assert "No architecture and no tag matches 'inception'" in result.stderr


@pytest.mark.parametrize(
    ("pattern", "close"), [("ViT-B32", "ViT-B-32,"), ("laion2b-s34b-b79", "laion2b_s34b_b79k")], ids=["model", "tag"]
)
def test_models_suggests_close_names(run, pattern, close):
    assert f"Did you mean {close}" in run("models", pattern, exit_code=2).stderr


def test_models_needs_no_torch():
    code = (
        "import sys, open_clip_transformers.cli as cli\n"
        "cli.app(['models', 'coca*'], standalone_mode=False)\n"
        "print({'torch', 'transformers', 'timm', 'huggingface_hub'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stdout.endswith("\nset()\n"), result.stderr


def test_models_is_read_by_a_pipe():
    command = f"'{sys.executable}' -m open_clip_transformers models | awk '$2 == \"webli\"' | head -3"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stdout.count("webli") == 3
    assert result.stderr == ""
