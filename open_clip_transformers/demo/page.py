"""The page: an image on one side, and on the other a tab for each thing that the model can do with it."""

import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli.heat_maps import COLOURS
from ..configuration.errors import UserError
from .caption_tab import caption_tab
from .model import DemoModel
from .parts import KEPT_SECONDS, image_input
from .search import ImageSearch
from .text_tabs import find_tab, search_tab, zero_shot_tab
from .tower import DemoTower, compare_tab, is_tower


if TYPE_CHECKING:
    import gradio as gr
else:
    from .parts import gr

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
MAX_EXAMPLES = 8
MAX_WAITING = 64  # requests
SESSIONS = 200  # visits whose captions are kept for clicks on their words

_COLOURS = ", ".join(f"rgb{colour}" for colour in COLOURS)
CSS = f"""
.gradio-container {{max-width: 1120px !important; margin: 0 auto !important}}
.quiet *, .heat-scale {{font-size: .9rem; color: var(--body-text-color-subdued)}}
.heat-scale {{display: flex; align-items: center; gap: .6rem}}
.heat-scale i {{flex: 0 1 12rem; height: .6rem; border-radius: .3rem}}
.heat-scale i {{background: linear-gradient(to right, {_COLOURS})}}
/* Small images are shown as large as there is room, and titles beside what they name, not on it. */
.upload img {{width: 100%; height: 100%; object-fit: contain}}
.titled label[data-testid=block-label] {{position: static; margin: 0; padding: .5rem 5rem .5rem .75rem; border: 0;
  width: auto; max-width: none; background: none; box-shadow: none; white-space: normal; overflow-wrap: anywhere}}
.titled label[data-testid=block-label] > span {{display: none}}
.titled .image-container {{height: auto}}
.titled img {{width: 100%; max-height: 26rem; object-fit: contain}}
.titled .icon-button-wrapper {{top: -2.1rem}}
#probabilities * {{overflow-wrap: anywhere; min-width: 0}}
#found .grid-wrap {{height: auto; max-height: none}}
@media (max-width: 480px) {{
  .tab-container button {{padding: 0 .45rem}}
}}
"""


def settings_of_launch() -> dict[str, Any]:
    """Arguments of gradio's `launch` for a page."""
    fonts = ["system-ui", "sans-serif"]  # of the visitor: the page needs no other machine
    return {
        "theme": gr.themes.Default(primary_hue="indigo", neutral_hue="slate", font=fonts, font_mono=fonts).set(
            body_text_color_subdued="*neutral_500",
        ),
        "css": CSS,
        "share": False,
        "show_error": True,
        "max_file_size": "20mb",
        "allowed_paths": [],
        "state_session_capacity": SESSIONS,
        "footer_links": ["api", "settings"],
    }


def _example_files(folder: str | Path | None) -> list[str]:
    if folder is None:
        return []
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder of examples.")
    files = sorted(str(path) for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"{folder} holds no images to try: expected files such as .png or .jpg.")
    return files[:MAX_EXAMPLES]


def build_page(
    model_id: str,
    device: str,
    dtype: str,
    revision: str | None,
    examples: str | Path | None,
    embeddings: str | None,
    images: str | Path | None,
) -> "gr.Blocks":
    """Build the page, as `build_demo` says."""
    files = _example_files(examples)
    name = Path(model_id).resolve().name if Path(model_id).is_dir() else model_id
    model: DemoModel | DemoTower
    if is_tower(model_id, revision):
        if files or embeddings is not None:
            raise UserError(
                f"{model_id} is one tower alone, whose page has no examples and no search: leave them out."
            )
        model, search = DemoTower(model_id, revision, device, dtype), None
    else:
        search = None if embeddings is None else ImageSearch(embeddings, model_id, revision, images)
        model = DemoModel(model_id, revision, device, dtype)
    with gr.Blocks(title=f"{name} · demo", analytics_enabled=False, delete_cache=(600, KEPT_SECONDS)) as page:
        gr.Markdown(f"# {html.escape(name)}\n{model.summary}")
        if isinstance(model, DemoTower):
            compare_tab(model)
        else:
            _tabs(model, search, files)
    return page.queue(max_size=MAX_WAITING, api_open=False)


def _tabs(model: DemoModel, search: ImageSearch | None, examples: list[str]):
    """Add the image, and a tab for each thing that the model can do with it."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            image = image_input("Image")
            if examples:
                gr.Examples(
                    examples,
                    image,
                    label="Examples",
                    examples_per_page=MAX_EXAMPLES,
                    cache_examples=False,
                    api_visibility="private",
                )
        with gr.Column(scale=3, min_width=300), gr.Tabs():
            if model.captions:
                with gr.Tab("Caption"):
                    caption_tab(model, image)
            with gr.Tab("Zero-shot"):
                zero_shot_tab(model, image)
            if model.finds:
                with gr.Tab("Find"):
                    find_tab(model, image)
            if search is not None:
                with gr.Tab("Search"):
                    search_tab(model, image, search)
