"""What `generate` and the cache promise, on a tiny captioner: transformers' GenerationTesterMixin is in no sdist.

The reference is a plain loop over `forward` without a cache. Weights are redrawn with a larger spread, since with the
usual ones a model repeats one token whatever it is fed.
"""

import copy
import functools
import inspect
import tempfile

import torch
from transformers import (
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    set_seed,
)
from transformers.generation.streamers import BaseStreamer

from open_clip_transformers.modeling.transformers_compat import CACHE_NAME


STEPS = 6
CLOSE = {"rtol": 1e-3, "atol": 1e-3}  # of logits with a spread of several units


def redraw(model, seed):
    """`model` with weights so far apart that its output depends on image, prompt and position."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                continue
            like_embedding = id(parameter) in embeddings or parameter.shape[0] == 1 or parameter[0].numel() == 0
            std = 0.7 if like_embedding else 1.5 / parameter[0].numel() ** 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model


def all_logits(model, inputs, sequences, mask=None):
    """Logits (batch, length, vocab_size) of one pass without a cache over `sequences`."""
    mask = torch.ones_like(sequences) if mask is None else mask
    return model(**{**inputs, "input_ids": sequences, "attention_mask": mask}, use_cache=False).logits


@functools.cache
def find_seed(suite):
    """The first seed whose greedy output has some variety."""

    def variety(seed):
        model, inputs = suite.build_with_seed(seed)
        sequences, _ = suite.loop(model, inputs, inputs["input_ids"])
        return len(set(sequences[:, -STEPS:].flatten().tolist()))

    return next(seed for seed in range(40) if variety(seed) >= 6)


class GenerationContract:
    """Tests of one captioner, `model_class`."""

    case = model_class = None

    # ------------------------------------------------------------ helpers
    def build(self, **kwargs):
        """Model and inputs of `generate`; without end tokens unless asked, so that lengths are known."""
        return self.build_with_seed(find_seed(type(self)), **kwargs)

    @classmethod
    def build_with_seed(cls, seed, eager=False, keep_eos=False):
        config = cls.case.config()
        if eager:
            config._attn_implementation = "eager"
        set_seed(seed)
        model = redraw(cls.model_class(config), seed).eval()
        if not keep_eos:
            cls.no_eos(model)
        return model, cls.case.inputs(config)

    @staticmethod
    def no_eos(model):
        model.generation_config.update(eos_token_id=None, pad_token_id=0)

    def generate(self, model, inputs, **kwargs):
        kwargs.setdefault("max_new_tokens", STEPS)
        kwargs.setdefault("do_sample", False)
        return model.generate(**{k: v.clone() for k, v in inputs.items()}, **kwargs)

    @staticmethod
    @torch.no_grad()
    def loop(model, inputs, ids, steps=STEPS):
        """Greedy search by hand, no cache: (sequences, raw logits of every step)."""
        logits = []
        for _ in range(steps):
            logits.append(all_logits(model, inputs, ids)[:, -1].float())
            ids = torch.cat([ids, logits[-1].argmax(-1, keepdim=True)], dim=1)
        return ids, logits

    def row(self, inputs, index):
        return {k: v[index : index + 1] for k, v in inputs.items()}

    def assert_same(self, a, b, message=""):
        self.assertEqual(a.tolist(), b.tolist(), message)

    def assert_close(self, a, b, message=None, **kwargs):
        torch.testing.assert_close(a, b, **{**CLOSE, **kwargs}, msg=message and (lambda text: f"{message}: {text}"))

    def score(self, model, inputs, ids, sequences):
        """Sum of log probabilities of what follows `ids`, by one forward pass without a cache."""
        with torch.no_grad():
            logits = all_logits(model, inputs, sequences[:, :-1]).float()
        new = sequences[:, ids.shape[1] :]
        logp = logits[:, ids.shape[1] - 1 :].log_softmax(-1)
        return logp.gather(-1, new[..., None])[..., 0].sum(-1)

    def repeat(self, inputs, n):
        return {k: v.repeat_interleave(n, dim=0) for k, v in inputs.items()}

    # ------------------------------------------------------------ greedy search and the cache
    def test_can_generate(self):
        model, _ = self.build()
        self.assertTrue(model.can_generate())

    def test_greedy_equals_manual_loop(self):
        model, inputs = self.build()
        ids = inputs["input_ids"]
        expected, _ = self.loop(model, inputs, ids)
        self.assert_same(self.generate(model, inputs), expected)

    def test_outputs_depend_on_every_input(self):
        """Guards the other tests: a model that ignores its image or repeats one token would pass them all."""
        model, inputs = self.build()
        ids = inputs["input_ids"]
        sequences, logits = self.loop(model, inputs, ids)
        self.assertGreater(len(set(sequences[:, ids.shape[1] :].flatten().tolist())), 2, "one token over and over")
        for name, value in inputs.items():
            if value.is_floating_point():
                other = {**inputs, name: torch.rand_like(value)}
                _, changed = self.loop(model, other, ids, steps=1)
                self.assertGreater((changed[0] - logits[0]).abs().max().item(), 1e-3, f"{name} has no effect")

    def test_logits_with_cache_equal_manual_loop(self):
        model, inputs = self.build()
        ids = inputs["input_ids"]
        _, expected = self.loop(model, inputs, ids)
        out = self.generate(model, inputs, return_dict_in_generate=True, output_logits=True)
        self.assertEqual(len(out.logits), STEPS)
        for step, (got, want) in enumerate(zip(out.logits, expected)):
            self.assert_close(got, want, f"step {step}")

    def test_cache_on_equals_cache_off(self):
        model, inputs = self.build()
        kwargs = {"return_dict_in_generate": True, "output_logits": True}
        on = self.generate(model, inputs, use_cache=True, **kwargs)
        off = self.generate(model, inputs, use_cache=False, **kwargs)
        self.assert_same(on.sequences, off.sequences)
        self.assert_close(torch.stack(on.logits), torch.stack(off.logits))
        self.assertIsNone(off.past_key_values, "use_cache=False returned a cache")

    def test_cache_is_returned_and_used(self):
        model, inputs = self.build()
        ids = inputs["input_ids"]
        seen = []
        forward = model.forward
        parameters = list(inspect.signature(forward).parameters)

        @functools.wraps(forward)  # generate() reads the signature
        def spy(*args, **kwargs):
            seen.append({**dict(zip(parameters, args)), **kwargs}["input_ids"].shape[1])
            return forward(*args, **kwargs)

        model.forward = spy
        out = self.generate(model, inputs, return_dict_in_generate=True, use_cache=True)
        model.forward = forward
        self.assertEqual(seen[0], ids.shape[1])
        self.assertEqual(seen[1:], [1] * (STEPS - 1), "tokens fed per step, with a cache")
        self.assertIsNotNone(out.past_key_values)
        self.assertGreaterEqual(out.past_key_values.get_seq_length(), ids.shape[1] + STEPS - 1)

    def test_user_cache_is_filled(self):
        model, inputs = self.build()
        ids = inputs["input_ids"]
        text = model.config.get_text_config(decoder=True)
        cache = DynamicCache(config=text)
        out = self.generate(model, inputs, past_key_values=cache, return_dict_in_generate=True)
        self.assertIs(out.past_key_values, cache)
        self.assertGreaterEqual(cache.get_seq_length(), ids.shape[1] + STEPS - 1)
        self.assert_same(out.sequences, self.loop(model, inputs, ids)[0])

    def test_static_cache(self):
        model, inputs = self.build()
        ids = inputs["input_ids"]
        if not model._can_compile_fullgraph:
            self.skipTest("_can_compile_fullgraph is off, the flag for static caches")
        out = self.generate(model, inputs, cache_implementation="static", return_dict_in_generate=True)
        self.assertIn("Static", repr(out.past_key_values))
        self.assert_same(out.sequences, self.loop(model, inputs, ids)[0])

    def test_static_cache_in_one_graph(self):
        """The step over a static cache compiles without a graph break and is not compiled again for each token."""
        model, inputs = self.build()
        ids = inputs["input_ids"]
        if not model._can_compile_fullgraph:
            self.skipTest("_can_compile_fullgraph is off, the flag for static caches")
        expected = self.loop(model, inputs, ids)[0]
        torch._dynamo.reset()
        model.compile(fullgraph=True, backend="eager")
        with torch._dynamo.config.patch(recompile_limit=3, fail_on_recompile_limit_hit=True):
            got = self.generate(model, inputs, cache_implementation="static")
            beams = self.generate(model, inputs, cache_implementation="static", num_beams=3)
        self.assert_same(got, expected)
        torch._dynamo.reset()
        self.assert_same(beams, self.generate(self.build()[0], inputs, num_beams=3))

    def test_position_ids_make_no_difference(self):
        """forward() with the positions that it would have counted itself."""
        model, inputs = self.build()
        ids = inputs["input_ids"]
        sequences, _ = self.loop(model, inputs, ids)
        positions = torch.arange(sequences.shape[1]).expand_as(sequences)
        with torch.no_grad():
            self.assert_close(
                all_logits(model, {**inputs, "position_ids": positions}, sequences),
                all_logits(model, inputs, sequences),
            )

    def test_beams_of_a_row_equal_those_of_the_batch(self):
        model, inputs = self.build()
        ids = inputs["input_ids"]
        batch = self.generate(model, inputs, num_beams=3, num_return_sequences=3)
        for index in range(ids.shape[0]):
            one = self.generate(model, self.row(inputs, index), num_beams=3, num_return_sequences=3)
            self.assert_same(one, batch[3 * index : 3 * index + 3], f"row {index}")

    def test_prepare_inputs_keeps_the_models_arguments(self):
        """What generate() is given for forward() alone reaches it."""
        model, inputs = self.build()
        ids = inputs["input_ids"]
        text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        kept = model.prepare_inputs_for_generation(**text, use_cache=False, output_attentions=True)
        self.assertTrue(kept.get("output_attentions"))

    def test_continue_from_cache(self):
        """generate(4), then 3 more from its cache, equals generate(7)."""
        model, inputs = self.build()
        whole = self.generate(model, inputs, max_new_tokens=7)
        first = self.generate(model, inputs, max_new_tokens=4, return_dict_in_generate=True)
        mask = torch.ones_like(first.sequences)
        rest = {"pixel_values": inputs["pixel_values"], "input_ids": first.sequences, "attention_mask": mask}
        second = self.generate(model, rest, max_new_tokens=3, past_key_values=first.past_key_values)
        self.assert_same(second, whole)

    def test_chunked_forward_with_cache(self):
        """forward() over several tokens on top of a cache equals one pass: what speculative decoding relies on."""
        model, inputs = self.build()
        ids = inputs["input_ids"]
        sequences, _ = self.loop(model, inputs, ids)
        cut = sequences.shape[1] - 4
        image, mask = {"pixel_values": inputs["pixel_values"]}, torch.ones_like(sequences)
        positions = torch.arange(sequences.shape[1]).expand_as(sequences)
        text = {"input_ids": sequences, "attention_mask": mask, "position_ids": positions}
        with torch.no_grad():
            expected = all_logits(model, inputs, sequences)
            start = model(**image, **{name: value[:, :cut] for name, value in text.items()}, use_cache=True)
            cached = {CACHE_NAME: start[CACHE_NAME], "use_cache": True, "is_first_iteration": False}
            step = model.prepare_inputs_for_generation(**text, **image, next_sequence_length=4, **cached)
            got = model(**step)
        self.assert_close(got.logits[:, -4:], expected[:, -4:])

    def test_rows_do_not_interact(self):
        model, inputs = self.build()
        batch = self.generate(model, inputs)
        for index in range(batch.shape[0]):
            self.assert_same(self.generate(model, self.row(inputs, index))[0], batch[index], f"row {index}")

    def test_left_padding(self):
        model, inputs = self.build()
        ids = inputs["input_ids"]
        pad, mask = torch.zeros_like(ids[:, :3]), inputs["attention_mask"]
        kwargs = {"return_dict_in_generate": True, "output_logits": True}
        plain = self.generate(model, inputs, **kwargs)
        padded = {**inputs, "input_ids": torch.cat([pad, ids], 1), "attention_mask": torch.cat([pad, mask], 1)}
        out = self.generate(model, padded, **kwargs)
        self.assert_close(out.logits[0], plain.logits[0], "first step")
        self.assert_same(out.sequences[:, 3:], plain.sequences)

    def test_masked_tokens_have_no_effect(self):
        model, inputs = self.build()
        ids = inputs["input_ids"]
        sequences, _ = self.loop(model, inputs, ids)
        other, mask = sequences.clone(), torch.ones_like(sequences)
        other[:, :2] = (other[:, :2] + 11) % 40 + 3
        mask[:, :2] = 0
        with torch.no_grad():
            hidden = [all_logits(model, inputs, x, mask=mask)[:, 2:] for x in (sequences, other)]
            seen = [all_logits(model, inputs, x)[:, 2:] for x in (sequences, other)]
        self.assert_close(hidden[0], hidden[1])
        self.assertGreater((seen[0] - seen[1]).abs().max().item(), 1e-3, "earlier tokens have no effect at all")

    # ------------------------------------------------------------ beams and samples
    def test_beam_scores_equal_recomputed_scores(self):
        """Wrong reordering of the cache or of the image features shows as scores that do not match the sequences."""
        model, inputs = self.build()
        ids = inputs["input_ids"]
        for penalty in (0.0, 1.0):
            out = self.generate(
                model, inputs, num_beams=4, num_return_sequences=4, length_penalty=penalty, early_stopping=False,
                return_dict_in_generate=True, output_scores=True,
            )  # fmt: skip
            starts = ids.repeat_interleave(4, dim=0)
            self.assert_same(out.sequences[:, : ids.shape[1]], starts)
            scores = self.score(model, self.repeat(inputs, 4), starts, out.sequences) / STEPS**penalty
            self.assert_close(out.sequences_scores, scores, f"length_penalty={penalty}")
            rows = out.sequences_scores.view(-1, 4)
            self.assertTrue((rows[:, :-1] >= rows[:, 1:] - 1e-5).all(), "beams are not sorted")
            for group in out.sequences.view(-1, 4, out.sequences.shape[1]).tolist():
                self.assertEqual(len({tuple(beam) for beam in group}), 4, "the same beam twice")

    def test_beam_transition_scores(self):
        model, inputs = self.build()
        kwargs = {"num_beams": 3, "length_penalty": 0.0, "return_dict_in_generate": True, "output_scores": True}
        out = self.generate(model, inputs, **kwargs)
        steps = model.compute_transition_scores(out.sequences, out.scores, out.beam_indices)
        self.assert_close(steps.sum(1), out.sequences_scores)

    def test_beam_search_over_everything_finds_the_best(self):
        model, inputs = self.build()
        ids = inputs["input_ids"]
        one, start = self.row(inputs, 0), ids[:1]
        with torch.no_grad():
            first = all_logits(model, one, start)[:, -1].float().log_softmax(-1)
            vocab = first.shape[-1]
            tokens = torch.arange(vocab)[:, None]
            pairs = torch.cat([start.expand(vocab, -1), tokens], dim=1)
            second = all_logits(model, self.repeat(one, vocab), pairs)[:, -1].float().log_softmax(-1)
        total = first.T + second
        best = divmod(int(total.argmax()), vocab)
        out = self.generate(
            model, one, num_beams=vocab, max_new_tokens=2, length_penalty=0.0, return_dict_in_generate=True,
            output_scores=True,
        )  # fmt: skip
        self.assertEqual(out.sequences[0, -2:].tolist(), list(best))
        self.assert_close(out.sequences_scores[0], total.max())

    def test_beam_cache_on_equals_off(self):
        model, inputs = self.build()
        on = self.generate(model, inputs, num_beams=3, use_cache=True)
        self.assert_same(on, self.generate(model, inputs, num_beams=3, use_cache=False))

    def test_num_return_sequences(self):
        model, inputs = self.build()
        ids = inputs["input_ids"]
        batch = ids.shape[0]
        many = self.generate(model, inputs, num_beams=3, num_return_sequences=2)
        self.assertEqual(many.shape[0], 2 * batch)
        self.assert_same(many[::2], self.generate(model, inputs, num_beams=3), "first of each group")
        sampled = self.generate(model, inputs, do_sample=True, num_return_sequences=4)
        self.assertEqual(sampled.shape[0], 4 * batch)
        self.assert_same(sampled[:, : ids.shape[1]], ids.repeat_interleave(4, dim=0))
        both = self.generate(model, inputs, do_sample=True, num_beams=2, num_return_sequences=2)
        self.assertEqual(both.shape[0], 2 * batch)
        with self.assertRaises(ValueError):
            self.generate(model, inputs, num_return_sequences=2)  # greedy search has one answer
        with self.assertRaises(ValueError):
            self.generate(model, inputs, num_beams=2, num_return_sequences=3)

    def test_sampling(self):
        model, inputs = self.build()

        def sample(seed, **kwargs):
            set_seed(seed)
            return self.generate(model, inputs, do_sample=True, top_k=0, temperature=2.0, **kwargs)

        self.assert_same(sample(1), sample(1), "same seed")
        self.assertTrue(any(not torch.equal(sample(1), sample(seed)) for seed in (2, 3, 4)), "seeds have no effect")
        greedy = self.generate(model, inputs)
        set_seed(1)
        self.assert_same(self.generate(model, inputs, do_sample=True, top_k=1), greedy, "top_k=1")
        set_seed(1)
        self.assert_same(self.generate(model, inputs, do_sample=True, temperature=1e-4), greedy, "temperature → 0")

    def test_sampled_rows_score_under_their_own_image(self):
        """Expanded rows keep their inputs: each sample's scores equal the loop's over the repeated inputs."""
        model, inputs = self.build()
        ids = inputs["input_ids"]
        out = self.generate(
            model, inputs, do_sample=True, top_k=0, top_p=1.0, temperature=1.0, num_return_sequences=3,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        with torch.no_grad():
            expected = all_logits(model, self.repeat(inputs, 3), out.sequences)
        self.assert_close(torch.stack(out.logits, 1), expected[:, ids.shape[1] - 1 : -1].float())

    def test_prompt_lookup_equals_greedy(self):
        model, inputs = self.build()
        one = self.row(inputs, 0)
        one |= {name: one[name].repeat(1, 2) for name in ("input_ids", "attention_mask")}
        got = self.generate(model, one, prompt_lookup_num_tokens=3, max_new_tokens=10)
        self.assert_same(got, self.generate(model, one, max_new_tokens=10))

    def test_assisted_decoding_equals_greedy(self):
        model, inputs = self.build()
        one = self.row(inputs, 0)
        helper = copy.deepcopy(model)
        helper.generation_config.update(
            num_assistant_tokens=2, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
        )
        got = self.generate(model, one, assistant_model=helper, max_new_tokens=8)
        self.assert_same(got, self.generate(model, one, max_new_tokens=8))

    # ------------------------------------------------------------ outputs
    def test_return_dict_outputs(self):
        model, inputs = self.build(eager=True)
        ids = inputs["input_ids"]
        out = self.generate(
            model, inputs, return_dict_in_generate=True, output_scores=True, output_logits=True,
            output_attentions=True, output_hidden_states=True,
        )  # fmt: skip
        text = model.config.get_text_config(decoder=True)
        batch, layers, heads = ids.shape[0], model.config.get_text_config().num_hidden_layers, text.num_attention_heads
        self.assertEqual(out.sequences.shape, (batch, ids.shape[1] + STEPS))
        for name in ("scores", "logits"):
            shapes = [tuple(t.shape) for t in getattr(out, name)]
            self.assertEqual(shapes, [(batch, text.vocab_size)] * STEPS, name)
        attentions, hidden = out.attentions, out.hidden_states
        self.assertEqual([len(step) for step in attentions], [layers] * STEPS)
        self.assertEqual([len(step) for step in hidden], [layers + 1] * STEPS)
        for step in range(STEPS):
            for layer in attentions[step]:
                self.assertEqual(layer.shape[:2], (batch, heads))
                self.assert_close(layer.sum(-1), torch.ones_like(layer[..., 0]), "attention rows sum to one")
            self.assertEqual(attentions[step][0].shape[3], attentions[0][0].shape[3] + step, "keys grow by one")
            if step:
                self.assertEqual(attentions[step][0].shape[2], 1)
                self.assertEqual(hidden[step][0].shape[1], 1)

    def test_forward_returns_cross_attentions(self):
        model, inputs = self.build(eager=True)
        ids = inputs["input_ids"]
        with torch.no_grad():
            out = model(**inputs, output_attentions=True)
        text = model.config.get_text_config(decoder=True)
        self.assertIsNotNone(getattr(out, "cross_attentions", None), "no cross_attentions")
        self.assertTrue(all(layer is not None for layer in out.cross_attentions))
        self.assertGreaterEqual(len(out.cross_attentions), 1)
        for layer in out.cross_attentions:
            self.assertEqual(layer.shape[:3], (ids.shape[0], text.num_attention_heads, ids.shape[1]))
            self.assert_close(layer.sum(-1), torch.ones_like(layer[..., 0]), "attention rows sum to one")

    def test_outputs_do_not_change_the_tokens(self):
        """sdpa without attentions, eager with: the same sequences."""
        model, inputs = self.build(eager=True)
        plain = self.generate(model, inputs)
        out = self.generate(model, inputs, return_dict_in_generate=True, output_attentions=True)
        self.assert_same(out.sequences, plain)
        other = copy.deepcopy(model)
        if not other._supports_sdpa:
            self.skipTest("no sdpa")
        other.set_attn_implementation("sdpa")
        self.assert_same(self.generate(other, inputs), plain, "sdpa against eager")

    def test_logits_to_keep(self):
        model, inputs = self.build()
        with torch.no_grad():
            whole = model(**inputs).logits
            last = model(**inputs, logits_to_keep=1).logits
        self.assertEqual(last.shape[1], 1)
        self.assert_close(last, whole[:, -1:])

    # ------------------------------------------------------------ where it stops, and who may interfere
    def test_length_limits(self):
        model, inputs = self.build()
        ids = inputs["input_ids"]
        self.assertEqual(self.generate(model, inputs, max_new_tokens=3).shape[1], ids.shape[1] + 3)
        limit = ids.shape[1] + 2
        got = self.generate(model, inputs, max_new_tokens=None, max_length=limit)
        self.assertEqual(got.shape[1], limit)
        with self.assertRaises(ValueError):
            self.generate(model, inputs, max_new_tokens=None, max_length=ids.shape[1])

    def test_unknown_arguments_are_refused(self):
        model, inputs = self.build()
        with self.assertRaisesRegex((ValueError, TypeError), "no_such_argument"):
            self.generate(model, inputs, no_such_argument=1)

    def test_eos_stops_a_row_and_pads_it(self):
        model, inputs = self.build()
        ids = inputs["input_ids"]
        plain, _ = self.loop(model, inputs, ids)
        new = plain[:, ids.shape[1] :]
        eos = int(new[0, 2])
        expected = new.clone()
        for row in expected:
            hits = (row == eos).nonzero()
            if len(hits):
                row[hits[0, 0] + 1 :] = 0
        keep = max(int((row != 0).nonzero().max()) + 1 for row in expected)
        keep = STEPS if any(eos not in row for row in expected) else keep
        got = self.generate(model, inputs, eos_token_id=eos)[:, ids.shape[1] :]
        self.assert_same(got, expected[:, :keep])
        later = self.generate(model, inputs, eos_token_id=eos, min_new_tokens=STEPS)[:, ids.shape[1] :]
        self.assertEqual(later.shape[1], STEPS)
        self.assertNotIn(eos, later[:, : STEPS - 1].flatten().tolist(), "min_new_tokens")

    def test_logits_processor_and_stopping_criteria(self):
        class Force(LogitsProcessor):
            def __call__(self, input_ids, scores):
                wanted = torch.full_like(scores, -1e9)
                wanted[:, 5 + input_ids.shape[1] % 3] = 0.0
                return wanted

        class After(StoppingCriteria):
            def __init__(self, length):
                self.length = length

            def __call__(self, input_ids, scores, **kwargs):
                return torch.full((input_ids.shape[0],), input_ids.shape[1] >= self.length, device=input_ids.device)

        model, inputs = self.build()
        ids = inputs["input_ids"]
        length = ids.shape[1]
        got = self.generate(
            model, inputs, logits_processor=LogitsProcessorList([Force()]),
            stopping_criteria=StoppingCriteriaList([After(length + 4)]),
        )  # fmt: skip
        want = [[5 + (length + step) % 3 for step in range(4)]] * ids.shape[0]
        self.assertEqual(got[:, length:].tolist(), want)

    def test_bad_words_and_repetition_penalty(self):
        model, inputs = self.build()
        ids = inputs["input_ids"]
        plain = self.generate(model, inputs)[:, ids.shape[1] :]
        word = int(plain[0, 0])
        got = self.generate(model, inputs, bad_words_ids=[[word]])[:, ids.shape[1] :]
        self.assertNotIn(word, got.flatten().tolist())
        got = self.generate(model, inputs, no_repeat_ngram_size=1)[:, ids.shape[1] :]
        self.assertTrue(all(len(set(row)) == STEPS for row in got.tolist()), "no_repeat_ngram_size=1")

    def test_streamer(self):
        class Keep(BaseStreamer):
            def __init__(self):
                self.tokens, self.ended = [], False

            def put(self, value):
                self.tokens += value.flatten().tolist()

            def end(self):
                self.ended = True

        model, inputs = self.build()
        streamer, one = Keep(), self.row(inputs, 0)
        got = self.generate(model, one, streamer=streamer)
        self.assertEqual(streamer.tokens, got[0].tolist())
        self.assertTrue(streamer.ended)

    def test_leaves_inputs_and_settings_alone(self):
        model, inputs = self.build()
        before = {k: v.clone() for k, v in inputs.items()}
        config, settings = model.config.to_dict(), model.generation_config.to_dict()
        model.generate(**inputs, max_new_tokens=3, num_beams=2, do_sample=False)
        for name, value in inputs.items():
            self.assertTrue(torch.equal(value, before[name]), f"{name} was written to")
        self.assertEqual(model.config.to_dict(), config)
        self.assertEqual(model.generation_config.to_dict(), settings)

    # ------------------------------------------------------------ ways to call it
    def test_image_alone_is_enough(self):
        model, inputs = self.build()
        ids = inputs["input_ids"]
        image = {"pixel_values": inputs["pixel_values"]}
        start = torch.full_like(ids[:, :1], model.generation_config.bos_token_id)
        self.assert_same(self.generate(model, image), self.loop(model, image, start)[0])

    def test_main_input_as_first_argument(self):
        model, inputs = self.build()
        rest = dict(inputs)
        main = rest.pop(model.main_input_name)
        got = model.generate(main.clone(), **rest, max_new_tokens=STEPS, do_sample=False)
        self.assert_same(got, self.generate(model, inputs))

    def test_inputs_embeds(self):
        model, inputs = self.build()
        ids = inputs["input_ids"]
        if "inputs_embeds" not in inspect.signature(model.forward).parameters:
            self.skipTest("forward() has no inputs_embeds")
        rest = {k: v for k, v in inputs.items() if k != "input_ids"}
        got = self.generate(model, {**rest, "inputs_embeds": model.get_input_embeddings()(ids)})
        self.assert_same(got[:, -STEPS:], self.generate(model, inputs)[:, -STEPS:])

    def test_half_precision(self):
        for dtype in (torch.bfloat16, torch.float16):
            model, inputs = self.build()
            ids = inputs["input_ids"]
            model = model.to(dtype)
            half = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
            for kwargs in ({}, {"num_beams": 2}, {"use_cache": False}):
                out = self.generate(model, half, return_dict_in_generate=True, output_logits=True, **kwargs)
                self.assertEqual(out.sequences.shape[1], ids.shape[1] + STEPS)
                self.assertTrue(all(torch.isfinite(step).all() for step in out.logits), f"{dtype} {kwargs}")
            # the first step stays close to float32
            with torch.no_grad():
                low = all_logits(model, half, ids)[:, -1].float()
                high = all_logits(model.float(), inputs, ids)[:, -1]
            error = (low - high).abs().mean() / high.abs().mean()
            self.assertLess(error.item(), 0.1, f"{dtype} against float32")

    def test_train_mode_weights_survive(self):
        """generate() in train() mode runs and leaves the mode as it was."""
        model, inputs = self.build()
        model.train()
        self.generate(model, inputs, max_new_tokens=2)
        self.assertTrue(model.training)

    # ------------------------------------------------------------ training and saving
    def test_learns_a_batch_and_says_it(self):
        """A few steps on labels, then generate() gives those labels back: loss, shift and generate() agree."""
        model, inputs = self.build()
        ids = inputs["input_ids"]
        set_seed(3)
        model = self.model_class(self.case.config()).eval()  # eval: no dropout
        self.no_eos(model)
        targets = torch.stack([torch.randperm(40)[:5] + 3 for _ in range(ids.shape[0])])
        sequence = torch.cat([ids, targets], dim=1)
        batch = {**inputs, "input_ids": sequence, "attention_mask": torch.ones_like(sequence), "labels": sequence}
        losses = []
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(150):
            optimizer.zero_grad()
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        self.assertLess(losses[-1], 0.5 * losses[0])
        got = self.generate(model, inputs, max_new_tokens=5)[:, -5:]
        self.assert_same(got, targets, f"loss {losses[0]:.2f} → {losses[-1]:.2f}")

    def test_save_load_keeps_output_and_generation_config(self):
        model, inputs = self.build()
        model.generation_config.update(max_new_tokens=4, num_beams=2, length_penalty=0.5, pad_token_id=0)
        expected = model.generate(**{k: v.clone() for k, v in inputs.items()})
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            loaded = type(model).from_pretrained(folder).eval()
            half = type(model).from_pretrained(folder, dtype=torch.bfloat16)
        for name in ("max_new_tokens", "num_beams", "length_penalty", "pad_token_id"):
            self.assertEqual(getattr(loaded.generation_config, name), getattr(model.generation_config, name), name)
        self.no_eos(loaded)
        self.assert_same(loaded.generate(**{k: v.clone() for k, v in inputs.items()}), expected)
        self.assertEqual({p.dtype for p in half.parameters()}, {torch.bfloat16})

    def test_generation_config_takes_ids_from_the_config(self):
        model, _ = self.build(keep_eos=True)
        text = model.config.get_text_config(decoder=True)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            wanted = getattr(model.config, name, None)
            wanted = getattr(text, name, None) if wanted is None else wanted
            self.assertEqual(getattr(model.generation_config, name), wanted, name)
