"""Pages and pictures that show results: HTML, charts, sheets. They are given values and know nothing of runs."""
