"""Files of a repository describe a model, and make this package do nothing else."""

import json
import sys

import pytest
from hub_server import Blob
from PIL import Image
from tiny_families import save_tiny_family
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer, pipeline

import open_clip_transformers


pytestmark = pytest.mark.floor

REPO, OTHER = "some-org/hostile", "other/code"
# Code elsewhere: beside the weights, and in another repository.
HERE, THERE = "evil.Evil", f"{OTHER}--evil.Evil"
AUTO_CLASSES = ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoModelForZeroShotImageClassification")
PROCESSOR_FILES = ("processor_config.json", "tokenizer_config.json")


def every(*names: str, value) -> dict:
    return dict.fromkeys(names, value)


# What a file says -> file -> keys that are merged into it. Each names code, or asks for something to be fetched.
CLAIMS = {
    "code beside the weights": {
        "config.json": {"auto_map": every(*AUTO_CLASSES, value=HERE)},
        "tokenizer_config.json": {"auto_map": {"AutoTokenizer": [HERE, HERE], "AutoProcessor": HERE}},
        "processor_config.json": {"auto_map": every("AutoProcessor", "AutoImageProcessor", value=HERE)},
    },
    "code elsewhere": {
        "config.json": {"auto_map": every(*AUTO_CLASSES, value=THERE)},
        "tokenizer_config.json": {"auto_map": {"AutoTokenizer": [THERE, None]}},
        "processor_config.json": {"auto_map": every("AutoProcessor", "AutoImageProcessor", value=THERE)},
    },
    "pipelines": {
        "config.json": {
            "custom_pipelines": {
                task: {"impl": HERE, "pt": ["AutoModel"]}
                for task in ("image-to-text", "zero-shot-image-classification")
            }
        },
    },
    "trust": {
        name: {"trust_remote_code": True, "auto_map": every(*AUTO_CLASSES, "AutoProcessor", value=HERE)}
        for name in ("config.json", *PROCESSOR_FILES)
    },
    "trust in a tower": {
        "config.json": {
            f"{tower}_config": {"trust_remote_code": True, "auto_map": {"AutoModel": HERE}}
            for tower in ("vision", "text")
        },
    },
    "generation": {"generation_config.json": {"custom_generate": REPO, "trust_remote_code": True}},
    "unknown keys": {
        "config.json": {
            "_name_or_path": OTHER,
            "__class__": "evil.Evil",
            "code_revision": "main",
            "custom_generate": OTHER,
            "kernel_config": {"Attention": f"{OTHER}:Evil"},
            "use_kernels": True,
        },
        "tokenizer_config.json": {"name_or_path": OTHER, "vocab_file": "evil.py"},
    },
    "kernels of the Hub": {
        "config.json": {
            **every("attn_implementation", "_attn_implementation", "_attn_implementation_internal", value=OTHER),
            **every("experts_implementation", "_experts_implementation_internal", value=OTHER),
        }
    },
}
EVIL = """
from pathlib import Path
Path({marker!r}).touch()
class Evil:
    def __init__(self, *args, **kwargs): pass
    from_pretrained = classmethod(lambda cls, *args, **kwargs: cls())
def generate(*args, **kwargs): return None
"""


@pytest.fixture
def marker(tmp_path):
    """A file that the code in the repositories writes."""
    marker = tmp_path / "executed"
    yield marker
    assert not marker.exists()
    assert not [name for name in sys.modules if "evil" in name]


@pytest.fixture
def publish(hub, tmp_path, marker):
    """Publishes a tiny CoCa with hostile code, and with `claims` merged into its JSON files."""
    folder = tmp_path / "coca"
    save_tiny_family("coca", folder)
    code = EVIL.format(marker=str(marker)).encode()

    def publish(claims: dict[str, dict]):
        contents = {path.name: path.read_bytes() for path in folder.iterdir()}
        for name, claim in claims.items():
            content = json.loads(contents[name])
            for key, value in claim.items():
                own = content.get(key)
                content[key] = {**own, **value} if isinstance(own, dict) and isinstance(value, dict) else value
            contents[name] = json.dumps(content).encode()
        code_files = dict.fromkeys(("evil.py", "custom_generate/generate.py", "modeling_evil.py"), code)
        for repo_id, files in ((REPO, {**contents, **code_files}), (OTHER, code_files)):
            repo = hub.create(repo_id)
            repo.commit("main", {name: Blob(content, False) for name, content in files.items()}, "Upload")
        hub.requests.clear()

    return publish


def check_requests(hub):
    """Nothing was asked of other repositories, and no code of this one."""
    paths = [path for _, path in hub.requests]
    assert paths
    assert not [path for path in paths if OTHER in path or path.endswith(".py")]


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_of_a_repository_run_and_fetch_nothing(hub, publish, name):
    publish(CLAIMS[name])
    image = Image.radial_gradient("L").resize((61, 43)).convert("RGB")
    for auto_class in (AutoConfig, AutoModel, AutoProcessor, AutoTokenizer, AutoImageProcessor):
        loaded = auto_class.from_pretrained(REPO)
        assert type(loaded).__module__.startswith("open_clip_transformers."), auto_class
    model = open_clip_transformers.CoCaForConditionalGeneration.from_pretrained(REPO)
    processor = AutoProcessor.from_pretrained(REPO)
    assert model.generate(**processor(images=image, return_tensors="pt")).shape[0] == 1
    assert pipeline("image-to-text", model=REPO)(image)
    assert pipeline("zero-shot-image-classification", model=REPO)(image, candidate_labels=["a", "b"])
    check_requests(hub)


def test_commands_run_no_code_of_a_repository(hub, publish, run, tmp_path):
    publish({**CLAIMS["trust"], "generation_config.json": {"custom_generate": REPO}})
    Image.new("RGB", (30, 40)).save(tmp_path / "image.png")
    run("caption", REPO, tmp_path / "image.png")
    run("classify", REPO, tmp_path / "image.png", "--labels", "a,b")
    check_requests(hub)
