"""The part of the build that pyproject.toml cannot say: the cffi extensions and their wheel tag."""

import sysconfig

from setuptools import setup

# cffi builds for the limited API: one wheel for 3.10 and later. Free-threaded CPython has none.
limited = not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    cffi_modules=["build.py:ffibuilder", "build.py:relay_builder"],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if limited else {},
)
