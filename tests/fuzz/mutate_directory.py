"""One lie, or a few, in the directory of a packed model: in the bytes of a file, in what they say, or in its place."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from random import Random

from model_corpus import FILES, Directory
from mutate_json import HUGE, garble_config, garble_rope, garble_text, garble_tree
from mutate_tensors import file_of, garble_header, garble_tensors, tensors_of

RECORD, TENSORS, CONFIG, GENERATION = FILES
_JSON = (RECORD, RECORD, RECORD, CONFIG, CONFIG, GENERATION)


def mutate(corpus: dict[str, Directory], seed: int, number: int) -> tuple[str, Directory]:
    """(what was done, the directory). The same for the same seed, number and corpus."""
    random = Random(f"{seed}:{number}")
    kind = random.choice(sorted(corpus))
    directory = dict(corpus[kind])
    done = []
    for _ in range(random.choice((1, 1, 1, 1, 2))):
        change = random.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        try:
            change(directory, random)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, struct.error):
            done.append(f"{change.__name__.strip('_')} (on what was garbled already: nothing)")
        else:
            done.append(change.__name__.strip("_"))
    return f"{kind}: {', '.join(done)}", directory


def _bytes(directory: Directory, name: str) -> bytes:
    entry = directory[name]
    if not isinstance(entry, bytes):
        raise ValueError(f"{name} is no file any more")
    return entry


def _change(directory: Directory, name: str, change: Callable[[bytes, Random], bytes], random: Random) -> None:
    directory[name] = change(_bytes(directory, name), random)


def _truncate(directory: Directory, random: Random) -> None:
    name = random.choice((TENSORS, TENSORS, RECORD, CONFIG, GENERATION))
    data = _bytes(directory, name)
    kept = random.choice((0, 1, 7, 8, 9, len(data) - 1, random.randrange(len(data)), random.randrange(len(data))))
    directory[name] = data[:kept]


def _flip(directory: Directory, random: Random) -> None:
    """Bits anywhere, or in the header alone."""
    name = random.choice((TENSORS, TENSORS, TENSORS, *_JSON))
    data = bytearray(_bytes(directory, name))
    most = len(data)
    if name == TENSORS and random.random() < 0.5:
        most = min(8 + int.from_bytes(data[:8], "little"), most)
    for _ in range(random.choice((1, 1, 1, 2, 8))):
        data[random.randrange(most)] ^= 1 << random.randrange(8)
    directory[name] = bytes(data)


def _splice(directory: Directory, random: Random) -> None:
    """A run of bytes removed, doubled, zeroed, or put in from elsewhere."""
    name = random.choice((TENSORS, *_JSON))
    data = _bytes(directory, name)
    begin = random.randrange(len(data))
    end = min(begin + random.choice((1, 2, 8, 64, 1000)), len(data))
    middle = random.choice((b"", data[begin:end] * 2, bytes(end - begin), random.randbytes(end - begin), b"\x00", b'"'))
    directory[name] = data[:begin] + middle + data[end:]


def _append(directory: Directory, random: Random) -> None:
    name = random.choice((TENSORS, *_JSON))
    directory[name] = _bytes(directory, name) + random.choice((b"\x00", b" " * 64, b"{}", random.randbytes(64)))


def _header(directory: Directory, random: Random) -> None:
    _change(directory, TENSORS, garble_header, random)


def _tensors(directory: Directory, random: Random) -> None:
    _change(directory, TENSORS, garble_tensors, random)


def _record(directory: Directory, random: Random) -> None:
    _change(directory, RECORD, garble_tree, random)


def _record_and_tensors(directory: Directory, random: Random) -> None:
    """Both agree on a wrong size of one matrix."""
    record, tensors = json.loads(_bytes(directory, RECORD)), tensors_of(_bytes(directory, TENSORS))
    matrix = random.choice(record["packed"])
    key = random.choice(("rows", "columns"))
    matrix[key] = random.choice((0, 1, matrix[key] - 1, matrix[key] + 1, matrix[key] * 2, 2**31, 2**62))
    for name, tensor in tensors.items():
        if name == f"{matrix['name']}.shape":
            tensor["data"][:] = b"".join(matrix[size].to_bytes(8, "little") for size in ("rows", "columns"))
    directory[RECORD] = json.dumps(record).encode()
    directory[TENSORS] = file_of(tensors)


def _all_agree(directory: Directory, random: Random) -> None:
    """Record and configuration agree on another hidden or inner size."""
    old, key = random.choice(((32, "hidden_size"), (72, "intermediate_size")))
    new = random.choice((16, 31, 48, 64, 128, *HUGE[:9]))
    config, record = json.loads(_bytes(directory, CONFIG)), json.loads(_bytes(directory, RECORD))
    config[key] = new
    for matrix in [*record["packed"], *record["dense"], *([record["head"]] if record["head"] else [])]:
        for side in ("rows", "columns"):
            matrix[side] = new if matrix[side] == old else matrix[side]
    directory[RECORD], directory[CONFIG] = json.dumps(record).encode(), json.dumps(config).encode()


def _config(directory: Directory, random: Random) -> None:
    _change(directory, CONFIG, random.choice((garble_config, garble_config, garble_rope, garble_tree)), random)


def _generation(directory: Directory, random: Random) -> None:
    _change(directory, GENERATION, garble_tree, random)


def _text(directory: Directory, random: Random) -> None:
    _change(directory, random.choice(_JSON), garble_text, random)


def _no_file(directory: Directory, random: Random) -> None:
    """Gone, empty, a directory, a link, a pipe, or a hole of gigabytes."""
    name = random.choice(FILES)
    kind = random.randrange(6)
    if kind == 0:
        del directory[name]
    elif kind == 1:
        directory[name] = b""
    elif kind == 2:
        directory[name] = {"directory": 0}
    elif kind == 3:
        outside = ("/dev/zero", "/dev/null", "../../../../../../etc/passwd", "/proc/self/mem")
        directory[name] = {"link": random.choice(("nowhere", name, *FILES, ".", *outside))}
    elif kind == 4:
        directory[name] = {"pipe": 0}
    else:
        directory[name] = {"hole": random.choice((1, 4096, 100 << 20, 3 << 30, 1 << 40))}


def _mixed(directory: Directory, random: Random) -> None:
    """A file under the name of another."""
    name, other = random.sample(FILES, 2)
    directory[name], directory[other] = directory[other], directory[name]


_WEIGHTS: dict[Callable[[Directory, Random], None], int] = {
    _truncate: 8, _flip: 18, _splice: 8, _append: 2, _header: 14, _tensors: 24, _record: 12, _record_and_tensors: 3,
    _all_agree: 2, _config: 14, _generation: 2, _text: 3, _no_file: 3, _mixed: 1,
}  # fmt: skip
