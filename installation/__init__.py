"""What install.py does, in the standard library alone: `host` for ComfyUI and WebUI, `environment` for `.venv`."""
