"""Drives CMake: its list of sources is the only one. Everything else stands in pyproject.toml.

CMAKE_ARGS in the environment is handed to the configuration, e.g. CMAKE_ARGS=-DRLCC_WERROR=ON,
which is what CI does: warnings of a newer compiler then are no obstacle to anybody else.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def version() -> str:
    """CMakeLists.txt names the version, for the C++ library and for this package."""
    found = re.search(r"project\(restorelcc\s+VERSION\s+([0-9.]+)", (ROOT / "CMakeLists.txt").read_text())
    if found is None:
        raise RuntimeError("CMakeLists.txt does not name the version in project(restorelcc VERSION ...)")
    return found.group(1)


def program(name: str) -> str:
    """cmake or ninja: beside this Python (where pip puts them), else on the PATH."""
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    found = shutil.which(name, path=folders)
    if found is None:
        raise RuntimeError(f"{name} was not found; install it with `pip install {name}`")
    return found


class BuildWithCMake(build_ext):
    """Builds librestorelcc, librestorelcc_torch and _C, and installs them into the package."""

    def build_extension(self, ext: Extension) -> None:
        """Configure, build and install; `ext` only says where the package lies."""
        package = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        # Not build_temp, which is new in each editable install: here a second build is incremental.
        build = ROOT / "build" / f"python-{sys.implementation.cache_tag}"
        cmake = program("cmake")
        configure = [
            cmake, "-S", ROOT, "-B", build, "-G", "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={program('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            "-DCMAKE_BUILD_TYPE=Release",
            "-DRLCC_BUILD_PYTHON=ON",
            "-DRLCC_BUILD_TESTS=OFF",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]  # fmt: skip
        subprocess.run(configure, check=True)
        targets = ["restorelcc", "restorelcc_torch", "restorelcc_python"]
        subprocess.run([cmake, "--build", build, "--target", *targets], check=True)
        self.install(cmake, build, package)
        shutil.copytree(ROOT / "csrc" / "include", package / "include", dirs_exist_ok=True)
        if self.editable_mode:  # setuptools itself copies _C alone into the source tree
            self.install(cmake, build, ROOT / "python" / "restorelcc")

    def install(self, cmake: str, build: Path, package: Path) -> None:
        """The libraries and _C, into the folder of the package."""
        subprocess.run([cmake, "--install", build, "--prefix", package, "--component", "python"], check=True)


setup(
    version=version(),
    ext_modules=[Extension("restorelcc._C", sources=[])],
    cmdclass={"build_ext": BuildWithCMake},
)
