"""A run from damaged photos to an adapted restorer: its folder, its stages in order, and its verdict."""
