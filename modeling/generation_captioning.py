"""Captioning with `generate`: what our captioners add to transformers' `GenerationMixin`."""

import inspect
from collections.abc import Mapping
from copy import copy
from numbers import Integral, Real
from reprlib import repr as brief
from typing import Any, cast

import torch
from torch.nn import functional as F
from transformers import Cache, EncoderDecoderCache, GenerationConfig
from transformers.generation import GenerationMixin
from transformers.generation.utils import GenerateOutput
from transformers.utils import logging

from ..configuration.configuration_common import FIELD_RANGES, FINITE, Range
from .generation_group_beam_search import group_beam_search
from .modeling_pretrained import FURTHER_KWARGS, check_one_given, ids_of_embeddings
from .transformers_compat import CACHE_NAME


logger = logging.get_logger(__name__)

# open_clip's `seq_len`. As `max_length`, and not `max_new_tokens`, it also holds in transformers' pipelines.
DEFAULT_MAX_LENGTH = 30

# Settings that are whole numbers -> their range. More rows of an image are a slip, or damage, and fill any memory;
# longer captions than the model has positions are refused by its own number of them.
COUNTS = {
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences"), Range(1, 2**12)),
    **dict.fromkeys(("max_new_tokens", "max_length"), Range(1, 2**63)),
}
# Settings that are numbers -> their range. A caption's length is raised to the power of `length_penalty`.
NUMBERS = {
    "length_penalty": Range(-100, 100),
    **dict.fromkeys(("diversity_penalty", "repetition_penalty", "top_p"), FINITE),
}
# Settings that are the id of a token, or several; no token has -1.
IDS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), Range(-1, FIELD_RANGES["vocab_size"].high))


class CaptioningGenerationMixin(GenerationMixin):
    """`generate` of the captioners: encodes each image once, whatever the number of beams, and checks lengths.

    Of the model it calls `get_image_features`, `cache_argument`, `wrap_cache`, `text_attention_mask` and
    `whole_text_mask`.
    """

    def default_generation_config(self) -> GenerationConfig:
        """Greedy decoding of captions as long as open_clip's; the ids come from the model's configuration."""
        return GenerationConfig(
            bos_token_id=self.config.bos_token_id,
            eos_token_id=self.config.eos_token_id,
            pad_token_id=self.config.pad_token_id,
            max_length=min(DEFAULT_MAX_LENGTH, self.config.max_position_embeddings),
        )

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        pixel_values: torch.Tensor | None = None,
        image_hidden_states: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        open_clip_scores: bool | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> GenerateOutput | torch.Tensor:
        """Caption images.

        Takes every argument of [`~transformers.GenerationMixin.generate`], group beam search (`num_beam_groups`,
        `diversity_penalty`) included, and these.

        Args:
            generation_config: settings as one object, by default the model's own. The longest caption that it allows
                is cut to the model's positions, with a warning: programs set such limits for models of all kinds.
            inputs: token ids (images, length) to continue, the same as `input_ids`; by default `bos_token_id` alone.
                Prompts of different lengths are padded on the left, or with an `attention_mask` on either side. With
                one, the end-of-text token of whole captions is dropped. `inputs_embeds` (images, length, width of the
                text tower), as for `forward`, can stand instead of ids; and `pixel_values` here, known by their
                floating dtype.
            pixel_values: (images, channels, height, width), normalised as the image processor does.
            image_hidden_states: (images, tokens, hidden_size) instead of `pixel_values`, to caption images that were
                encoded before.
            interpolate_pos_encoding: accept other image sizes than the model's.
            open_clip_scores: rank beams as open_clip does, by sums of logits instead of log probabilities. By default
                where there are groups but no `diversity_penalty`, which is open_clip's default search and has no
                other use.
            cache: of the tokens that `inputs` begins with, from an earlier call.
            past_key_values: the name of `cache` before transformers 5.24.
            labels: of a batch to learn from, as Seq2SeqTrainer passes them: `input_ids` are then continued from what
                stands before the first label, the start of text at least, and `return_loss` has no effect.

        Returns:
            Token ids (images * num_return_sequences, length), prompts included and padded on the left; behind
            `inputs_embeds` the new ones alone. With
            `return_dict_in_generate=True` transformers' output object, with one more field where `pixel_values` were
            given: `image_embeds` (images, projection_dim), of length 1, from the same pass.

        Raises:
            ValueError: neither or both of `pixel_values` and `image_hidden_states`, images and prompts of different
                number, more beams than tokens or than 4096, a cache that the model cannot use, or an argument with
                which a caption may outgrow `max_position_embeddings`.
            TypeError: `inputs` is no tensor.
        """
        if not isinstance(inputs, torch.Tensor | None):
            raise TypeError(
                f"generate expects a tensor of token ids or of images first, got {type(inputs).__name__}: prepare "
                "images and texts with the processor."
            )
        if inputs is not None and inputs.is_floating_point():
            check_one_given(inputs=inputs, pixel_values=pixel_values)
            inputs, pixel_values = None, inputs
        if (pixel_values is None) == (image_hidden_states is None):
            raise ValueError("generate needs either pixel_values or image_hidden_states, and not both.")
        names = (*COUNTS, *NUMBERS, *IDS)
        check_numbers("generate", {name: self._setting(name, generation_config, kwargs, None) for name in names})
        image_embeds = None
        if pixel_values is not None:
            vision_outputs = self.get_image_features(pixel_values, interpolate_pos_encoding, return_dict=True)
            image_hidden_states = vision_outputs.last_hidden_state
            image_embeds = F.normalize(vision_outputs.pooler_output, dim=-1)
        if inputs is not None:
            kwargs["input_ids"] = inputs
        cache = self.cache_argument(cache, past_key_values)
        kwargs = self._prepare_prompts(image_hidden_states, generation_config, labels, cache, **kwargs)
        if hasattr(kwargs.get("tokenizer"), "tokenizer"):  # `transformers serve` passes the processor
            kwargs["tokenizer"] = kwargs["tokenizer"].tokenizer
        if cache is not None:
            kwargs[CACHE_NAME] = cache
        if generation_config is not None and not kwargs.keys() & {"max_length", "max_new_tokens"}:
            prompts = kwargs.get("input_ids", kwargs.get("inputs_embeds"))
            generation_config = self._with_length_that_fits(generation_config, prompts.shape[1])
        kwargs.update(self._beam_search_arguments(generation_config, open_clip_scores, kwargs))
        kwargs["generation_config"] = generation_config
        outputs = super().generate(image_hidden_states=image_hidden_states, **kwargs)
        if isinstance(outputs, torch.Tensor):
            return outputs
        if image_embeds is not None:
            outputs["image_embeds"] = image_embeds
        if cache is not None:
            outputs[CACHE_NAME] = cache
        return outputs

    def _prepare_prompts(
        self,
        image_hidden_states: torch.Tensor,
        generation_config: GenerationConfig | None,
        labels: torch.Tensor | None,
        cache: Cache | None,
        input_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> dict:
        """Return the arguments of `generate` with a prompt for each image, padded on the left."""
        if labels is not None:
            kwargs.pop("return_loss", None)
            if input_ids is not None:
                input_ids, attention_mask = _before_labels(input_ids, attention_mask, labels)
        images = image_hidden_states.shape[0]
        if inputs_embeds is not None:
            check_one_given(input_ids=input_ids, inputs_embeds=inputs_embeds)
        elif input_ids is None:
            input_ids = self._start_of_text(image_hidden_states, generation_config, kwargs)
        name = "input_ids" if inputs_embeds is None else "inputs_embeds"
        prompts = cast(torch.Tensor, input_ids if inputs_embeds is None else inputs_embeds)
        if len(prompts) != images:
            raise ValueError(f"generate got {images} images and {len(prompts)} prompts: pass one for each image.")
        if attention_mask is None and inputs_embeds is None:
            kwargs["attention_mask"] = self._behind_left_padding(prompts, generation_config, kwargs)
        elif attention_mask is not None:
            if cache is None and attention_mask.shape != prompts.shape[:2]:
                raise ValueError(
                    f"attention_mask has shape {tuple(attention_mask.shape)}, and generate expects "
                    f"{tuple(prompts.shape[:2])}: an entry for each token of the prompts."
                )
            if attention_mask.shape == prompts.shape[:2]:
                prompts, attention_mask = _padded_left(prompts, attention_mask)
                eos_token_id = self._setting("eos_token_id", generation_config, kwargs, None)
                if cache is None and inputs_embeds is None and eos_token_id is not None:
                    pad_token_id = self._setting("pad_token_id", generation_config, kwargs, self.config.pad_token_id)
                    prompts, attention_mask = _without_end(prompts, attention_mask, eos_token_id, pad_token_id)
            kwargs["attention_mask"] = attention_mask
        implementation = self._setting("cache_implementation", generation_config, kwargs, None)
        if self._keeps_nothing(inputs_embeds, implementation):
            kwargs["use_cache"] = False
        return {name: prompts, **kwargs}

    def _start_of_text(
        self, image_hidden_states: torch.Tensor, generation_config: GenerationConfig | None, kwargs: dict
    ) -> torch.Tensor:
        """The token (images, 1) that captions begin with."""
        bos_token_id = self._setting("bos_token_id", generation_config, kwargs, self.config.bos_token_id)
        if bos_token_id is None:
            raise ValueError(
                "The configuration of this model has no bos_token_id, from which captions start: pass one, or "
                "input_ids to continue."
            )
        # On the images' device: transformers takes that of the first weight, "meta" where that is offloaded.
        return torch.full((len(image_hidden_states), 1), bos_token_id, device=image_hidden_states.device)

    def _behind_left_padding(
        self, input_ids: torch.Tensor, generation_config: GenerationConfig | None, kwargs: dict
    ) -> torch.Tensor:
        """The attention mask (rows, length) of prompts without one: padding before their first token is hidden.

        transformers would hide each id of padding, also that of CLIP's vocabulary which stands for a "!" in a word.
        """
        pad_token_id = self._setting("pad_token_id", generation_config, kwargs, self.config.pad_token_id)
        eos_token_id = self._setting("eos_token_id", generation_config, kwargs, None)
        ends = eos_token_id if isinstance(eos_token_id, list) else [eos_token_id]
        if pad_token_id is None or pad_token_id in ends:
            return torch.ones_like(input_ids)
        is_text = input_ids != pad_token_id
        return (is_text.cumsum(dim=1) > 0).long() | ~is_text.any(dim=1, keepdim=True)

    def _keeps_nothing(self, inputs_embeds: torch.Tensor | None, cache_implementation: str | None) -> bool:
        """Whether each step computes all tokens anew; `ValueError` where what was asked for needs a cache."""
        if self.config.can_cache:
            return self._has_soft_prompts()
        if inputs_embeds is not None:
            raise ValueError(
                f"The text tower of this model {self.config.cache_obstacle}, and cannot have a cache, from which "
                "alone transformers continues embeddings: pass input_ids."
            )
        if cache_implementation is not None:
            raise ValueError(
                f"Got cache_implementation={cache_implementation!r}, but the text tower of this model "
                f"{self.config.cache_obstacle}, and cannot have a cache: leave it out."
            )
        return True

    def _has_soft_prompts(self) -> bool:
        """Whether PEFT sets a prompt or a prefix that it learnt before the tokens of a step.

        It does so before those of every step where the cache is not called `past_key_values`, from transformers 5.24
        on, and does not know the masks of our captioners: right is what each step computes anew.
        """
        wrapper = getattr(vars(self).get("prepare_inputs_for_generation"), "__self__", None)
        return getattr(getattr(wrapper, "active_peft_config", None), "is_prompt_learning", False)

    def _setting(self, name: str, generation_config: GenerationConfig | None, kwargs: dict, default):
        """Read a setting of `generate`: from the call, its configuration or the model's own, or `default`."""
        sources = [kwargs, *(vars(config) for config in (generation_config, self.generation_config) if config)]
        return next((source[name] for source in sources if source.get(name) is not None), default)

    def _with_length_that_fits(self, generation_config: GenerationConfig, prompt_length: int) -> GenerationConfig:
        """Cut the lengths that a configuration allows to the model's positions, in a copy."""
        limit = self.config.max_position_embeddings
        limits = {"max_length": limit, "max_new_tokens": limit - prompt_length}
        too_long = {name: most for name, most in limits.items() if 0 < most < (getattr(generation_config, name) or 0)}
        if too_long:
            generation_config = copy(generation_config)
            generation_config.update(**too_long)
            logger.warning_once(
                f"The model has {limit} positions: the generation_config's length is cut to {too_long}."
            )
        return generation_config

    def _beam_search_arguments(self, generation_config: GenerationConfig | None, open_clip_scores, kwargs) -> dict:
        """Return the arguments that hand the search over to [`group_beam_search`], where it is asked for."""

        def setting(name: str, default):
            return self._setting(name, generation_config, kwargs, default)

        beams, groups = setting("num_beams", 1), setting("num_beam_groups", 1)
        vocab_size = self.config.vocab_size
        if beams > vocab_size:
            raise ValueError(
                f"num_beams is {beams:,}, more than the {vocab_size:,} tokens that beams can begin with: pass fewer."
            )
        if groups == 1 and kwargs.get("diversity_penalty"):
            raise ValueError("diversity_penalty tells groups of beams apart: pass num_beam_groups, or leave it out.")
        equal_groups = groups > 1 and not setting("diversity_penalty", 0)
        if open_clip_scores is None:
            open_clip_scores = setting("open_clip_scores", equal_groups)
        # Groups of the model's own generation_config do not keep a call from being greedy.
        if kwargs.get("num_beam_groups", 1) == 1 and (beams == 1 or (groups == 1 and not open_clip_scores)):
            return {}
        if kwargs.get("streamer") is not None:
            raise ValueError("generate cannot stream group beam search: beams change tokens already shown.")
        arguments = {"custom_generate": group_beam_search, "open_clip_scores": open_clip_scores}
        # One of several equal searches finds the best caption.
        asks_for_one = setting("num_return_sequences", 1) == 1 and not setting("return_dict_in_generate", False)
        if generation_config is None and equal_groups and asks_for_one and beams % groups == 0 and beams > groups:
            arguments.update(num_beams=beams // groups, num_beam_groups=1)
        return arguments

    def _prefill(self, *args, **kwargs):
        # Of a model that was compiled, only the steps are, which are all alike. The first pass is not: it has the
        # prompts' lengths, and makes the tensors of the cache, which must not belong to a CUDA graph.
        if self._compiled_call_impl is None:
            return super()._prefill(*args, **kwargs)
        model = copy(self)  # a copy is not compiled
        outputs = super(CaptioningGenerationMixin, model)._prefill(*args, **kwargs)
        if self.device.type == "cpu" and outputs.get(CACHE_NAME) is not None:
            _release_static_addresses(outputs[CACHE_NAME])
        return outputs

    def _get_candidate_generator(self, generation_config, *args, **kwargs):
        # Drafts from the prompt go on behind the longest caption, and so behind the last position. The model adds a
        # token to each draft.
        generator = super()._get_candidate_generator(generation_config, *args, **kwargs)
        draft, longest = generator.get_candidates, generation_config.max_length - 1

        def get_candidates(input_ids: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
            candidates, logits = draft(input_ids, **kwargs)
            candidates = candidates[:, :longest]
            return candidates, None if logits is None else logits[:, : candidates.shape[1] - input_ids.shape[1]]

        generator.get_candidates = get_candidates
        return generator

    def _expand_inputs_for_generation(
        self, expand_size=1, is_encoder_decoder=False, input_ids=None, image_hidden_states=None, **kwargs
    ):
        # Image tokens keep one row per image: the decoder folds the rows of an image together.
        input_ids, kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **kwargs
        )
        return input_ids, {"image_hidden_states": image_hidden_states, **kwargs}

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, **kwargs):
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, **kwargs)
        if self._has_soft_prompts():  # a learnt prefix is a cache, which the next step gets anew
            model_kwargs.pop(CACHE_NAME, None)
        return model_kwargs

    def _prepare_generated_length(self, generation_config, model_input_name, inputs_tensor, **kwargs):
        # `max_new_tokens` in a call replaces the model's own `max_length`; only two lengths in a call are worth the
        # warning that transformers gives.
        is_default = generation_config.max_length == self.generation_config.max_length
        if generation_config.max_new_tokens is not None and is_default:
            generation_config.max_length = None
        generation_config = super()._prepare_generated_length(
            generation_config=generation_config,
            model_input_name=model_input_name,
            inputs_tensor=inputs_tensor,
            **kwargs,
        )
        # Embeddings have positions too, which transformers does not count as part of the text.
        if model_input_name == "inputs_embeds":
            self._check_length(inputs_tensor.shape[1], inputs_tensor.shape[1] + generation_config.max_length)
        return generation_config

    def _validate_generated_length(self, generation_config, input_ids_length, has_default_max_length):
        self._check_length(input_ids_length, generation_config.max_length)
        super()._validate_generated_length(generation_config, input_ids_length, has_default_max_length)

    def _check_length(self, prompt_length: int, max_length: int):
        limit = self.config.max_position_embeddings
        if max(max_length, prompt_length + 1) > limit:
            raise ValueError(
                f"A prompt of {prompt_length} tokens with max_length={max_length} does not fit in the model's {limit} "
                f"positions: pass max_length <= {limit}, and a prompt shorter than that."
            )

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, inputs_embeds=None, **kwargs):
        cache = kwargs.get(CACHE_NAME)
        if cache is not None:
            cache = kwargs[CACHE_NAME] = self.wrap_cache(cache, kwargs.get("image_hidden_states"))
        model_inputs = super().prepare_inputs_for_generation(
            input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
        )
        # `generate` checks the names that it is given, and hands on more of its own, such as `tokenizer`.
        read = inspect.signature(type(self).forward).parameters.keys() | FURTHER_KWARGS
        model_inputs = {
            name: value for name, value in model_inputs.items() if name in read or isinstance(value, Cache)
        }
        mask = model_inputs.get("attention_mask")
        if cache is None and mask is not None:
            model_inputs["attention_mask"] = self.whole_text_mask(input_ids, mask)
        if cache is not None:
            tokens = model_inputs.get("inputs_embeds", model_inputs["input_ids"])
            if inputs_embeds is not None:
                text_config = self.config.text_config
                prompt_ids = ids_of_embeddings(inputs_embeds, text_config.token_dim, text_config.pad_token_id)
                input_ids = torch.cat([prompt_ids, input_ids], dim=1)
            model_inputs["text_attention_mask"] = self.text_attention_mask(
                input_ids, attention_mask, cache, tokens.shape[1]
            )
        return model_inputs


def check_numbers(owner: str, settings: Mapping[str, Any]):
    """Raise `ValueError` where one of `settings` is not what `COUNTS`, `NUMBERS` or `IDS` ask for, or `None`."""
    for name, numbers in {**COUNTS, **NUMBERS, **IDS}.items():
        kind, expected = (Real, "a number") if name in NUMBERS else (Integral, "a whole number")
        value = settings.get(name)
        values = value.flatten().tolist() if isinstance(value, torch.Tensor) else value
        values = values if isinstance(values, list | tuple) and name in IDS else [values]
        is_right = all(isinstance(each, kind) and not isinstance(each, bool) and each in numbers for each in values)
        if value is not None and not is_right:
            raise ValueError(f"{owner}: {name} must be {expected} in {numbers}, got {brief(value)}.")


def _release_static_addresses(cache: EncoderDecoderCache):
    """Replace the tensors of a static cache by copies that transformers has not marked as static.

    With Inductor's `freezing`, which packs the weights of a compiled step on a CPU, torch takes marked tensors for
    constants: the step's position would stay that of the first. The marks serve CUDA graphs alone.
    """
    for layer in (*cache.self_attention_cache.layers, *cache.cross_attention_cache.layers):
        for name, value in vars(layer).items():
            if isinstance(value, torch.Tensor):
                setattr(layer, name, value.clone())


def _without_end(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, eos_token_id: int | list[int], pad_token_id: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Drop the end-of-text token from prompts, padded on the left, that end with it and hold more than that."""
    ends = torch.isin(input_ids[:, -1:], torch.as_tensor(eos_token_id, device=input_ids.device))
    ends &= attention_mask.sum(dim=1, keepdim=True) > 1
    if not ends.any():
        return input_ids, attention_mask
    attention_mask = torch.cat([attention_mask[:, :-1], attention_mask[:, -1:] * ~ends], dim=1)
    longest = int(attention_mask.sum(dim=1).max())
    input_ids, attention_mask = _padded_left(input_ids, attention_mask)
    input_ids = input_ids.masked_fill(attention_mask == 0, pad_token_id or 0)
    return input_ids[:, -longest:], attention_mask[:, -longest:]


def _before_labels(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens before the first label of each text, the first token at least, padded on the left; and their mask."""
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    is_first = attention_mask.cumsum(dim=1) == 1
    attention_mask = attention_mask * (is_first | ((labels != -100).cumsum(dim=1) == 0))
    input_ids, attention_mask = _padded_left(input_ids, attention_mask)
    longest = int(attention_mask.sum(dim=1).max())
    return input_ids[:, -longest:], attention_mask[:, -longest:]


def _padded_left(prompts: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Move the padding of prompts to the left; batches that transformers' pipelines make have it on the right."""
    order = attention_mask.argsort(dim=1, stable=True)
    return prompts[torch.arange(len(order), device=order.device)[:, None], order], attention_mask.gather(1, order)
