"""Configuration of the documentation; `make docs` builds it without a network."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from types import MemberDescriptorType

from sphinx.application import Sphinx
from sphinx.domains.python import PyObject

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
# The tutorials run during the build. They must not open a browser, and their networks are too small
# to benefit from several threads.
os.environ["CI"] = "true"
os.environ.setdefault("OMP_NUM_THREADS", "1")

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
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "real_sources",
    "used_on",
]
exclude_patterns = ["_build", "_ext", "_scripts", "_tutorials", "tutorials/*.md5"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
pygments_dark_style = "a11y-dark"
html_title = "finetunelib"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#0b5cad",
        "color-brand-content": "#0b5cad",
        "color-api-name": "#0b5cad",
        "color-api-pre-name": "#5a6270",
        "font-stack": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', "
        "'Noto Sans CJK SC', 'PingFang SC', 'Microsoft YaHei', sans-serif",
    },
    "dark_css_variables": {
        "color-brand-primary": "#7ab8f5",
        "color-brand-content": "#7ab8f5",
        "color-api-name": "#7ab8f5",
        "color-api-pre-name": "#9aa4b2",
    },
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# The tutorials are scripts that run during the build. Their output becomes part of their page.
sphinx_gallery_conf = {
    "examples_dirs": ["_tutorials"],
    "gallery_dirs": ["tutorials"],
    "filename_pattern": r"\.py$",
    "within_subsection_order": "tutorial_order.TutorialOrder",
    "abort_on_example_error": True,
    "only_warn_on_example_error": False,
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 1e9,
    "write_computation_times": False,
    "remove_config_comments": True,
    "image_scrapers": ("matplotlib", "figure_scraper"),
    "matplotlib_animations": False,
    "capture_repr": ("_repr_html_",),
    "plot_gallery": "True",
}

# FINETUNELIB_DOCS_INTERSPHINX=1 links names of other projects, which needs a network. By default
# they are plain code.
if os.environ.get("FINETUNELIB_DOCS_INTERSPHINX") == "1":
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
    }

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "undoc-members": False}
# Show aliases by name, because their definitions are long.
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

# Names of other projects have no target, because the build uses no network.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|nn|np|npt|numpy|onnx|collections|pathlib|typing|os|enum)\..*"),
    (r"py:.*", r"(CheckpointRequest|MeasuredWeights|Readings|Requests|Certainty)"),
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
# Docstrings write code in single backticks.
default_role = "code"


def _show_aliases(*event: object) -> tuple[str | None, str | None]:
    """Replace autodoc's representation of an alias by the name of the alias."""
    signature, returns = (
        re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", part) if isinstance(part, str) else None
        for part in event[-2:]
    )
    return signature, returns


def _skip_fields(*event: object) -> bool | None:
    """Skip the fields of a slotted dataclass, because its docstring lists them."""
    return True if isinstance(event[3], MemberDescriptorType) else None


for _field in PyObject.doc_field_types:
    if _field.name == "variable":
        _field.label = "Attributes"  # The term used in the docstrings.


def setup(app: Sphinx) -> None:
    """Connect the handlers in this file to Sphinx."""
    app.connect("autodoc-skip-member", _skip_fields)
    app.connect("autodoc-process-signature", _show_aliases)
