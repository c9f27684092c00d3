"""The fast path: photos in, restored photos out."""
