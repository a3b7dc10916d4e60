"""Settings of Sphinx, which builds a site from the Markdown pages: `make docs`."""

project = "in21k"
author = "The in21k authors"
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/*.md",
    "docs/index.rst",
    "benchmarks/*.md",
]
# The folders are walked along links: those of environments and type checks lead back here.
exclude_patterns = [".*", "build", "dist", "quickstart"]
html_theme = "furo"
html_title = "in21k"
html_show_sphinx = False
myst_heading_anchors = 3
toc_object_entries = False
