"""The mathematics of stage 1: schedule, low-pass filter, samplers, noise level, and the priors that predict noise."""
