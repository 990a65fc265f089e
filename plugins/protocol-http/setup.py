"""Compiles usual_request.py, with the types of usual_request.pxd, where a C compiler is found.

Without one, or with PROTOCOL_HTTP_NO_EXTENSIONS=1, the distribution runs as plain Python: the same code,
at a higher cost per request. Everything else about it is in pyproject.toml.
"""

from __future__ import annotations

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

MODULE = Extension(
    "stellane_protocol_http.usual_request",
    ["src/stellane_protocol_http/usual_request.py"],
    extra_compile_args=["-O2", "-fvisibility=hidden"],
    optional=True,
)
# Annotations are for readers: a status may be any int, an http.HTTPStatus for one.
DIRECTIVES = {"language_level": "3", "annotation_typing": False}

if os.environ.get("PROTOCOL_HTTP_NO_EXTENSIONS") == "1":
    setup()
else:
    setup(ext_modules=cythonize([MODULE], build_dir="build/cython", compiler_directives=DIRECTIVES))
