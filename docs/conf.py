"""Sphinx's settings. `make docs` runs `docs/generate.py` first, which writes the pages made of the code, then Sphinx; warnings are errors."""

import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx import addnodes

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import generate  # noqa: E402  (it lies in this folder)

import minigrad  # noqa: E402  (it lies beside it)

project = "minigrad + conformer"
author = "The minigrad + conformer authors"
copyright = "The minigrad + conformer authors"
release = minigrad.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
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
autodoc_mock_imports = ["cupy", "cupyx"]
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = "minigrad + conformer"
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False


SECTIONS = {"Args", "Attributes", "Raises", "Returns", "Yields"}


def plain_docstring(app, what, name, obj, options, lines):
    """Docstrings are plain prose with code in backticks and indented formulas; this says so to reStructuredText, where one backtick, bars, stars and
    names_ mean other things, and indentation is a quotation.
    """
    result: list[str] = []
    in_block = in_section = False
    for line in lines:
        in_section = in_section or (line[:-1] in SECTIONS and line.endswith(":"))
        indented = line.startswith("    ") and not in_section
        if indented and not in_block:
            result += ["", "::", ""]
        elif in_block and line and not indented:
            result.append("")
        in_block = indented or (in_block and not line)
        result.append(line if indented else _escaped(line))
    lines[:] = result


def _escaped(line: str) -> str:
    parts = re.split(r"(`[^`]+`)", line)
    for place, part in enumerate(parts):
        if page := generate.PAGE.fullmatch(part):
            parts[place] = _to_page(page)
        elif part.startswith("`") and len(part) > 2:
            parts[place] = f"`{part}`"
        else:  # not inside addresses, whose last word may end in _
            words = re.split(r"(https?://\S*[^\s.,;:)])", part)
            words[::2] = [re.sub(r"\*\*\w[^*]*\*\*|^\* |[|*]|\w_(?=\W|$)", _literally, word) for word in words[::2]]
            words[::2] = [generate.PAGE.sub(_to_page, word) for word in words[::2]]
            words[1::2] = [f"`{word} <{word}>`__" for word in words[1::2]]
            parts[place] = "".join(words)
    return "".join(parts)


def _to_page(found: re.Match) -> str:
    """The name of a page of this documentation, as a link to it."""
    return f":doc:`{found[1]} </{found[2].removesuffix('.md')}>`"


def _literally(found: re.Match) -> str:
    """A mark that is meant as it is gets a backslash; **bold** words and the star that begins a list stay marks."""
    return found[0] if len(found[0]) > 2 or found[0] == "* " else found[0][:-1] + "\\" + found[0][-1]


def code_role(name, rawtext, text, line, inliner, options=None, content=None):
    """{code-at}`conformer/blocks.py::FCUDown` is the name, linked to its page in the API where it has one, and the line that defines it today."""
    file, _, symbol = text.partition("::")
    try:
        number = generate.line_of(generate.ROOT / file, symbol)
    except (OSError, ValueError) as error:
        return [], [inliner.reporter.error(f"code-at: {error}", line=line)]
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    target = addnodes.pending_xref(
        "", nodes.literal(text=symbol), refdomain="py", reftype="obj", reftarget=f"{module}.{symbol}", refexplicit=True, refwarn=False
    )
    return [target, nodes.inline(text=f" {file}:{number}", classes=["code-at"])], []


def without_long_value(app, domain, objtype, content):
    """The heading of a constant leaves its value out where that is long: a dictionary of all operations is no documentation."""
    for signature in content.parent.findall(addnodes.desc_signature) if objtype in ("data", "attribute") else ():
        for value in [node for node in signature.children if isinstance(node, addnodes.desc_annotation)]:
            if value.astext().strip().startswith("=") and len(value.astext()) > 60:
                signature.remove(value)


def without_remarks(app, what, name, obj, options, signature, returned):
    """An argument's type without what is annotated to it: the texts of the command line would fill a page."""
    return signature and (re.sub(r"""Annotated\[(.+?), ('[^']*'|"[^"]*")\]""", r"\1", signature), returned)


def public_names(app, env):
    """Things are also found under the names by which users import them, minigrad.nn.Linear: in the search, and from the sites of others."""
    objects = env.domains["py"].objects
    for name, home in generate.public_names().items():
        if name != home and home in objects:
            objects[name] = objects[home]._replace(aliased=True)


def only_written(app, docname, source):
    """Some pages of the contents are written later than others: those that are not there are left out."""
    if docname == "index":
        lines = source[0].splitlines()
        source[0] = "\n".join(line for line in lines if line not in ("benchmarks", "trust") or Path(app.srcdir, f"{line}.md").exists())


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", only_written)
    app.connect("autodoc-process-docstring", plain_docstring, priority=100)  # before napoleon makes its own marks
    app.connect("autodoc-process-signature", without_remarks)
    app.connect("object-description-transform", without_long_value)
    app.connect("env-updated", public_names)
    app.add_role("code-at", code_role)
