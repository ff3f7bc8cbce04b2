"""Complete models: loaded from a bundle, assembled from parts, saved as a bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import SiglipVisionModel

from .. import lite_vision
from ..errors import ColorFluxError
from ..files import atomic_write_folder
from ..model.lora import ADAPTER, load_lora, save_lora
from ..model.pipeline import ColorFluxPipeline
from ..model.settings import UNION_GRAY_MODE, Settings
from .bundle_config import CONFIG, FORMAT_VERSION, open_bundle
from .components import (
    FLUX_SCHEDULE,
    MODELS,
    SIGLIP_PREPROCESSING,
    SiglipImageProcessor,
    load_feature_extractor,
    load_model,
    load_scheduler,
)

LORA = "pro_dpo.safetensors"


@dataclass(frozen=True)
class Bundle:
    """A model and its default settings."""

    pipeline: ColorFluxPipeline
    settings: Settings


def load_bundle(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    lora_scale: float | None = None,
) -> Bundle:
    """Load a bundle by folder or name, with its LoRA attached.

    ``lora_scale`` replaces the value in the bundle's settings; the pipeline applies it.

    Raises:
        ColorFluxError: when a file is missing, damaged or does not fit the others.
    """
    files = open_bundle(path)
    settings = files.settings
    if lora_scale is not None:
        settings = replace(settings, lora_scale=lora_scale)
    pipeline = _pipeline(
        {name: files.folder / name for name in MODELS},
        load_feature_extractor(files.folder / "feature_extractor"),
        load_scheduler(files.folder / "scheduler"),
        files.lora,
        device,
        dtype,
    )
    return Bundle(pipeline, settings)


def assemble(
    *,
    transformer: Path,
    vae: Path,
    image_encoder: Path,
    image_embedder: Path,
    controlnet: Path,
    lora: Path | None = None,
    lora_scale: float = Settings.lora_scale,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Bundle:
    """Assemble a model from folders like FLUX.1-dev's and single files, see ``load_model``.

    The preprocessing is read from a ``feature_extractor`` folder beside the image encoder's, or is
    SigLIP's. The settings are the paper's, with the gray mode for a union ControlNet.

    Raises:
        ColorFluxError: when a part is missing, damaged or does not fit the others.
    """
    paths = {
        "transformer": transformer,
        "vae": vae,
        "image_encoder": image_encoder,
        "image_embedder": image_embedder,
        "controlnet": controlnet,
    }
    folder = image_encoder if (image_encoder / "image_encoder").is_dir() else image_encoder.parent
    if (folder / "feature_extractor").is_dir():
        feature_extractor = load_feature_extractor(folder / "feature_extractor")
    else:
        feature_extractor = SiglipImageProcessor(**SIGLIP_PREPROCESSING)
    scheduler = FlowMatchEulerDiscreteScheduler(**FLUX_SCHEDULE)
    pipeline = _pipeline(paths, feature_extractor, scheduler, lora, device, dtype)
    union = pipeline.controlnet.config.num_mode is not None
    settings = Settings(lora_scale=lora_scale, control_mode=UNION_GRAY_MODE if union else None)
    return Bundle(pipeline, settings)


def save_bundle(
    folder: str | Path,
    pipeline: ColorFluxPipeline,
    settings: Settings,
    *,
    dtype: torch.dtype | None = None,
    sources: Sequence[str] = (),
    licences: Sequence[str] = (),
) -> None:
    """Write a complete bundle, including the transformer's LoRA if it has one.

    Files are replaced when all are complete, ``colorflux.json`` last; other files in the folder
    stay. ``ColorFluxPipeline.from_pretrained`` also reads the folder, without the LoRA, which
    ``load_lora_weights`` can add.

    Args:
        folder: Created if it does not exist.
        pipeline: The model; it is not changed.
        settings: The bundle's default settings.
        dtype: Data type of the stored weights; None keeps each part's own.
        sources: Where data and weights come from.
        licences: Their licences.

    Raises:
        ColorFluxError: when the folder cannot be written.
    """
    with atomic_write_folder(Path(folder), last=CONFIG) as unfinished:
        _write_parts(unfinished, pipeline, dtype)
        config = {
            "format_version": FORMAT_VERSION,
            "settings": asdict(settings),
            "lora": _write_lora(unfinished / LORA, pipeline, dtype),
            "sources": list(sources),
            "licences": list(licences),
        }
        text = json.dumps(config, indent=2) + "\n"
        (unfinished / CONFIG).write_text(text, encoding="utf-8")


def _write_parts(folder: Path, pipeline: ColorFluxPipeline, dtype: torch.dtype | None) -> None:
    for name in MODELS:
        model = getattr(pipeline, name)
        part = folder / name
        part.mkdir()
        if name == "image_encoder":
            config = copy(model.config)
            config.dtype = "float32"  # Otherwise transformers would compute in the stored dtype.
            config.save_pretrained(part)
            file = part / "model.safetensors"
        else:
            model.save_config(part)
            file = part / "diffusion_pytorch_model.safetensors"
        # ComfyUI recognizes SigLIP by this prefix, which transformers 5 omits.
        prefix = "vision_model." if isinstance(model, SiglipVisionModel) else ""
        weights = {
            prefix + key.removeprefix(prefix): tensor
            for key, tensor in _base_weights(model).items()
        }
        save_file(_stored(weights, dtype), file, metadata={"format": "pt"})
    pipeline.feature_extractor.save_pretrained(folder / "feature_extractor")
    pipeline.scheduler.save_pretrained(folder / "scheduler")
    pipeline.save_config(folder)
    for path in folder.rglob("*.json"):
        path.write_text(_portable(path.read_text(encoding="utf-8")), encoding="utf-8")


def _portable(config: str) -> str:
    """A config without local paths, and without names that depend on ComfyUI or on the version of
    transformers."""
    config = config.replace(lite_vision.__name__, "colorflux_core.lite_vision")
    config = config.replace("SiglipImageProcessorPil", "SiglipImageProcessor")
    values = json.loads(config)
    values.pop("_name_or_path", None)
    return json.dumps(values, indent=2) + "\n"


def _write_lora(file: Path, pipeline: ColorFluxPipeline, dtype: torch.dtype | None) -> str | None:
    adapters = {*getattr(pipeline.transformer, "peft_config", {})}
    if not adapters:
        return None
    if adapters != {ADAPTER}:
        raise ColorFluxError(
            f"The transformer has the adapters {', '.join(sorted(adapters))}: a bundle holds one "
            "LoRA, attach it with load_lora."
        )
    save_lora(pipeline.transformer, file)
    save_file(_stored(load_file(file), dtype), file, metadata={"format": "pt"})
    return file.name


def _base_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without peft's adapters."""
    return {
        key.replace(".base_layer.", "."): tensor
        for key, tensor in model.state_dict().items()
        if ".lora_" not in key
    }


def _stored(weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    return {key: tensor.to("cpu", dtype).contiguous() for key, tensor in weights.items()}


def _pipeline(
    paths: Mapping[str, Path],
    feature_extractor: SiglipImageProcessor,
    scheduler: FlowMatchEulerDiscreteScheduler,
    lora: Path | None,
    device: torch.device | str,
    dtype: torch.dtype,
) -> ColorFluxPipeline:
    models = {name: load_model(name, path, dtype) for name, path in paths.items()}
    _require_one_width(models, paths)
    pipeline = ColorFluxPipeline(**models, feature_extractor=feature_extractor, scheduler=scheduler)
    if lora is not None:
        load_lora(pipeline.transformer, lora)
    try:
        return pipeline.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ColorFluxError(f"The model cannot be moved to device {device}: {reason}") from error


def _require_one_width(models: Mapping[str, Any], paths: Mapping[str, Path]) -> None:
    """Reject parts that belong to different models."""
    transformer, vae, controlnet, redux, encoder = (
        models[name].config
        for name in ("transformer", "vae", "controlnet", "image_embedder", "image_encoder")
    )
    flux = (transformer.joint_attention_dim, transformer.num_attention_heads)
    control = (controlnet.joint_attention_dim, controlnet.num_attention_heads)
    for one, other, given, expected in (
        ("image_embedder", "image_encoder", redux.redux_dim, encoder.hidden_size),
        ("image_embedder", "transformer", redux.txt_in_features, transformer.joint_attention_dim),
        ("controlnet", "transformer", control, flux),
        ("controlnet", "transformer", controlnet.in_channels, transformer.in_channels),
        ("vae", "transformer", 4 * vae.latent_channels, transformer.in_channels),
    ):
        if given != expected:
            raise ColorFluxError(
                f"{paths[one]} and {paths[other]} are for different models: their widths are "
                f"{given} and {expected}."
            )
