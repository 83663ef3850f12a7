"""restorelcc: sparse projections with lost component compensation (arXiv 2510.21834).

Importing it imports nothing heavy, so that the command line answers at once. The first use of a name below, or
`import restorelcc.ops`, loads torch and the compiled ops; only models need
transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from restorelcc import ops
    from restorelcc._native import build_info
    from restorelcc.compensated import compensation_names, compensations
    from restorelcc.compiled_decoding import compile_decode
    from restorelcc.head_moments import HeadMoments
    from restorelcc.loading import load
    from restorelcc.packed import PackedWeight, pack
    from restorelcc.packed_model import pack_model
    from restorelcc.sparse_linear import SparseLinear

    __version__: str

__all__ = [
    "HeadMoments", "PackedWeight", "SparseLinear", "__version__", "build_info", "compensation_names", "compensations",
    "compile_decode", "load", "ops", "pack", "pack_model",
]  # fmt: skip

_HOMES = {
    "HeadMoments": "head_moments",
    "PackedWeight": "packed",
    "SparseLinear": "sparse_linear",
    "build_info": "_native",
    "compensation_names": "compensated",
    "compensations": "compensated",
    "compile_decode": "compiled_decoding",
    "load": "loading",
    "pack": "packed",
    "pack_model": "packed_model",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("restorelcc._native").package_version()
    if name == "ops":
        return import_module("restorelcc.ops")
    if name in _HOMES:
        return getattr(import_module(f"restorelcc.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'restorelcc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
