"""What tests/fuzz/packed_files.py found, a test each: configurations that lie about sizes, files that are none."""

from __future__ import annotations

import json
import os
import resource
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import restorelcc
from restorelcc.pack_checkpoint import pack_checkpoint

NAMES = ("restorelcc.json", "packed.safetensors", "config.json")


@pytest.fixture(scope="module")
def good(pruned: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    pack_checkpoint(str(pruned("llama-gqa")), folder / "packed", values="fp32")
    return folder / "packed"


@pytest.fixture
def packed(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "packed"))


def change(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def refusal(packed: Path) -> str:
    """The sentence, which is one printable line that names the directory; without memory worth mentioning."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((ValueError, OSError)) as caught:
        restorelcc.load(packed)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 512 << 10, f"{grown >> 10} MB"
    text = str(caught.value)
    assert text.isprintable()
    assert str(packed) in text
    assert len(text) < 1000
    return text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_labels": 2**31}, "num_labels in config.json is 2147483648"),  # a dictionary of as many
        ({"num_hidden_layers": 10**12}, "num_hidden_layers in config.json is"),
        ({"text_config": {"num_hidden_layers": 10**12}}, "num_hidden_layers in config.json is"),
        ({"head_dim": 2**31}, "asks for tables of|pack it again"),  # rotary tables of 8 GB
        ({"hidden_size": 2**31, "head_dim": 8}, "pack it again"),  # a norm of ones of 8 GB
        ({"vocab_size": 2**62}, "cannot be loaded|pack it again"),
        ({"num_hidden_layers": 0}, "cannot be loaded: no decoder layers"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0,
                              "partial_rotary_factor": 1e10}}, "asks for tables of|cannot be loaded"),
        ({"rms_norm_eps": "\x1b[2J\n" * 500}, "cannot be loaded"),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_configuration_that_lies_allocates_nothing(changes: dict[str, Any], words: str, packed: Path) -> None:
    change(packed / "config.json", **changes)
    text = refusal(packed)
    assert any(word in text for word in words.split("|")), text


@pytest.mark.parametrize("key", ["AutoConfig", "AutoModelForCausalLM"])
def test_code_in_the_directory_is_not_run_and_nobody_is_asked(
    key: str, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (packed / "evil.py").write_text("raise SystemExit('ran')\n")
    change(packed / "config.json", auto_map={key: "evil.Model"}, model_type="evil")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    refusal(packed)


def test_a_kernel_that_the_file_wishes_for_is_not_fetched(packed: Path) -> None:
    change(packed / "config.json", attn_implementation="kernels-community/flash-attn2")
    assert restorelcc.load(packed).config._attn_implementation == "sdpa"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", NAMES)
def test_a_pipe_in_place_of_a_file_is_not_waited_for(name: str, packed: Path) -> None:
    (packed / name).unlink()
    os.mkfifo(packed / name)
    done = threading.Event()

    def load() -> None:
        refusal(packed)
        done.set()

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert done.is_set()


@pytest.mark.parametrize("name", ["restorelcc.json", "config.json"])
def test_a_hole_of_gigabytes_is_not_read(name: str, packed: Path) -> None:
    with (packed / name).open("r+b") as file:
        file.truncate(3 << 30)
    assert "3,221,225,472 bytes" in refusal(packed)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", ["/dev/zero", "nowhere", "."])
def test_a_link_to_no_file_is_refused(name: str, target: str, packed: Path) -> None:
    (packed / name).unlink()
    (packed / name).symlink_to(target)
    refusal(packed)


def test_a_number_of_five_thousand_digits_is_refused(packed: Path) -> None:
    text = (packed / "restorelcc.json").read_text()
    (packed / "restorelcc.json").write_text(text.replace('"version": 1', f'"version": {"9" * 5000}'))
    assert "restorelcc.json is truncated or not JSON" in refusal(packed)


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "\ud800", "../../x", "/x", "", "x" * 300])
def test_names_that_would_garble_a_terminal_stay_out_of_sentences(name: str, packed: Path) -> None:
    record = json.loads((packed / "restorelcc.json").read_text())
    record["packed"][0]["name"] = name
    change(packed / "restorelcc.json", packed=record["packed"], joined=[])
    assert "is no name of a module" in refusal(packed)


def test_names_of_tensors_stay_on_one_line(packed: Path) -> None:
    tensors = load_file(packed / "packed.safetensors")
    save_file({**tensors, "!\x1b[2J\n" * 300: torch.zeros(1)}, packed / "new.safetensors")
    (packed / "new.safetensors").replace(packed / "packed.safetensors")
    assert "no place for, such as !" in refusal(packed)


def test_a_shape_that_is_a_matrix_is_not_printed_whole(packed: Path) -> None:
    tensors = load_file(packed / "packed.safetensors")
    name = next(name for name in tensors if name.endswith(".shape"))
    save_file({**tensors, name: torch.rand(64, 64)}, packed / "new.safetensors")
    (packed / "new.safetensors").replace(packed / "packed.safetensors")
    assert "the record says" in refusal(packed)
