"""The tab that captions: ways of decoding, words that appear as they are written, and where the model looked."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..configuration.errors import UserError
from .model import DECODINGS, Captions, DemoModel
from .parts import KEPT_SECONDS, MAX_LETTERS, given, heat_image, on_model, sentences


if TYPE_CHECKING:
    import gradio as gr
else:
    from .parts import gr

# Setting of a way of decoding -> least, most and first value, step, and label.
SLIDERS = {
    "num_beams": (1, 16, 6, 1, "Beams"),
    "num_beam_groups": (2, 8, 3, 1, "Groups of beams"),
    "diversity_penalty": (0, 5, 0.5, 0.1, "Diversity between groups"),
    "top_k": (0, 200, 50, 1, "Top-k: that many most probable words, 0 for all"),
    "top_p": (0.05, 1, 0.95, 0.05, "Top-p: words that make up this probability"),
    "temperature": (0.1, 2, 1, 0.1, "Temperature"),
    "num_captions": (1, 8, 1, 1, "Captions"),
}

# A button for each word: keys reach them, and Handlebars escapes what is in them.
TEMPLATE = """
{{#each value.captions}}<p>{{#each this}}{{#if ../../value.clickable}}<button type="button"
data-caption="{{@../index}}" data-word="{{@index}}" aria-pressed="false">{{this}}</button>{{else}}<span>{{this}}</span>
{{/if}} {{/each}}</p>{{else}}<p class="empty">Captions appear here.</p>{{/each}}
"""
CSS = """
p {font-size: 1.25rem; line-height: 1.8; margin: 0; padding: .4rem 0; overflow-wrap: anywhere}
p + p {border-top: 1px solid var(--border-color-primary)}
span {padding: 0 .1em}
button {font: inherit; color: inherit; background: none; cursor: pointer; padding: 0 .1em; max-width: 100%;
  border: 0; border-bottom: 2px dotted var(--color-accent); border-radius: .2em .2em 0 0}
button:hover {background: var(--color-accent-soft)}
button:focus-visible {outline: 2px solid var(--color-accent); outline-offset: 2px}
button[aria-pressed=true] {background: var(--button-primary-background-fill); color: var(--button-primary-text-color)}
.empty {font-size: 1rem; color: var(--body-text-color-subdued)}
"""
SCRIPT = """
element.addEventListener('click', event => {
  const word = event.target.closest('button[data-word]');
  if (!word) return;
  element.querySelectorAll('[aria-pressed=true]').forEach(other => other.setAttribute('aria-pressed', 'false'));
  word.setAttribute('aria-pressed', 'true');
  trigger('word', {caption: Number(word.dataset.caption), word: Number(word.dataset.word)});
});
"""


def caption_tab(model: DemoModel, image: "gr.Image"):
    """Add what captions `image`."""
    decoding, prompt, controls = _controls(model)
    button = gr.Button("Caption", variant="primary")
    words = gr.HTML(
        {"captions": []},
        html_template=TEMPLATE,
        css_template=CSS,
        js_on_load=SCRIPT,
        apply_default_css=False,
        elem_id="captions",
    )
    speed = gr.Markdown(elem_classes="quiet")
    heat = heat_image("Where the model looked", elem_id="attention")
    written = gr.State(None, time_to_live=KEPT_SECONDS)

    def captions(picture, decoding, prompt, *settings) -> Iterator[Captions]:
        with sentences():
            yield from model.caption(given(picture), decoding, prompt, **dict(zip(controls, settings)))

    def show(*request):
        for step in captions(*request):
            clickable = step.source is not None and model.shows_attention
            yield {
                words: {
                    "captions": step.words or [text.split() for text in step.texts],
                    "clickable": clickable,
                },
                speed: _speed(step, clickable),
                heat: gr.Image(visible=False),
                written: step.source,
            }

    def texts(*request):
        """Caption an image: a list of texts, in which words appear as they are written where that can be."""
        for step in captions(*request):
            yield step.texts

    def look(source, event: gr.EventData):
        with sentences():
            if source is None:
                raise UserError("This caption is not kept any more: caption the image again.")
            word = model.words(source)[event.caption][event.word]
            drawn = model.draw(source.picture, word.heat)
            return gr.Image(drawn, label=f"Where the model looked as it wrote “{word.text}”", visible=True)

    inputs = [image, decoding, prompt, *controls.values()]
    on_model(button.click, show, inputs, [words, speed, heat, written])
    on_model(words.word, look, [written], heat)
    endpoint = gr.Button(visible=False)
    names = ("image", "decoding", "prompt", *controls)
    on_model(endpoint.click, texts, inputs, gr.JSON(visible=False, label="captions"), "caption", names)


def _controls(model: DemoModel) -> tuple[Any, Any, dict[str, Any]]:
    """Add the controls: the way of decoding, the prompt, and settings by name."""
    first = next(iter(DECODINGS))
    decoding = gr.Radio(list(DECODINGS), value=first, label="Decoding")
    with gr.Row():
        controls: dict[str, Any] = {
            name: gr.Slider(
                least, most, value, step=step, label=label, min_width=220, visible=name in DECODINGS[first].settings
            )
            for name, (least, most, value, step, label) in SLIDERS.items()
        }
    sliders = list(controls.values())
    decoding.change(
        lambda chosen: [gr.update(visible=name in DECODINGS[chosen].settings) for name in SLIDERS],
        decoding,
        sliders,
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    longest = model.longest_caption
    with gr.Accordion("Start and length", open=False):
        prompt = gr.Textbox("", label="The caption starts with", max_length=MAX_LETTERS)
        with gr.Row():
            controls["min_new_tokens"] = gr.Slider(0, longest, 0, step=1, label="At least, in tokens", min_width=220)
            controls["max_new_tokens"] = gr.Slider(
                1, longest, model.usual_caption, step=1, label="At most, in tokens", min_width=220
            )
    return decoding, prompt, controls


def _speed(step: Captions, clickable: bool) -> str:
    hint = "Click on a word to see where the model looked.  \n" if clickable else ""
    rate = step.tokens / step.seconds
    return f"{hint}{step.tokens} tokens in {step.seconds:.2f} s: {rate:,.0f} a second"
