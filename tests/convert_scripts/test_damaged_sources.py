"""Damaged sources and wrong arguments: refused by the name of what is wrong, before anything is built or written."""

import copy
import json
import os

import pytest
import torch
from tiny_configs import save_open_clip_folder, tiny_clip_cfg, tiny_coca_cfg

from open_clip_transformers.convert_scripts.common import ConversionError
from open_clip_transformers.convert_scripts.convert_deepseek_vl2 import convert_deepseek_vl2
from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint
from open_clip_transformers.convert_scripts.convert_to_open_clip import convert_to_open_clip
from open_clip_transformers.convert_scripts.hub.bundle import bundle_folder
from open_clip_transformers.convert_scripts.hub.card import write_model_card
from open_clip_transformers.convert_scripts.hub.push import plan_push, push_folder
from open_clip_transformers.convert_scripts.verify.folder import verify_folder


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
NAN, INFINITE = float("nan"), float("inf")
NO_SIZES = [0, -1, 10**9, 10**30, NAN, INFINITE, "12", [], True, None]

NO_SWITCH = ["false", "", NAN, 2, [0], {}]

# Part of the file -> field -> values that it cannot have.
WRONG = {
    "vision_cfg": {
        **dict.fromkeys(("patch_size", "image_size", "width", "head_width", "layers"), NO_SIZES),
        "mlp_ratio": [-1, 10**9, NAN, "4"],
        "patch_dropout": [-0.1, 1, NAN],
        "act_kwargs": ["tanh", ["tanh"], {"approximate": "x"}],
        "norm_kwargs": ["eps", {"eps": NAN}, {"eps": "1e-5"}],
        "pool_type": ["x", 3, ["tok"]],
        "attentional_pool": ["false", NAN, 2, [0]],
        "no_ln_pre": NO_SWITCH,
        "timm_model_name": [3, ["x"]],
    },
    "text_cfg": {
        **dict.fromkeys(("context_length", "vocab_size", "width", "heads", "layers"), NO_SIZES),
        "ls_init_value": [NAN, "x"],
        **dict.fromkeys(("no_causal_mask", "embed_cls", "final_ln_after_pool"), NO_SWITCH),
        "hf_model_name": [3, {"a": 1}],
        "hf_tokenizer_name": [3, ["x"]],
        "tokenizer_kwargs": [3, "x", [1], {"clean": 3}, {"clean": ["x"]}, {"strip_sep_token": "no"}],
    },
    "multimodal_cfg": dict.fromkeys(("width", "heads", "layers", "context_length"), NO_SIZES),
    "model_cfg": {
        "embed_dim": NO_SIZES,
        **dict.fromkeys(("custom_text", "quick_gelu"), NO_SWITCH),
        "vision_cfg": [None, "x", [], 3],
        "text_cfg": [None, "x", [], 3],
        "multimodal_cfg": ["x", [], 3],
        "init_logit_scale": [NAN, INFINITE, "1", None],
        "pad_id": [-1, 10**30, "0"],
    },
    "preprocess_cfg": {
        "std": [
            0,
            [1, 1, 0],
            [1, 1, -1],
            [1, 1, NAN],
            [1, 1, INFINITE],
            [1, 1],
            [1] * 4,
            "111",
            {"a": 1},
            [1e-30] * 3,
        ],
        "mean": [[0, NAN, 0], [0, INFINITE, 0], [0], "000", ["0"] * 3],
        "interpolation": ["nearest", 3, ["bicubic"]],
        "resize_mode": ["crop", {"a": 1}],
        "fill_color": [-1, 256, NAN, "black", [0, 0]],
    },
    "file": {"model_cfg": [None, "x", [], 3], "preprocess_cfg": ["x", [1], 3]},
}
CASES = [(part, name) for part, names in WRONG.items() for name in names]


@pytest.fixture(scope="module")
def coca_cfg():
    return tiny_coca_cfg(text_cfg={"vocab_size": 49408}, multimodal_cfg={"vocab_size": 49408})


@pytest.fixture(scope="module")
def source(tmp_path_factory, coca_cfg):
    folder = tmp_path_factory.mktemp("sources") / "coca"
    save_open_clip_folder(folder, coca_cfg)
    return folder


def convert(source, output, **kwargs):
    return convert_open_clip_checkpoint(source, output, **{"verify": "none", **kwargs})


@pytest.mark.parametrize(("part", "name"), CASES, ids=lambda word: word)
def test_convert_names_the_field_that_is_wrong(tmp_path, source, coca_cfg, part, name):
    for value in WRONG[part][name]:
        content = copy.deepcopy({"model_cfg": coca_cfg, "preprocess_cfg": {}})
        place = {"file": content, "preprocess_cfg": content["preprocess_cfg"], "model_cfg": content["model_cfg"]}
        place = place[part] if part in place else content["model_cfg"][part]
        place[name] = value
        (source / "open_clip_config.json").write_text(json.dumps(content))
        # Some are named by what they become.
        named = {"layers": "layers|depths", "norm_kwargs": "norm_kwargs|eps"}.get(name, name)
        with pytest.raises(ConversionError, match=f"{named}|clean|strip_sep_token"):
            convert(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


DAMAGED_FILES = {
    "pointer as weights": ("open_clip_model.safetensors", POINTER, "open_clip_model.safetensors is a Git LFS pointer"),
    "pointer as config": ("open_clip_config.json", POINTER, "open_clip_config.json is a Git LFS pointer"),
    "nested config": ("open_clip_config.json", b'{"a":' * 100_000, "open_clip_config.json cannot be read as JSON"),
    "long number": ("open_clip_config.json", b'{"a":' + b"9" * 5000 + b"}", "cannot be read as JSON"),
    "cut weights": ("open_clip_model.safetensors", b"\x10", "open_clip_model.safetensors cannot be read"),
    "index of a list": ("model.safetensors.index.json", b'{"weight_map": ["a"]}', "no weight_map"),
    "index of numbers": ("model.safetensors.index.json", b'{"weight_map": {"a": 3}}', "no weight_map"),
    "nested index": ("model.safetensors.index.json", b"[" * 100_000, "cannot be read as JSON"),
}


@pytest.mark.parametrize(("name", "content", "message"), DAMAGED_FILES.values(), ids=DAMAGED_FILES)
def test_convert_names_the_file_that_is_damaged(tmp_path, name, content, message):
    source = tmp_path / "source"
    save_open_clip_folder(source, tiny_clip_cfg())
    (source / name).write_bytes(content)
    with pytest.raises(ConversionError, match=message):
        convert(source / name if "index" in name else source, tmp_path / "out", with_processor=False)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_convert_of_a_pipe_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(ConversionError, match="neither a file nor a folder"):
        convert(tmp_path / "pipe.pt", tmp_path / "out", model_name="ViT-B-32")


def test_config_that_is_a_pipe_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "x.pt").touch()
    for options in ({"config": tmp_path / "pipe"}, {"config": tmp_path / "pipe", "model_name": "ViT-B-32"}):
        with pytest.raises(ConversionError, match="pipe cannot be read as JSON: it is no file"):
            convert(tmp_path / "x.pt", tmp_path / "out", **options)


@pytest.mark.parametrize("name", ["~nobody-of-that-name/x", "a\0b"], ids=["unknown-user", "nul"])
def test_names_that_no_file_can_have_are_refused(tmp_path, name):
    with pytest.raises(ConversionError, match="no such file or folder"):
        convert(name, tmp_path / "out")
    save_open_clip_folder(tmp_path / "source", tiny_clip_cfg())
    if "\0" in name:
        with pytest.raises(ConversionError, match="cannot be written"):
            convert(tmp_path / "source", tmp_path / name, with_processor=False)


def test_names_of_tensors_stay_on_their_lines(tmp_path):
    model = save_open_clip_folder(tmp_path / "source", tiny_clip_cfg())
    torch.save({**model.state_dict(), "x\nConverted": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(ConversionError, match=r"x\\nConverted \(1,\)"):
        convert(tmp_path / "x.pt", tmp_path / "out", config=tiny_clip_cfg(), with_processor=False)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="may read everything")
def test_convert_says_that_weights_may_not_be_read(tmp_path):
    save_open_clip_folder(tmp_path / "source", tiny_clip_cfg())
    (tmp_path / "source" / "open_clip_model.safetensors").chmod(0)
    with pytest.raises(PermissionError, match="Permission denied"):
        convert(tmp_path / "source", tmp_path / "out", with_processor=False)


@pytest.mark.parametrize(
    "name", ["x; rm -rf ~", "$(id)/x", "a/b' + exit() + '", "a b", "../up", "a/b/c", "x\x1b[2J"], ids=repr
)
def test_name_of_a_tokenizer_never_becomes_a_command(tmp_path, name):
    save_open_clip_folder(tmp_path / "source", tiny_clip_cfg(text_cfg={"hf_tokenizer_name": name}))
    with pytest.raises(ConversionError) as error:
        convert(tmp_path / "source", tmp_path / "out")
    assert "python -c" not in str(error.value)
    assert "\x1b" not in str(error.value)


ARGUMENTS = {
    convert_open_clip_checkpoint: {
        "model_name": 3, "config": 3, "pretrained": ["x"], "revision": 1.5, "with_processor": "no", "dtype": 3,
        "max_shard_size": None, "verify": None, "ema": 1, "target": 3, "tower": True, "bundle": "yes",
    },
    convert_to_open_clip: {"with_processor": None, "hf_tokenizer_name": 3, "dtype": 3, "verify": 3},
    convert_deepseek_vl2: {"dtype": 3, "max_shard_size": None},
}  # fmt: skip


@pytest.mark.parametrize("function", ARGUMENTS, ids=lambda function: function.__name__)
def test_arguments_of_another_type_are_refused_by_name(tmp_path, function):
    for name, value in {"source": 3, "output_dir": None, **ARGUMENTS[function]}.items():
        places = {"source": tmp_path, "output_dir": tmp_path / "out"}
        arguments = [places.get("source"), places.get("output_dir")]
        options = {}
        if name in places:
            arguments[list(places).index(name)] = value
        else:
            options[name] = value
        word = "folder" if name == "source" and function is convert_to_open_clip else name
        with pytest.raises(TypeError, match=rf"{function.__name__}: {word} must be .*, got "):
            function(*arguments, **options)


FOLDER_ARGUMENTS = {
    verify_folder: {"folder": 3, "model_name": 3, "dtypes": 3, "pairs": "4", "output_dir": 3},
    write_model_card: {"folder": None, "model_id": 3, "force": "yes"},
    plan_push: {"folder": 3, "repo_id": 3, "revision": None, "with_code": "no"},
    push_folder: {"plan": "folder"},
    bundle_folder: {"folder": None},
}


@pytest.mark.parametrize("function", FOLDER_ARGUMENTS, ids=lambda function: function.__name__)
def test_arguments_beside_a_folder_are_refused_by_name(tmp_path, function):
    for name, value in FOLDER_ARGUMENTS[function].items():
        required = {"folder": tmp_path, **({"repo_id": "a/b"} if function is plan_push else {})}
        with pytest.raises(TypeError, match=rf"{function.__name__}: {name} must be .*, got "):
            function(**({} if function is push_folder else required) | {name: value})


@pytest.mark.parametrize("size", [0, -5, "0GB", "many", "5 apples", ""], ids=repr)
def test_shards_have_a_size(tmp_path, size):
    save_open_clip_folder(tmp_path / "source", tiny_clip_cfg())
    with pytest.raises(ConversionError, match="max_shard_size must be"):
        convert(tmp_path / "source", tmp_path / "out", with_processor=False, max_shard_size=size)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_types_of_arguments_that_are_right_pass(tmp_path):
    save_open_clip_folder(tmp_path / "source", tiny_clip_cfg())
    convert(
        str(tmp_path / "source"), tmp_path / "out", with_processor=False, dtype=torch.float16, max_shard_size=10**6
    )
