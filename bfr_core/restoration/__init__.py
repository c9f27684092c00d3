"""The fast path: restore the faces of one photo or of a folder with a restorer that is there."""
