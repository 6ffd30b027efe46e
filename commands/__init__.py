"""Command lines, and nothing that a notebook would import: `python -m commands` lists them."""
