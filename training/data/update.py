"""Update ImageNet's class names and prompt templates from the installed open_clip; for maintainers.

python -m open_clip_transformers.training.data.update
"""

import json
from importlib import metadata
from pathlib import Path


def collect_zero_shot_metadata() -> dict:
    """open_clip's class names of ImageNet, and its two sets of templates with {} for the name."""
    import open_clip

    templates = {"openai": open_clip.OPENAI_IMAGENET_TEMPLATES, "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES}
    return {
        "source": f"open_clip_torch {metadata.version('open_clip_torch')}, under the licence in LICENSE_open_clip.txt",
        "class_names": list(open_clip.IMAGENET_CLASSNAMES),
        "templates": {name: [template("{}") for template in functions] for name, functions in templates.items()},
    }


def main():
    """Write the file."""
    text = json.dumps(collect_zero_shot_metadata(), indent=1, ensure_ascii=False)
    Path(__file__).with_name("imagenet.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
