"""ColorFLUX: colorizes old photos with FLUX.1, a gray ControlNet, Redux and a Pro-DPO LoRA.

ComfyUI's door. It finds the nodes through ``comfy_entrypoint`` and the widget and the help pages
in ``WEB_DIRECTORY``; nothing is imported before it calls.
"""

from __future__ import annotations

from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """The extension, for ComfyUI's V3 node API."""
    from .nodes import ColorFluxExtension

    return ColorFluxExtension()
