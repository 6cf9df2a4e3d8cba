"""A case for each of our classes, and for the options that make towers differ; sizes are those of `tiny_configs`."""

import torch
from hf_suite.cases import (
    BackboneCase,
    Case,
    ImageProcessorCase,
    ModelCase,
    ProcessorCase,
    TokenizerCase,
    ids,
    pixels,
    texts,
)
from tiny_configs import (
    tiny_clip_cfg,
    tiny_coca_cfg,
    tiny_hf_coca_cfg,
    tiny_hf_text_cfg,
    tiny_mammut_cfg,
    tiny_modern_coca_cfg,
    tiny_modern_mammut_cfg,
    tiny_modern_text_cfg,
)
from tiny_models import (
    BOS,
    CLIP,
    COCA,
    EOS,
    PAD,
    RESNET,
    SIGLIP,
    tiny_config,
    tiny_naflex_vit_config,
    tiny_naflex_vit_dual_config,
    tiny_patches,
    tiny_siglip_vit_config,
    tiny_siglip_vit_dual_config,
    tiny_timm_config,
    tiny_timm_dual_config,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from open_clip_transformers.modeling.modeling_coca import (
    CoCaForConditionalGeneration,
    CoCaForImageClassification,
    CoCaForZeroShotImageClassification,
    CoCaModel,
)
from open_clip_transformers.modeling.modeling_hf_text import HfTextModel
from open_clip_transformers.modeling.modeling_mammut import (
    MaMMUTForConditionalGeneration,
    MaMMUTForImageClassification,
    MaMMUTForZeroShotImageClassification,
    MaMMUTModel,
)
from open_clip_transformers.modeling.modeling_mammut_text import MaMMUTTextModel
from open_clip_transformers.modeling.modeling_modern_text import ModernTextModel
from open_clip_transformers.modeling.modeling_modified_resnet import ModifiedResNetBackbone, ModifiedResNetModel
from open_clip_transformers.modeling.modeling_naflex_vit import NaFlexVitModel
from open_clip_transformers.modeling.modeling_open_clip import (
    OpenClipForImageClassification,
    OpenClipModel,
    OpenClipSiglipForImageClassification,
    OpenClipSiglipModel,
    OpenClipTextModelWithProjection,
    OpenClipVisionModelWithProjection,
)
from open_clip_transformers.modeling.modeling_siglip_vit import SiglipVitBackbone, SiglipVitModel
from open_clip_transformers.modeling.modeling_text import OpenClipTextModel
from open_clip_transformers.modeling.modeling_timm_vision import TimmVisionModel
from open_clip_transformers.modeling.modeling_vit import OpenClipVitBackbone, OpenClipVitModel
from open_clip_transformers.processing.image_processing_naflex import NaFlexImageProcessor
from open_clip_transformers.processing.image_processing_open_clip import OpenClipImageProcessor
from open_clip_transformers.processing.image_processing_pil_open_clip import OpenClipImageProcessorPil
from open_clip_transformers.processing.processing_coca import CoCaProcessor
from open_clip_transformers.processing.processing_open_clip import OpenClipProcessor
from open_clip_transformers.processing.tokenization_open_clip import OpenClipTokenizer


IMAGE_SIZE = 24
PLAIN = tiny_clip_cfg(vision_cfg={"layers": 2})
PLAIN_COCA = tiny_coca_cfg(
    vision_cfg={"layers": 2}, text_cfg={"context_length": 24}, multimodal_cfg={"context_length": 24}
)

# Longer than captions here get: transformers looks up tokens beyond the end of a caption.
PLAIN_MAMMUT = tiny_mammut_cfg(vision_cfg={"layers": 2}, text_cfg={"context_length": 28, "layers": 2})


def word_tokenizer(length=10, **settings):
    """A tokenizer of ours whose vocabulary is as small as that of the tiny models."""
    words = {"a": 1, "photo": 2, "of": 3, "the": 4, "cat": 5, "dog": 6, "this": 7, "is": 8, "picture": 9, ".": 10}
    special = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, "<unk>": 11}
    backend = Tokenizer(models.WordLevel({**words, **{f"w{i}": i for i in range(12, BOS)}, **special}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return OpenClipTokenizer(tokenizer_object=backend, model_max_length=length, **names, **settings)


def image_processor(size=IMAGE_SIZE):
    return OpenClipImageProcessor(size={"height": size, "width": size})


class _Vision(ModelCase):
    kind = "vision"
    size = IMAGE_SIZE
    config_changes = {"hidden_size": 96}

    def inputs(self, config):
        return {"pixel_values": pixels(self.batch_size, self.size)}

    def processing(self, config):
        return {"image_processor": image_processor(self.size)}


class Vit(_Vision):
    model_classes = base_classes = (OpenClipVitModel,)
    auto_classes = {"AutoModel": OpenClipVitModel}
    pipeline_model_mapping = {"image-feature-extraction": OpenClipVitModel}
    prefix_tokens = 1

    def config(self):
        return tiny_config(PLAIN).vision_config


class VitOptions(Vit):
    """Scaled cosine attention, head scales, a sin-cos table, LayerScale."""

    pipeline_model_mapping = {}

    def config(self):
        config = tiny_config(CLIP).vision_config
        config.num_hidden_layers = 2
        return config


class VitCascade(Vit):
    """CoCa's tower with two attentional poolers."""

    pipeline_model_mapping = {}
    config_changes = {}

    def config(self):
        config = tiny_config(COCA).vision_config
        config.num_hidden_layers = 2
        return config


class SiglipVit(_Vision):
    model_classes = base_classes = (SiglipVitModel,)
    auto_classes = {"AutoModel": SiglipVitModel}
    pipeline_model_mapping = {"image-feature-extraction": SiglipVitModel}
    tester = {"seq_length": 3 * 4 + 3}  # class token, two registers, 12 patches
    config_changes = {"hidden_size": 96}

    def config(self):
        return tiny_siglip_vit_config(num_hidden_layers=2)


class SiglipVitPlain(SiglipVit):
    """As SigLIP has it: no prefix tokens, attention pooling, no projection."""

    tester = {"seq_length": 3 * 4}
    pipeline_model_mapping = {}

    def config(self):
        options = {"use_class_token": False, "num_register_tokens": 0, "use_pre_layer_norm": False, "qk_norm": False}
        options |= {"layer_scale_init_value": None, "proj_type": "none", "projection_dim": None, "proj_bias": False}
        return tiny_siglip_vit_config(num_hidden_layers=2, **options)


_MASKS = ("_sdpa_kernels", "", "_no_attn_mask_sdpa_kernels", "_no_attn_mask")
_OF_SDPA = [
    *(
        f"{dtype}_pad_{side}{mask}"
        for dtype in ("fp16", "fp32", "bf16")
        for side in ("left", "right")
        for mask in _MASKS
    ),
    "fp32_pad_left_output_attentions",
]
_NO_SHAPES = {
    f"test_eager_matches_sdpa_inference_{number:02d}_{name}": "draws numbers for spatial_shapes, which are no shapes"
    for number, name in enumerate(_OF_SDPA)
}


class NaFlexVit(_Vision):
    """Patches of images of several shapes, with padding behind them."""

    model_classes = base_classes = (NaFlexVitModel,)
    auto_classes = {"AutoModel": NaFlexVitModel}
    pipeline_model_mapping = {"image-feature-extraction": NaFlexVitModel}
    tester = {"seq_length": 12 + 3}  # class token, two registers, 12 patches
    config_changes = {"hidden_size": 96}
    ignore = _NO_SHAPES

    def config(self):
        return tiny_naflex_vit_config()

    def inputs(self, config):
        return tiny_patches(config, self.batch_size)

    def processing(self, config):
        settings = {"patch_size": config.patch_size, "max_num_patches": config.max_num_patches}
        return {"image_processor": NaFlexImageProcessor(**settings)}


class NaFlexVitPlain(_Vision):
    """As SigLIP 2 has it: no prefix tokens, attention pooling, no projection; images are given whole."""

    model_classes = base_classes = (NaFlexVitModel,)
    auto_classes = {"AutoModel": NaFlexVitModel}
    tester = {"seq_length": 12}

    def config(self):
        options = {"use_class_token": False, "num_register_tokens": 0, "qk_norm": False, "proj_bias": False}
        options |= {"layer_scale_init_value": None, "proj_type": "none", "projection_dim": None}
        return tiny_naflex_vit_config(**options)


class ResNet(_Vision):
    config_changes = {}
    model_classes = base_classes = (ModifiedResNetModel,)
    auto_classes = {"AutoModel": ModifiedResNetModel}
    pipeline_model_mapping = {"image-feature-extraction": ModifiedResNetModel}
    size = 96
    common_properties = ["depths", "projection_dim", "image_size"]
    tester = {"num_hidden_layers": 1}  # attentions: those of the pooling alone

    def config(self):
        return tiny_config(RESNET).vision_config

    # As transformers' tests of ResNet and Swin do, whose hidden states are feature maps.
    def test_hidden_states_output(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            for by_config in (False, True):
                config.output_hidden_states = by_config
                model = model_class(config).eval()
                outputs = model(**inputs) if by_config else model(**inputs, output_hidden_states=True)
                self.assertEqual(len(outputs.hidden_states), 5)
                self.assertEqual(outputs.hidden_states[-1].shape[1:2], (config.token_dim,))

    def test_retain_grad_hidden_states_attentions(self):  # through the pooling, whose attentions they are
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        config._attn_implementation = "eager"
        outputs = ModifiedResNetModel(config)(**inputs, output_attentions=True, output_hidden_states=True)
        kept = [outputs.hidden_states[0], outputs.attentions[0]]
        for tensor in kept:
            tensor.retain_grad()
        outputs.pooler_output.flatten()[0].backward()
        self.assertTrue(all(tensor.grad is not None for tensor in kept))

    def test_attention_outputs(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            config._attn_implementation = "eager"
            outputs = model_class(config).eval()(**inputs, output_attentions=True)
            self.assertEqual(len(outputs.attentions), 1)
            self.assertEqual(outputs.attentions[0].shape, (3, config.num_attention_heads, 1, 10))


class Timm(_Vision):
    config_changes = {}
    model_classes = base_classes = (TimmVisionModel,)
    auto_classes = {"AutoModel": TimmVisionModel}
    pipeline_model_mapping = {"image-feature-extraction": TimmVisionModel}
    has_attentions = False  # timm computes attention itself
    common_properties = ["hidden_size", "projection_dim", "image_size"]
    tester = {"num_hidden_layers": 2, "num_attention_heads": 2}
    ignore = {  # as transformers' own test of TimmWrapper skips them
        "test_can_init_all_missing_weights": "timm draws its weights itself, without transformers' seed",
        "test_gradient_checkpointing_enable_disable": "timm has no GradientCheckpointingLayer, but its own, see below",
    }

    ignore_on_older = {"cpu:test_disk_offload": "transformers 5.5 dispatches no model that is on the disk alone"}

    def test_timm_gradient_checkpointing_enable_disable(self):
        model = TimmVisionModel(self.model_tester.get_config())
        for switch, is_on in (
            (model.gradient_checkpointing_enable, True),
            (model.gradient_checkpointing_disable, False),
        ):
            switch()
            self.assertEqual((model.is_gradient_checkpointing, model.timm_model.grad_checkpointing), (is_on, is_on))

    def test_hidden_states_output(self):  # timm's feature maps, one a block
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for by_config in (False, True):
            config.output_hidden_states = by_config
            model = TimmVisionModel(config).eval()
            outputs = model(**inputs) if by_config else model(**inputs, output_hidden_states=True)
            self.assertEqual([h.shape for h in outputs.hidden_states], [(3, 24, 3, 3)] * 2)

    def config(self):
        return tiny_timm_config()


class _Text(ModelCase):
    kind = "text"
    config_changes = {"hidden_size": 96}

    def inputs(self, config):
        return {
            "input_ids": texts(self.batch_size),
            "attention_mask": torch.ones(self.batch_size, 10, dtype=torch.long),
        }

    def processing(self, config):
        return {"tokenizer": word_tokenizer()}


class _OpenClipText(_Text):
    model_classes = base_classes = (OpenClipTextModel,)
    auto_classes = {"AutoModel": OpenClipTextModel}


class Text(_OpenClipText):
    pipeline_model_mapping = {"feature-extraction": OpenClipTextModel}
    ignore = dict.fromkeys(
        ("common:test_inputs_embeds", "common:test_inputs_embeds_matches_input_ids"),
        "the end of a text, where this tower pools, is known by its id",
    )

    def config(self):
        return tiny_config(PLAIN).text_config


class TextOptions(Text):
    pipeline_model_mapping = {}

    def config(self):
        return tiny_config(CLIP).text_config


class TextClassToken(_OpenClipText):
    """CoCa's text tower: a class token behind the text."""

    pipeline_model_mapping = {}

    def config(self):
        return tiny_config(COCA).text_config

    def tester_values(self, config):
        return {"seq_length": 11}


class TextBidirectional(_OpenClipText):
    """SigLIP's text tower."""

    pipeline_model_mapping = {}

    def config(self):
        return tiny_config(SIGLIP).text_config


class MaMMUTText(_OpenClipText):
    """MaMMUT's text tower: bidirectional, some layers without an MLP."""

    model_classes = base_classes = (MaMMUTTextModel,)
    auto_classes = {"AutoModel": MaMMUTTextModel}
    pipeline_model_mapping = {"feature-extraction": MaMMUTTextModel}
    config_changes = {}

    def config(self):
        return tiny_config(PLAIN_MAMMUT).text_config


class ModernTextOptions(_Text):
    """Bidirectional, pooled by attention, with registers and value residuals."""

    model_classes = base_classes = (ModernTextModel,)
    auto_classes = {"AutoModel": ModernTextModel}

    def config(self):
        return tiny_config(tiny_modern_text_cfg()).text_config

    def tester_values(self, config):
        return {"seq_length": 10 + config.num_register_tokens}


class ModernText(ModernTextOptions):
    """As moderntext-ViT-B-32-256: causal, pooled at the end."""

    pipeline_model_mapping = {"feature-extraction": ModernTextModel}
    ignore = Text.ignore

    def config(self):
        plain = {
            **{"pool_type": "eos", "eos_id": EOS, "attention_mode": "causal", "qk_norm": False, "reg_tokens": 0},
            **{"norm_placement": "pre", "value_residual": False, "ls_init_value": None, "freeze_pad_embed": None},
        }
        return tiny_config(tiny_modern_text_cfg(text_cfg=plain)).text_config


class HfBert(_Text):
    config_changes = {}
    model_classes = base_classes = (HfTextModel,)
    auto_classes = {"AutoModel": HfTextModel}
    pipeline_model_mapping = {"feature-extraction": HfTextModel}
    encoder = "bert"

    def config(self):
        return tiny_config(tiny_hf_text_cfg(self.encoder)).text_config

    def tester_values(self, config):
        encoder = config.hf_config
        return {"hidden_size": encoder.hidden_size, "num_attention_heads": encoder.num_attention_heads}


class HfRoberta(HfBert):
    encoder = "roberta"
    pipeline_model_mapping = {}


class HfMt5(HfBert):
    encoder = "mt5"
    pipeline_model_mapping = {}


class HfM2m100(HfBert):
    encoder = "m2m_100"
    ignore_on_older = {"cpu:test_compile_training": "its encoder branches on a random number in training"}
    pipeline_model_mapping = {}


class HfModernBert(HfBert):
    encoder = "modernbert"
    pipeline_model_mapping = {}


class _Dual(ModelCase):
    kind = "dual"
    size = IMAGE_SIZE
    config_changes = {}

    def inputs(self, config):
        text = {
            "input_ids": texts(self.batch_size),
            "attention_mask": torch.ones(self.batch_size, 10, dtype=torch.long),
        }
        return {**text, "pixel_values": pixels(self.batch_size, self.size)}

    def labels(self, config, inputs, model_class):
        return {"return_loss": True}

    def processing(self, config):
        return {"tokenizer": word_tokenizer(), "image_processor": image_processor(self.size)}


class Clip(_Dual):
    model_classes = (OpenClipModel,)
    auto_classes = {"AutoModel": OpenClipModel, "AutoModelForZeroShotImageClassification": OpenClipModel}
    pipeline_model_mapping = {"zero-shot-image-classification": OpenClipModel}

    def config(self):
        return tiny_config(PLAIN)


class ClipOptions(Clip):
    pipeline_model_mapping = {}

    def config(self):
        config = tiny_config(CLIP)
        config.vision_config.num_hidden_layers = 2
        return config


class ClipResNet(Clip):
    pipeline_model_mapping = {}
    size = 96

    skip_test_image_features_output_shape = True  # asks for a hidden_size

    def config(self):
        return tiny_config(RESNET)

    def _image_features_get_expected_num_attentions(self):
        return 1

    def _image_features_get_expected_num_hidden_states(self):
        return 5


class ClipTimm(Clip):
    pipeline_model_mapping = {}
    ignore = {name: Timm.ignore[name] for name in ("test_can_init_all_missing_weights",)} | {
        "test_get_image_features_attentions": "timm computes attention itself, and returns none",
    }

    def _image_features_get_expected_num_hidden_states(self):  # without the embeddings
        return 2

    def config(self):
        return tiny_timm_dual_config()


class ClipHfText(Clip):
    pipeline_model_mapping = {}
    ignore = {
        "config:test_config_from_pretrained_custom_kwargs": "vocab_size is a field of the encoder, inside text_config",
    }

    def config(self):
        return tiny_config(tiny_hf_text_cfg("roberta", vision_cfg={"layers": 2}))


class ClipModernText(Clip):
    pipeline_model_mapping = {}

    def config(self):
        return tiny_config(tiny_modern_text_cfg(vision_cfg={"layers": 2}))


class Siglip(_Dual):
    model_classes = (OpenClipSiglipModel,)
    auto_classes = {"AutoModel": OpenClipSiglipModel, "AutoModelForZeroShotImageClassification": OpenClipSiglipModel}
    pipeline_model_mapping = {"zero-shot-image-classification": OpenClipSiglipModel}

    def config(self):
        config = tiny_siglip_vit_dual_config()
        config.vision_config.num_hidden_layers = 2
        return config

    def processing(self, config):
        return {"tokenizer": word_tokenizer(fixed_length=True), "image_processor": image_processor(self.size)}


class SiglipNaFlex(Siglip):
    """With a NaFlex tower, whose layers have gates."""

    ignore = _NO_SHAPES

    def config(self):
        return tiny_naflex_vit_dual_config()

    def inputs(self, config):
        images = tiny_patches(config.vision_config, self.batch_size)
        return {**super().inputs(config), **images}

    def processing(self, config):
        return {**super().processing(config), **NaFlexVit.processing(self, config.vision_config)}


class CoCaZeroShot(_Dual):
    model_classes = (CoCaForZeroShotImageClassification,)
    auto_classes = {"AutoModelForZeroShotImageClassification": CoCaForZeroShotImageClassification}
    pipeline_model_mapping = {"zero-shot-image-classification": CoCaForZeroShotImageClassification}
    skip_test_image_features_output_shape = True  # an attentional pooler's tokens are as wide as the embedding

    def config(self):
        return tiny_config(PLAIN_COCA)

    def tester_values(self, config):  # config.num_hidden_layers counts the decoder's too
        return {"num_hidden_layers": config.text_config.num_hidden_layers}

    def processing(self, config):
        return {"tokenizer": word_tokenizer(24), "image_processor": image_processor(self.size)}


class MaMMUTZeroShot(CoCaZeroShot):
    model_classes = (MaMMUTForZeroShotImageClassification,)
    auto_classes = {"AutoModelForZeroShotImageClassification": MaMMUTForZeroShotImageClassification}
    pipeline_model_mapping = {"zero-shot-image-classification": MaMMUTForZeroShotImageClassification}
    skip_test_image_features_output_shape = False

    def config(self):
        return tiny_config(PLAIN_MAMMUT)


_VISION_ALONE = "with a configuration of two towers, transformers 5.5 switches attentions on for the text tower alone"


class VisionWithProjection(_Vision):
    ignore_on_older = {
        "test_attention_outputs": _VISION_ALONE,
        "test_retain_grad_hidden_states_attentions": _VISION_ALONE,
    }
    model_classes = base_classes = (OpenClipVisionModelWithProjection,)
    prefix_tokens = 1
    config_changes = {}
    config = Clip.config

    def tester_values(self, config):
        vision = config.vision_config
        return {n: getattr(vision, n) for n in ("hidden_size", "num_hidden_layers", "num_attention_heads")}


class TextWithProjection(_Text):
    model_classes = base_classes = (OpenClipTextModelWithProjection,)
    config_changes = {}
    config = Clip.config


class ImageClassification(_Vision):
    ignore_on_older = VisionWithProjection.ignore_on_older
    model_classes = (OpenClipForImageClassification,)
    heads = {"image-classification": (OpenClipForImageClassification,)}
    auto_classes = {"AutoModelForImageClassification": OpenClipForImageClassification}
    pipeline_model_mapping = {"image-classification": OpenClipForImageClassification}
    prefix_tokens = 1
    config_changes = {}
    config = Clip.config
    tester_values = VisionWithProjection.tester_values


class SiglipImageClassification(ImageClassification):
    model_classes = (OpenClipSiglipForImageClassification,)
    heads = {"image-classification": (OpenClipSiglipForImageClassification,)}
    auto_classes = {"AutoModelForImageClassification": OpenClipSiglipForImageClassification}
    pipeline_model_mapping = {"image-classification": OpenClipSiglipForImageClassification}
    tester = SiglipVit.tester
    config = Siglip.config


class CoCaImageClassification(ImageClassification):
    model_classes = (CoCaForImageClassification,)
    heads = {"image-classification": (CoCaForImageClassification,)}
    auto_classes = {"AutoModelForImageClassification": CoCaForImageClassification}
    pipeline_model_mapping = {"image-classification": CoCaForImageClassification}
    config = CoCaZeroShot.config


class MaMMUTImageClassification(ImageClassification):
    model_classes = (MaMMUTForImageClassification,)
    heads = {"image-classification": (MaMMUTForImageClassification,)}
    auto_classes = {"AutoModelForImageClassification": MaMMUTForImageClassification}
    pipeline_model_mapping = {"image-classification": MaMMUTForImageClassification}
    config = MaMMUTZeroShot.config


class CoCa(ModelCase):
    kind = "captioner"
    model_classes = (CoCaModel, CoCaForConditionalGeneration)
    heads = {"image-text-to-text": (CoCaModel, CoCaForConditionalGeneration)}
    auto_classes = {"AutoModel": CoCaModel, "AutoModelForImageTextToText": CoCaForConditionalGeneration}
    pipeline_model_mapping = {"image-text-to-text": CoCaForConditionalGeneration}
    config_changes = {}
    size = IMAGE_SIZE
    skip_test_image_features_output_shape = True  # an attentional pooler's tokens are as wide as the embedding
    ignore = {
        "test_model_base_model_prefix": "for heads on a base model, which CoCaModel is not: it writes captions itself",
        "test_get_image_features_pooler_output": "for models that put image features among those of texts",
    }
    ignore_on_older = {
        "generation:test_prompt_lookup_equals_greedy": "transformers 5.5 needs an end token for it",
    }

    def config(self):
        return tiny_config(PLAIN_COCA)

    def inputs(self, config):
        batch = self.batch_size
        text = {"input_ids": ids(batch, 7), "attention_mask": torch.ones(batch, 7, dtype=torch.long)}
        return {**text, "pixel_values": pixels(batch, self.size)}

    def labels(self, config, inputs, model_class):
        return {"labels": inputs["input_ids"].clone(), "return_loss": True}

    def tester_values(self, config):
        return {"num_hidden_layers": config.multimodal_config.num_hidden_layers, "seq_length": 7}

    def processing(self, config):
        return {"processor": CoCaProcessor(image_processor(self.size), word_tokenizer(24))}


class MaMMUT(CoCa):
    model_classes = (MaMMUTModel, MaMMUTForConditionalGeneration)
    heads = {"image-text-to-text": (MaMMUTModel, MaMMUTForConditionalGeneration)}
    auto_classes = {"AutoModel": MaMMUTModel, "AutoModelForImageTextToText": MaMMUTForConditionalGeneration}
    pipeline_model_mapping = {"image-text-to-text": MaMMUTForConditionalGeneration}
    skip_test_image_features_output_shape = False

    def config(self):
        return tiny_config(PLAIN_MAMMUT)

    def tester_values(self, config):
        return {"num_hidden_layers": config.text_config.num_hidden_layers, "seq_length": 7}


class CoCaModern(CoCa):
    """CoCa whose text tower and decoder have modern layers."""

    pipeline_model_mapping = {}

    def config(self):
        longer = {"context_length": 28}
        return tiny_config(
            tiny_modern_coca_cfg(vision_cfg={"layers": 2}, text_cfg=longer, multimodal_cfg={**longer, "layers": 2})
        )


class MaMMUTModern(MaMMUT):
    """MaMMUT of a modern text tower."""

    pipeline_model_mapping = {}

    def config(self):
        options = {"context_length": 28, "layers": 2, "cross_attn_ratio": 1}
        return tiny_config(tiny_modern_mammut_cfg(vision_cfg={"layers": 2}, multimodal_cfg=options))


_NO_CACHE = "with a bidirectional text tower nothing can be cached"
_LATER_TOKENS = "with a bidirectional text tower logits depend on the tokens behind them"


class CoCaHfText(CoCa):
    pipeline_model_mapping = {}
    ignore = {
        "generation:test_assisted_decoding_equals_greedy": _NO_CACHE,
        "generation:test_beam_scores_equal_recomputed_scores": _LATER_TOKENS,
        "generation:test_cache_is_returned_and_used": _NO_CACHE,
        "generation:test_chunked_forward_with_cache": _NO_CACHE,
        "generation:test_inputs_embeds": _NO_CACHE,
        "generation:test_prompt_lookup_equals_greedy": _NO_CACHE,
        "generation:test_return_dict_outputs": _NO_CACHE,
        "generation:test_sampled_rows_score_under_their_own_image": _LATER_TOKENS,
        "generation:test_static_cache": _NO_CACHE,
        "generation:test_static_cache_in_one_graph": _NO_CACHE,
        "generation:test_user_cache_is_filled": _NO_CACHE,
    }

    def config(self):
        config = tiny_config(tiny_hf_coca_cfg("bert", vision_cfg={"layers": 2}, multimodal_cfg={"context_length": 24}))
        for part in (config.text_config, config.text_config.hf_config):
            part.max_position_embeddings = 24
        return config


class Images(ImageProcessorCase):
    classes = {"torchvision": OpenClipImageProcessor, "pil": OpenClipImageProcessorPil}
    kwargs = {"size": {"height": 18, "width": 18}, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


class ImagesLongest(Images):
    kwargs = {**Images.kwargs, "size": {"height": 18, "width": 22}, "resize_mode": "longest", "fill_color": 7}


class Processing(ProcessorCase):
    processor_class = OpenClipProcessor
    ignore = {"test_replacement_offsets": "looks for `replace_image_token` in the first base class alone"}

    def components(self):
        return {
            "image_processor": image_processor(18),
            "tokenizer": OpenClipTokenizer(model_max_length=300),
        }  # the tests ask for 117


_CAPTIONS = "its chats begin with a system prompt, which a captioner cannot take"


class CoCaProcessing(ProcessorCase):
    processor_class = CoCaProcessor
    ignore = {"test_apply_chat_template_image_0": _CAPTIONS, "test_apply_chat_template_image_1": _CAPTIONS}

    def components(self):
        return {"image_processor": image_processor(18), "tokenizer": OpenClipTokenizer(model_max_length=300)}


_PADS = "called without arguments it pads, to give the ids that open_clip's models expect"
_TRUNCATES = "called without arguments it truncates, to give the ids that open_clip's models expect"


class Tokens(TokenizerCase):
    """CLIP's byte-pair encoding."""

    tokenizer_class = OpenClipTokenizer
    ignore = {
        "test_batch_encode_plus_batch_sequence_length": _PADS,
        "test_encode_plus_with_padding_0": _PADS,
        "test_encode_plus_with_padding_1": _PADS,
        "test_maximum_encoding_length_pair_input": _TRUNCATES,
        "test_maximum_encoding_length_single_input": _TRUNCATES,
        "test_pad_token_initialization": _PADS,
        "test_tokenizer_store_full_signature": "for arguments that tokenizer_config.json holds, not tokenizer.json",
    }

    def tokenizer(self):
        return OpenClipTokenizer(dynamic_padding=True)


class VitBackbone(BackboneCase):
    kind = "vision"
    model_classes = base_classes = (OpenClipVitBackbone,)
    prefix_tokens = 1
    is_training = False
    size = IMAGE_SIZE
    ignore = {
        "test_retain_grad_hidden_states_attentions": "takes the first output for a tensor; these are several",
        "cpu:test_deepcopy_and_pickle": "the hooks with which transformers records hidden states cannot be pickled",
    }
    config = Vit.config
    inputs = Vit.inputs


class SiglipBackbone(VitBackbone):
    model_classes = base_classes = (SiglipVitBackbone,)
    tester = SiglipVit.tester
    config = SiglipVit.config


class ResNetBackbone(VitBackbone):
    model_classes = base_classes = (ModifiedResNetBackbone,)
    has_attentions = False
    size = ResNet.size
    ignore = {"test_num_layers_is_small": "a ResNet has four stages"}
    config = ResNet.config
    test_hidden_states_output = ResNet.test_hidden_states_output


CASES = [
    case
    for name, case in list(globals().items())
    if not name.startswith("_") and isinstance(case, type) and issubclass(case, Case) and case.__module__ == __name__
]
