"""The model behind the page: captions, attention, probabilities and heat maps, one request at a time."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel, BatchFeature, PreTrainedModel, ProcessorMixin
from transformers.generation import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from ..cli.attention import patch_box
from ..cli.heat_maps import between_0_and_1, draw_heat
from ..cli.load import KINDS, load_model
from ..configuration.errors import UserError
from ..modeling.attention_maps import group_words, patch_similarity, word_attention
from ..training.embeddings import embed_images, embed_texts, token_counts


PANEL = 768  # pixels of the longer edge of pictures with heat
TEXT_BATCH = 64
DEFAULT_TEMPLATE = "a photo of a {}."


class Decoding(NamedTuple):
    """A way of decoding: settings of `generate` that it reads, those that it fixes, and whether words can stream."""

    settings: tuple[str, ...]
    fixed: dict[str, Any]
    streams: bool


DECODINGS = {
    "Greedy": Decoding((), {"do_sample": False, "num_beams": 1}, True),
    "Beams": Decoding(("num_beams", "num_captions"), {"do_sample": False}, False),
    "Diverse beams": Decoding(
        ("num_beams", "num_beam_groups", "diversity_penalty", "num_captions"), {"do_sample": False}, False
    ),
    "Sampling": Decoding(("top_k", "top_p", "temperature", "num_captions"), {"do_sample": True, "num_beams": 1}, True),
}


@dataclass
class Captions:
    """Captions of an image, as far as they are written.

    Args:
        texts: a text each.
        words: the words of each, once all are written.
        tokens: how many were written.
        seconds: since the start.
        source: what [`DemoModel.words`] needs, once all are written.
    """

    texts: list[str]
    tokens: int
    seconds: float
    words: list[list[str]] = field(default_factory=list)
    source: "Written | None" = None


@dataclass
class Written:
    """An image with the token ids (captions, length) of its captions, and their words once they are asked for."""

    picture: Image.Image
    inputs: BatchFeature
    ids: torch.Tensor
    words: "list[list[Word]] | None" = None


class Word(NamedTuple):
    """A word, and a map (rows, columns) from 0 to 1 of where the model looked as it wrote it."""

    text: str
    heat: np.ndarray


class Found(NamedTuple):
    """An image with the heat of each text over it, and the cosines at both ends of the colours."""

    drawn: list[Image.Image]
    least: float
    most: float


class _Tokens(BaseStreamer):
    """Hand on the tokens (captions,) of each step, and not the prompt, which comes first."""

    def __init__(self, put: Callable[[torch.Tensor], object]):
        self.hand_on, self.started = put, False

    def put(self, value: torch.Tensor):
        if self.started:
            self.hand_on(value.reshape(-1))
        self.started = True

    def end(self):
        pass


class _Left(StoppingCriteria):
    """Stop where nobody reads any more."""

    def __init__(self):
        self.event = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


class DemoModel:
    """A model and its processor, of which requests of several threads wait for each other.

    Args:
        name: a converted folder or a Hub id.
        revision: branch, tag or commit of the Hub repository.
        device: such as `"cpu"`, or `"auto"`.
        dtype: such as `"float32"`, or `"auto"`.

    Raises:
        UserError: there is no such model or device.
    """

    def __init__(self, name: str, revision: str | None, device: str, dtype: str):
        self.name = name
        self.model: PreTrainedModel
        self.processor: ProcessorMixin
        self.model, self.processor = load_model(AutoModel, name, revision, device, dtype)
        self.lock = threading.Lock()
        vision = self.model.vision_model
        self.kind = KINDS[self.model.config.model_type]
        self.captions = self.model.can_generate()
        self.shows_attention = self.captions and hasattr(vision, "patch_grid")
        self.finds = hasattr(vision, "get_patch_features")
        self.sigmoid = "siglip" in self.model.config.model_type

    @property
    def summary(self) -> str:
        """Sentences on what the model is and lacks, for the page."""
        size = sum(parameter.numel() for parameter in self.model.parameters())
        lacks = [] if self.captions else ["It writes no captions, for which a CoCa or a MaMMUT is needed."]
        if not self.finds:
            lacks.append("Its image tower does not tell where in an image a text is found.")
        return " ".join([f"{self.kind}, {size:,} parameters, on {self.model.device}.", *lacks])

    @property
    def longest_caption(self) -> int:
        """Tokens of the longest caption without a prompt."""
        return self.model.config.max_position_embeddings - 1

    @property
    def usual_caption(self) -> int:
        """Tokens of the longest caption that the model's own settings allow."""
        own = self.model.generation_config
        return min(own.max_new_tokens or (own.max_length or self.longest_caption + 1) - 1, self.longest_caption)

    def caption(self, picture: Image.Image, decoding: str, prompt: str = "", **settings) -> Iterator[Captions]:
        """Caption an image, word by word where the decoding writes from left to right.

        Args:
            picture: an image of any mode and size.
            decoding: a name of `DECODINGS`.
            prompt: how each caption starts.
            settings: `num_beams`, `num_beam_groups`, `diversity_penalty`, `top_k`, `top_p`, `temperature`,
                `num_captions`, `min_new_tokens` and `max_new_tokens`, of which those are used that the decoding reads.

        Raises:
            UserError: the settings contradict each other, or the prompt is too long.
        """
        way = DECODINGS[decoding]
        chosen = {**{name: settings[name] for name in way.settings}, **way.fixed}
        count = chosen.pop("num_captions", 1)
        _check_decoding(chosen, count)
        arguments = self._prompt(prompt.strip(), settings["max_new_tokens"], settings["min_new_tokens"])
        arguments |= chosen | {"num_return_sequences": count}
        steps: queue.Queue = queue.Queue()
        left, start = _Left(), time.perf_counter()
        if way.streams:
            arguments["streamer"] = _Tokens(steps.put)

        def write():
            try:
                with self.lock, torch.inference_mode():
                    inputs = self._pixels(picture)
                    ids = self.model.generate(**inputs, **arguments, stopping_criteria=[left])
                    steps.put(Written(_panel(picture), inputs, ids.cpu()))
            except Exception as error:  # to be raised where the captions are read
                steps.put(error)

        # Of a thread, because generate itself hands nothing on before it is done.
        threading.Thread(target=write, daemon=True).start()
        begun = arguments["input_ids"][0].tolist() if "input_ids" in arguments else []
        rows: list[list[int]] = [list(begun) for _ in range(count)]
        try:
            while not isinstance(step := steps.get(), Written):
                if isinstance(step, Exception):
                    raise step
                rows = [[*row, token] for row, token in zip(rows, step.tolist(), strict=True)]
                yield Captions(self._texts(rows), len(rows[0]) - len(begun), time.perf_counter() - start)
        finally:
            left.event.set()
        yield self._written(step, len(begun) or 1, time.perf_counter() - start)

    def _written(self, written: Written, prompt_length: int, seconds: float) -> Captions:
        rows = written.ids.tolist()
        tokenizer, pad = self.processor.tokenizer, self.model.generation_config.pad_token_id
        tokens = sum(token != pad for row in rows for token in row[prompt_length:])
        words = [[word for word, _ in group_words(tokenizer, row)] for row in rows]
        return Captions(self._texts(rows), tokens, seconds, words, written)

    def _texts(self, rows: list[list[int]]) -> list[str]:
        return [self.processor.decode(row, skip_special_tokens=True).strip() for row in rows]

    def _prompt(self, prompt: str, longest: int, shortest: int) -> dict[str, Any]:
        """Arguments of `generate` for a prompt and lengths, of which the longest is what there is room for."""
        room, arguments = self.longest_caption, {}
        if prompt:
            try:
                ids = self.processor(text=prompt, add_eos=False, return_tensors="pt").input_ids
            except ValueError as error:
                raise UserError(f"The caption cannot start like this. {error}") from error
            room = self.longest_caption + 1 - ids.shape[1]
            if room < 1:
                raise UserError(
                    f"The start of the caption is too long: it has {ids.shape[1]} tokens, and the model writes "
                    f"{self.longest_caption + 1} in all. Shorten it."
                )
            arguments["input_ids"] = ids.to(self.model.device)
        longest = min(longest, room)
        if shortest > longest:
            raise UserError(f"A caption of at least {shortest} tokens cannot have at most {longest}.")
        if shortest:
            arguments["min_new_tokens"] = shortest
        return {**arguments, "max_new_tokens": longest}

    def words(self, written: Written) -> list[list["Word"]]:
        """The words of each caption, and where the model looked as it wrote them."""
        if written.words is None:
            with self.lock:
                usual = self.model.config._attn_implementation
                # Eager attention alone gives weights.
                self.model.set_attn_implementation("eager")
                try:
                    pixels, ids = written.inputs["pixel_values"], written.ids.to(self.model.device)
                    captions = word_attention(self.model, self.processor.tokenizer, pixels, ids)
                finally:
                    self.model.set_attn_implementation(usual)
            written.words = [
                [Word(text, between_0_and_1(heat.cpu().numpy(), 0.0)) for text, heat in words] for words in captions
            ]
        return written.words

    def draw(self, picture: Image.Image, heat: np.ndarray) -> Image.Image:
        """Draw a map of patches, from 0 to 1, over a picture."""
        return draw_heat(picture, heat, patch_box(self.model, self.processor, picture.size, [("", heat)]))

    def classify(
        self, picture: Image.Image, labels: list[str], template: str, warn: Callable[[str], object] | None = None
    ) -> dict[str, float]:
        """Label -> probability, as the command `classify` computes them.

        Raises:
            UserError: there are no labels, or the template has no place for them.
        """
        labels = list(dict.fromkeys(filter(None, map(str.strip, labels))))
        if not labels:
            raise UserError("There are no labels to choose from: type some, each followed by Enter.")
        if "{}" not in template:
            raise UserError(f"The template {template!r} has no {{}} for the label, as in {DEFAULT_TEMPLATE!r}")
        texts = self.embed_texts([template.replace("{}", label) for label in labels], warn)
        image = self.embed_image(picture)
        with self.lock, torch.inference_mode():
            (logits,) = self.model.compute_logits(image, texts.to(self.model.device))
        probabilities = logits.sigmoid() if self.sigmoid else logits.softmax(-1)
        return dict(zip(labels, probabilities.tolist()))

    def find(self, picture: Image.Image, texts: list[str], warn: Callable[[str], object] | None = None) -> "Found":
        """Draw where texts are found in an image.

        Raises:
            UserError: there is no text.
        """
        if not texts:
            raise UserError("There is nothing to look for yet: type a text.")
        token_counts(self.processor.tokenizer, texts, warn)
        with self.lock, torch.inference_mode():
            tokens = self.processor.tokenizer(texts, return_tensors="pt").to(self.model.device)
            (maps,) = patch_similarity(self.model, self._pixels(picture)["pixel_values"], **tokens)
        heat, picture = maps.cpu().numpy(), _panel(picture)
        drawn = [self.draw(picture, scaled) for scaled in between_0_and_1(heat, heat.min())]
        return Found(drawn, float(heat.min()), float(heat.max()))

    def embed_texts(self, texts: list[str], warn: Callable[[str], object] | None = None) -> torch.Tensor:
        """(texts, projection_dim) of length 1, on the CPU."""
        with self.lock:
            return embed_texts(self.model, self.processor.tokenizer, texts, TEXT_BATCH, warn)

    def embed_image(self, picture: Image.Image) -> torch.Tensor:
        """(1, projection_dim) of length 1."""
        with self.lock:
            return embed_images(self.model, self._pixels(picture))

    def _pixels(self, picture: Image.Image) -> BatchFeature:
        images = self.processor.image_processor(picture, return_tensors="pt")
        return images.to(self.model.device, self.model.dtype)


def _check_decoding(chosen: dict[str, Any], count: int):
    beams, groups = chosen.get("num_beams", 1), chosen.get("num_beam_groups", 1)
    if beams % groups:
        raise UserError(f"{beams} beams cannot be split into {groups} groups of one size: open_clip takes 6 and 3.")
    if count > beams and not chosen["do_sample"]:
        raise UserError(f"{beams} beams give at most {beams} captions, not {count}: take more beams.")


def _panel(picture: Image.Image) -> Image.Image:
    """Make a picture of RGB and of one size, on which heat is drawn."""
    scale = PANEL / max(picture.size)
    width, height = (max(1, round(edge * scale)) for edge in picture.size)
    return picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
