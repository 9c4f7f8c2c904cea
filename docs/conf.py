"""Sphinx's settings. `make docs` runs `docs/generate.py` first, which writes the pages made of the code, then Sphinx; warnings are errors."""

import re
import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

project = "minigrad + conformer"
author = "The minigrad + conformer authors"
copyright = "The minigrad + conformer authors"
try:
    release = metadata.version("minigrad-conformer")
except metadata.PackageNotFoundError:
    release = ""

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["_build", "jupyter_execute", ".jupyter_cache"]

nb_execution_mode = "off"  # the committed notebooks have been run
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\$ "
copybutton_prompt_is_regexp = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = "minigrad + conformer"
html_show_sphinx = False
html_theme_options = {"source_repository": "", "navigation_with_keys": True}


def plain_docstring(app, what, name, obj, options, lines):
    """Docstrings are plain prose with code in backticks; this says so to reStructuredText, where one backtick, bars and names_ mean other things."""
    for number, line in enumerate(lines):
        parts = re.split(r"(`[^`]+`)", line)
        for place, part in enumerate(parts):
            if part.startswith("`") and len(part) > 2:
                parts[place] = f"`{part}`"
            elif "http" not in part:
                parts[place] = re.sub(r"([|*]|\w_(?=\W|$))", lambda found: found[0][:-1] + "\\" + found[0][-1], part)
        lines[number] = "".join(parts)


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", plain_docstring, priority=100)  # before napoleon makes its own marks
