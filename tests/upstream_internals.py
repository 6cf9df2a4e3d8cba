"""Every private or unstable name of transformers, torch and their libraries that product code uses.

`test_upstream_internals.py` looks each of them up on the installed release, and looks through the sources for others:
a new release is diagnosed by the lines that fail.
"""

from importlib import import_module
from typing import Any, NamedTuple


class Internal(NamedTuple):
    """One name: where it is, the parameters that are passed or taken, why it is used, what to do when it goes."""

    owner: str
    name: str
    parameters: tuple[str, ...] = ()
    why: str = ""
    when_gone: str = ""
    since: str = "5.5"

    def resolve_owner(self) -> Any:
        """The module, class or object that has the name."""
        module, _, attribute = self.owner.rpartition(".")
        try:
            return import_module(self.owner)
        except ModuleNotFoundError:
            return getattr(import_module(module), attribute)


GENERATION = "transformers.generation.GenerationMixin"
MODEL = "transformers.modeling_utils.PreTrainedModel"
TOKENIZER = "transformers.tokenization_utils_tokenizers.TokenizersBackend"
TORCHVISION = "transformers.image_processing_backends.TorchvisionBackend"
PIL = "transformers.image_processing_backends.PilBackend"
PIPELINE = "transformers.pipelines.ImageTextToTextPipeline"
MODULE = "torch.nn.Module"

INTERNALS = (
    # CoCa's generation.
    Internal(
        GENERATION,
        "_expand_inputs_for_generation",
        ("expand_size", "is_encoder_decoder", "input_ids"),
        "image tokens keep one row an image, beams do not copy them",
        "nothing breaks: rows are copied, and the decoder folds one row an image; look for the new place",
    ),
    Internal(
        GENERATION,
        "_get_candidate_generator",
        ("generation_config",),
        "assisted decoding drafts no further than the longest caption",
        "drop the override; drafts from the prompt then raise of the text that is too long",
    ),
    Internal(
        GENERATION,
        "_prefill",
        ("input_ids", "generation_config", "model_kwargs"),
        "of a compiled model the first pass, of another length, stays uncompiled; group beam search begins with it",
        "call prepare_inputs_for_generation and the model in group_beam_search; compiled models compile two graphs",
    ),
    Internal(
        GENERATION,
        "_prepare_generated_length",
        ("generation_config",),
        "no warning where a call's max_new_tokens replaces the model's own max_length",
        "drop the override; transformers then warns of two lengths",
    ),
    Internal(
        GENERATION,
        "_update_model_kwargs_for_generation",
        ("outputs", "model_kwargs"),
        "a prefix that PEFT has learnt is a cache, which each step of `generate` gets anew",
        "drop the override where PEFT hands the cache on; `test_soft_prompts_of_peft_learn_and_caption` tells",
    ),
    Internal(
        GENERATION,
        "_validate_generated_length",
        ("generation_config", "input_ids_length", "has_default_max_length"),
        "a caption that cannot fit in the positions is refused before it is written",
        "check in CaptioningGenerationMixin.generate, from prompt length, max_length and max_new_tokens",
    ),
    Internal(
        GENERATION,
        "_update_model_kwargs_for_generation",
        ("outputs", "model_kwargs", "is_encoder_decoder"),
        "group beam search goes from step to step as transformers' own searches, and its custom_generate ones, do",
        "take over cache and attention mask in group_beam_search",
    ),
    Internal(
        GENERATION,
        "_has_unfinished_sequences",
        ("this_peer_finished", "synced_gpus", "device"),
        "group beam search goes on until every process is done",
        "all-reduce there",
    ),
    Internal(
        MODEL,
        "_skip_keys_device_placement",
        why="hands a module to another without accelerate moving it",
        when_gone="find what arguments transformers' device maps leave alone now",
    ),
    Internal(MODULE, "_compiled_call_impl", why="whether model.compile() was called", when_gone="drop with _prefill"),
    # Models.
    Internal(
        MODEL, "_from_config", ("config",), "a part with the attention function of its model", "type(part)(config)"
    ),
    Internal(MODEL, "_init_weights", ("module",), "the hook for new weights", "see transformers' models"),
    Internal(
        MODEL,
        "_initialize_weights",
        ("module",),
        "weights and tables of timm's towers come from timm, also those built without storage; T5's encoders make "
        "their missing weights",
        "do it in _init_weights of the tower",
    ),
    Internal(
        MODEL,
        "_check_and_adjust_attn_implementation",
        ("attn_implementation",),
        "text towers that hide padding run sdpa where FlashAttention is asked for",
        "refuse FlashAttention in OpenClipTextModel.__init__",
    ),
    Internal(MODEL, "get_correct_attn_implementation", ("requested_attention",), "as the one before", "as before"),
    Internal(MODEL, "_can_compile_fullgraph", why="declaration of every model", when_gone="see transformers' models"),
    Internal(MODEL, "_can_record_outputs", why="declaration of every model", when_gone="see transformers' models"),
    Internal(MODEL, "_input_embed_layer", why="declaration of every model", when_gone="get_input_embeddings"),
    Internal(MODEL, "_keys_to_ignore_on_load_unexpected", why="a tower from its model's folder", when_gone="as above"),
    Internal(MODEL, "_no_split_modules", why="device_map and FSDP", when_gone="see transformers' models"),
    Internal(
        MODEL,
        "_load_pretrained_model",
        ("model", "state_dict", "checkpoint_files", "load_config"),
        "logit_scale loads from either of its shapes",
        "drop it: nonscalar_logit_scale must then be what the file has",
    ),
    Internal(
        "transformers.modeling_utils", "load_state_dict", ("checkpoint_file", "map_location"), "as before", "drop"
    ),
    Internal(MODEL, "_supports_attention_backend", why="declaration of every model", when_gone="as above"),
    Internal(MODEL, "_supports_flash_attn", why="declaration of every model", when_gone="as above"),
    Internal(MODEL, "_supports_flex_attn", why="declaration of every model", when_gone="as above"),
    Internal(MODEL, "_supports_sdpa", why="declaration of every model", when_gone="as above"),
    Internal(
        "transformers.configuration_utils.PreTrainedConfig",
        "_attn_implementation",
        why="the attention function that was chosen; all models of transformers read it",
        when_gone="see transformers' models",
    ),
    Internal(
        "transformers.models.auto.modeling_auto",
        "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
        why="Trainer's label smoothing shifts the labels of the classes in it, and so CoCa's",
        when_gone="test_trainer.py says whether labels are shifted; if not, refuse label smoothing",
    ),
    Internal(
        "transformers.utils.generic", "merge_with_config_defaults", ("func",), "defaults of towers", "see models"
    ),
    Internal(
        "transformers.utils.generic", "is_flash_attention_requested", why="text towers", when_gone="'flash' in it"
    ),
    Internal("transformers.utils.output_capturing", "capture_outputs", why="hidden states", when_gone="see models"),
    Internal("transformers.utils.output_capturing", "OutputRecorder", why="attentions", when_gone="see models"),
    Internal("transformers.modeling_utils", "local_torch_dtype", ("dtype",), "encoders in a dtype", "see from_config"),
    Internal("transformers.initialization", "no_init_weights", why="fast verification", when_gone="leave it out"),
    Internal(
        "transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS", "get_interface", why="attention", when_gone="[name]"
    ),
    Internal(
        "transformers.masking_utils",
        "create_causal_mask",
        ("config", "inputs_embeds", "attention_mask"),
        "masks",
        "named_cache, or a mask of our own",
    ),
    Internal(
        "transformers.masking_utils",
        "create_bidirectional_mask",
        ("config", "inputs_embeds"),
        "masks",
        "a mask of our own",
    ),
    # Processors.
    Internal(
        "transformers.processing_utils.ProcessorMixin",
        "_merge_kwargs",
        ("tokenizer_init_kwargs",),
        "a prompt beside images gets the text arguments alone",
        "pass the tokenizer's arguments on by name",
    ),
    Internal(TOKENIZER, "_encode_plus", ("text", "text_pair"), "texts are cleaned as open_clip does", "__call__"),
    Internal(TOKENIZER, "_add_tokens", ("new_tokens", "special_tokens"), "tokens are found uncleaned", "add_tokens"),
    Internal(TOKENIZER, "_pad", ("encoded_inputs", "max_length", "padding_strategy"), "multiples that fit", "pad"),
    Internal(TOKENIZER, "_decode", ("token_ids",), "special tokens go as in open_clip", "decode"),
    Internal(TOKENIZER, "_get_padding_truncation_strategies", ("padding", "truncation"), "fixed length", "__call__"),
    Internal(TOKENIZER, "_save_pretrained", ("save_directory", "file_names"), "no slow vocabulary", "save_pretrained"),
    Internal(
        TOKENIZER,
        "save_chat_templates",
        ("save_directory", "tokenizer_config"),
        "a note in tokenizer_config.json keeps transformers' own tokenizers away",
        "put the note there elsewhere; test_saved_files_are_refused_by_a_tokenizer_that_would_not_clean",
    ),
    Internal(TOKENIZER, "_eventual_warn_about_too_long_sequence", ("ids", "max_length", "verbose"), "warning", "drop"),
    Internal(TOKENIZER, "_tokenizer", why="the tokenizer of tokenizers", when_gone="backend_tokenizer"),
    *(
        Internal(back_end, name, parameters, why, "see the image processors of transformers")
        for back_end in (TORCHVISION, PIL)
        for name, parameters, why in (
            ("_preprocess", ("images",), "open_clip's order of resize, crop, colour, scale"),
            ("_prepare_image_like_inputs", ("images", "expected_ndims"), "images in threads, as they are"),
            ("_prepare_images_structure", ("images", "expected_ndims"), "an empty list is refused"),
            ("_preprocess_image_like_inputs", ("images",), "calls without arguments are quick"),
            ("_set_attributes", (), "settings of a saved file are checked"),
            ("_standardize_kwargs", (), "calls without arguments are quick"),
            ("_validate_preprocess_kwargs", (), "open_clip's settings are checked"),
        )
    ),
    Internal(PIPELINE, "_sanitize_parameters", (), "the documented way to make a pipeline", "see its documentation"),
    Internal(
        PIPELINE, "_forward", ("model_inputs",), "the documented way to make a pipeline", "see its documentation"
    ),
    Internal(
        "transformers.pipelines",
        "_resolve_deprecated_task",
        ("task",),
        "pipeline('image-to-text') is ours although transformers dropped the task",
        "nothing breaks but that name: use image-text-to-text, or ImageToTextPipeline",
        since="5.20",
    ),
    # Registration and bundles.
    *(
        Internal(
            f"transformers.models.auto.{table}", "register", ("key", "value", "exist_ok"), "Auto classes", "AutoX"
        )
        for table in (
            "configuration_auto.CONFIG_MAPPING",
            "modeling_auto.MODEL_MAPPING",
            "modeling_auto.MODEL_FOR_BACKBONE_MAPPING",
            "modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
            "modeling_auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING",
            "modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
            "processing_auto.PROCESSOR_MAPPING",
            "image_processing_auto.IMAGE_PROCESSOR_MAPPING",
            "tokenization_auto.TOKENIZER_MAPPING",
        )
    ),
    Internal(
        "transformers.AutoModel", "_model_mapping", why="Auto classes of a model", when_gone="a table in bundle.py"
    ),
    Internal(
        "transformers.AutoBackbone", "from_pretrained", ("pretrained_model_name_or_path",), "local folders", "drop"
    ),
    Internal("transformers.pipelines.PIPELINE_REGISTRY", "supported_tasks", why="our tasks", when_gone="register"),
    Internal(
        "transformers.models.auto.modeling_auto",
        "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
        why="`transformers serve` looks for captioners in it",
        when_gone="look where it finds models of images now",
    ),
    # huggingface_hub.
    Internal("huggingface_hub.utils", "httpx", why="errors of a connection", when_gone="the client's own errors"),
    Internal("huggingface_hub.hf_api", "RepoSibling", why="files of a repository", when_gone="list_repo_tree"),
    Internal(
        "huggingface_hub.dataclasses", "strict", why="checked fields, as in transformers", when_gone="see configs"
    ),
    Internal(
        "datasets.IterableDataset",
        "_resolve_features",
        why="columns of a streamed data set that does not say its own",
        when_gone="the keys of its first row, without their types",
    ),
    # Training on streamed data.
    Internal(
        "transformers.Trainer",
        "_get_collator_with_removed_columns",
        ("data_collator", "description"),
        "the data loader of streamed data, which Trainer would have accelerate share out",
        "the collator itself; refuse remove_unused_columns",
    ),
    # torch: acceleration alone, which no model imports; without a name it leaves layers plain.
    Internal(
        "torch._C", "_are_functorch_transforms_active", why="packed layers step aside", when_gone="see torch.func"
    ),
    Internal("torch._C", "_len_torch_dispatch_stack", why="packed layers step aside", when_gone="see FlopCounterMode"),
    Internal(
        "torch.autograd.forward_ad", "_current_level", why="packed layers step aside", when_gone="see forward_ad"
    ),
    Internal("torch.ops.mkldnn", "_linear_pointwise", why="products with packed weights", when_gone="plain layers"),
    Internal("torch.ops.mkldnn", "_reorder_linear_weight", why="packed weights", when_gone="plain layers"),
    Internal("torch.ops.mkldnn", "_is_mkldnn_bf16_supported", why="packed bf16", when_gone="plain layers"),
    Internal("torch.nn.Conv2d", "_conv_forward", ("input", "weight", "bias"), "folded norms", "torch.conv2d"),
    Internal("torch.nn.modules.module", "_has_any_global_hook", why="hooks see every call", when_gone="plain layers"),
    Internal("torch.Tensor", "_version", why="a weight that was written to is packed no longer", when_gone="none"),
    Internal(MODULE, "_compiled_call_impl", why="whether a model is compiled", when_gone="see Module.compile"),
    Internal(
        "torch.distributed",
        "_functional_collectives",
        why="embeddings are gathered from all ranks, with gradients to them",
        when_gone="its public successor, in training/torch_compat.py",
    ),
    Internal(MODULE, "_apply", ("fn",), "a layer that is moved or cast becomes plain", "to"),
    Internal(
        MODULE, "_load_from_state_dict", ("state_dict",), "a layer that is loaded becomes plain", "load_state_dict"
    ),
)
