"""Configuration of the documentation; `make docs` builds it without a network."""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

_package = Path(__file__).parents[1] / "src" / "finetunelib" / "__init__.py"
_version = re.search(r'__version__ = "([^"]+)"', _package.read_text(encoding="utf-8"))

project = "finetunelib"
author = "The finetunelib developers"
copyright = "2026, the finetunelib developers"
release = version = _version[1] if _version else ""

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "_scripts"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "finetunelib"
html_static_path = ["_static"]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "undoc-members": False}
# Aliases are shown by their names; written out they fill a page.
autodoc_type_aliases = {
    name: name
    for name in (
        "Data",
        "FeaturesToModule",
        "LossFunction",
        "MetricLike",
        "ModelInputs",
        "NewHead",
        "OptimizerFactory",
        "SchedulerFactory",
        "SizedDataset",
        "StrPath",
        "TensorLike",
        "ToImage",
    )
}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Warns", "params_style")]

# Names of other projects are not looked up: the build needs no network.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|nn|np|npt|numpy|onnx|collections|pathlib|typing|os|enum)\..*"),
    (
        r"py:.*",
        r"(Figure|OnError|Tensor|Path|Any|Sequence|Mapping|Callable|Iterator|Literal|UserWarning|optional)",
    ),
    (r"py:.*", "|".join(autodoc_type_aliases)),
    (r"py:.*", r"(Exception|ValueError|TypeError|LookupError|OSError|RuntimeError)"),
    (r"py:.*", r"(FileNotFoundError|ImportError)"),
    (r"py:.*", r"finetunelib\.(.*\.)?_.*|contextlib\.ExitStack|ExitStack"),
]
nitpicky = True
# A name in single backticks, as docstrings write it, is code.
default_role = "code"


def _show_aliases(*event: object) -> tuple[str | None, str | None]:
    """Show an alias by its name, where autodoc shows how it holds one."""
    signature, returns = (
        re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", part) if isinstance(part, str) else None
        for part in event[-2:]
    )
    return signature, returns


def setup(app: Sphinx) -> None:
    """Connect what this file adds to Sphinx."""
    app.connect("autodoc-process-signature", _show_aliases)
