"""Compare real training memory at FLUX.1-dev's width with the estimate of `--plan`.

    python -m benchmarks.full_width memory [--canvas N] [--stages NAME ...]
    python -m benchmarks.full_width steps [--stages NAME ...] [--types NAME ...]

``memory`` measures the peak of one step of each stage on the CPU, on models with few blocks and
random weights, and prints it beside the plan of the same model. Both are then extrapolated to
FLUX.1-dev's 19 + 38 blocks (ControlNet 4 + 10) and compared with the plan for the full model.
``steps`` runs each stage's command on a base of 2 + 2 blocks with every storage type of frozen
weights, and loads the resulting artifacts in stock diffusers.

Each measurement runs in its own process. Its peak is that of the resident set, minus the memory
resident before the stage was created. Three settings emulate CUDA: large tensors are returned to
the system as soon as they are freed, AdamW is fused, and norms run in float32
(`emulate_cuda_norms`).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Keep the parent small: a child process inherits its parent's peak memory.
if TYPE_CHECKING:
    from training.models.parts import PartsConfig

GIB = 2**30
DEV = (19, 38, 4, 10)
"""Numbers of double and single blocks of FLUX.1-dev, then of its ControlNet."""

SLICES = {
    "structure": [(1, 1, 1, 1), (2, 1, 1, 1), (1, 2, 1, 1), (2, 1, 2, 1), (1, 2, 1, 2)],
    "basic_color": [(1, 1, 1, 1), (2, 1, 1, 1), (1, 2, 1, 1), (2, 1, 2, 1), (1, 2, 1, 2)],
    "pro_dpo": [(1, 1, 1, 1), (2, 1, 1, 1), (1, 2, 1, 1), (2, 1, 2, 1), (1, 2, 1, 2)],
}
"""Block counts from which the memory of the base and of each block type can be solved."""


def write_base(folder: Path, blocks: tuple[int, ...], **vision: int) -> None:
    """Write the config.json files of a base at FLUX.1-dev's width."""
    from colorflux_core.bundles.components import FLUX_VAE, SIGLIP_SO400M

    double, single, control_double, control_single = blocks
    flux = {
        "attention_head_dim": 128,
        "guidance_embeds": True,
        "in_channels": 64,
        "joint_attention_dim": 4096,
        "num_attention_heads": 24,
        "pooled_projection_dim": 768,
    }
    control = {"num_layers": control_double, "num_single_layers": control_single}
    for name, config in {
        "transformer": flux | {"num_layers": double, "num_single_layers": single},
        "controlnet": flux | control,
        "vae": FLUX_VAE,
        "image_encoder": SIGLIP_SO400M | {"model_type": "siglip_vision_model"} | vision,
        "image_embedder": {"redux_dim": 1152, "txt_in_features": 4096},
    }.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config), encoding="utf-8")


@dataclass(frozen=True)
class Peak:
    """Peak memory in bytes: held throughout the training, and additionally within a step."""

    held: float
    step: float

    @property
    def total(self) -> float:
        return self.held + self.step


def make_config(name: str, folder: Path, canvas: int, blocks: tuple[int, ...]) -> PartsConfig:
    from training.basic_color import BasicColorConfig
    from training.pro_dpo import ProDpoConfig
    from training.structure import StructureConfig

    common: dict[str, Any] = {
        "base": folder,
        "canvas": canvas,
        "batch_size": 1,
        "gradient_checkpointing": True,
    }
    if name == "structure":
        return StructureConfig(**common, double_blocks=blocks[2], single_blocks=blocks[3])
    return BasicColorConfig(**common) if name == "basic_color" else ProDpoConfig(**common, pairs=1)


def stage_class(name: str) -> Any:
    from training.basic_color import BasicColorStage
    from training.pro_dpo import ProDpoStage
    from training.structure import StructureStage

    stages = {
        "structure": StructureStage,
        "basic_color": BasicColorStage,
        "pro_dpo": ProDpoStage,
    }
    return stages[name]


def planned(name: str, canvas: int, blocks: tuple[int, ...]) -> Peak:
    from training.plan.plan import make_plan

    with tempfile.TemporaryDirectory() as folder:
        write_base(Path(folder), blocks)
        config = make_config(name, Path(folder), canvas, blocks)
        sizes = make_plan(config, stage_class(name)).phases["training"]
    step = sizes["gradients"] + sizes["activations"]
    return Peak(sum(sizes.values()) - step, step)


def measured(name: str, canvas: int, blocks: tuple[int, ...]) -> Peak:
    import torch

    from training.models.parts import Parts
    from training.plan.footprint import emulate_cuda_norms

    class RandomParts(Parts):
        """Create models of the right shapes with random weights."""

        def load(self, name: str, path: Path | None = None, dtype: Any = None) -> Any:
            skeleton = Parts(self.config, weights=False).load(name, path, dtype)
            return random_weights(skeleton.to_empty(device="cpu"))

    with tempfile.TemporaryDirectory() as folder, emulate_cuda_norms():
        write_base(Path(folder), blocks)
        config = make_config(name, Path(folder), canvas, blocks)
        before = resident("VmRSS")
        stage = stage_class(name)(config, RandomParts(config))
        batch = stage.blank(1)
        learning = [weight for weight in stage.trainable.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(learning, fused=True)

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                loss, _ = stage.loss(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learning, config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()

        step()  # creates the optimizer state
        held = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Reset the peak.
        step()
    return Peak(held - before, resident("VmHWM") - held)


def random_weights(model: Any) -> Any:
    for weight in model.parameters():
        weight.data.normal_(0, 0.02)
    return model


def resident(field: str) -> int:
    """Memory of this process in bytes (Linux): VmRSS is current, VmHWM the peak."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def quiet() -> None:
    import diffusers

    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()


def in_a_process(function: Any, *args: Any) -> Any:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, initializer=quiet) as pool:
        return pool.apply(function, args)


def extrapolated(slices: Sequence[tuple[int, ...]], peaks: list[float]) -> float:
    """Extrapolate the peak linearly to FLUX.1-dev's numbers of blocks."""
    import numpy as np

    per_block = np.linalg.solve([(1, *blocks) for blocks in slices], peaks)
    return float(np.dot((1, *DEV), per_block))


TYPES = {
    "float32": "no",
    "bfloat16": "bf16",
    "float16": "fp16",
    "fp8": "bf16",
    "nf4": "bf16",
}
"""Combinations of --frozen and --precision to test."""


def run_steps(stages: list[str], types: list[str]) -> None:
    print("2 + 2 blocks, ControlNet 1 + 1, canvas 64, 16 image tokens; seconds include loading")
    with tempfile.TemporaryDirectory() as folder:
        in_a_process(write_everything, Path(folder))
        for name in stages:
            for frozen in types:
                precision = TYPES[frozen]
                began = time.perf_counter()
                done = in_a_process(one_step, name, Path(folder), precision, frozen)
                seconds = time.perf_counter() - began
                print(f"{name:12}{precision:>6}{frozen:>10}{seconds:6.0f}  {done}", flush=True)


def write_everything(folder: Path) -> None:
    """Write a base with random weights, two photos and their manifest."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler
    from PIL import Image

    from colorflux_core.bundles.components import (
        FLUX_SCHEDULE,
        MODELS,
        SiglipImageProcessor,
        load_model,
    )

    base = folder / "base"
    write_base(base, (2, 2, 1, 1), image_size=56, num_hidden_layers=2)
    for name in MODELS:
        model = load_model(name, base, torch.bfloat16, weights=False).to_empty(device="cpu")
        random_weights(model).save_pretrained(base / name)
    size = {"height": 56, "width": 56}
    SiglipImageProcessor(size=size).save_pretrained(base / "feature_extractor")
    FlowMatchEulerDiscreteScheduler(**FLUX_SCHEDULE).save_pretrained(base / "scheduler")
    for split in ("train", "validation"):
        noise = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(folder / f"{split}.png")
    lines = ("file,split", "train.png,train", "validation.png,validation")
    (folder / "photos.csv").write_text("\n".join(lines), encoding="utf-8")


def one_step(name: str, folder: Path, precision: str, frozen: str) -> str:
    """Run the stage's command for one step, load the artifact, and describe the outcome."""
    from importlib import import_module

    from colorflux_core.errors import ColorFluxError

    output = folder / f"{name}-{precision}-{frozen}"
    flags: dict[str, Any] = {
        "base": folder / "base",
        "manifest": folder / "photos.csv",
        "cache": folder / "cache",
        "output": output,
        "canvas": 64,
        "steps": 1,
        "batch_size": 1,
        "workers": 0,
        "tracker": "none",
        "gradient_checkpointing": True,
        "precision": precision,
        "frozen": frozen,
    }
    own = {
        "structure": {"double_blocks": 1, "single_blocks": 1},
        "basic_color": {"min_colorfulness": 0},
        "pro_dpo": {"min_saturation": 0, "max_saturation": 1, "min_value": 0, "max_value": 1},
    }
    argv = [f"--{flag}={value}" for flag, value in (flags | own[name]).items()]
    try:
        import_module(f"training.{name}").main(argv)
        loss = json.loads((output / "metrics.jsonl").read_text(encoding="utf-8"))["loss"]
        return f"loss {loss:.4f}, {load_artifact(name, folder / 'base', output)}"
    except (ColorFluxError, RuntimeError, ValueError) as error:
        return f"failed: {error}"
    finally:
        shutil.rmtree(output, ignore_errors=True)


def load_artifact(name: str, base: Path, output: Path) -> str:
    """Load a stage's artifact with stock diffusers."""
    import torch
    from diffusers import FluxControlNetModel, FluxTransformer2DModel
    from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder

    if name == "structure":
        model = FluxControlNetModel.from_pretrained(output / "controlnet", local_files_only=True)
    elif name == "basic_color":
        model = ReduxImageEncoder.from_pretrained(output / "image_embedder", local_files_only=True)
    else:
        model = FluxTransformer2DModel.from_pretrained(
            base / "transformer", torch_dtype=torch.bfloat16, local_files_only=True
        )
        model.load_lora_adapter(output / "pro_dpo.safetensors", prefix="transformer")
    if not all(weight.isfinite().all() for weight in model.parameters()):
        raise ValueError("the artifact is not finite")
    return f"{type(model).__name__} loads"


def compare_memory(stages: list[str], canvas: int) -> None:
    print(f"canvas {canvas}, one row, bf16, gradient checkpointing; GiB total, GiB within the step")
    print(f"{'stage':12}{'blocks':>16}{'measured':>16}{'plan':>16}{'ratio':>14}")
    for name in stages:
        slices = SLICES[name]
        peaks = []
        for blocks in slices:
            peaks.append(in_a_process(measured, name, canvas, blocks))
            plan = in_a_process(planned, name, canvas, blocks)
            print(f"{name:12}{line(blocks, peaks[-1], plan)}", flush=True)
        held = extrapolated(slices, [peak.held for peak in peaks])
        step = extrapolated(slices, [peak.step for peak in peaks])
        plan = in_a_process(planned, name, canvas, DEV)
        print(f"{name:12}{line(DEV, Peak(held, step), plan)}  extrapolated", flush=True)


def line(blocks: tuple[int, ...], peak: Peak, plan: Peak) -> str:
    sizes = (f"{one.total / GIB:9.3f}{one.step / GIB:7.3f}" for one in (peak, plan))
    ratios = f"{peak.total / plan.total:7.3f}{peak.step / plan.step:7.3f}"
    return "{:>4}+{}, {}+{}".format(*blocks).rjust(16) + "".join(sizes) + ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("memory", "steps"))
    parser.add_argument("--canvas", type=int, default=512)
    parser.add_argument("--stages", nargs="+", choices=tuple(SLICES), default=[*SLICES])
    parser.add_argument("--types", nargs="+", choices=tuple(TYPES), default=[*TYPES])
    args = parser.parse_args()
    # Read by the allocator of child processes at start.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = os.environ["MALLOC_TRIM_THRESHOLD_"] = "65536"
    if args.what == "memory":
        compare_memory(args.stages, args.canvas)
    else:
        run_steps(args.stages, args.types)


if __name__ == "__main__":
    main()
