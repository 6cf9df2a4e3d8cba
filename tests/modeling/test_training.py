"""Training: gradients reach every parameter, checkpointing changes none, dropouts act only there."""

import pytest
import torch
from tiny_models import PAD, tiny_inputs, tiny_model


# transformers 5.23 has a new name for it, and the old one still works.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_.* is deprecated:FutureWarning")

NAMES = ["vit", "siglip_vit", "text", "text_with_class_token", "clip", "siglip", "coca", "image_classification"]
MODERN = ["coca_modern", "mammut_modern"]
every_model = pytest.mark.parametrize("name", NAMES)


def training_inputs(model) -> dict[str, torch.Tensor]:
    """Inputs with the targets that `model` learns from."""
    inputs = tiny_inputs(model)
    if hasattr(model, "contrastive_loss"):
        inputs["return_loss"] = True
    if hasattr(model, "lm_head"):
        inputs["labels"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == PAD, -100)
    if hasattr(model, "classifier"):
        inputs["labels"] = torch.tensor([1, 0, 1])
    return inputs


def training_loss(model) -> torch.Tensor:
    """A scalar in which every parameter has a part."""
    outputs = model(**training_inputs(model))
    if outputs.get("loss") is not None:
        return outputs.loss
    return sum((outputs[name] ** 2).mean() for name in ("last_hidden_state", "pooler_output"))


def gradients(model) -> dict[str, torch.Tensor]:
    model.zero_grad()
    training_loss(model).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.floor
@pytest.mark.parametrize("name", [*NAMES, *MODERN])
def test_every_parameter_gets_a_gradient(name):
    grads = gradients(tiny_model(name).train())
    assert [key for key, grad in grads.items() if grad is None or not grad.isfinite().all() or not grad.any()] == []


@pytest.mark.floor
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non_reentrant"])
@every_model
def test_gradient_checkpointing_changes_no_gradient(name, reentrant):
    model = tiny_model(name).train()
    expected = gradients(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    layers = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    forwards = []
    for layer in layers:
        layer.layer_norm1.register_forward_hook(lambda *_: forwards.append(1))
    assert layers
    for key, grad in gradients(model).items():
        assert torch.equal(grad, expected[key]), key
    assert len(forwards) == 2 * len(layers), "the layers were not computed anew"
    model.gradient_checkpointing_disable()
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


@pytest.mark.floor
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non_reentrant"])
@pytest.mark.parametrize("name", MODERN)
def test_cross_attention_inside_a_layer_is_computed_anew_with_it(name, reentrant):
    model = tiny_model(name).train()
    expected = gradients(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    forwards = []
    for layer in model.multimodal_decoder.cross_attention_layers:
        layer.layer_norm1.register_forward_hook(lambda *_: forwards.append(1))
    # The image tokens get the gradients of several layers, added in another order.
    for key, grad in gradients(model).items():
        assert torch.allclose(grad, expected[key], rtol=1e-4, atol=1e-6), key
    assert len(forwards) == 2 * len(model.multimodal_decoder.cross_attention_layers)


def caption_gradients(model) -> dict[str, torch.Tensor]:
    """Gradients, zeros for what captions do not depend on."""
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
    }


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_coca_learns_the_same_with_a_cache(checkpointing):
    # With gradient checkpointing transformers drops the cache: a layer computed anew would extend it again.
    model = tiny_model("coca").train()
    attention_mask = torch.ones(3, 10, dtype=torch.long)
    attention_mask[0, 0] = 0
    inputs = {**training_inputs(model), "return_loss": False, "attention_mask": attention_mask}
    model(**inputs).loss.backward()
    expected = caption_gradients(model)
    model.zero_grad()
    if checkpointing:
        model.gradient_checkpointing_enable()
    model(**inputs, use_cache=True).loss.backward()
    for name, gradient in caption_gradients(model).items():
        assert torch.allclose(gradient, expected[name], rtol=1e-3, atol=1e-6), name


@pytest.mark.floor
@torch.no_grad()
def test_coca_takes_labels_that_were_shifted_outside():
    model = tiny_model("coca")
    inputs = {**tiny_inputs(model), "return_loss": True}
    labels = inputs["input_ids"]
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    assert torch.equal(model(**inputs, labels=labels).loss, model(**inputs, shift_labels=shifted).loss)
    # A part of a text, which its last token continues: as a device has it that holds a part of each text.
    first = {**inputs, "input_ids": labels[:, :4]}
    losses = [model(**first, labels=given, shift_labels=labels[:, 1:5]).loss for given in (None, labels[:, :4])]
    assert torch.equal(*losses) and not torch.equal(losses[0], model(**first, labels=labels[:, :4]).loss)
    with pytest.raises(ValueError, match="labels have shape"):
        model(**inputs, shift_labels=labels[:, 1:])


@pytest.mark.parametrize("name", ["clip", "coca"])
def test_a_training_step_lowers_the_loss(name):
    model = tiny_model(name).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = training_loss(model)
    before.backward()
    optimizer.step()
    assert training_loss(model) < before


@pytest.mark.floor
def test_patch_dropout_keeps_the_class_token_and_some_patches():
    model = tiny_model("vit", patch_dropout=0.4)
    inputs = tiny_inputs(model)
    with torch.no_grad():
        expected = tiny_model("vit")(**inputs).pooler_output
        assert torch.equal(model(**inputs).pooler_output, expected)
        model.train()
        outputs = model(**inputs, output_hidden_states=True)
        embeddings = model.embeddings(inputs["pixel_values"])
        kept = model.patch_dropout(embeddings)
    assert outputs.hidden_states[0].shape == (3, 1 + 5, 40)
    assert torch.equal(kept[:, 0], embeddings[:, 0])
    for row in range(3):
        distances = torch.cdist(kept[row, 1:], embeddings[row, 1:])
        assert (distances.min(dim=1).values == 0).all()
        assert distances.argmin(dim=1).unique().numel() == 5
    assert not torch.equal(model.patch_dropout(embeddings), kept)


def test_patch_dropout_keeps_one_patch_at_least():
    model = tiny_model("vit", patch_dropout=0.99).train()
    assert model(**tiny_inputs(model), output_hidden_states=True).hidden_states[0].shape == (3, 2, 40)


@pytest.mark.parametrize("name", ["vit", "text"])
def test_stochastic_depth_acts_in_training_alone(name):
    plain, model = tiny_model(name), tiny_model(name, drop_path_rate=0.5)
    inputs = tiny_inputs(model)
    with torch.no_grad():
        assert torch.equal(model(**inputs).pooler_output, plain(**inputs).pooler_output)
        model.train()
        assert not torch.allclose(model(**inputs).pooler_output, model(**inputs).pooler_output)


@pytest.mark.parametrize(
    ("labels", "fields"),
    [
        (torch.tensor([1, 0, 2]), {"num_labels": 3}),
        (torch.tensor([[0.0, 1.0, 1.0]] * 3), {"num_labels": 3, "problem_type": "multi_label_classification"}),
        (torch.tensor([0.3, -1.0, 2.0]), {"num_labels": 1}),
    ],
    ids=["classes", "several_labels", "regression"],
)
def test_classifier_loss_follows_the_problem_type(labels, fields):
    model = tiny_model("image_classification", **fields)
    outputs = model(**tiny_inputs(model), labels=labels)
    functional = torch.nn.functional
    expected = {
        "classes": lambda: functional.cross_entropy(outputs.logits, labels),
        "several_labels": lambda: functional.binary_cross_entropy_with_logits(outputs.logits, labels),
        "regression": lambda: functional.mse_loss(outputs.logits.squeeze(1), labels),
    }
    kind = "regression" if fields["num_labels"] == 1 else "several_labels" if labels.ndim == 2 else "classes"
    assert outputs.loss.item() == pytest.approx(expected[kind]().item(), rel=1e-5)
