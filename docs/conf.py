"""Sphinx, for `make docs`: the pages of this folder as a site; a broken link fails."""

project = "polylm_jax"
extensions = ["myst_parser"]
myst_heading_anchors = 3  # links to headings are checked, too
html_theme = "furo"
html_title = project
exclude_patterns = ["*.py"]
