"""Fields of a vision tower's configuration for its feature maps (transformers: `BackboneConfigMixin`)."""

from typing import Any

from transformers.backbone_utils import BackboneConfigMixin

from .configuration_common import OpenClipPreTrainedConfig, strict


@strict
class BackboneTowerConfig(BackboneConfigMixin, OpenClipPreTrainedConfig):
    r"""Fields that choose the feature maps of a tower that is used as a backbone; others do not read them.

    Args:
        out_features: names of the stages whose feature maps are wanted, of `stage_names` and in their order, by
            default the last one.
        out_indices: the same as indices of `stage_names`; open_clip's `forward_intermediates` counts from the first
            layer on, so that its `indices` are smaller by one for a vision transformer.
    """

    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    @property
    def num_stages(self) -> int:
        """Stages behind the embeddings."""
        return self.num_hidden_layers

    @property
    def stage_names(self) -> list[str]:
        """`"stem"`, what goes into the first stage, and `"stage1"`, `"stage2"`, ..., what comes out of each."""
        return ["stem", *(f"stage{index}" for index in range(1, self.num_stages + 1))]

    def __post_init__(self, **kwargs):
        out_features, out_indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        if out_features is not None or out_indices is not None:
            self.set_output_features_output_indices(out_features, out_indices)
        super().__post_init__(**kwargs)

    # Left open until they are chosen, so that the number of layers of a configuration can still be changed.
    @BackboneConfigMixin.out_features.getter
    def out_features(self) -> list[str]:
        return self.stage_names[-1:] if self._out_features is None else self._out_features

    @BackboneConfigMixin.out_indices.getter
    def out_indices(self) -> list[int]:
        return [self.num_stages] if self._out_indices is None else self._out_indices

    def to_dict(self) -> dict[str, Any]:
        """The fields as they are saved: those on feature maps where they were chosen, so that others stay as brief."""
        output = super().to_dict()
        if self.out_features == self.stage_names[-1:]:
            del output["out_features"], output["out_indices"]
        return output


@strict
class TransformerBackboneConfig(BackboneTowerConfig):
    r"""Fields that choose the feature maps of a vision transformer.

    Takes the fields of [`BackboneTowerConfig`] and these.

    Args:
        apply_layernorm: apply the tower's last layer norm to the feature maps; open_clip: `normalize_intermediates`.
    """

    apply_layernorm: bool = False

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        if not output["apply_layernorm"]:
            del output["apply_layernorm"]
        return output


__all__ = ["BackboneTowerConfig", "TransformerBackboneConfig"]
