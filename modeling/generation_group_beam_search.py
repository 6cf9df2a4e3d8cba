"""Group (diverse) beam search as a decoding method for any transformers model that generates.

transformers 5 no longer has it (`num_beam_groups > 1` there asks for code from the Hub), while open_clip's CoCa
captions with 6 beams in 3 groups by default. This is a function for `generate(custom_generate=...)`:

    model.generate(**inputs, custom_generate=group_beam_search, num_beams=6, num_beam_groups=3, diversity_penalty=0.5)

Paper: Diverse Beam Search, https://arxiv.org/abs/1610.02424. Tokens and scores are those of `num_beam_groups` in
transformers 4.53.3, the last release that had it, and, with `open_clip_scores=True`, those of open_clip 3.3.0's
`CoCa._generate_beamsearch` in `coca_model.py`. Departures from transformers 4.53.3: a `diversity_penalty` of 0 is
allowed, `beam_indices` count rows of the whole batch (so `compute_transition_scores` is right), every stopping
criterion ends the beam that meets it (as in transformers 5's beam search), and a sequence keeps the end token that it
generated.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation import (
    GenerateBeamDecoderOnlyOutput,
    GenerateBeamEncoderDecoderOutput,
    MaxLengthCriteria,
)

from .transformers_compat import CACHE_NAME, named_cache


IMPOSSIBLE = -1e9  # score of a beam that must not be chosen; finite, so that sums with it stay ordered


def group_beam_search(
    model: PreTrainedModel,
    input_ids: torch.LongTensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    synced_gpus: bool = False,
    streamer=None,
    open_clip_scores: bool | None = None,
    **model_kwargs,
) -> GenerateBeamDecoderOnlyOutput | GenerateBeamEncoderDecoderOutput | torch.LongTensor:
    """
    Beam search in `num_beam_groups` groups of `num_beams / num_beam_groups` beams each. Groups choose their tokens one
    after the other, and a token costs `diversity_penalty` for each beam of an earlier group that chose it at this
    step. Without a penalty every group is the same ordinary beam search.

    Meant to be handed to `generate`, which prepares the arguments; of `generation_config` it reads `num_beams`,
    `num_beam_groups`, `diversity_penalty`, `length_penalty`, `early_stopping`, `num_return_sequences`, `max_length`
    and the `output_...` switches.

    Args:
        input_ids: (batch * num_beams, prompt length) int64, each prompt repeated `num_beams` times in a row.
        synced_gpus: keep calling the model until every process is done (FSDP, DeepSpeed ZeRO-3).
        streamer: must be None, as beams change their past.
        open_clip_scores: rank beams as open_clip does: by the sum of the logits themselves rather than of log
            probabilities, over the length with the prompt rather than without. By default an entry of this name in the
            `generation_config` decides.

    Returns:
        (batch * num_return_sequences, length) int64, best first for each prompt, over all groups; or, with
        `return_dict_in_generate`, transformers' beam search output. `sequences_scores` come with `output_scores`;
        `scores` are (batch * num_beams, vocabulary) a step, after the logits processors.

    Raises:
        ValueError: `num_beams` is below 2 or not divisible by `num_beam_groups`; sampling; a negative penalty, or a
            penalty with one group; a streamer; diversity together with classifier-free guidance.
    """
    _check_arguments(generation_config, input_ids, streamer)
    if open_clip_scores is None:
        open_clip_scores = getattr(generation_config, "open_clip_scores", False)
    search = _Search(input_ids, stopping_criteria, generation_config, open_clip_scores)
    steps = defaultdict(list)
    stopped = False
    while model._has_unfinished_sequences(stopped, synced_gpus, device=input_ids.device):
        outputs = _forward(model, search, generation_config, model_kwargs)
        model_kwargs = model._update_model_kwargs_for_generation(
            outputs, model_kwargs, is_encoder_decoder=model.config.is_encoder_decoder
        )
        if stopped:  # only here for the other processes
            continue
        logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32, device=input_ids.device)
        scores = search.advance(logits, logits_processor)
        if generation_config.return_dict_in_generate:
            _record(steps, generation_config, outputs, logits, scores)
        del outputs  # its logits can be large after the prompt; free them before the cache is copied
        _reorder_cache(model, model_kwargs, search.parent_rows)
        stopped = search.stopped

    sequences, sequences_scores, beam_indices = search.best(generation_config.num_return_sequences)
    if not generation_config.return_dict_in_generate:
        return sequences
    return _make_output(
        model,
        model_kwargs,
        steps,
        sequences=sequences,
        sequences_scores=sequences_scores if generation_config.output_scores else None,
        beam_indices=beam_indices,
    )


def _check_arguments(generation_config: GenerationConfig, input_ids: torch.LongTensor, streamer) -> None:
    num_beams, num_groups = generation_config.num_beams, generation_config.num_beam_groups or 1
    penalty = generation_config.diversity_penalty or 0.0
    if num_beams is None or num_beams < 2:
        raise ValueError(f"Group beam search needs `num_beams` of at least 2, got {num_beams}.")
    if num_groups < 1 or num_beams % num_groups != 0:
        raise ValueError(
            f"`num_beams` must be divisible by `num_beam_groups`, got num_beams={num_beams} and "
            f"num_beam_groups={num_groups}."
        )
    if generation_config.do_sample:
        raise ValueError("Group beam search does not sample: set `do_sample=False`, or `num_beam_groups=1`.")
    if penalty < 0:
        raise ValueError(f"`diversity_penalty` must not be negative, got {penalty}.")
    if penalty > 0 and num_groups == 1:
        raise ValueError(f"`diversity_penalty` ({penalty}) acts between groups: set `num_beam_groups` to 2 or more.")
    if penalty > 0 and generation_config.guidance_scale not in (None, 1):
        raise ValueError("`guidance_scale` cannot be combined with a `diversity_penalty`: set one of them to None.")
    if streamer is not None:
        raise ValueError("`streamer` cannot be used with group beam search: beams change tokens already shown.")
    if input_ids.shape[0] % num_beams != 0:
        raise ValueError(
            f"`input_ids` must hold each prompt {num_beams} times (num_beams), got {input_ids.shape[0]} rows. "
            "Call this function through `model.generate(custom_generate=group_beam_search)`, which repeats them."
        )


def _forward(model: PreTrainedModel, search: "_Search", generation_config: GenerationConfig, model_kwargs: dict):
    """One call of the model: over the prompt at first, later over the newest tokens (over all without a cache)."""
    input_ids = search.input_ids
    if search.length == search.prompt_length:
        return model._prefill(input_ids, generation_config, model_kwargs)
    next_length = 1 if model_kwargs.get("use_cache") else None
    model_inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=next_length, **model_kwargs)
    return model(**model_inputs, return_dict=True)


def _reorder_cache(model: PreTrainedModel, model_kwargs: dict, rows: torch.LongTensor) -> None:
    cache = model_kwargs.get(CACHE_NAME)
    if cache is None:
        return
    if hasattr(model, "_reorder_cache"):  # a few models have their own
        model_kwargs[CACHE_NAME] = model._reorder_cache(cache, rows)
    elif hasattr(cache, "reorder_cache"):
        cache.reorder_cache(rows)
    else:
        raise ValueError(f"{type(model).__name__}'s cache cannot be reordered: pass `use_cache=False` to use beams.")


def _record(steps: dict, generation_config: GenerationConfig, outputs, logits, scores: torch.Tensor) -> None:
    if generation_config.output_scores:
        steps["scores"].append(scores)
    if generation_config.output_logits:
        steps["logits"].append(logits)
    for name in ("attentions", "hidden_states", "decoder_attentions", "decoder_hidden_states", "cross_attentions"):
        if outputs.get(name) is not None:  # generate asks the model for them if the user wants them
            steps[name].append(outputs[name])


def _make_output(
    model: PreTrainedModel, model_kwargs: dict, steps: dict, **results: torch.Tensor
) -> GenerateBeamDecoderOnlyOutput | GenerateBeamEncoderDecoderOutput:
    output_class = GenerateBeamDecoderOnlyOutput
    if model.config.is_encoder_decoder:
        output_class = GenerateBeamEncoderDecoderOutput
        encoder_outputs = model_kwargs["encoder_outputs"]
        results["encoder_attentions"] = encoder_outputs.get("attentions")
        results["encoder_hidden_states"] = encoder_outputs.get("hidden_states")
    names = {field.name for field in fields(output_class)}
    results.update({name: tuple(values) for name, values in steps.items() if name in names})
    return output_class(**results, **named_cache(model_kwargs.get(CACHE_NAME)))


@dataclass
class _Beams:
    """
    Sequences with their scores. The leading dimensions are batch, groups and beams of a group; `tokens` and `rows` are
    as long as the longest possible sequence and result, and filled up with the padding token and -1.
    """

    tokens: torch.LongTensor  # (batch, groups, beams, max_length), prompt included
    rows: torch.LongTensor  # (batch, groups, beams, max_length - prompt_length): the row each new token grew from
    scores: torch.Tensor  # (batch, groups, beams) float32: a sum while running, divided by the length when finished
    ended: torch.BoolTensor  # (batch, groups, beams): met a stopping criterion; False in an empty place

    def map(self, function: Callable[..., torch.Tensor], *others: "_Beams") -> "_Beams":
        names = ("tokens", "rows", "scores", "ended")
        return _Beams(*(function(*(getattr(beams, name) for beams in (self, *others))) for name in names))

    def gather(self, beams: torch.LongTensor) -> "_Beams":
        """Choose beams by their indices in the group, (batch, groups, chosen)."""
        return self.map(lambda field: field.take_along_dim(beams.view(*beams.shape, *[1] * (field.dim() - 3)), dim=2))

    @staticmethod
    def cat(parts: list["_Beams"], dim: int) -> "_Beams":
        return parts[0].map(lambda *fields: torch.cat(fields, dim=dim), *parts[1:])


class _Search:
    """The beams that run, the sequences that have ended, and the rules by which they follow each other."""

    def __init__(
        self,
        input_ids: torch.LongTensor,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        open_clip_scores: bool,
    ):
        self.num_groups = generation_config.num_beam_groups or 1
        self.num_beams = generation_config.num_beams // self.num_groups
        self.diversity_penalty = generation_config.diversity_penalty or 0.0
        self.length_penalty = generation_config.length_penalty
        self.early_stopping = generation_config.early_stopping
        self.open_clip_scores = open_clip_scores

        # Reaching the maximal length ends the search, not a beam: it is handled by `advance`.
        self.criteria = StoppingCriteriaList(c for c in stopping_criteria if not isinstance(c, MaxLengthCriteria))
        self.prompt_length = self.length = input_ids.shape[1]
        self.max_length = stopping_criteria.max_length or generation_config.max_length

        # Of the best continuations of a group, up to (end tokens * beams) can end; as many as there are beams go on.
        eos, pad = generation_config.eos_token_id, generation_config.pad_token_id
        end_tokens = [] if eos is None else torch.as_tensor(eos).flatten().tolist()
        self.num_candidates = self.num_beams * max(2, 1 + len(end_tokens))
        # As in transformers, the first end token fills up where there is no padding token; without both nothing ends.
        self.pad_token_id = int(pad) if pad is not None else next(iter(end_tokens), -1)

        shape = (input_ids.shape[0] // generation_config.num_beams, self.num_groups, self.num_beams)
        group_numbers = torch.arange(shape[0] * shape[1], device=input_ids.device)
        self.first_rows = group_numbers.view(shape[0], shape[1], 1) * self.num_beams  # the batch row of a first beam
        tokens = input_ids.new_full((*shape, self.max_length), self.pad_token_id)
        tokens[..., : self.length] = input_ids.view(*shape, self.length)
        rows = input_ids.new_full((*shape, self.max_length - self.length), -1)
        scores = torch.full(shape, IMPOSSIBLE, device=input_ids.device)
        scores[..., 0] = 0.0  # the beams of a group are equal at first: let only one of them continue
        ended = torch.zeros(shape, dtype=torch.bool, device=input_ids.device)
        self.running = _Beams(tokens, rows, scores, ended)
        self.finished = _Beams(tokens, rows, torch.full_like(scores, -torch.inf), ended)
        self.complete = ended[..., 0]  # (batch, groups): no better sequence is to be expected
        self.stopped = False

    @property
    def input_ids(self) -> torch.LongTensor:
        """(batch * groups * beams, length): what runs now, a row per beam."""
        return self.running.tokens[..., : self.length].flatten(0, 2)

    @property
    def parent_rows(self) -> torch.LongTensor:
        """(batch * groups * beams,): the row that each running beam was before the newest step."""
        return self.running.rows[..., self.length - self.prompt_length - 1].flatten()

    def advance(self, logits: torch.Tensor, logits_processor: LogitsProcessorList) -> torch.Tensor:
        """Add a token to every beam; logits and the returned processed scores are (rows, vocabulary) float32."""
        scores, candidates = self._choose(logits, logits_processor)
        self.length += 1
        rank = torch.arange(self.num_candidates, device=logits.device)
        self._finish(candidates, candidates.ended & (rank < self.num_beams))
        self._update_complete(candidates.scores[..., 0])

        self.running = self._going_on(candidates)
        self.running.scores.masked_fill_(self.running.ended, IMPOSSIBLE)
        self.stopped = bool(self.complete.all() or candidates.ended.all() or self.length == self.max_length)
        if self.stopped:  # what still runs counts as it is
            self._finish(self.running, ~self.running.ended)
        return scores

    def best(self, num_return_sequences: int) -> tuple[torch.LongTensor, torch.Tensor, torch.LongTensor]:
        """-> sequences (batch * returned, length), their scores (batch * returned,), beam indices (.., new tokens)."""
        all_groups = self.finished.map(lambda field: field.flatten(1, 2).unsqueeze(1))
        best = all_groups.gather(all_groups.scores.topk(num_return_sequences, dim=-1).indices)
        tokens, rows = best.tokens.flatten(0, 2), best.rows.flatten(0, 2)
        num_new = int((rows >= 0).sum(dim=-1).max())
        return tokens[:, : self.prompt_length + num_new], best.scores.flatten(), rows[:, :num_new]

    def _choose(self, logits: torch.Tensor, logits_processor: LogitsProcessorList) -> tuple[torch.Tensor, _Beams]:
        """-> the processed scores (rows, vocabulary), and the best continuations of each group in descending order."""
        input_ids = self.input_ids
        scores = logits if self.open_clip_scores else logits.log_softmax(dim=-1)
        processed = self._by_group(logits_processor(input_ids, scores.clone()))  # processors may work in place
        if not self.diversity_penalty:
            return processed.flatten(0, 2), self._continue(processed, slice(None))

        times_chosen = scores.new_zeros(scores.shape[0] // self.num_groups // self.num_beams, scores.shape[-1])
        parts = []
        for group in range(self.num_groups):
            if group > 0:
                # The other processors see the penalised scores: some of them (repetition penalty) are not additive.
                penalised = self._by_group(scores) - self.diversity_penalty * times_chosen[:, None, None]
                penalised = logits_processor(input_ids, penalised.flatten(0, 2))
                processed[:, group] = self._by_group(penalised)[:, group]
            parts.append(self._continue(processed[:, group : group + 1], slice(group, group + 1)))
            chosen = self._going_on(parts[-1]).tokens[:, 0, :, self.length]
            # A group that is complete counts as choosing the padding token, as in transformers 4.53.3.
            chosen = chosen.masked_fill(self.complete[:, group, None], max(self.pad_token_id, 0))
            times_chosen.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=times_chosen.dtype))
        return processed.flatten(0, 2), _Beams.cat(parts, dim=1)

    def _by_group(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.view(-1, self.num_groups, self.num_beams, rows.shape[-1])

    def _continue(self, scores: torch.Tensor, groups: slice) -> _Beams:
        """The best continuations of these groups, ended or not, given scores (batch, groups, beams, vocabulary)."""
        running = self.running.map(lambda field: field[:, groups])
        totals = (running.scores[..., None] + scores).flatten(2)
        totals, indices = totals.topk(self.num_candidates, dim=-1)
        parents, next_tokens = indices // scores.shape[-1], indices % scores.shape[-1]
        candidates = running.gather(parents)
        candidates.scores = totals
        candidates.tokens[..., self.length] = next_tokens
        candidates.rows[..., self.length - self.prompt_length] = self.first_rows[:, groups] + parents
        candidates.ended = self.criteria(candidates.tokens[..., : self.length + 1].flatten(0, 2), None)
        candidates.ended = candidates.ended.view_as(parents)
        return candidates

    def _going_on(self, candidates: _Beams) -> _Beams:
        """The best that have not ended, as many as a group has beams (filled up with ended ones if too few)."""
        order = candidates.ended.long().argsort(dim=-1, stable=True)
        return candidates.gather(order[..., : self.num_beams])

    def _finish(self, beams: _Beams, chosen: torch.BoolTensor) -> None:
        """Keep the best of what has ended before and of the chosen beams, in groups that are not complete."""
        chosen = chosen & ~self.complete[..., None]
        scores = (beams.scores / self._counted(self.length)).masked_fill(~chosen, -torch.inf)
        merged = _Beams.cat([self.finished, _Beams(beams.tokens, beams.rows, scores, chosen)], dim=2)
        self.finished = merged.gather(merged.scores.topk(self.num_beams, dim=-1).indices)

    def _update_complete(self, best_scores: torch.Tensor) -> None:
        """Mark the groups that need not go on, given the best sum of this step, (batch, groups), ended or not."""
        full = self.finished.ended.all(dim=-1)
        if self.early_stopping is not True:
            # Sums fall with the length, averages may rise: "never" supposes the best sum at the length that suits it.
            longest = self.early_stopping == "never" and self.length_penalty > 0
            attainable = best_scores / self._counted(self.max_length if longest else self.length)
            full = full & (self.finished.scores.amin(dim=-1) >= attainable)
        self.complete = self.complete | full

    def _counted(self, length: int) -> float:
        """The divisor of a sequence's score."""
        return (length if self.open_clip_scores else length - self.prompt_length) ** self.length_penalty
