"""The same work on many machines: restoring and targets on Ray, tuning under accelerate. Only `cli` imports it."""
