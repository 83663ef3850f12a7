"""Whether llama.cpp computes what stock transformers computes, from the file that `restorelcc export` writes.

    python benchmarks/llama_cpp_check.py runs/demo/restored --llama-python LLAMA/bin/python --tokenizer smollm2-135m

    f32, float32 cache     max |logit − stock|  <=  2e-5 · max |stock|         else exit code 1
    each type              KL(stock ‖ llama.cpp) in nats a token, share of tokens with the same likeliest next one, NLL
    texts                  how many paragraphs both cut into the same tokens

All read the same token ids; stock is the checkpoint in float32. How to install llama-cpp-python: docs/gguf.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).parent
BUDGET = 2e-5  # of the largest logit: float32 products in another order, layer after layer
TEXTS = 200


@dataclass(frozen=True)
class Case:
    """A file of this type, read with this cache of keys and values."""

    kind: str
    float32_cache: bool

    @property
    def name(self) -> str:
        return f"{self.kind}, cache {'float32' if self.float32_cache else 'float16'}"


CASES = (Case("f32", True), Case("f32", False), Case("bf16", False), Case("f16", False))


@dataclass
class Agreement:
    """Sums over tokens. error and largest are maxima, of |logit - stock| and |stock|."""

    name: str
    tokens: int = 0
    error: float = 0.0
    largest: float = 0.0
    kl_sum: float = 0.0
    kl_most: float = 0.0
    same_top: int = 0
    nll_sum: float = 0.0
    stock_nll_sum: float = 0.0

    def add(self, ids: Tensor, stock: Tensor, theirs: Tensor) -> None:
        """One row: ids [T], logits [T, V] float32 of both."""
        count = len(ids)
        self.tokens += count
        error = float((stock - theirs).abs().max())
        self.error = max(self.error, math.inf if math.isnan(error) else error)
        self.largest = max(self.largest, float(stock.abs().max()))
        expected, given = (logits.double().log_softmax(-1) for logits in (stock, theirs))
        kl = (expected.exp() * (expected - given)).sum(-1)
        self.kl_sum += float(kl.sum())
        self.kl_most = max(self.kl_most, float(kl.max()))
        self.same_top += int((stock.argmax(-1) == theirs.argmax(-1)).sum())
        for name, logs in (("stock_nll_sum", expected), ("nll_sum", given)):
            nats = -logs[:-1].gather(1, ids[1:, None])
            setattr(self, name, getattr(self, name) + float(nats.sum()))

    def row(self, predicted: int) -> str:
        """Of the table."""
        return (
            f"| {self.name} | {self.error:.2e} ({self.error / self.largest:.1e}) | {self.kl_sum / self.tokens:.2e} | "
            f"{self.kl_most:.2e} | {self.same_top / self.tokens:.2%} | {math.exp(self.nll_sum / predicted):.4f} |"
        )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="stock Llama directory, such as a restored one")
    parser.add_argument("--llama-python", type=Path, default=Path(sys.executable), help="Python with llama-cpp-python")
    parser.add_argument("--tokenizer", help="as for restorelcc export")
    parser.add_argument("--text", type=Path, help=".txt or .jsonl; default: the prose that `restorelcc eval` takes")
    parser.add_argument("--types", default="f32,bf16,f16", help="of the files")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="keep the GGUF files here; default: a temporary folder")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args(arguments)
    other = set(options.types.split(",")) - {case.kind for case in CASES}
    if other:
        parser.error(f"--types has {', '.join(sorted(other))}; give some of f32, bf16, f16")
    return options


def rows_and_texts(options: argparse.Namespace, tokenizer: Any) -> tuple[str, list[list[int]], list[str]]:
    """(name of the text, windows of token ids, some of its paragraphs)."""
    from restorelcc.prose import prose_paragraphs, prose_windows
    from restorelcc.text import load_text

    size = {"window": options.window, "max_tokens": options.tokens}
    if options.text is None:
        found, texts = prose_windows(tokenizer, **size), list(prose_paragraphs())
    else:
        found = load_text(options.text, tokenizer, **size)
        texts = options.text.read_text(encoding="utf-8").split("\n\n")
    ids = [row[:length].tolist() for row, length in zip(found.ids, found.lengths.tolist(), strict=True)]
    return found.name, ids, [text for text in texts if text.strip()][:TEXTS]


def ask(options: argparse.Namespace, case: Case, file: Path, rows: list[list[int]], texts: list[str],
        use: Callable[[Iterator[Tensor]], None]) -> dict[str, Any]:  # fmt: skip
    """Runs the other process on a file; `use` gets the logits of each row, one at a time."""
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        job = Path(folder) / "job.json"
        asked = {"model": str(file), "rows": rows, "texts": texts, "threads": options.threads, "out": folder}
        job.write_text(json.dumps({**asked, "float32_cache": case.float32_cache}), encoding="utf-8")
        done = subprocess.run(
            [str(options.llama_python), str(HERE / "llama_cpp_logits.py"), str(job)], check=False, capture_output=True,
            text=True, env={**os.environ, "OMP_NUM_THREADS": str(options.threads)},
        )  # fmt: skip
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise SystemExit(f"llama.cpp did not read {file} ({case.name}): {last}")
        use(torch.from_numpy(np.load(Path(folder) / f"{number}.npy")) for number in range(len(rows)))
        answer: dict[str, Any] = json.loads(job.with_suffix(".answer.json").read_text(encoding="utf-8"))
        return answer


def stock_logits(model: Any, rows: list[list[int]], folder: Path) -> list[Path]:
    """A file of logits [T, V] float32 for each row: computed once, and together more than memory may hold."""
    files = []
    for number, row in enumerate(rows):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row])).logits[0]
        files.append(folder / f"stock-{number}.npy")
        np.save(files[-1], logits.numpy())
    return files


def check(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every case; the result has `failures`, sentences."""
    from restorelcc.gguf_export import export_gguf
    from restorelcc.models import load_model

    loaded = load_model(options.checkpoint, dtype=torch.float32)
    name, rows, texts = rows_and_texts(options, loaded.tokenizer)
    predicted = sum(len(row) - 1 for row in rows)
    stock_texts = [list(loaded.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    stock = stock_logits(loaded.model, rows, folder)
    cases, failures, answer, written = [], [], {}, {}
    for case in [case for case in CASES if case.kind in options.types.split(",")]:
        file = options.work / f"{case.kind}.gguf"
        if case.kind not in written:
            report = export_gguf(
                options.checkpoint, file, kind=case.kind, tokenizer=options.tokenizer, overwrite=True
            )
            written[case.kind] = report
        found = Agreement(case.name)

        def compare(theirs: Iterator[Tensor], found: Agreement = found) -> None:
            for row, file, logits in zip(rows, stock, theirs, strict=True):
                found.add(torch.tensor(row), torch.from_numpy(np.load(file)), logits)

        answer = ask(options, case, file, rows, texts, compare)
        cases.append(found)
        print(found.row(predicted), file=sys.stderr)
        if case == CASES[0] and found.error > BUDGET * found.largest:
            failures.append(f"{case.name}: logits differ by {found.error:.3g}, allowed {BUDGET * found.largest:.3g}")
    alike = sum(ours == theirs for ours, theirs in zip(stock_texts, answer["texts"], strict=True))
    notes = next(iter(written.values())).notes
    if options.tokenizer is None and not notes and alike < len(texts):
        failures.append(f"{len(texts) - alike} of {len(texts)} texts are cut otherwise than by the stock tokenizer")
    return {
        "llama-cpp-python": answer["version"], "checkpoint": options.checkpoint.name, "text": name, "rows": len(rows),
        "predicted": predicted, "stock_nll_sum": cases[0].stock_nll_sum, "cases": [asdict(case) for case in cases],
        "bytes": {kind: report.bytes for kind, report in written.items()}, "texts": len(texts), "alike": alike,
        "tokenizer": next(iter(written.values())).tokenizer, "notes": notes, "failures": failures,
        "table": table(cases, predicted),
    }  # fmt: skip


def table(cases: list[Agreement], predicted: int) -> str:
    """Markdown."""
    stock = math.exp(cases[0].stock_nll_sum / predicted)
    return "\n".join([
        "| file | largest error of a logit (share of the largest) | mean KL, nats | largest KL | same top token | "
        "perplexity |",
        "|---|---|---|---|---|---|",
        f"| stock transformers, float32 | – | – | – | – | {stock:.4f} |",
        *(case.row(predicted) for case in cases),
    ])  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        options.work = options.work or Path(folder)
        options.work.mkdir(parents=True, exist_ok=True)
        result = check(options, Path(folder))
    said = f"{result['alike']} of {result['texts']} texts are cut alike; tokenizer: {result['tokenizer']}"
    print(f"{result['table']}\n\n{result['rows']} rows of {result['text']}; {said}")
    for failure in result["failures"]:
        print(f"FAILED: {failure}")
    if options.markdown:
        options.markdown.write_text(result["table"] + "\n", encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
