"""Test classes made of cases: transformers' common tests, and contracts for what its sdist leaves out.

Each suite is a function from a class of `cases.py` to the test classes that it stands for.
"""

import copy
import functools
import shutil
import tempfile
import unittest
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from hf_suite import upstream
from hf_suite.auto_contract import AutoContract
from hf_suite.cases import KIND_IGNORE, Case, ImageProcessorCase, ModelCase, ProcessorCase, TokenizerCase
from hf_suite.cpu_contract import CpuContract
from hf_suite.generation_contract import GenerationContract
from hf_suite.pipeline_contract import pipeline_tests
from transformers import AutoTokenizer

from open_clip_transformers.convert_scripts.hub import bundle_code


# Older releases lack some tests, and have others that let more pass.
IS_NEWEST = upstream.VERSION.startswith(f"{bundle_code.TESTED_TRANSFORMERS[-1]}.")


def make_suite(name: str, case_class: type[Case]) -> Iterator[tuple[str, type[unittest.TestCase]]]:
    """The test classes of suite `name` of a case with their names; what the case ignores is expected to fail.

    Raises:
        AttributeError: the case ignores a test that the suite does not have, on the newest transformers.
    """
    for suite in SUITES[name](case_class):
        for test, reason in _ignored(name, case_class).items():
            if IS_NEWEST or hasattr(suite, test):
                setattr(suite, test, _expected_to_fail(getattr(suite, test), reason))
        yield f"Test{suite.__name__}_{name}", suite


def _ignored(suite: str, case_class: type[Case]) -> dict[str, str]:
    rules = dict(KIND_IGNORE.get(case_class.kind, {})) if suite == "common" else {}
    for base in reversed(case_class.__mro__):
        ignore = vars(base).get("ignore", {}) | ({} if IS_NEWEST else vars(base).get("ignore_on_older", {}))
        for key, reason in ignore.items():
            where, _, test = key.rpartition(":")
            if (where or case_class.suites[0]) == suite:
                rules[test] = reason
    return rules


def _expected_to_fail(test, reason: str):
    @functools.wraps(test)
    def copied(self):
        return test(self)

    return pytest.mark.xfail(reason=reason, strict=IS_NEWEST)(copied)


def _extras(case_class: type[Case], base: type[Case]) -> dict:
    """What a case has beyond the attributes of `base`, for the class of tests."""
    bases = [each for each in reversed(case_class.__mro__) if issubclass(each, base) and each is not base]
    return {k: v for each in bases for k, v in vars(each).items() if k not in dir(base)}


def _test_class(name: str, *bases: type, **attributes) -> type[unittest.TestCase]:
    return type(name, (*bases, unittest.TestCase), attributes)


class Tester:
    """What transformers' tests call ModelTester."""

    def __init__(self, case: ModelCase, parent: unittest.TestCase):
        self.case, self.parent = case, parent
        config = case.config()
        inputs = case.inputs(config)
        self.batch_size, self.is_training = case.batch_size, case.is_training
        text, vision = config.get_text_config(decoder=True), getattr(config, "vision_config", config)
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "pad_token_id")
        for part, names in ((text, sizes), (vision, ("image_size", "patch_size"))):
            vars(self).update({name: getattr(part, name) for name in names if getattr(part, name, None) is not None})
        for name in ("text_config", "vision_config"):
            if hasattr(config, name):
                setattr(self, name, getattr(config, name).to_dict())
        if "input_ids" in inputs:
            self.seq_length = inputs["input_ids"].shape[-1]
        elif isinstance(getattr(self, "patch_size", None), int):
            self.seq_length = (self.image_size // self.patch_size) ** 2 + case.prefix_tokens
        vars(self).update({**case.tester_values(config), **case.tester})

    def get_config(self):
        return self.case.config()

    def prepare_config_and_inputs_for_common(self):
        config = self.case.config()
        return config, self.case.inputs(config)

    prepare_config_and_inputs = prepare_config_and_inputs_for_common


def config_suite(case_class):
    """ConfigTester, a test for each of its checks."""
    tester_class = upstream.load("test_configuration_common").ConfigTester
    case = case_class()
    config = case.config()

    def set_up(self):
        self.model_tester = Tester(case, self)
        self.config_tester = tester_class(
            self,
            config_class=type(config),
            has_text_modality=getattr(config, "vocab_size", None) is not None,
            common_properties=case.common_properties,
            **case.config_changes,
        )

    def run(check):
        def test(self):  # which a lambda could not be: pytest.mark would take it for an argument
            getattr(self.config_tester, check)()

        return test

    checks = [name for name in dir(tester_class) if name.startswith(("create_and_test_", "check_"))]
    tests = {"test_" + name.removeprefix("create_and_test_").removeprefix("check_"): run(name) for name in checks}
    yield _test_class(case_class.__name__, setUp=set_up, **tests)


def common_suite(case_class):
    """ModelTesterMixin."""
    module = upstream.load("test_modeling_common")
    case = case_class()
    config = case.config()
    arguments = set(case.inputs(config)) - {"attention_mask", case.model_classes[0].main_input_name}

    class Common(module.ModelTesterMixin):
        all_model_classes = tuple(case.model_classes)
        pipeline_model_mapping = case.pipeline_model_mapping
        is_encoder_decoder = False
        additional_model_inputs = sorted(arguments)
        test_resize_embeddings = case.kind != "vision"
        # Otherwise skipped, unless the file of the configuration begins with a year from 2023 on.
        test_can_init_all_missing_weights_before_2023 = True
        _is_composite = {"text_config", "vision_config"} <= set(config.sub_configs)

        @classmethod
        def setUpClass(cls):
            for patch in _mapping_patches(module, case):
                patch.start()
                cls.addClassCleanup(patch.stop)
            super().setUpClass()

        def setUp(self):
            self.model_tester = Tester(case, self)

        def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
            inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
            return {**inputs, **(case.labels(case.config(), inputs, model_class) if return_labels else {})}

    class Vision(Common):
        def test_model_get_set_embeddings(self):  # transformers asks for an nn.Embedding
            for model_class in self.all_model_classes:
                model = model_class(copy.deepcopy(config))
                self.assertIsInstance(model.get_input_embeddings(), torch.nn.Module)
                self.assertIsInstance(model.get_output_embeddings(), torch.nn.Linear | None)

    bases = [Vision if case.kind == "vision" else Common]
    if any(model_class.can_generate() for model_class in case.model_classes):
        bases.append(upstream.load("test_modeling_common").GenerationTesterMixin)
    yield _test_class(case_class.__name__, *bases, **_extras(case_class, ModelCase))


def _mapping_patches(module, case):
    """Patches that add the classes of a case to the mappings by which the common tests choose labels."""
    wanted = {"MODEL_MAPPING_NAMES": case.base_classes}
    for task, classes in case.heads.items():
        wanted[f"MODEL_FOR_{task.upper().replace('-', '_')}_MAPPING_NAMES"] = classes
    for mapping, classes in wanted.items():
        names = tuple(model_class.__name__ for model_class in classes)
        yield mock.patch.dict(getattr(module, mapping), {case.config().model_type: names})


def generation_suite(case_class):
    for model_class in case_class.model_classes:
        if model_class.can_generate():
            name = f"{case_class.__name__}_{model_class.__name__}"
            yield _test_class(name, GenerationContract, case=case_class(), model_class=model_class)


def auto_suite(case_class):
    if case_class.auto_classes:
        yield _test_class(case_class.__name__, AutoContract, case=case_class())


def cpu_suite(case_class):
    yield _test_class(case_class.__name__, CpuContract, case=case_class())


def pipeline_suite(case_class):
    if case_class.pipeline_model_mapping:
        yield _test_class(case_class.__name__, case=case_class(), **pipeline_tests(case_class))


def backbone_suite(case_class):
    """BackboneTesterMixin."""
    case = case_class()

    def set_up(self):
        self.model_tester = Tester(case, self)

    yield _test_class(
        case_class.__name__,
        upstream.load("test_backbone_common").BackboneTesterMixin,
        all_model_classes=case.model_classes,
        config_class=type(case.config()),
        has_attentions=getattr(case, "has_attentions", True),
        setUp=set_up,
    )


def tokenizer_suite(case_class):
    """TokenizerTesterMixin, with a folder instead of a name on the Hub."""

    class Tokenizer(upstream.load("test_tokenization_common").TokenizerTesterMixin):
        tokenizer_class = rust_tokenizer_class = case_class.tokenizer_class

        @classmethod
        def setUpClass(cls):
            cls.from_pretrained_id = tempfile.mkdtemp()
            cls.addClassCleanup(shutil.rmtree, cls.from_pretrained_id)
            case_class().tokenizer().save_pretrained(cls.from_pretrained_id)
            with mock.patch.object(AutoTokenizer, "from_pretrained", cls.tokenizer_class.from_pretrained):
                super().setUpClass()

    yield _test_class(case_class.__name__, Tokenizer, **_extras(case_class, TokenizerCase))


def image_processor_suite(case_class):
    """ImageProcessingTestMixin."""
    module = upstream.load("test_image_processing_common")

    if not hasattr(module, "ImageProcessingTester"):  # older releases have a tester for each image processor instead
        return

    class Tester(module.ImageProcessingTester):
        def __init__(self, parent):
            super().__init__(parent, batch_size=4, num_channels=3, max_resolution=120, **case_class.kwargs)

        def _get_image_processing_classes(self):
            return dict(case_class.classes)

    extras = _extras(case_class, ImageProcessorCase)
    yield _test_class(
        case_class.__name__, module.ImageProcessingTestMixin, image_processor_tester_class=Tester, **extras
    )


def processor_suite(case_class):
    """ProcessorTesterMixin."""
    mixin = upstream.load("test_processing_common").ProcessorTesterMixin

    def set_up(name):
        return classmethod(lambda cls: case_class().components()[name])

    parts = {f"_setup_{name}": set_up(name) for name in case_class().components()}
    extras = _extras(case_class, ProcessorCase)
    yield _test_class(case_class.__name__, mixin, processor_class=case_class.processor_class, **parts, **extras)


SUITES = {
    "auto": auto_suite,
    "backbone": backbone_suite,
    "common": common_suite,
    "config": config_suite,
    "cpu": cpu_suite,
    "generation": generation_suite,
    "image_processor": image_processor_suite,
    "pipeline": pipeline_suite,
    "processor": processor_suite,
    "tokenizer": tokenizer_suite,
}
# Those of transformers, which have to be fetched.
UPSTREAM = {"backbone", "common", "config", "image_processor", "processor", "tokenizer"}
