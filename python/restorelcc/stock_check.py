"""Logits of a checkpoint by stock transformers alone. Run as a file, never imported by the package:

    python -I stock_check.py CHECKPOINT IDS.safetensors OUT.safetensors

`ids` [n, T] int64 in; `logits` [n, T, V] of the checkpoint's own dtype and of float64 out, with the
transformers version. It fails if anything of restorelcc is in the process.
"""

import sys

import torch
import transformers
from safetensors.torch import load_file, save_file


def main(checkpoint: str, ids_path: str, out: str) -> None:
    """Compute, check that the process is clean, save."""
    ids = load_file(ids_path)["ids"]
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, local_files_only=True)
    model.requires_grad_(False)
    results = {}
    with torch.no_grad():
        results["logits"] = model(ids, use_cache=False).logits
        results["logits64"] = model.double()(ids, use_cache=False).logits
    intruders = sorted(name for name in sys.modules if name.partition(".")[0] in ("restorelcc", "restorelcc_ext"))
    if intruders:
        raise SystemExit(f"not a stock process: {', '.join(intruders)} imported")
    save_file(results, out, metadata={"transformers": transformers.__version__})


main(*sys.argv[1:])
