"""Damage: made, measured, put on other faces."""
