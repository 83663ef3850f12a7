"""Components of the lost activation of each head, from its moments.

    ΔZ = U Σ Vᵀ;   v_i = rows of Vᵀ = eigenvectors of ΔZᵀΔZ;   σ_i = sqrt(eigenvalue)
    c_k = Σ_{i≤k} mean(σ_i u_i) v_i = Σ_{i≤k} (mean(ΔZ)·v_i) v_i

RestoreLCC (arXiv 2510.21834) eq. 4-6. No singular value decomposition of stored activations is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .artifacts import atomic_write_tensors
from .models import attention_sites
from .moments import Moments
from .step_file import read_step_file

__all__ = ["COMPONENTS", "Components", "lost_components"]

COMPONENTS = ("svd", "mean")
_FIELDS = {
    "basis": (torch.float64, "L H R D"), "singular_values": (torch.float64, "L H R"),
    "coefficients": (torch.float64, "L H R"), "unit": (torch.float64, "L H"),
}  # fmt: skip


@dataclass(frozen=True)
class Components:
    """Directions and closed-form compensation of every head, float64.

    basis [L, H, R, D]: unit rows v_i, by falling singular value; singular_values [L, H, R]: σ_i of ΔZ, or
    sqrt(count)·|mean| for `mean`; coefficients [L, H, R]: mean(ΔZ)·v_i; unit [L, H]: rms of ΔZ per element.
    """

    kind: str
    basis: Tensor
    singular_values: Tensor
    coefficients: Tensor
    unit: Tensor

    @property
    def vectors(self) -> Tensor:
        """c = Σ_i coefficients_i v_i, [L, H, D]."""
        return torch.einsum("lhr,lhrd->lhd", self.coefficients, self.basis)

    def check_model(self, model: nn.Module) -> None:
        """Raises ValueError when `model` has other layers, heads or head sizes."""
        sites = attention_sites(model)
        theirs = (len(sites), sites[0].heads, sites[0].head_dim)
        ours = (*self.unit.shape, self.basis.shape[-1])
        if theirs != ours:
            raise ValueError(
                "the moments are of {} layers with {} heads of size {}, the model has {} with {} of size {}; "
                "use the pruned model they were made from".format(*ours, *theirs)
            )

    def save(self, path: Path, metadata: dict[str, str] | None = None) -> None:
        """Writes the file that load() reads, whole or not at all."""
        tensors = {
            "basis": self.basis, "singular_values": self.singular_values,
            "coefficients": self.coefficients, "unit": self.unit,
        }
        marks = {"kind": "components", "version": "0", "components": self.kind}
        atomic_write_tensors(path, tensors, {**(metadata or {}), **marks})

    @classmethod
    def load(cls, path: Path) -> Components:
        """Raises ValueError when the file is missing, damaged or not a components file of this version."""
        found, metadata = read_step_file(
            path, "components", _FIELDS, name="components", remedy="run `restorelcc restore` again",
            marks=("components",),
        )  # fmt: skip
        return cls(metadata["components"], **found)


def lost_components(moments: Moments, *, kind: str = "svd", rank: int | None = None) -> Components:
    """The top `rank` components of each head's lost activation (all of them by default).

    Args:
        moments: of L layers and H heads of size D.
        kind: `svd`, the eigenvectors of the Gram matrix; `mean`, the one direction mean(ΔZ).
        rank: R, at most D; only for `svd`.

    With rank = D, c is mean(ΔZ) itself, for any basis; the basis then only shapes the training.

    Raises:
        ValueError: unknown kind, or a rank outside 1..D.
    """
    mean, head_dim = moments.mean, moments.gram.shape[-1]
    if kind not in COMPONENTS:
        raise ValueError(f"unknown components {kind!r}; choose one of {', '.join(COMPONENTS)}")
    if kind == "mean":
        length = mean.norm(dim=-1)
        unit_mean = torch.where(length[..., None] > 0, mean / length.clamp(min=1e-300)[..., None], 0.0)
        count = moments.count.to(mean.dtype)[:, None]
        return Components(kind, unit_mean[..., None, :], (count.sqrt() * length)[..., None],
                          length[..., None], moments.rms)
    rank = head_dim if rank is None else rank
    if not 1 <= rank <= head_dim:
        raise ValueError(f"rank {rank} is outside 1..{head_dim}, the head size")
    eigenvalues, eigenvectors = torch.linalg.eigh(moments.gram)
    basis = eigenvectors.flip(-1)[..., :rank].transpose(-1, -2).contiguous()
    # An eigenvector's sign is arbitrary; point each along the mean so that files compare across machines.
    sign = torch.where(torch.einsum("lhrd,lhd->lhr", basis, mean) < 0, -1.0, 1.0).to(basis.dtype)
    basis = basis * sign[..., None]
    singular_values = eigenvalues.flip(-1)[..., :rank].clamp(min=0).sqrt()
    return Components(kind, basis, singular_values, torch.einsum("lhrd,lhd->lhr", basis, mean), moments.rms)
