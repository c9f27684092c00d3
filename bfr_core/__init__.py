"""BFR Adapt: tune a blind face restorer to damage it has never seen, with a diffusion prior and no clean photos."""
