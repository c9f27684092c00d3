"""The ComfyUI nodes of this pack, listed one by one. None yet: the pack loads and adds nothing to the menu."""

from __future__ import annotations

NODE_CLASS_MAPPINGS: dict[str, type] = {}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}
