"""Sphinx's settings for the book; it is built and read without a network."""

import sys
from importlib.metadata import version as find_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project, author = "KARMA kit", "the KARMA kit's authors"
project_copyright = "Apache License 2.0"
release = version = find_version("karma-kit")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "docstrings", "mathml"]
html_theme = "sphinx_book_theme"
html_title = "KARMA: preference data from kinship"
html_theme_options = {"use_download_button": True, "show_toc_level": 2, "home_page_in_toc": True,
                      "search_bar_text": "Search this book"}  # fmt: skip
html_theme_options["navbar_persistent"] = []  # one search is enough: the side bar's
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_math_renderer = "mathml"

nb_execution_mode = "off"  # the outputs are those of a finished study
nb_merge_streams = True
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
myst_words_per_minute = 180
# A name in a docstring that several classes have; bytes of an untrained model's answer that are no text.
suppress_warnings = ["mystnb.unknown_mime_type", "ref.python", "misc.highlighting_failure"]

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_custom_sections = [("Paper", "notes_style")]
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!karma\.).*"),  # names of other packages: their pages lie on a network
    ("py:.*", r"karma\..*\.[A-Z_]+"),  # a constant that a sentence names
    ("py:.*", r"karma\..*\._?(check|read)_\w+"),  # what validates a setting stands in its type
]
python_use_unqualified_type_names = True
