"""The page: what people see and click, and the endpoints of the same names for gradio's client."""

import html
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

from ..cli.heat_maps import COLOURS
from ..configuration.errors import UserError
from ..datasets.extras import import_extra
from ..datasets.images import read_image
from .model import DECODINGS, DEFAULT_TEMPLATE, DemoModel
from .search import ImageSearch


if TYPE_CHECKING:
    import gradio as gr
else:
    gr = import_extra("gradio", "demo")

logger = logging.getLogger(__name__)

MAX_FILE_SIZE = "20mb"
MAX_PIXELS = 64_000_000
KEPT_SECONDS = 3600  # uploads, and what was made of them
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
MAX_EXAMPLES = 12

FONT = ["system-ui", "sans-serif"]  # of the visitor's machine: a page should not need a network
SCALE = ", ".join(f"rgb{colour}" for colour in COLOURS)
CSS = f"""
.gradio-container {{max-width: 1120px !important; margin: 0 auto !important}}
.heat-scale {{display: flex; align-items: center; gap: .6rem; font-size: .85rem; color: var(--body-text-color-subdued)}}
.heat-scale i {{flex: 0 1 10rem; height: .6rem; border-radius: .3rem; background: linear-gradient(to right, {SCALE})}}
footer {{opacity: .8}}
"""
LAUNCH: dict[str, Any] = {
    "server_name": "127.0.0.1",
    "share": False,
    "show_error": True,
    "max_file_size": MAX_FILE_SIZE,
    "allowed_paths": [],
    "footer_links": ["api", "settings"],
    "css": CSS,
}

WORDS_TEMPLATE = """
{{#each value.captions}}<p class="caption">{{#each this}}{{#if ../../value.clickable}}<button type="button"
data-caption="{{@../index}}" data-word="{{@index}}" aria-pressed="false">{{this}}</button>{{else}}<span>{{this}}</span>
{{/if}} {{/each}}</p>{{else}}<p class="empty">Captions appear here.</p>{{/each}}
"""
WORDS_CSS = """
.caption {font-size: 1.25rem; line-height: 1.9; margin: 0; padding: .35rem 0; overflow-wrap: anywhere}
.caption + .caption {border-top: 1px solid var(--border-color-primary)}
.caption span {margin-right: .3em}
.caption button {font: inherit; color: var(--body-text-color); background: none; cursor: pointer; padding: 0 .22em;
  border: 0; border-bottom: 2px dotted var(--border-color-accent); border-radius: .2em; max-width: 100%}
.caption button:hover {background: var(--color-accent-soft)}
.caption button:focus-visible {outline: 2px solid var(--color-accent); outline-offset: 1px}
.caption button[aria-pressed=true] {background: var(--color-accent); color: white; border-color: transparent}
.empty {color: var(--body-text-color-subdued); padding: .5rem 0; margin: 0}
"""
WORDS_JS = """
element.addEventListener('click', event => {
  const word = event.target.closest('button[data-word]');
  if (!word) return;
  element.querySelectorAll('[aria-pressed=true]').forEach(other => other.setAttribute('aria-pressed', 'false'));
  word.setAttribute('aria-pressed', 'true');
  trigger('word', {caption: Number(word.dataset.caption), word: Number(word.dataset.word)});
});
"""


@contextmanager
def _sentences() -> Iterator[None]:
    """Turn errors into sentences on the page; what is not meant for users goes to the log."""
    try:
        yield
    except (UserError, OSError) as error:
        raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from error
    except Exception as error:
        logger.exception("A request failed")
        raise gr.Error(
            f"Something went wrong ({type(error).__name__}). The log of the server says more.", print_exception=False
        ) from error


def _warn(message: str):
    gr.Warning(html.escape(message, quote=False))


def _read_upload(payload) -> Image.Image | None:
    """Open an uploaded image as it is shown, turned as its EXIF data says.

    gradio has checked that the path is one of an upload.
    """
    if payload is None:
        return None
    with _sentences():
        try:
            with Image.open(payload.path) as header:
                width, height = header.size
        except Exception as error:  # Pillow raises nearly everything
            raise OSError("This file cannot be read as an image. PNG, JPEG and WebP work.") from error
        if width * height > MAX_PIXELS:
            raise UserError(
                f"The image has {width} x {height} pixels, of which {MAX_PIXELS // 10**6} million are read."
            )
        try:
            return ImageOps.exif_transpose(read_image(payload.path))
        except OSError as error:
            raise OSError("This image is damaged: it ends too early, or its data is no picture.") from error


def _image_input(**settings) -> "gr.Image":
    image = gr.Image(type="filepath", image_mode=None, buttons=["fullscreen"], **settings)
    # gradio's own reader has no limit of pixels, and shows paths where it fails.
    image.preprocess = _read_upload
    return image


def _given(picture: Image.Image | None) -> Image.Image:
    if picture is None:
        raise UserError("There is no image: upload, paste or take one, or pick an example.")
    return picture


def _scale(least: str, most: str) -> str:
    return f'<div class="heat-scale"><span>{least}</span><i></i><span>{most}</span></div>'


class _Page:
    """The page of a model.

    Args:
        model: what answers.
        search: what searches, if anything does.
        examples: paths of images to try.
    """

    def __init__(self, model: DemoModel, search: ImageSearch | None, examples: list[str]):
        self.model, self.search = model, search
        name = model.name.rstrip("/").rpartition("/")[2]
        with gr.Blocks(
            title=f"{name} · demo", analytics_enabled=False, delete_cache=(600, KEPT_SECONDS)
        ) as self.blocks:
            gr.Markdown(f"# {html.escape(name)}\n{self._summary()}")
            with gr.Row():
                with gr.Column(scale=2, min_width=300):
                    self.image = _image_input(label="Image", height=340, sources=["upload", "clipboard", "webcam"])
                    if examples:
                        gr.Examples(
                            examples, self.image, label="Examples", cache_examples=False, api_visibility="private"
                        )
                with gr.Column(scale=3, min_width=320), gr.Tabs():
                    for title, wanted, tab in self._tabs():
                        if wanted:
                            with gr.Tab(title):
                                tab()
        self.blocks.queue(max_size=64, api_open=False)

    def _tabs(self) -> list[tuple[str, bool, Callable[[], None]]]:
        return [
            ("Caption", self.model.captions, self._caption_tab),
            ("Zero-shot", True, self._zero_shot_tab),
            ("Find", self.model.finds, self._find_tab),
            ("Search", self.search is not None, self._search_tab),
        ]

    def _summary(self) -> str:
        model = self.model.model
        size = f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:,.1f} million parameters"
        lacks = "" if self.model.captions else " It compares images with texts and writes no captions."
        return f"A {self.model.kind} of {size}, on {model.device}.{lacks}"

    def _listen(self, listener, function, inputs, outputs, name: str, **settings):
        """Have an event of the page, which is an endpoint of that name too, wait for the model."""
        # One group of events, of which one runs: visitors see their place in the queue.
        listener(
            function,
            inputs,
            outputs,
            api_name=name,
            concurrency_id="model",
            concurrency_limit=1,
            show_progress="minimal",
            **settings,
        )

    def _caption_tab(self):
        model, first = self.model, next(iter(DECODINGS))
        decoding = gr.Radio(list(DECODINGS), value=first, label="Decoding")
        controls = {}
        with gr.Row():
            controls["num_beams"] = gr.Slider(1, 16, 6, step=1, label="Beams")
            controls["num_beam_groups"] = gr.Slider(1, 8, 3, step=1, label="Groups of beams")
            controls["diversity_penalty"] = gr.Slider(0, 5, 0.5, step=0.1, label="Diversity between groups")
            controls["top_k"] = gr.Slider(0, 200, 50, step=1, label="Top-k (0: all words)")
            controls["top_p"] = gr.Slider(0.05, 1, 0.95, step=0.05, label="Top-p")
            controls["temperature"] = gr.Slider(0.1, 2, 1, step=0.1, label="Temperature")
            controls["num_captions"] = gr.Slider(1, 8, 1, step=1, label="Captions")
        for name, control in controls.items():
            control.visible = name in DECODINGS[first].settings
        with gr.Accordion("Start and length", open=False):
            prompt = gr.Textbox("", label="The caption starts with", max_length=1000)
            with gr.Row():
                controls["min_new_tokens"] = gr.Slider(0, model.longest_caption, 0, step=1, label="Least tokens")
                controls["max_new_tokens"] = gr.Slider(
                    1, model.longest_caption, model.usual_caption, step=1, label="Most tokens"
                )
        button = gr.Button("Caption", variant="primary")
        words = gr.HTML(
            {"captions": []},
            html_template=WORDS_TEMPLATE,
            css_template=WORDS_CSS,
            js_on_load=WORDS_JS,
            elem_id="captions",
        )
        speed = gr.Markdown()
        heat = gr.Image(label="Where the model looked", visible=False, interactive=False, buttons=["fullscreen"])
        written = gr.State(None, time_to_live=KEPT_SECONDS)
        names = list(controls)

        def caption(picture, decoding, prompt, *values):
            with _sentences():
                settings = dict(zip(names, values))
                for step in model.caption(_given(picture), decoding, prompt, **settings):
                    shown = step.words or [text.split() for text in step.texts]
                    rate = f"{step.tokens} tokens in {step.seconds:.2f} s, {step.tokens / step.seconds:,.0f} tokens a second"
                    clickable = step.source is not None and model.shows_attention
                    hint = " · Click on a word to see where the model looked." if clickable else ""
                    yield {
                        words: {"captions": shown, "clickable": clickable},
                        speed: f"{rate}{hint}",
                        heat: gr.Image(visible=False),
                        written: step.source,
                    }

        def caption_texts(picture, decoding, prompt, *values):
            """Caption an image; where words are streamed, every answer but the last is what is written so far."""
            with _sentences():
                for step in model.caption(_given(picture), decoding, prompt, **dict(zip(names, values))):
                    yield step.texts

        inputs = [self.image, decoding, prompt, *controls.values()]
        self._listen(
            button.click, caption, inputs, [words, speed, heat, written], "caption_page", api_visibility="private"
        )
        self._listen(gr.Button(visible=False).click, caption_texts, inputs, gr.JSON(visible=False), "caption")

        def look(source, event: gr.EventData):
            with _sentences():
                if source is None:
                    raise UserError("This caption is not kept any more: caption the image again.")
                heat_map = model.word_maps(source)[event.caption][event.word]
                return gr.Image(model.draw(source.picture, heat_map), visible=True)

        self._listen(words.word, look, written, heat, "look", api_visibility="private")
        settings = list(controls.values())[:-2]
        decoding.change(
            lambda chosen: [gr.update(visible=name in DECODINGS[chosen].settings) for name in names[:-2]],
            decoding,
            settings,
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )

    def _zero_shot_tab(self):
        model = self.model
        labels = gr.Dropdown(
            [],
            value=[],
            multiselect=True,
            allow_custom_value=True,
            label="Labels",
            info="Type a label and press Enter, for each.",
        )
        template = gr.Textbox(DEFAULT_TEMPLATE, label="Template", info="{} is the label.", max_length=1000)
        button = gr.Button("Classify", variant="primary")
        result = gr.Label(label="Probabilities", num_top_classes=50)
        gr.Markdown(
            "Each number is how probable it is, by itself, that the label fits the image; they do not add up to 1."
            if model.sigmoid
            else "The numbers add up to 1 over the labels: they compare these labels, whether or not one fits."
        )

        def classify(picture, labels, template):
            """Label an image; probabilities by label."""
            with _sentences():
                return model.classify(_given(picture), labels, template, _warn)

        self._listen(button.click, classify, [self.image, labels, template], result, "classify")

    def _find_tab(self):
        model = self.model
        first = gr.Textbox(label="Find", placeholder="What to look for in the image", max_length=1000)
        second = gr.Textbox(label="Compare with", placeholder="Another text, if you like", max_length=1000)
        button = gr.Button("Find", variant="primary")
        with gr.Row():
            maps = [
                gr.Image(label=label, interactive=False, visible=visible, min_width=200, buttons=["fullscreen"])
                for label, visible in (("Heat map", True), ("Compared", False))
            ]
        gr.HTML(_scale("least similar place", "most similar place"))

        def find(picture, text, other):
            """Draw where texts are found in an image."""
            with _sentences():
                texts = [text.strip(), other.strip()]
                drawn = model.find(_given(picture), texts, _warn)
                labels = [
                    f"{text} · {best:.3f} at its best place" for text, (_, best) in zip(filter(None, texts), drawn)
                ]
                updates = [gr.Image(image, label=label, visible=True) for (image, _), label in zip(drawn, labels)]
                return [*updates, gr.Image(None, visible=False)][:2]

        self._listen(button.click, find, [self.image, first, second], maps, "find")

    def _search_tab(self):
        search = self.search
        text = gr.Textbox(label="Text", placeholder="What the images show", max_length=1000)
        count = gr.Slider(1, 50, 12, step=1, label="Images")
        with gr.Row():
            by_text = gr.Button("Search by text", variant="primary")
            by_image = gr.Button("Search by the image")
        gallery = gr.Gallery(
            label="Found", columns=4, height="auto", visible=search.folder is not None, buttons=["fullscreen"]
        )
        table = gr.Dataframe(headers=["image", "cosine"], label="Cosines", interactive=False)

        def search_by_text(text, count):
            """Find the images that are nearest to a text."""
            with _sentences():
                if not text.strip():
                    raise UserError("There is nothing to search for: type a text.")
                return found(self.model.embed_texts([text.strip()], _warn)[0], count)

        def search_by_image(picture, count):
            """Find the images that are nearest to an image."""
            with _sentences():
                return found(self.model.embed_image(_given(picture))[0], count)

        def found(query, count):
            hits = search.nearest(query, int(count))
            shown = [(image, f"{name} · {score:.3f}") for name, score, image in hits if image is not None]
            return shown, [[name, round(score, 4)] for name, score, _ in hits]

        self._listen(by_text.click, search_by_text, [text, count], [gallery, table], "search_by_text")
        self._listen(by_image.click, search_by_image, [self.image, count], [gallery, table], "search_by_image")


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
    search = None if embeddings is None else ImageSearch(embeddings, model_id, revision, images)
    return _Page(DemoModel(model_id, revision, device, dtype), search, files).blocks
