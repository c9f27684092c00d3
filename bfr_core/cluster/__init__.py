"""The same work on many machines: restoring on Ray, tuning under accelerate. Only the command line imports it."""
