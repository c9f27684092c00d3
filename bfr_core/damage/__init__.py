"""Damage of photos: make it, estimate a folder's, put it on another face, tell kinds apart, and undo faded tones."""
