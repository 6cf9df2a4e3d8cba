"""Inputs that models take, and their messages about those that they do not."""

import inspect

import pytest
import torch
from tiny_models import BOS, CLIP, EOS, MODELS, PAD, main_outputs, randomized, tiny_config, tiny_inputs, tiny_model
from transformers.utils import logging

from open_clip_transformers.modeling.modeling_modified_resnet import ModifiedResNetBackbone
from open_clip_transformers.modeling.modeling_siglip_vit import SiglipVitBackbone
from open_clip_transformers.modeling.modeling_text import OpenClipTextModel
from open_clip_transformers.modeling.modeling_vit import OpenClipVitBackbone
from open_clip_transformers.modeling.transformers_compat import CACHE_NAME


@pytest.mark.floor
@pytest.mark.parametrize("name", ["text", "hf_text", "modern_text", "clip", "clip_hf_text", "coca"])
def test_int32_ids_are_taken(name):
    model = tiny_model(name)
    inputs = tiny_inputs(model)
    with torch.no_grad():
        expected = main_outputs(model(**inputs))
        inputs["input_ids"] = inputs["input_ids"].int()
        assert all(torch.equal(a, b) for a, b in zip(main_outputs(model(**inputs)), expected, strict=True))


@pytest.mark.floor
@pytest.mark.parametrize("name", ["vit", "siglip_vit", "clip", "coca", "image_classification"])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 3, 24, 32), r"height and width \(24, 32\), the model expects \(24, 24\).*interpolate_pos_encoding"),
        ((3, 3, 16, 24), r"height and width \(16, 24\), the model expects \(24, 24\)"),
        ((3, 1, 24, 24), r"shape \(3, 1, 24, 24\), the model expects \(batch, 3, height, width\)"),
        ((3, 24, 24), r"shape \(3, 24, 24\), the model expects \(batch, 3, height, width\)"),
        ((0, 3, 24, 24), r"shape \(0, 3, 24, 24\), the model expects one image at least"),
    ],
    ids=["too_wide", "too_low", "grey", "no_batch", "none"],
)
def test_images_of_another_shape_are_refused(name, shape, message):
    model = tiny_model(name)
    with pytest.raises(ValueError, match=message):
        model(**{**tiny_inputs(model), "pixel_values": torch.randn(shape)})


@pytest.mark.floor
@pytest.mark.parametrize("name", ["text", "text_with_class_token", "hf_text", "modern_text", "clip", "coca"])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3,), r"shape \(3,\), the model expects \(batch, length\)"),
        ((0, 7), r"shape \(0, 7\), the model expects one text at least"),
        ((3, 0), r"shape \(3, 0\), the model expects .*one token at least"),
    ],
    ids=["no_batch", "none", "empty"],
)
def test_ids_of_another_shape_are_refused(name, shape, message):
    model = tiny_model(name)
    with pytest.raises(ValueError, match=message):
        model(**{**tiny_inputs(model), "input_ids": torch.ones(shape, dtype=torch.long)})


TEXTS = ["text", "text_with_class_token", "hf_text", "modern_text", "mammut_text", "clip", "coca", "mammut"]
WRONG_TOKENS = {
    "beyond": (lambda ids: {"input_ids": ids + 10**6}, "input_ids hold 10000.*are 0 to "),
    "negative": (lambda ids: {"input_ids": ids.masked_fill(ids == 0, -100)}, "input_ids hold -100"),
    "fractions": (lambda ids: {"input_ids": ids.float()}, "input_ids are of torch.float32"),
    "shorter-mask": (lambda ids: {"attention_mask": torch.ones(3, 9)}, r"attention_mask has shape \(3, 9\)"),
    "mask-of-pairs": (lambda ids: {"attention_mask": torch.ones(3, 1, 10, 10)}, "attention_mask has shape"),
    "more-positions": (lambda ids: {"position_ids": torch.arange(11)[None]}, r"position_ids has shape \(1, 11\)"),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize(("change", "message"), WRONG_TOKENS.values(), ids=WRONG_TOKENS)
def test_tokens_that_the_model_does_not_have_are_refused(name, change, message):
    model = tiny_model(name)
    inputs = tiny_inputs(model)
    with pytest.raises(ValueError, match=message):
        model(**{**inputs, **change(inputs["input_ids"])})


@pytest.mark.parametrize("name", ["text", "text_with_class_token", "mammut_text", "mammut"])
def test_positions_that_the_model_does_not_have_are_refused(name):
    model = tiny_model(name)
    with pytest.raises(ValueError, match="position_ids hold 19"):
        model(**tiny_inputs(model), position_ids=torch.arange(10, 20)[None])


@pytest.mark.parametrize("name", ["vit", "siglip_vit", "naflex_vit", "resnet", "timm_vision", "clip", "mammut"])
def test_images_that_are_not_normalised_are_refused(name):
    model = tiny_model(name)
    inputs = tiny_inputs(model)
    with pytest.raises(ValueError, match=r"pixel_values are of torch\.uint8, and the model expects normalised images"):
        model(**{**inputs, "pixel_values": inputs["pixel_values"].byte()})
    with pytest.raises(TypeError, match=r'pixel_values must be a tensor, got ndarray.*return_tensors="pt"'):
        model(**{**inputs, "pixel_values": inputs["pixel_values"].numpy()})


@pytest.mark.parametrize("name", ["coca", "mammut"])
def test_captioners_refuse_what_does_not_belong_together(name):
    model = tiny_model(name)
    inputs = tiny_inputs(model)
    input_ids, labels = inputs["input_ids"], inputs["input_ids"]
    outputs = model(input_ids[:, :4], inputs["pixel_values"], use_cache=True)
    tokens, cache = outputs.image_hidden_states.detach(), outputs[CACHE_NAME]
    with pytest.raises(ValueError, match=r"image_hidden_states have shape .*images, tokens, \d+\), the last_"):
        model(input_ids, image_hidden_states=tokens[..., :-1])
    with pytest.raises(ValueError, match="Got 2 texts, and the cache is of 3"):
        model(input_ids[:2, 4:], cache=cache)
    with pytest.raises(ValueError, match="labels hold 1096, and those of this model are 0 to 96"):
        model(**inputs, labels=labels + 1000)
    with pytest.raises(ValueError, match=r"labels are of torch\.float32"):
        model(**inputs, labels=labels.float())
    with pytest.raises(ValueError, match=r"attention_mask has shape \(3, 3\), and generate expects \(3, 4\)"):
        model.generate(input_ids[:, :4], attention_mask=torch.ones(3, 3), pixel_values=inputs["pixel_values"])


@pytest.mark.floor
@pytest.mark.parametrize(
    "name", ["vit", "siglip_vit", "clip", "coca", "vision_with_projection", "image_classification"]
)
def test_images_of_another_size_are_taken_with_interpolation(name):
    # The tiny CLIP has a fixed table of positions, which is interpolated like a learned one.
    model = tiny_model(name)
    inputs = {**tiny_inputs(model), "pixel_values": torch.randn(3, 3, 32, 40)}
    with torch.no_grad():
        assert all(value.isfinite().all() for value in main_outputs(model(**inputs, interpolate_pos_encoding=True)))


@pytest.mark.floor
@pytest.mark.parametrize(
    ("name", "limit"),
    [("text", 11), ("text_with_class_token", 10), ("hf_text", 11), ("modern_text", 11), ("clip", 11), ("coca", 10)],
)
def test_texts_beyond_the_last_position_are_refused(name, limit):
    model = tiny_model(name)
    assert model(**tiny_inputs(model, length=limit))
    with pytest.raises(ValueError, match=f"length {limit + 1}.* at most {limit} tokens: truncate"):
        model(**tiny_inputs(model, length=limit + 1))


@pytest.mark.floor
@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_dual_model_compares_any_numbers_and_wants_pairs_for_its_loss(name):
    model = tiny_model(name)
    inputs = tiny_inputs(model)
    inputs["input_ids"] = inputs["input_ids"][:2]
    assert model(**inputs).logits_per_image.shape == (3, 2)
    assert model(**inputs).logits_per_text.shape == (2, 3)
    with pytest.raises(ValueError, match="3 images and 2 texts"):
        model(**inputs, return_loss=True)


@pytest.mark.floor
def test_coca_wants_as_many_texts_for_each_image():
    model = tiny_model("coca")
    inputs = tiny_inputs(model)
    with pytest.raises(ValueError, match="2 texts cannot be shared out to 3 images"):
        model(inputs["input_ids"][:2], inputs["pixel_values"])
    outputs = model(inputs["input_ids"].repeat(2, 1), inputs["pixel_values"])
    assert outputs.logits.shape == (6, 10, 97)
    assert outputs.logits_per_image.shape == (3, 6)


def test_coca_for_zero_shot_compares_any_numbers():
    model = tiny_model("coca_for_zero_shot")
    inputs = tiny_inputs(model)
    assert model(inputs["input_ids"][:2], inputs["pixel_values"]).logits_per_image.shape == (3, 2)


@pytest.mark.floor
def test_coca_wants_an_image():
    model = tiny_model("coca")
    with pytest.raises(ValueError, match="pixel_values or image_hidden_states"):
        model(tiny_inputs(model)["input_ids"])


def test_coca_takes_encoded_images():
    model = tiny_model("coca")
    inputs = tiny_inputs(model)
    with torch.no_grad():
        expected = model(**inputs)
        outputs = model(inputs["input_ids"], image_hidden_states=expected.image_hidden_states)
    assert torch.equal(outputs.logits, expected.logits)
    assert outputs.image_embeds is None and outputs.logits_per_image is None
    with pytest.raises(ValueError, match="pixel_values or image_hidden_states, got pixel_values and"):
        model(**inputs, image_hidden_states=expected.image_hidden_states)


def test_coca_starts_texts_itself():
    model = tiny_model("coca")
    pixel_values = tiny_inputs(model)["pixel_values"]
    with torch.no_grad():
        outputs = model(pixel_values=pixel_values)
        expected = model(torch.full((3, 1), model.config.bos_token_id), pixel_values)
    assert torch.equal(outputs.logits, expected.logits)


@pytest.mark.parametrize("extra", ["image_hidden_states", "use_cache"])
def test_coca_says_when_it_cannot_compare(extra):
    model = tiny_model("coca")
    inputs = tiny_inputs(model)
    if extra == "image_hidden_states":
        inputs["image_hidden_states"] = model(**inputs).image_hidden_states
        del inputs["pixel_values"]
    else:
        inputs["use_cache"] = True
    with pytest.raises(ValueError, match="return_loss=True"):
        model(**inputs, return_loss=True)


@pytest.mark.floor
@pytest.mark.parametrize("name", ["text_with_class_token", "hf_text", "coca", "coca_hf_text"])
def test_attention_mask_of_right_padding_changes_nothing(name):
    # Padding behind a text follows open_clip's rule, from the padding id, with or without a mask.
    model = tiny_model(name)
    inputs = tiny_inputs(model)
    with torch.no_grad():
        expected = main_outputs(model(**inputs))
        outputs = main_outputs(model(**inputs, attention_mask=(inputs["input_ids"] != PAD).long()))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(outputs, expected, strict=True))


@pytest.mark.floor
@pytest.mark.parametrize("counted", [True, False], ids=["own_positions", "positions_given"])
@pytest.mark.parametrize(
    "name", ["text", "text_with_class_token", "hf_text", "coca", "coca_hf_text", "coca_modern", "mammut_modern"]
)
def test_left_padded_texts_give_what_the_texts_alone_give(name, counted):
    model = tiny_model(name)
    alone = tiny_inputs(model, length=7)
    alone["input_ids"] = alone["input_ids"].clamp(min=1)
    padded = torch.nn.functional.pad(alone["input_ids"], (3, 0), value=PAD)
    attention_mask = torch.nn.functional.pad(torch.ones(3, 7, dtype=torch.long), (3, 0))
    position_ids = None if counted else (attention_mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = model(**alone)
        outputs = model(**{**alone, "input_ids": padded}, attention_mask=attention_mask, position_ids=position_ids)
    is_coca = name.startswith(("coca", "mammut"))
    embedding = "text_embeds" if is_coca else "pooler_output"
    tokens = "logits" if is_coca else "last_hidden_state"
    assert torch.allclose(outputs[embedding], expected[embedding], atol=1e-5)
    assert torch.allclose(outputs[tokens][:, 3:], expected[tokens], atol=1e-5)


@pytest.mark.floor
@pytest.mark.parametrize("pool_type", ["first", "last", "argmax", "eos"])
def test_pooling_of_left_padded_texts(pool_type):
    config = tiny_config(CLIP).text_config
    config.pool_type = pool_type
    model = randomized(OpenClipTextModel(config).eval())
    ids = tiny_inputs(model, length=7)["input_ids"]
    padded = torch.nn.functional.pad(ids, (2, 0), value=EOS)  # as transformers' tokenizer of CLIP pads
    attention_mask = torch.nn.functional.pad(torch.ones_like(ids), (2, 0))
    with torch.no_grad():
        outputs = model(padded, attention_mask).pooler_output
        assert torch.allclose(outputs, model(ids).pooler_output, atol=1e-5)


@pytest.mark.floor
@pytest.mark.parametrize("use_cache", [False, True], ids=["no_cache", "cache"])
def test_coca_counts_positions_of_prompts_from_the_mask(use_cache):
    model = tiny_model("coca")
    pixel_values = tiny_inputs(model)["pixel_values"][:2]
    prompts = torch.tensor([[PAD, PAD, BOS, 5], [BOS, 5, 6, 7]])
    mask = (prompts != PAD).long()
    with torch.no_grad():
        outputs = model(prompts, pixel_values, mask, use_cache=use_cache)
        alone = model(prompts[:1, 2:], pixel_values[:1], use_cache=use_cache)
        assert torch.allclose(outputs.logits[0, 2:], alone.logits[0], atol=1e-5)
        if not use_cache:
            assert torch.allclose(outputs.text_embeds[0], alone.text_embeds[0], atol=1e-5)
            return
        new, mask = torch.tensor([[8], [9]]), torch.nn.functional.pad(mask, (0, 1), value=1)
        hidden = outputs.image_hidden_states
        step = model(new, image_hidden_states=hidden, attention_mask=mask, **{CACHE_NAME: outputs[CACHE_NAME]})
        whole = model(torch.cat([prompts[:1, 2:], new[:1]], dim=1), pixel_values[:1])
    assert torch.allclose(step.logits[0, -1], whole.logits[0, -1], atol=1e-5)


@pytest.mark.floor
def test_caption_loss_leaves_padding_out():
    model = tiny_model("coca")
    inputs = tiny_inputs(model)
    ids = inputs["input_ids"]
    mask = (ids != PAD).long()
    with torch.no_grad():
        expected = model(**inputs, labels=ids.masked_fill(ids == PAD, -100)).loss
        assert torch.allclose(model(**inputs, attention_mask=mask, labels=ids).loss, expected)
        order = mask.argsort(dim=1, stable=True)
        left = {"input_ids": ids.gather(1, order), "attention_mask": mask.gather(1, order)}
        # Alone, the first token of a text is not predicted either.
        assert torch.allclose(model(**{**inputs, **left}, labels=left["input_ids"]).loss, expected, atol=1e-5)


@pytest.mark.floor
def test_training_on_prompts_without_end_is_told(caplog):
    model, other = tiny_model("coca").train(), tiny_model("coca").train()
    inputs = tiny_inputs(model, length=9)
    inputs["input_ids"][2, -1] = EOS
    endless = inputs["input_ids"].clamp(max=EOS - 1)
    logging.enable_propagation()
    model(**inputs, labels=inputs["input_ids"])
    model.eval()(**inputs, labels=endless)
    assert "end-of-text" not in caplog.text
    other(**inputs, labels=endless)
    logging.disable_propagation()
    assert "labels without an end-of-text token (id 96)" in caplog.text and "return_labels=True" in caplog.text


def test_labels_want_a_logit_each():
    model = tiny_model("coca")
    inputs = tiny_inputs(model)
    with pytest.raises(
        ValueError, match=r"labels have shape \(3, 10\), the logits are for \(3, 1\) tokens.*input_ids"
    ):
        model(pixel_values=inputs["pixel_values"], labels=inputs["input_ids"])
    with pytest.raises(ValueError, match="no logits_to_keep"):
        model(**inputs, labels=inputs["input_ids"], logits_to_keep=1)


@pytest.mark.parametrize("name", MODELS)
def test_arguments_that_nothing_reads_are_refused(name):
    model = tiny_model(name)
    inputs = tiny_inputs(model)
    with pytest.raises(
        ValueError, match=rf"Got normalize, a name that is not read here.*{type(model).__name__} takes"
    ):
        model(**inputs, normalize=True)
    with pytest.raises(ValueError, match="Got attention_masks, crop, names that are not read here"):
        model(**inputs, attention_masks=inputs, crop=0)
    if "position_ids" not in inspect.signature(model.forward).parameters:
        with pytest.raises(ValueError, match="Got position_ids"):
            model(**inputs, position_ids=torch.zeros(3, 10, dtype=torch.int64))
    with torch.no_grad():
        expected = main_outputs(model(**inputs))
        passed = {"num_items_in_batch": 3, "max_length_q": 5, "output_attentions": False, "decoder_input_ids": None}
        outputs = main_outputs(model(**inputs, **passed))
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


def test_arguments_that_need_others_are_refused_alone():
    model = tiny_model("coca")
    inputs = tiny_inputs(model)
    with pytest.raises(ValueError, match="text_attention_mask is only read with a cache"):
        model(**inputs, text_attention_mask=torch.ones(3, 10))
    with pytest.raises(ValueError, match="diversity_penalty tells groups of beams apart: pass num_beam_groups"):
        model.generate(pixel_values=inputs["pixel_values"], num_beams=2, diversity_penalty=0.5, max_new_tokens=2)


@pytest.mark.parametrize("name", ["clip", "siglip_with_siglip_vit", "clip_resnet", "clip_timm_vision", "clip_hf_text"])
def test_features_refuse_arguments_that_nothing_reads(name):
    model = tiny_model(name)
    inputs = tiny_inputs(model)
    with pytest.raises(ValueError, match="Got normalize"):
        model.get_image_features(inputs["pixel_values"], normalize=True)
    with pytest.raises(ValueError, match="Got normalize"):
        model.get_text_features(inputs["input_ids"], normalize=True)
    with pytest.raises(ValueError, match="Got inputs_embeds"):
        model(**inputs, inputs_embeds=torch.randn(3, 10, 36))


@pytest.mark.parametrize(
    ("tower", "backbone"),
    [("vit", OpenClipVitBackbone), ("siglip_vit", SiglipVitBackbone), ("resnet", ModifiedResNetBackbone)],
)
def test_backbones_refuse_arguments_that_nothing_reads(tower, backbone):
    model = backbone(MODELS[tower][1]())
    with pytest.raises(ValueError, match="Got normalize"):
        model(**tiny_inputs(model), normalize=True)


@pytest.mark.parametrize(
    "name", ["clip", "siglip", "clip_resnet", "clip_timm_vision", "clip_hf_text", "coca_for_zero_shot"]
)
def test_dual_model_embeds_one_side_alone(name):
    model = tiny_model(name)
    inputs = tiny_inputs(model)
    with torch.no_grad():
        expected = model(**inputs)
        for side, embeds in (("pixel_values", "image_embeds"), ("input_ids", "text_embeds")):
            outputs = model(**{side: inputs[side]})
            assert torch.equal(outputs[embeds], expected[embeds])
            assert torch.equal(model(**{side: inputs[side]}, return_dict=False)[0], expected[embeds])
            assert outputs.logits_per_image is outputs.logits_per_text is None
            with pytest.raises(ValueError, match="return_loss=True compares embeddings"):
                model(**{side: inputs[side]}, return_loss=True)
    with pytest.raises(ValueError, match="needs pixel_values, input_ids or both, got neither"):
        model()


def test_forward_takes_its_arguments_in_the_order_of_clip():
    from inspect import signature

    from transformers import CLIPModel

    expected = list(signature(CLIPModel.forward).parameters)
    # Those of NaFlex towers follow.
    assert list(signature(type(tiny_model("clip")).forward).parameters)[: len(expected) - 1] == expected[:-1]
    assert list(signature(type(tiny_model("coca")).forward).parameters)[:5] == expected[:5]
