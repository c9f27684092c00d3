"""Stage 2: the tuning loop, its batches, its losses and its objectives."""
