"""The page, its jobs in the background, its HTTP interface, and the differences between versions of gradio."""
