"""ColorFLUX: colorizes old photos with FLUX.1, a gray ControlNet, Redux and a Pro-DPO LoRA.

The entry point for ComfyUI: ``comfy_entrypoint`` returns the nodes, and ``WEB_DIRECTORY`` holds the
widget and the help pages. Nothing else is imported until ComfyUI calls ``comfy_entrypoint``.
"""

from __future__ import annotations

from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """The extension, for ComfyUI's V3 node API."""
    from .nodes import ColorFluxExtension

    return ColorFluxExtension()
