"""The gray ControlNet: it keeps the photo's structure; colors come from the visual prompt.

Paper sections 4.1.1 and 7.1.
"""

from __future__ import annotations

from math import ceil

from diffusers import FluxControlNetModel, FluxTransformer2DModel

from ..errors import ColorFluxError


def control_from_transformer(
    transformer: FluxTransformer2DModel,
    num_layers: int = 4,
    num_single_layers: int = 10,
) -> FluxControlNetModel:
    """Create a ControlNet from copies of the transformer's first blocks.

    The copies share no storage with the transformer. The output projections and the control
    embedder are zero, so all residuals are zero at step 0. Device and dtype are the
    transformer's. One of the counts may be 0, but not both.

    Raises ColorFluxError when a count leaves ControlNet blocks unused (see `_check_count`), or
    when the transformer has a LoRA adapter, whose layers cannot be copied.
    """
    if getattr(transformer, "peft_config", None):
        raise ColorFluxError(
            "The transformer has a LoRA adapter; create the ControlNet without it "
            "(call unload_lora() or merge_lora first)."
        )
    depth, single_depth = transformer.config.num_layers, transformer.config.num_single_layers
    _check_count("num_layers", num_layers, depth)
    _check_count("num_single_layers", num_single_layers, single_depth)
    if num_layers == num_single_layers == 0:
        raise ColorFluxError("num_layers and num_single_layers are both 0; one must be positive.")
    with transformer.device:
        control = FluxControlNetModel.from_transformer(
            transformer,
            num_layers=num_layers,
            num_single_layers=num_single_layers,
            attention_head_dim=transformer.config.attention_head_dim,
            num_attention_heads=transformer.config.num_attention_heads,
        )
    return control.type(transformer.dtype)


def _check_count(name: str, count: int, depth: int) -> None:
    """Reject counts for which some ControlNet blocks have no effect.

    The transformer's block i of N adds residual i // ceil(N / n). For some n < N the last of the
    n residuals are never used, and their blocks get no gradient.
    """
    valid = sorted({0} | {ceil(depth / stride) for stride in range(1, depth + 1)})
    if count not in valid:
        raise ColorFluxError(
            f"{name}={count} does not divide over the transformer's {depth} blocks: some "
            f"ControlNet blocks would never be used. Counts that work: "
            f"{', '.join(map(str, valid))}."
        )
