"""The tabs that compare images with texts: labels, heat maps, and search."""

from textwrap import shorten
from typing import TYPE_CHECKING

from ..configuration.errors import UserError
from .model import DEFAULT_TEMPLATE, DemoModel
from .parts import MAX_LETTERS, given, heat_image, on_model, sentences, warn
from .search import ImageSearch


if TYPE_CHECKING:
    import gradio as gr
else:
    from .parts import gr

MAX_LABELS = 200
SIGMOID = "Each number is the probability, by itself, that the label fits the image: they need not add up to 1."
SOFTMAX = "The numbers compare these labels with each other and add up to 1, whether or not any of them fits."


def zero_shot_tab(model: DemoModel, image: "gr.Image"):
    """Add what labels `image`."""
    labels = gr.Dropdown(
        [],
        value=[],
        multiselect=True,
        allow_custom_value=True,
        max_choices=MAX_LABELS,
        label="Labels",
        info="Type a label and press Enter; then the next.",
        elem_id="labels",
    )
    template = gr.Textbox(DEFAULT_TEMPLATE, label="Template", info="{} stands for the label.", max_length=MAX_LETTERS)
    button = gr.Button("Classify", variant="primary")
    result = gr.Label(label="Probabilities", num_top_classes=MAX_LABELS, show_heading=False, elem_id="probabilities")
    gr.Markdown(SIGMOID if model.sigmoid else SOFTMAX, elem_classes="quiet")

    def classify(image, labels, template):
        """Label an image: a probability for each label."""
        with sentences():
            return model.classify(given(image), labels or [], template, warn)

    on_model(button.click, classify, [image, labels, template], result, "classify")


def find_tab(model: DemoModel, image: "gr.Image"):
    """Add what shows where texts are found in `image`."""
    with gr.Row():
        first = gr.Textbox("", label="Find", placeholder="What to look for", max_length=MAX_LETTERS, min_width=220)
        second = gr.Textbox(
            "", label="Compare with", placeholder="May be empty", max_length=MAX_LETTERS, min_width=220
        )
    button = gr.Button("Find", variant="primary")
    with gr.Row():
        maps = [heat_image(label, min_width=220) for label in ("Heat map", "Heat map of the other text")]
    scale = gr.HTML(visible=False, label="Scale", show_label=False)

    def find(image, text, compare_with):
        """Draw where a text, and perhaps another, is found in an image, in colours of one scale."""
        with sentences():
            texts = [text.strip() for text in (text, compare_with) if text.strip()]
            found = model.find(given(image), texts, warn)
            shown = [
                gr.Image(drawn, label=f"“{shorten(text, 80)}”", visible=True)
                for text, drawn in zip(texts, found.drawn)
            ]
            hidden = [gr.Image(None, visible=False)] * (len(maps) - len(shown))
            return *shown, *hidden, gr.HTML(_scale(found.least, found.most), visible=True)

    on_model(button.click, find, [image, first, second], [*maps, scale], "find")
    for text in (first, second):
        on_model(text.submit, find, [image, first, second], [*maps, scale])


def _scale(least: float, most: float) -> str:
    return f'<div class="heat-scale"><span>cosine {least:.3f}</span><i></i><span>{most:.3f}</span></div>'


def search_tab(model: DemoModel, image: "gr.Image", search: ImageSearch):
    """Add what searches for images by a text or by `image`."""
    text = gr.Textbox("", label="Text", placeholder="What the images show", max_length=MAX_LETTERS)
    count = gr.Slider(1, 48, 8, step=1, label="Images to find")
    with gr.Row():
        by_text = gr.Button("Search by text", variant="primary", min_width=200)
        by_image = gr.Button("Search by the image", min_width=200)
    gallery = gr.Gallery(
        label="Found",
        elem_id="found",
        show_label=False,
        columns=3,
        height="auto",
        visible=False,
        buttons=["fullscreen"],
    )
    table = gr.Dataframe(headers=["image", "cosine"], datatype=["str", "number"], interactive=False, visible=False)

    def show(query, count):
        hits = search.nearest(query, int(count))
        pictures = [(hit.picture, f"{hit.score:.3f} {hit.name}") for hit in hits if hit.picture is not None]
        rows = [[hit.name, round(hit.score, 4)] for hit in hits]
        return gr.Gallery(pictures, visible=bool(pictures)), gr.Dataframe(rows, visible=len(pictures) < len(hits))

    def search_by_text(text, count):
        """Find the images nearest to a text: pictures, and rows of name and cosine."""
        with sentences():
            if not text.strip():
                raise UserError("There is nothing to search for: type a text.")
            return show(model.embed_texts([text.strip()], warn)[0], count)

    def search_by_image(image, count):
        """Find the images nearest to an image: pictures, and rows of name and cosine."""
        with sentences():
            return show(model.embed_image(given(image))[0], count)

    on_model(by_text.click, search_by_text, [text, count], [gallery, table], "search_by_text")
    on_model(text.submit, search_by_text, [text, count], [gallery, table])
    on_model(by_image.click, search_by_image, [image, count], [gallery, table], "search_by_image")
