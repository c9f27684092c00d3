"""The fast path: photos in, photos with restored faces out."""
