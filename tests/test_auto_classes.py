"""The Auto classes of transformers know ours once the package is imported, which prints nothing and costs little."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image
from subprocess_output import own_output
from tiny_configs import tiny_clip_cfg, tiny_coca_cfg
from tiny_folders import CLIP_VOCABULARY, COCA_CLIP_VOCABULARY, save_tiny_folder
from tiny_models import COCA, SIGLIP, main_outputs, randomized, tiny_config, tiny_inputs, tiny_model
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

import open_clip_transformers
from open_clip_transformers import (
    CoCaForConditionalGeneration,
    CoCaForImageClassification,
    CoCaForZeroShotImageClassification,
    CoCaModel,
    CoCaProcessor,
    OpenClipForImageClassification,
    OpenClipImageProcessor,
    OpenClipImageProcessorPil,
    OpenClipModel,
    OpenClipProcessor,
    OpenClipSiglipForImageClassification,
    OpenClipSiglipModel,
    OpenClipTextModel,
    OpenClipTokenizer,
    OpenClipVitModel,
)
from open_clip_transformers.registration import register_at_first_look


ROOT = Path(__file__).parents[1]

# Saved model of `tiny_models` -> the classes that the Auto classes make of its folder.
LOADED_AS = [
    ("vit", AutoModel, OpenClipVitModel),
    ("text", AutoModel, OpenClipTextModel),
    ("text_with_class_token", AutoModel, OpenClipTextModel),
    ("clip", AutoModel, OpenClipModel),
    ("clip", AutoModelForZeroShotImageClassification, OpenClipModel),
    ("siglip", AutoModel, OpenClipSiglipModel),
    ("siglip", AutoModelForZeroShotImageClassification, OpenClipSiglipModel),
    ("coca_for_generation", AutoModel, CoCaModel),
    ("coca", AutoModelForImageTextToText, CoCaForConditionalGeneration),
    ("coca", AutoModelForMultimodalLM, CoCaForConditionalGeneration),
    ("coca", AutoModelForZeroShotImageClassification, CoCaForZeroShotImageClassification),
    ("image_classification", AutoModelForImageClassification, OpenClipForImageClassification),
]


def assert_same_model(loaded, model):
    """Equal weights, as far as `loaded` has them, and equal outputs up to the alignment of weights in memory."""
    weights = model.state_dict()
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    if type(loaded) is not type(model) and not issubclass(type(model), type(loaded)):
        return
    with torch.no_grad():
        outputs = [main_outputs(side(**tiny_inputs(model))) for side in (loaded, model)]
    for ours, expected in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.floor
@pytest.mark.parametrize(
    ("name", "auto_class", "expected"), LOADED_AS, ids=lambda value: getattr(value, "__name__", value)
)
def test_auto_model_loads_what_was_saved(name, auto_class, expected, tmp_path):
    model = tiny_model(name)
    model.save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path)
    assert type(loaded) is expected
    assert type(loaded.config) is type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)
    assert_same_model(loaded, model)
    assert type(auto_class.from_config(model.config)) is expected


@pytest.mark.floor
@pytest.mark.parametrize(
    ("cfg", "model_class"),
    [(SIGLIP, OpenClipSiglipForImageClassification), (COCA, CoCaForImageClassification)],
    ids=["siglip", "coca"],
)
def test_auto_model_loads_a_classifier_of_every_configuration(cfg, model_class, tmp_path):
    model = randomized(model_class(tiny_config(cfg)).eval())
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert type(loaded) is model_class
    assert type(loaded.config) is type(model.config)
    assert_same_model(loaded, model)


@pytest.mark.floor
def test_auto_model_of_a_coca_folder_captions(tmp_path):
    model = tiny_model("coca_for_generation")
    model.save_pretrained(tmp_path)
    pixel_values = tiny_inputs(model)["pixel_values"]
    captions = model.generate(pixel_values=pixel_values, max_new_tokens=4)
    assert captions.shape[0] == 3
    assert torch.equal(
        AutoModel.from_pretrained(tmp_path).generate(pixel_values=pixel_values, max_new_tokens=4), captions
    )


@pytest.fixture(scope="module", params=["clip", "coca"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    cfg = tiny_clip_cfg(**CLIP_VOCABULARY) if request.param == "clip" else tiny_coca_cfg(**COCA_CLIP_VOCABULARY)
    save_tiny_folder(folder, cfg)
    return folder


@pytest.fixture
def image():
    return Image.effect_noise((37, 29), 80).convert("RGB")


@pytest.mark.floor
def test_auto_processor_loads_what_was_saved(folder, image):
    processor = AutoProcessor.from_pretrained(folder)
    assert type(processor) is (CoCaProcessor if "coca" in folder.name else OpenClipProcessor)
    assert type(processor.image_processor) is OpenClipImageProcessor
    assert type(processor.tokenizer) is OpenClipTokenizer
    inputs = processor(images=image, text="a cat", return_tensors="pt")
    assert inputs.keys() == {"pixel_values", "input_ids", "attention_mask"}
    image_inputs = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")
    assert torch.equal(image_inputs.pixel_values, inputs.pixel_values)


@pytest.mark.floor
@pytest.mark.parametrize(
    ("back_end", "expected"),
    [(None, OpenClipImageProcessor), ("torchvision", OpenClipImageProcessor), ("pil", OpenClipImageProcessorPil)],
    ids=["default", "torchvision", "pil"],
)
def test_auto_image_processor_loads_either_back_end(folder, back_end, expected):
    image_processor = AutoImageProcessor.from_pretrained(folder, backend=back_end)
    assert type(image_processor) is expected
    assert image_processor.size["height"] == 24


@pytest.mark.floor
def test_auto_tokenizer_loads_what_was_saved(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert type(tokenizer) is OpenClipTokenizer
    assert tokenizer("a cat").input_ids == OpenClipTokenizer(model_max_length=23)("a cat").input_ids


@pytest.mark.floor
def test_auto_processors_find_their_class_by_the_configuration_alone(folder, tmp_path):
    """Files without the names of our classes, such as a tower's folder with settings copied from elsewhere."""
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    AutoImageProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    for name, key in (
        ("tokenizer_config.json", "tokenizer_class"),
        ("preprocessor_config.json", "image_processor_type"),
    ):
        settings = json.loads((tmp_path / name).read_text())
        del settings[key]
        (tmp_path / name).write_text(json.dumps(settings))
    config = AutoConfig.from_pretrained(folder)
    for saved, auto_class, expected in (
        (config, AutoProcessor, CoCaProcessor if "coca" in folder.name else OpenClipProcessor),
        (config, AutoTokenizer, OpenClipTokenizer),
        (config, AutoImageProcessor, OpenClipImageProcessor),
        (config.text_config, AutoTokenizer, OpenClipTokenizer),
        (config.vision_config, AutoImageProcessor, OpenClipImageProcessor),
    ):
        saved.save_pretrained(tmp_path)
        assert type(auto_class.from_pretrained(tmp_path)) is expected


def run_python(code: str):
    """Output of `code` in a new process, errors and warnings included."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout + own_output(result.stderr)


@pytest.mark.floor
def test_import_prints_nothing_and_imports_nothing_large():
    modules = "{'torch', 'transformers', 'tokenizers', 'PIL', 'numpy'} & sys.modules.keys()"
    assert run_python(f"import sys, open_clip_transformers; assert not {modules}, {modules}") == ""


# This file itself imports transformers first.
IMPORTS = {
    "package first": "import open_clip_transformers",
    "pipeline class first": "from open_clip_transformers import ImageToTextPipeline",
}


@pytest.mark.floor
@pytest.mark.parametrize("imports", IMPORTS.values(), ids=IMPORTS)
def test_import_registers_in_every_order(imports):
    check = """
from transformers import AutoConfig, AutoModel, pipelines
config = AutoConfig.for_model("open_clip_vit", hidden_size=24, num_attention_heads=2, num_hidden_layers=1)
assert type(AutoModel.from_config(config)).__name__ == "OpenClipVitModel"
task, settings, _ = pipelines.check_task("image-to-text")
assert (task, settings["impl"].__name__) == ("image-to-text", "ImageToTextPipeline")
"""
    assert run_python(imports + check) == ""


def test_public_names_are_all_there():
    for name in open_clip_transformers.__all__:
        assert getattr(open_clip_transformers, name).__name__ == name


class Table(dict):
    """A table as those of the Auto classes: read like a dictionary, and written by `register`."""

    def register(self, key, value, exist_ok=False):
        assert exist_ok
        self.update({key: value})


LOOKS = {
    "contains": lambda table: "a" in table,
    "item": lambda table: table["a"],
    "length": len,
    "iteration": list,
    "get": lambda table: table.get("a"),
    "values": lambda table: [*table.values()],
    "attribute": lambda table: table.register,
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_first_look_at_a_table_registers(look):
    loads = []

    def load():
        loads.append(1)
        return {"a": "ours", "b": "ours"}

    table, expected = Table(z="upstream"), Table(z="upstream", a="ours", b="ours")
    register_at_first_look(table, load)
    assert isinstance(table, Table) and not loads
    assert look(table) == (table.register if look is LOOKS["attribute"] else look(expected))
    assert type(table) is Table and table == expected
    assert len(loads) == 1


def test_registering_yields_to_others():
    table = Table()
    register_at_first_look(table, lambda: {"a": "ours", "b": "ours"})
    table.register("a", "registered by hand", exist_ok=True)
    assert table == {"a": "registered by hand", "b": "ours"}


def test_registering_is_whole_for_every_thread():
    barrier = threading.Barrier(4)

    def load():
        barrier.wait(timeout=30)  # all four threads are in here together
        return dict.fromkeys(range(1000), "ours")

    table = Table()
    register_at_first_look(table, load)
    found = []
    threads = [threading.Thread(target=lambda: found.append(len(table))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1000] * 4


def test_registering_that_fails_is_tried_again():
    attempts = []

    def load():
        attempts.append(1)
        if len(attempts) == 1:
            raise ImportError("not yet")
        return {"a": 1}

    table = Table()
    register_at_first_look(table, load)
    with pytest.raises(ImportError, match="not yet"):
        len(table)
    assert table["a"] == 1


@pytest.mark.floor
def test_tables_of_transformers_are_what_they_were_once_they_are_read():
    check = """
import open_clip_transformers
from transformers import CONFIG_MAPPING, MODEL_MAPPING
assert "open_clip_vit" in CONFIG_MAPPING and CONFIG_MAPPING["open_clip_vit"] in MODEL_MAPPING
assert type(CONFIG_MAPPING).__module__.startswith("transformers.") and type(MODEL_MAPPING).__module__.startswith(
    "transformers."
)
"""
    assert run_python(check) == ""


def test_functions_that_transformers_may_drop_are_not_needed():
    check = """
import transformers.pipelines
vars(transformers.pipelines).pop("_resolve_deprecated_task", None)
import open_clip_transformers
from transformers import AutoConfig, AutoModel
config = AutoConfig.for_model("open_clip_vit", hidden_size=24, num_attention_heads=2, num_hidden_layers=1)
assert type(AutoModel.from_config(config)).__name__ == "OpenClipVitModel"
_, task, _ = transformers.pipelines.PIPELINE_REGISTRY.check_task("image-to-text")
assert task["impl"].__name__ == "ImageToTextPipeline"
"""
    assert run_python(check) == ""


def test_transformers_serve_takes_a_captioner_for_a_model_of_images():
    """It looks for model types and classes in this table of names."""
    assert MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES["open_clip_coca"] == CoCaForConditionalGeneration.__name__
    assert OpenClipModel.config_class.model_type not in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES


def test_without_the_import_nothing_is_loaded_in_part(folder):
    """Neither a bare tokenizer in place of the processor, nor one that gives other ids."""
    code = f"""
import transformers
for name in ("AutoProcessor", "AutoTokenizer", "AutoModel"):
    try:
        print(getattr(transformers, name).from_pretrained({str(folder)!r}))
    except ValueError as error:
        print(name, error)
"""
    lines = run_python(code)
    assert "AutoProcessor Unrecognized processing class" in lines
    assert "AutoTokenizer Padding side" in lines and "Import the package before loading" in lines
    assert "AutoModel The checkpoint you are trying to load has model type `open_clip" in lines
