"""A complete model: a pipeline folder with a ``colorflux.json``, or parts put together."""

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
    """A model and how it wants to be used."""

    pipeline: ColorFluxPipeline
    settings: Settings


def load_bundle(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    lora_scale: float | None = None,
) -> Bundle:
    """A bundle, by its folder or by name, with its LoRA attached at full strength.

    ``lora_scale`` replaces the bundle's own in the settings, which is where it takes effect.

    Raises:
        ColorFluxError: when anything is missing, damaged or does not fit, naming it.
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
    """A model from FLUX.1-dev-style folders and single files, as ``load_model`` takes them.

    The preprocessing comes from a ``feature_extractor`` folder beside the image encoder's, and
    is SigLIP's where there is none. The settings are the paper's, with the gray mode for a union
    ControlNet.

    Raises:
        ColorFluxError: when a part is missing, damaged or does not fit the others, naming it.
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
    """Write a complete bundle, with the LoRA that the transformer carries if it carries one.

    Files are replaced one by one, ``colorflux.json`` last; other files in the folder stay.
    ``ColorFluxPipeline.from_pretrained`` reads the folder too, all but the LoRA, for which there
    is ``load_lora_weights``.

    Args:
        folder: Made if need be.
        pipeline: The model; it is left as it is.
        settings: What the bundle's users get by default.
        dtype: Of the stored weights; None keeps each part's own.
        sources: Where data and weights come from.
        licences: Under which terms.

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
            config.dtype = "float32"  # Or transformers, unlike diffusers, computes as it stores.
            config.save_pretrained(part)
            file = part / "model.safetensors"
        else:
            model.save_config(part)
            file = part / "diffusion_pytorch_model.safetensors"
        # ComfyUI knows SigLIP by this prefix, which transformers 5 leaves out.
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
    """A config as any machine would write it: neither paths nor names that ComfyUI or one version
    of transformers have given."""
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
            f"The transformer carries {', '.join(sorted(adapters))}: a bundle holds one LoRA, and "
            "load_lora attaches it."
        )
    save_lora(pipeline.transformer, file)
    save_file(_stored(load_file(file), dtype), file, metadata={"format": "pt"})
    return file.name


def _base_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state without the adapters that peft has put in."""
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
        raise ColorFluxError(f"The model cannot go to device {device}: {reason}") from error


def _require_one_width(models: Mapping[str, Any], paths: Mapping[str, Path]) -> None:
    """Refuse parts that are sound but made for different models."""
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
