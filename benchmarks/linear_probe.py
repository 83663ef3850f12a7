"""All linear probes in one batched solve, against the same fits one after another.

    python benchmarks/linear_probe.py                                               270 heads of 64, 1000 rows of noise
    python benchmarks/linear_probe.py --model smollm2-135m --data pairs.jsonl       head outputs of a model

Contenders take turns, A B C A B C; times are medians over rounds, ratios medians of the ratios of a round. Each is
checked: how far its objective is above the least one found, its coefficients from ours, its accuracy from ours.

    ours            restorelcc.logistic.fit_logistic, all heads
    ours, singly    the same function, called with one head at a time
    lbfgs           scikit-learn's LogisticRegression as it comes: its tolerance stops far from the minimum
    lbfgs, tight    tol=1e-8: nearer to ours, and about as near as it gets
    newton          solver=newton-cholesky, tol=1e-8: the strongest of scikit-learn for such shapes
    adam            200 steps of Adam (rate 0.01, no penalty), what the authors of the paper run; every tenth head, its
                    time multiplied by what that leaves out; another objective, so only its accuracy is compared
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
from alternating import machine, quartiles
from torch import Tensor, nn

from restorelcc.head_outputs import head_outputs
from restorelcc.logistic import fit_logistic

Fitted = tuple[Tensor, Tensor]  # weight [B, D], intercept [B], float64
ADAM_SHARE = 10


def noise(heads: int, rows: int, size: int) -> tuple[Tensor, Tensor]:
    """Features [B, n, D] float32 of ragged scales in which heads tell the labels apart more or less."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    labels = torch.arange(rows) % 2 == 1
    x = normal(heads, rows, size) * torch.exp(0.7 * normal(heads, 1, size))
    x = x @ torch.linalg.qr(normal(heads, size, size))[0] + normal(heads, 1, size)
    apart = 0.3 * torch.rand(heads, 1, 1, generator=generator)
    return x + apart * normal(heads, 1, size) * (labels.float()[None, :, None] - 0.5), labels


def of_model(spec: str, data: Path, rows: int, window: int) -> tuple[Tensor, Tensor]:
    """What the heads of a model put out at the last token of right and of wrong answers."""
    from restorelcc.models import load_model
    from restorelcc.pairs import contrastive_pairs

    loaded = load_model(spec)
    pairs = contrastive_pairs(data, loaded.tokenizer, window=window, max_pairs=rows // 2)
    sides = [head_outputs(loaded.model, side, side.lengths - 1, batch=16) for side in (pairs.positive, pairs.negative)]
    features = torch.cat([side.flatten(0, 1).float() for side in sides], 1)
    return features, torch.arange(features.shape[1]) < len(pairs)


def ours(x: Tensor, labels: Tensor) -> Fitted:
    fits = fit_logistic(x, labels)
    return fits.weight, fits.intercept


def ours_singly(x: Tensor, labels: Tensor) -> Fitted:
    found = [ours(x[index : index + 1], labels) for index in range(len(x))]
    return torch.cat([w for w, _ in found]), torch.cat([b for _, b in found])


def scikit_learn(**settings: Any) -> Callable[[Tensor, Tensor], Fitted]:
    from sklearn.linear_model import LogisticRegression

    def fit(x: Tensor, labels: Tensor) -> Fitted:
        features, truth = x.double().numpy(), labels.numpy()
        found = [LogisticRegression(max_iter=10_000, **settings).fit(head, truth) for head in features]
        weight = torch.tensor([one.coef_[0].tolist() for one in found], dtype=torch.float64)
        return weight, torch.tensor([float(one.intercept_[0]) for one in found], dtype=torch.float64)

    return fit


def adam(x: Tensor, labels: Tensor) -> Fitted:
    target, found = labels.float(), []
    for head in x[::ADAM_SHARE]:
        torch.manual_seed(0)
        layer = nn.Linear(head.shape[1], 1)
        optimiser = torch.optim.Adam(layer.parameters(), lr=0.01)
        for _ in range(200):
            optimiser.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(layer(head).squeeze(-1), target).backward()
            optimiser.step()
        found.append((layer.weight.detach()[0].double(), layer.bias.detach()[0].double()))
    return torch.stack([w for w, _ in found]), torch.stack([b for _, b in found])


def objective(x: Tensor, labels: Tensor, fitted: Fitted) -> Tensor:
    """f [B] of each problem, float64."""
    weight, intercept = fitted
    margins = torch.einsum("bnd,bd->bn", x.double(), weight) + intercept[:, None]
    misfit = nn.functional.softplus(torch.where(labels, -margins, margins)).sum(-1)
    return misfit + 0.5 * weight.square().sum(-1)


def accuracy(x: Tensor, labels: Tensor, fitted: Fitted) -> Tensor:
    """[B], on the rows that were fitted."""
    margins = torch.einsum("bnd,bd->bn", x.double(), fitted[0]) + fitted[1][:, None]
    return ((margins > 0) == labels).double().mean(-1)


def compared(x: Tensor, labels: Tensor, fitted: Fitted, least: Tensor, reference: Fitted, same: bool) -> dict[str, Any]:
    """Where a contender is, seen from the least objective and from our fit."""
    every = len(x) // len(fitted[0])
    shown = x[::every][: len(fitted[0])]
    mine = (reference[0][::every], reference[1][::every])
    found: dict[str, Any] = {"accuracy": float(accuracy(shown, labels, fitted).mean()), "heads": len(shown)}
    found["accuracy_difference"] = float((accuracy(shown, labels, fitted) - accuracy(shown, labels, mine)).abs().max())
    if same:
        found["objective_excess"] = float((objective(shown, labels, fitted) - least).max())
        found["coefficient_difference"] = float((fitted[0] - mine[0]).abs().max())
    return found


@click.command()
@click.option("--heads", default=270, show_default=True, help="Problems, without --model.")
@click.option("--size", default=64, show_default=True, help="Features of a problem, without --model.")
@click.option("--rows", default=1000, show_default=True, help="Half of them right answers.")
@click.option("--model", default=None, metavar="MODEL", help="Take its head outputs; needs --data.")
@click.option("--data", default=None, type=click.Path(path_type=Path, exists=True), help="Rows to make pairs of.")
@click.option("--window", default=64, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--threads", default=0, help="Of torch; all of them by default.")
@click.option("--json", "out", default=None, type=click.Path(path_type=Path))
def main(heads: int, size: int, rows: int, model: str | None, data: Path | None, window: int, rounds: int,
         threads: int, out: Path | None) -> None:  # fmt: skip
    """Times all linear probes at once, and one after another."""
    if model is not None and data is None:
        raise click.UsageError("--model needs --data, a .jsonl that pairs can be made of")
    if threads:
        torch.set_num_threads(threads)
    x, labels = of_model(model, data, rows, window) if model and data else noise(heads, rows, size)
    contenders: dict[str, Callable[[Tensor, Tensor], Fitted]] = {"ours": ours, "ours, singly": ours_singly}
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        click.echo("scikit-learn is not installed; it is left out", err=True)
    else:
        threadpool_limits(1, "blas")  # scikit-learn is faster so with problems so small
        contenders["lbfgs"] = scikit_learn()
        contenders["lbfgs, tight"] = scikit_learn(tol=1e-8)
        contenders["newton"] = scikit_learn(solver="newton-cholesky", tol=1e-8)
    contenders["adam"] = adam

    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    fitted: dict[str, Fitted] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, of line searches that rounding ends
        ours(x, labels)
        for _ in range(rounds):
            for name, fit in contenders.items():
                begin = time.perf_counter()
                fitted[name] = fit(x, labels)
                share = len(fitted[name][0]) / len(x)
                seconds[name].append((time.perf_counter() - begin) / share)

    same = [name for name in contenders if name != "adam"]
    least = torch.stack([objective(x, labels, fitted[name]) for name in same]).amin(0)
    result: dict[str, Any] = {
        "machine": machine(), "torch": torch.__version__, "threads": torch.get_num_threads(), "model": model,
        "heads": len(x), "rows": x.shape[1], "size": x.shape[2], "rounds": rounds, "contenders": {},
    }  # fmt: skip
    print(f"{result['machine']}, {result['threads']} threads: {len(x)} heads, {x.shape[1]} rows of {x.shape[2]}")
    for name in contenders:
        ratios = [theirs / mine for theirs, mine in zip(seconds[name], seconds["ours"], strict=True)]
        found = compared(x, labels, fitted[name], least, fitted["ours"], name in same)
        result["contenders"][name] = {
            "seconds": median(seconds[name]), "quartiles": quartiles(seconds[name]), "ratio": median(ratios),
            "ratio_range": (min(ratios), max(ratios)), **found,
        }  # fmt: skip
        where = (
            f"objective +{max(found['objective_excess'], 0):.1e}, coefficients {found['coefficient_difference']:.1e}"
            if name in same else "another objective"
        )  # fmt: skip
        print(
            f"  {name:13s} {median(seconds[name]):8.3f} s   {median(ratios):6.1f} x ({min(ratios):.1f} to "
            f"{max(ratios):.1f})   {where}, accuracy {found['accuracy']:.4f} (±{found['accuracy_difference']:.4f})"
        )
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
