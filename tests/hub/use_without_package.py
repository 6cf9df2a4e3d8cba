"""Uses a bundled folder as someone would who has transformers alone; run by `test_bundle.py` in a process of its own.

python use_without_package.py FOLDER COPY: prints JSON with what every Auto class, the processor and the pipelines
give, saves model and processor to COPY, and does the same with that.
"""

import json
import os
import sys
from pathlib import Path


# Whether or not the package is installed, importing it fails here.
sys.modules["open_clip_transformers"] = None
os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402


def numbers(tensor: torch.Tensor) -> list[float]:
    return [round(value, 4) for value in tensor.flatten().tolist()[:12]]


@torch.inference_mode()
def use(folder: Path) -> tuple[dict, transformers.PreTrainedModel, transformers.ProcessorMixin]:
    trusted = {"trust_remote_code": True}
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    results = {"classes": {}}
    for name in auto_map:
        loaded = getattr(transformers, name).from_pretrained(folder, **trusted)
        assert type(loaded).__module__.startswith("transformers_modules."), type(loaded)
        results["classes"][name] = type(loaded).__name__
    for backend in ("torchvision", "pil"):
        image_processor = transformers.AutoImageProcessor.from_pretrained(folder, backend=backend, **trusted)
        results["classes"][backend] = type(image_processor).__name__
    processor = transformers.AutoProcessor.from_pretrained(folder, **trusted)
    model = transformers.AutoModel.from_pretrained(folder, **trusted).eval()
    image = Image.radial_gradient("L").resize((61, 43)).convert("RGB")
    texts = ["two cats", "a photo of a dog"]
    input_ids = transformers.AutoTokenizer.from_pretrained(folder, **trusted)(texts, return_tensors="pt")["input_ids"]
    pixel_values = processor(images=image, return_tensors="pt")["pixel_values"]
    results["text"] = numbers(model.get_text_features(input_ids).pooler_output)
    results["image"] = numbers(model.get_image_features(pixel_values).pooler_output)
    classify = transformers.pipeline("zero-shot-image-classification", model=str(folder), **trusted)
    scores = classify(image, candidate_labels=texts)
    results["labels"] = {score["label"]: round(score["score"], 4) for score in scores}
    if model.can_generate():
        results["ids"] = model.generate(pixel_values=pixel_values).tolist()
        results["groups"] = model.generate(
            pixel_values=pixel_values, num_beams=4, num_beam_groups=2, max_length=8
        ).tolist()
        caption = transformers.pipeline("image-to-text", model=str(folder), **trusted)
        results["caption"] = caption(image)
    return results, model, processor


if __name__ == "__main__":
    folder, copy = map(Path, sys.argv[1:])
    first, model, processor = use(folder)
    model.save_pretrained(copy)
    processor.save_pretrained(copy)
    second, _, _ = use(copy)
    print(json.dumps({"first": first, "second": second}))
