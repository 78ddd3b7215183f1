"""How Sphinx builds the site; `make docs` starts it through docs/site.py."""

from open_geoclip import __version__

project = "OpenGeoCLIP"
copyright = "The OpenGeoCLIP developers. MIT"  # noqa: A001 - Sphinx's name
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline"]
suppress_warnings = ["myst.header"]  # a page may begin at any level
exclude_patterns = ["log/*.draft.md"]

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"  # dark and light, its own search, nothing from a CDN
html_title = f"OpenGeoCLIP {release}"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"footer_icons": []}
