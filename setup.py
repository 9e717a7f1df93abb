"""What pyproject.toml cannot say: the gateway's hot path in C is built where it can be, and nobody misses it elsewhere.

CAUDAL_PURE_PYTHON=1 leaves it out: a wheel is then for every machine (py3-none-any).
"""

from __future__ import annotations

import os
import sys

from setuptools import Extension, setup

WIRE = Extension(
    "caudal.gateway._wire",
    ["src/caudal/gateway/_wire.c"],
    extra_compile_args=["-std=c11", "-fvisibility=hidden"],
    optional=True,  # without a compiler everything goes Python's way
    py_limited_api=True,
)
PURE = bool(os.environ.get("CAUDAL_PURE_PYTHON")) or sys.platform == "win32"

setup(
    ext_modules=[] if PURE else [WIRE],
    options={} if PURE else {"bdist_wheel": {"py_limited_api": "cp311"}},  # one wheel for every version
)
