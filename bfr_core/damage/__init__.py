"""Damage of photos: making it, estimating a folder's, putting it on another face, telling kinds apart."""
