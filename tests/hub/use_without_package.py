"""Uses bundled folders as someone would who has transformers alone; run by `test_bundle.py` in a process of its own.

python use_without_package.py FOLDER...: for each model or tower, takes what the Auto classes and the pipelines give,
saves model and processor beside it as FOLDER_copy, and does the same with that. Prints JSON: name of the folder ->
{"first": ..., "second": ...}, or {"error": traceback}.
"""

import json
import os
import sys
import traceback
from pathlib import Path


# Whether or not the package is installed, importing it fails here.
sys.modules["open_clip_transformers"] = None
os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402


TRUSTED = {"trust_remote_code": True}


def numbers(tensor: torch.Tensor) -> list[float]:
    return [round(value, 4) for value in tensor.flatten().tolist()[:12]]


@torch.inference_mode()
def use(folder: Path) -> tuple[dict, transformers.PreTrainedModel, transformers.ProcessorMixin]:
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    loaded = {name: getattr(transformers, name).from_pretrained(folder, **TRUSTED) for name in auto_map}
    for backend in ("torchvision", "pil"):
        loaded[backend] = transformers.AutoImageProcessor.from_pretrained(folder, backend=backend, **TRUSTED)
    loaded["AutoProcessor"] = transformers.AutoProcessor.from_pretrained(folder, **TRUSTED)
    assert all(type(part).__module__.startswith("transformers_modules.") for part in loaded.values()), loaded
    model, processor = loaded["AutoModel"].eval(), loaded["AutoProcessor"]
    classify = transformers.pipeline("zero-shot-image-classification", model=str(folder), **TRUSTED)
    try:
        without_files = type(classify.tokenizer)()
    except OSError as error:
        without_files = error
    image = Image.radial_gradient("L").resize((61, 43)).convert("RGB")
    texts = ["two cats", "a photo of a dog"]
    pixel_values = processor(images=image, return_tensors="pt")["pixel_values"]
    input_ids = classify.tokenizer(texts, return_tensors="pt")["input_ids"]
    results = {
        "classes": {name: type(part).__name__ for name, part in loaded.items()},
        "tokenizer without files": str(without_files),
        "text": numbers(model.get_text_features(input_ids).pooler_output),
        "image": numbers(model.get_image_features(pixel_values).pooler_output),
        "labels": {score["label"]: round(score["score"], 4) for score in classify(image, candidate_labels=texts)},
    }
    if model.can_generate():
        results["ids"] = model.generate(pixel_values=pixel_values).tolist()
        results["groups"] = model.generate(
            pixel_values=pixel_values, num_beams=4, num_beam_groups=2, max_length=8
        ).tolist()
        for task, inputs in (("image-to-text", {}), ("image-text-to-text", {"text": "two"})):
            pipe = transformers.pipeline(task, model=str(folder), **TRUSTED)
            results[task] = pipe(image, **inputs)
            captions = [pipe(image, **kwargs)[0]["generated_text"] for kwargs in ({}, {"stop_strings": ["e"]})]
            assert captions[0].startswith(captions[1]) and len(captions[1]) < len(captions[0]), captions
        extract = transformers.pipeline("image-feature-extraction", model=str(folder), **TRUSTED)
        results["features"] = numbers(extract(image, pool=True, return_tensors=True))
        assert results["features"] == results["image"], results
    return results, model, processor


@torch.inference_mode()
def use_tower(folder: Path) -> tuple[dict, transformers.PreTrainedModel, object]:
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    # AutoBackbone by itself loads no local folders.
    names = auto_map.keys() - {"AutoBackbone"}
    loaded = {name: getattr(transformers, name).from_pretrained(folder, **TRUSTED) for name in names}
    is_image_tower = loaded["AutoModel"].main_input_name == "pixel_values"
    name = "AutoImageProcessor" if is_image_tower else "AutoTokenizer"
    loaded[name] = getattr(transformers, name).from_pretrained(folder, **TRUSTED)
    assert all(type(part).__module__.startswith("transformers_modules.") for part in loaded.values()), loaded
    inputs = Image.radial_gradient("L").resize((61, 43)).convert("RGB") if is_image_tower else "two cats"
    inputs = {name: tensor for name, tensor in loaded[name](inputs, return_tensors="pt").items() if "mask" not in name}
    model = loaded["AutoModel"].eval()
    return {"features": numbers(model(**inputs).pooler_output)}, model, loaded[name]


def use_and_save(folder: Path) -> dict:
    copy = folder.with_name(f"{folder.name}_copy")
    use_folder = use if "vision_config" in json.loads((folder / "config.json").read_text()) else use_tower
    try:
        first, model, processor = use_folder(folder)
        model.save_pretrained(copy)
        processor.save_pretrained(copy)
        return {"first": first, "second": use_folder(copy)[0]}
    except Exception:
        return {"error": traceback.format_exc()}


if __name__ == "__main__":
    print(json.dumps({Path(folder).name: use_and_save(Path(folder)) for folder in sys.argv[1:]}))
