"""restorelcc: sparse projections with lost component compensation (arXiv 2510.21834).

Importing it loads torch and the compiled ops, and nothing of transformers.
"""

from __future__ import annotations

from typing import Any

from restorelcc import ops
from restorelcc._native import build_info, package_version
from restorelcc.head_moments import HeadMoments
from restorelcc.packed import PackedWeight, pack
from restorelcc.sparse_linear import SparseLinear

__version__ = package_version()

__all__ = [
    "HeadMoments",
    "PackedWeight",
    "SparseLinear",
    "__version__",
    "build_info",
    "load",
    "ops",
    "pack",
]


def __getattr__(name: str) -> Any:
    if name == "load":  # needs transformers, which takes seconds to import
        from restorelcc.adapter import load

        return load
    raise AttributeError(f"module 'restorelcc' has no attribute {name!r}")
