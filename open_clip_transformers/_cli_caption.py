"""The `caption` command."""

import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin, set_seed

from ._cli_images import ImageBatches
from ._cli_messages import Failures, UsageError
from ._cli_models import load
from ._cli_output import print_columns, print_record


SAMPLING = ("top_k", "top_p", "temperature")


def check_generation(settings: dict):
    """Raises `UsageError` where arguments of `generate`, `None` where not given, contradict each other."""
    beams, groups = settings["num_beams"] or 1, settings["num_beam_groups"] or 1
    penalty = settings["diversity_penalty"]
    samples = [f"--{name.replace('_', '-')}" for name in SAMPLING if settings[name] is not None]
    if settings["temperature"] == 0:
        raise UsageError("--temperature must be above 0; without it the most probable words are taken.")
    if groups > 1 and (beams % groups or beams == 1):
        raise UsageError(
            f"--num-beams must be a multiple of --num-beam-groups, got {beams} and {groups}: open_clip's default is 6 "
            "and 3."
        )
    if groups > 1 and samples:
        raise UsageError(f"Groups of beams do not sample: leave out --num-beam-groups or {', '.join(samples)}.")
    if penalty and groups == 1:
        raise UsageError("--diversity-penalty acts between groups of beams: give --num-beam-groups too.")


@torch.inference_mode()
def caption_images(
    names: list[str],
    settings: dict,
    *,
    prompt: str | None,
    seed: int | None,
    model_name: str,
    revision: str | None,
    device: str,
    dtype: str,
    batch_size: int,
    workers: int,
    as_json: bool,
    failures: Failures,
):
    """Prints a caption for each image.

    Args:
        names: paths and URLs of the images.
        settings: arguments of `generate`, `None` for the model's own.
        prompt: text that every caption continues, and starts with.
        seed: makes sampling repeatable, for the same images in the same batches.
        model_name, revision, device, dtype: see `_cli_models.load`.
        batch_size: images that are captioned at once.
        workers: processes that read images; 0 for none.
        as_json: print one JSON object a line, `{"image": name, "caption": ...}`; else `name<TAB>caption`.
        failures: gets the images that cannot be read.
    """
    check_generation(settings)
    model, processor = load(AutoModelForImageTextToText, model_name, revision, device, dtype, captions=True)
    settings = {name: value for name, value in settings.items() if value is not None}
    if settings.keys() & set(SAMPLING):
        settings["do_sample"] = True
    prompt_ids = None if prompt is None else _encode_prompt(processor, prompt).to(model.device)
    settings |= fit_length(model, settings.get("max_new_tokens"), 1 if prompt_ids is None else prompt_ids.shape[1])
    if len(names) > batch_size > 1:
        # Takes about as long as it saves in one batch, and saves nothing in captions of single images.
        model.fuse()
    if seed is not None:
        set_seed(seed)
    for batch, pixel_values in ImageBatches(names, processor, batch_size, workers, failures):
        captions = _captions(model, processor, pixel_values, prompt_ids, settings)
        for name, caption in zip(batch, captions):
            if as_json:
                print_record({"image": name, "caption": caption})
            else:
                print_columns(name, caption)


def _encode_prompt(processor: ProcessorMixin, prompt: str) -> torch.Tensor:
    try:
        return processor(text=prompt, add_eos=False, return_tensors="pt").input_ids
    except ValueError as error:
        raise UsageError(f"--prompt cannot be continued. {error}") from error


def fit_length(model: PreTrainedModel, max_new_tokens: int | None, prompt_length: int) -> dict[str, int]:
    """`max_new_tokens` for `generate`: the one asked for, else the model's own as far as there are positions.

    Args:
        prompt_length: tokens of the prompt, its start of text included.

    Raises:
        UsageError: the request does not fit in the model's positions.
    """
    limit = model.config.max_position_embeddings
    free = limit - prompt_length
    if free < 1:
        raise UsageError(f"--prompt has {prompt_length} tokens and leaves no room in the model's {limit}: shorten it.")
    if max_new_tokens is None:
        own = model.generation_config
        max_new_tokens = min(own.max_new_tokens or (own.max_length or limit) - 1, free)
    if max_new_tokens > free:
        raise UsageError(
            f"--max-new-tokens {max_new_tokens} does not fit: the model has {limit} positions, of which the start of "
            f"text and the prompt take {prompt_length}. Give at most {free}."
        )
    return {"max_new_tokens": max_new_tokens}


def _captions(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    pixel_values: torch.Tensor,
    prompt_ids: torch.Tensor | None,
    settings: dict,
) -> list[str]:
    if prompt_ids is not None:
        settings = {**settings, "input_ids": prompt_ids.expand(len(pixel_values), -1)}
    outputs = model.generate(pixel_values=pixel_values.to(model.device, model.dtype), **settings)
    return processor.batch_decode(outputs, skip_special_tokens=True)
