"""Cases, of which each says how transformers' tests get one of our classes, tiny."""

import torch
from tiny_models import BOS, EOS


# Tests of transformers that do not fit a kind of model; its own tests of such models leave them out or rewrite them.
_IN_TOWERS = "inside the output of each tower, whose cases test it"
KIND_IGNORE = {
    "dual": {
        "test_attention_outputs": _IN_TOWERS,
        "test_hidden_states_output": _IN_TOWERS,
        "test_retain_grad_hidden_states_attentions": _IN_TOWERS,
    },
}


def ids(batch: int, length: int) -> torch.Tensor:
    """Ids of text tokens (batch, length); none is a special one."""
    return torch.randint(3, BOS, (batch, length))


def texts(batch: int, length: int = 10) -> torch.Tensor:
    """Ids (batch, length) of texts without padding, with their begin and their end."""
    tokens = ids(batch, length)
    tokens[:, 0], tokens[:, -1] = BOS, EOS
    return tokens


def pixels(batch: int, size: int) -> torch.Tensor:
    return torch.rand(batch, 3, size, size)


class Case:
    """What is tested, by which suites.

    Attributes:
        suites: names of functions of `suites.py`.
        ignore: reasons by `"test name"` for the first of `suites`, or `"suite:test name"`; that test has to fail.
        ignore_on_older: likewise, for all releases before the newest.
    """

    suites: tuple[str, ...] = ()
    ignore: dict[str, str] = {}
    ignore_on_older: dict[str, str] = {}


class ModelCase(Case):
    """Model classes with one configuration.

    Further attributes and tests go to the class of the suite `common`, for transformers' own switches such as
    `test_resize_embeddings`, and in place of its tests.

    Attributes:
        kind: `"vision"`, `"text"`, `"dual"` or `"captioner"`.
        base_classes: those without a loss, which tests of training pass over.
        heads: classes with a loss, by the task of their Auto class.
        auto_classes: the class that an Auto class builds.
        pipeline_model_mapping: the class that a pipeline runs.
        config_changes: fields that the tests of configurations set.
        common_properties: fields that these look for, by default hidden_size and the numbers of layers and heads.
        prefix_tokens: tokens before the patches of an image.
        tester: what transformers calls attributes of its ModelTester, such as seq_length.
    """

    suites = ("common", "config", "generation", "auto", "pipeline", "cpu")
    kind = ""
    model_classes: tuple[type, ...] = ()
    base_classes: tuple[type, ...] = ()
    heads: dict[str, tuple[type, ...]] = {}
    auto_classes: dict[str, type] = {}
    pipeline_model_mapping: dict[str, type] = {}
    config_changes: dict = {}
    common_properties: list[str] | None = None
    is_training = True
    batch_size = 3
    prefix_tokens = 0
    tester: dict = {}

    def config(self):
        """A new configuration."""
        raise NotImplementedError

    def inputs(self, config) -> dict[str, torch.Tensor]:
        """Arguments of `forward`, `batch_size` rows."""
        raise NotImplementedError

    def labels(self, config, inputs, model_class) -> dict:
        """Further arguments with which `model_class` returns a loss, where its head does not tell."""
        return {}

    def tester_values(self, config) -> dict:
        """Those of `tester` that depend on the configuration."""
        return {}

    def processing(self, config) -> dict:
        """Arguments of `pipeline`: any of tokenizer, image_processor and processor."""
        return {}


class BackboneCase(ModelCase):
    """Backbones with one configuration."""

    suites = ("common", "backbone", "cpu")


class TokenizerCase(Case):
    """A tokenizer, which is saved to a folder for the tests to load."""

    suites = ("tokenizer",)
    tokenizer_class: type | None = None

    def tokenizer(self):
        raise NotImplementedError


class ImageProcessorCase(Case):
    """Image processors by the names of their backends, and the arguments with which they are made."""

    suites = ("image_processor",)
    classes: dict[str, type] = {}
    kwargs: dict = {}


class ProcessorCase(Case):
    """A processor and the parts that it is made of."""

    suites = ("processor",)
    processor_class: type | None = None

    def components(self) -> dict:
        raise NotImplementedError
