"""What touches the disk or comes from outside: photos, names, writing, deleting, tensors, provenance, weights."""
