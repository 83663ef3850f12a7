"""Components of the lost activation of each head, from its moments.

    ΔZ = U Σ Vᵀ;   v_i = rows of Vᵀ = eigenvectors of ΔZᵀΔZ;   σ_i = sqrt(eigenvalue)
    c_k = Σ_{i≤k} mean(σ_i u_i) v_i = Σ_{i≤k} (mean(ΔZ)·v_i) v_i

RestoreLCC (arXiv 2510.21834) eq. 4-6. No singular value decomposition of stored activations is needed. Others:

    mean          the one direction mean(ΔZ)
    autoencoder   orthonormal directions that span the decoder of a small non-linear autoencoder (see `autoencoder`)
    random        orthonormal directions by a seed: what directions are worth
    none          no direction at all: training has the free vector b alone, and there is no closed form

Of an FFN the same of ΔY: one unit a layer, of the width of its output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .artifacts import Progress, atomic_write_tensors
from .autoencoder import fit_autoencoders
from .moments import Moments
from .sites import ATTENTION, FFN, Placed, chained, fields_by_place, model_sites, places_of, prefix, tensors_by_place
from .step_file import Fields, read_step_file

__all__ = ["COMPONENTS", "Components", "check_rank", "lost_components"]

COMPONENTS = ("svd", "autoencoder", "mean", "random", "none")
AUTOENCODER_RANK = 16
_SIZES = {ATTENTION: "head size", FFN: "width of the FFN's output"}
_FIELDS = {
    "basis": (torch.float64, "L H R D"), "singular_values": (torch.float64, "L H R"),
    "coefficients": (torch.float64, "L H R"), "unit": (torch.float64, "L H"),
}  # fmt: skip


@dataclass(frozen=True)
class Components(Placed):
    """Directions and closed-form compensation of every head, float64.

    basis [L, H, R, D]: unit rows v_i, by falling singular value (zero for `none`); singular_values [L, H, R]: σ_i of
    ΔZ, for other directions ‖ΔZ v_i‖; coefficients [L, H, R]: mean(ΔZ)·v_i; unit [L, H]: rms of ΔZ per element.
    Of FFNs (place ffn) H is 1 and D is E.
    """

    kind: str
    basis: Tensor
    singular_values: Tensor
    coefficients: Tensor
    unit: Tensor
    place: str = ATTENTION
    also: Components | None = None

    @property
    def vectors(self) -> Tensor:
        """c = Σ_i coefficients_i v_i, [L, H, D]."""
        return torch.einsum("lhr,lhrd->lhd", self.coefficients, self.basis)

    def check_model(self, model: nn.Module) -> None:
        """Raises ValueError when `model` has other layers, heads or head sizes."""
        for part in self.parts:
            sites = model_sites(model, part.place)
            theirs = (len(sites), sites[0].units, sites[0].size)
            ours = (*part.unit.shape, part.basis.shape[-1])
            if theirs != ours:
                what = "heads" if part.place == ATTENTION else "FFN outputs"
                raise ValueError(
                    "the moments are of {} layers with {} {what} of size {}, the model has {} with {} of size {}; "
                    "use the pruned model they were made from".format(*ours, *theirs, what=what)
                )

    def save(self, path: Path, metadata: dict[str, str] | None = None) -> None:
        """Writes the file that load() reads, whole or not at all."""
        tensors: dict[str, Tensor] = {}
        for part in self.parts:
            dot = prefix(self.places, part.place)
            tensors |= {f"{dot}{name}": getattr(part, name) for name in _FIELDS}
        marks = {"kind": "components", "version": "0", "components": self.kind}
        marks |= {} if self.where == ATTENTION else {"places": self.where}
        atomic_write_tensors(path, tensors, {**(metadata or {}), **marks})

    @classmethod
    def load(cls, path: Path) -> Components:
        """Raises ValueError when the file is missing, damaged or not a components file of this version."""
        found, metadata = read_step_file(
            path, "components", _fields, name="components", remedy="run `restorelcc restore` again",
            marks=("components",),
        )  # fmt: skip
        by_place = tensors_by_place(places_of(metadata.get("places", ATTENTION)), found)
        return chained([cls(metadata["components"], **tensors, place=place) for place, tensors in by_place.items()])


def _fields(metadata: dict[str, str], _: list[str]) -> Fields:
    return fields_by_place(places_of(metadata.get("places", ATTENTION)), _FIELDS)


def lost_components(
    moments: Moments, *, kind: str = "svd", rank: int | None = None, seed: int = 0, progress: Progress | None = None
) -> Components:
    """The top `rank` components of each head's lost activation (all of them by default; 16 for the autoencoder).

    Args:
        moments: of L layers and H heads of size D, of L FFNs of width D, or both; with samples for the autoencoder.
        kind: see the module.
        rank: R, at most D; not for `mean` and `none`.
        seed: of the random directions and the autoencoder's training.

    With rank = D, c is mean(ΔZ) itself, for any basis; the basis then only shapes the training.

    Raises:
        ValueError: unknown kind, a rank outside 1..D or where there is no choice, or moments without sampled rows.
    """
    return chained([_of_one_place(part, kind, rank, seed, progress) for part in moments.parts])


def check_rank(model: nn.Module, places: Sequence[str], rank: int) -> None:
    """Raises ValueError where a unit of `model`, which may be a skeleton without storage, has fewer directions."""
    for site in (site for place in places for site in model_sites(model, place)):
        _check_rank(rank, site.size, site.place)


def _check_rank(rank: int, size: int, place: str) -> None:
    if not 1 <= rank <= size:
        raise ValueError(f"rank {rank} is outside 1..{size}, the {_SIZES[place]}; choose one inside, or leave it out")


def _of_one_place(moments: Moments, kind: str, rank: int | None, seed: int, progress: Progress | None) -> Components:
    mean, head_dim = moments.mean, moments.gram.shape[-1]
    layers, heads = moments.rms.shape
    if kind not in COMPONENTS:
        raise ValueError(f"unknown components {kind!r}; choose one of {', '.join(COMPONENTS)}")
    if rank is not None and kind in ("mean", "none"):
        raise ValueError(f"components {kind} have no rank to choose; leave it out")
    if kind == "none":
        nothing = mean.new_zeros(layers, heads, 1)
        basis = mean.new_zeros(layers, heads, 1, head_dim)
        return Components(kind, basis, nothing, nothing.clone(), moments.rms, moments.place)
    if kind == "mean":
        length = mean.norm(dim=-1)
        unit_mean = torch.where(length[..., None] > 0, mean / length.clamp(min=1e-300)[..., None], 0.0)
        return _along(kind, unit_mean[..., None, :], moments)
    rank = (min(AUTOENCODER_RANK, head_dim) if kind == "autoencoder" else head_dim) if rank is None else rank
    _check_rank(rank, head_dim, moments.place)
    if kind == "random":
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(layers, heads, head_dim, rank, generator=generator, dtype=mean.dtype)
        return _along(kind, torch.linalg.qr(drawn).Q.transpose(-1, -2), moments)
    if kind == "autoencoder":
        if moments.samples is None:
            raise ValueError(
                "these moments hold no sampled rows of the lost activation, from which the autoencoder learns; collect "
                "them again with --samples 512"
            )
        found = fit_autoencoders(moments.samples.flatten(0, 1), rank, seed=seed, progress=progress)
        return _along(kind, found.basis.reshape(layers, heads, rank, head_dim), moments)
    eigenvectors = torch.linalg.eigh(moments.gram)[1]
    return _along(kind, eigenvectors.flip(-1)[..., :rank].transpose(-1, -2), moments)


def _along(kind: str, basis: Tensor, moments: Moments) -> Components:
    """Components along the orthonormal rows of `basis` [L, H, R, D], by falling ‖ΔZ v_i‖."""
    mean = moments.mean
    energy = torch.einsum("lhrd,lhde,lhre->lhr", basis, moments.gram, basis).clamp(min=0)
    order = energy.argsort(dim=-1, descending=True, stable=True)
    basis = basis.gather(2, order[..., None].expand_as(basis))
    # A direction's sign is arbitrary; point each along the mean so that files compare across machines.
    sign = torch.where(torch.einsum("lhrd,lhd->lhr", basis, mean) < 0, -1.0, 1.0).to(basis.dtype)
    basis = (basis * sign[..., None]).contiguous()
    coefficients = torch.einsum("lhrd,lhd->lhr", basis, mean)
    return Components(kind, basis, energy.gather(-1, order).sqrt(), coefficients, moments.rms, moments.place)
