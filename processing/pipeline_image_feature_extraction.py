"""The image-feature-extraction pipeline on models with two towers: features of the image tower."""

from transformers.pipelines import ImageFeatureExtractionPipeline


TASK = "image-feature-extraction"
MODEL_TYPES = ("open_clip", "open_clip_siglip", "open_clip_coca", "open_clip_mammut")


class OpenClipImageFeatureExtractionPipeline(ImageFeatureExtractionPipeline):
    """Features of images: `pipeline("image-feature-extraction", model=folder)(image, pool=True)`.

    What the pipeline gives on the image tower alone: with `pool=True` the image embedding (1, projection_dim), not
    normalised, as of `get_image_features`; else the tower's `last_hidden_state` (1, tokens, token_dim). A model of
    another type gets transformers' own pipeline, which returns the first of a model's outputs: of a CoCa those would
    be predictions of its caption's tokens.
    """

    def __new__(cls, model=None, *args, **kwargs):
        if model is not None and not (model.config.model_type in MODEL_TYPES and hasattr(model, "get_image_features")):
            return ImageFeatureExtractionPipeline(model, *args, **kwargs)
        return super().__new__(cls)

    def _forward(self, model_inputs):
        return self.model.get_image_features(**model_inputs)


__all__ = ["OpenClipImageFeatureExtractionPipeline"]
