"""Uses a Hub repository as a user does; run by `test_download.py` in a process of its own.

python use_from_hub.py (installed | transformers-alone) REPO_ID COMMIT [COPY_ID]: prints JSON, for `"main"` and for
`"pinned"` to the commit, of what the model gives and of where its code came from, and pushes the pinned model and
processor to COPY_ID. With the package installed, nothing is trusted.
"""

import json
import sys
from collections.abc import Sequence


KIND, REPO_ID, COMMIT, *COPY_IDS = sys.argv[1:]
if KIND == "installed":
    import open_clip_transformers  # noqa: F401
else:  # whether or not the package is installed, importing it fails
    sys.modules["open_clip_transformers"] = None

import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402


@torch.inference_mode()
def use(copy_ids: Sequence[str] = (), **kwargs) -> dict:
    if KIND != "installed":
        kwargs["trust_remote_code"] = True
    image = Image.radial_gradient("L").resize((61, 43)).convert("RGB")
    processor = transformers.AutoProcessor.from_pretrained(REPO_ID, **kwargs)
    model = transformers.AutoModel.from_pretrained(REPO_ID, **kwargs).eval()
    pixel_values = processor(images=image, return_tensors="pt")["pixel_values"]
    caption = transformers.pipeline("image-to-text", model=REPO_ID, **kwargs)
    parts = (model, model.config, processor, processor.tokenizer, processor.image_processor, caption, caption.model)
    for copy_id in copy_ids:
        model.push_to_hub(copy_id)
        processor.push_to_hub(copy_id)
    return {
        "ids": model.generate(pixel_values=pixel_values).tolist(),
        "caption": caption(image),
        "marks": {type(part).__name__: getattr(sys.modules[type(part).__module__], "MARK", "old") for part in parts},
        "packages": sorted({type(part).__module__.partition(".")[0] for part in parts}),
    }


if __name__ == "__main__":
    print(json.dumps({"main": use(), "pinned": use(COPY_IDS, revision=COMMIT)}))
