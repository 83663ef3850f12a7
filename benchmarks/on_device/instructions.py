"""Each instruction wrapper of csrc/cuda/device against its definition: what runs first on a new device.

Registers go in as bits and come out as bits (tests/device/instructions.cu); what they must be is derived here from the
comments of ptx.cuh and convert.cuh, in numpy, knowing nothing of the emulator. A wrong layout of a fragment or of the
metadata of mma.sp shows here by name; in a product it would only be a wrong number.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from on_device.device import Device
from on_device.verdict import Verdict

Words = NDArray[np.uint32]
Numbers = NDArray[np.float64]
PAIRS = np.array([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])
NAN = 0x7FC00000


@dataclass(frozen=True)
class Trial:
    """given [warps, 32, words in] -> expected [warps, 32, words out]; matches(got, expected) says where they agree."""

    given: Words
    expected: Words
    argument: int = 0
    matches: Callable[[Words, Words], NDArray[np.bool_]] = np.equal


class Instructions:
    """The kernels of instructions.cu in a library."""

    def __init__(self, library: Path, device: Device) -> None:
        self._functions = ctypes.CDLL(str(library))
        self._functions.rlcc_test_instruction.restype = ctypes.c_char_p
        self._functions.rlcc_test_run_instruction.restype = ctypes.c_char_p
        self._device = device
        self.words: dict[str, tuple[int, int, int]] = {}  # name -> (index, words in, words out)
        words_in, words_out = ctypes.c_int(), ctypes.c_int()
        index = 0
        while name := self._functions.rlcc_test_instruction(index, ctypes.byref(words_in), ctypes.byref(words_out)):
            self.words[name.decode()] = (index, words_in.value, words_out.value)
            index += 1

    def run(self, name: str, given: Words, argument: int = 0) -> Words:
        """[warps, 32, words in] -> [warps, 32, words out]; what a kernel does not write stays 0xa5a5a5a5."""
        index, words_in, words_out = self.words[name]
        warps = given.shape[0]
        if given.shape != (warps, 32, words_in):
            raise ValueError(f"{name} takes [warps, 32, {words_in}], not {list(given.shape)}")
        source = torch.from_numpy(np.ascontiguousarray(given).view(np.int32)).to(self._device.place)
        filled = np.full((warps, 32, words_out), 0xA5A5A5A5, dtype=np.uint32)
        result = torch.from_numpy(filled.view(np.int32)).to(self._device.place)
        error = self._functions.rlcc_test_run_instruction(
            index, ctypes.c_void_p(source.data_ptr()), ctypes.c_void_p(result.data_ptr()), warps, argument,
            ctypes.c_void_p(self._device.stream),
        )  # fmt: skip
        if error:
            raise RuntimeError(f"{name}: {error.decode()}")
        self._device.wait()
        return result.cpu().numpy().view(np.uint32)


def check(instructions: Instructions, verdict: Verdict) -> None:
    """Every instruction of the library, and the library's list against TRIALS, in which mma.sp comes first."""
    for name in [*TRIALS, *sorted(instructions.words.keys() - TRIALS.keys())]:
        if name not in instructions.words or name not in TRIALS:
            what = "the library does not have it" if name in TRIALS else "has no trial in on_device/instructions.py"
            verdict.add("instruction", name, what)
            continue
        random = np.random.default_rng(11)
        for trial in TRIALS[name](random):
            try:
                got = instructions.run(name, trial.given, trial.argument)
            except RuntimeError as error:
                verdict.add("instruction", name, str(error))
                break
            right = trial.matches(got, trial.expected)
            problem = None
            if not right.all():
                warp, lane, word = (int(i) for i in np.argwhere(~right)[0])
                problem = (
                    f"{int((~right).sum())} of {right.size} words are wrong; the first, word {word} of lane {lane} of "
                    f"warp {warp}, is {got[warp, lane, word]:#010x} for {trial.expected[warp, lane, word]:#010x}"
                )
            verdict.add("instruction", name, problem)


def rounding_of_mma(instructions: Instructions) -> dict[str, float]:
    """How far a tensor core's sum is from the exact one, in units of 2^-24 Σ|a b|: the emulator rounds once (below
    1), a device may cut bits off. The budget of the ops allows 32 for a whole sum.
    """
    random = np.random.default_rng(12)
    worst = {}
    for kind in ("bf16", "f16"):
        a, b = random.standard_normal((64, 16, 16)), random.standard_normal((64, 16, 8))
        (trial,) = _dense(kind, a, b, np.zeros((64, 16, 8)))
        got = instructions.run(f"mma_m16n8k16_{kind}", trial.given).view(np.float32).astype(np.float64)
        a, b = (_number(kind, _bits(kind, m)) for m in (a, b))
        exact, size = _fragment(a @ b, "c"), _fragment(np.abs(a) @ np.abs(b), "c")
        worst[kind] = float((np.abs(got - exact) / (size * 2.0**-24)).max())
    return worst


# ---- 16-bit numbers


def _bits(kind: str, numbers: NDArray[Any]) -> NDArray[np.uint16]:
    """Rounded to nearest, ties to even."""
    dtype = torch.bfloat16 if kind == "bf16" else torch.float16
    single = torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.float32))
    return single.to(dtype).view(torch.int16).numpy().view(np.uint16)


def _number(kind: str, bits: NDArray[np.uint16]) -> Numbers:
    single = (bits.astype(np.uint32) << 16).view(np.float32) if kind == "bf16" else bits.view(np.float16)
    with np.errstate(invalid="ignore"):  # signalling NaN
        return single.astype(np.float64)


def _single(kind: str, bits: NDArray[np.uint16]) -> Words:
    with np.errstate(invalid="ignore"):
        return _number(kind, bits).astype(np.float32).view(np.uint32)


def _same_float(got: Words, expected: Words) -> NDArray[np.bool_]:
    """The same bits, or both NaN."""
    both = np.isnan(got.view(np.float32)) & np.isnan(expected.view(np.float32))
    return np.asarray((got == expected) | both)


def _same_halves(kind: str) -> Callable[[Words, Words], NDArray[np.bool_]]:
    def same(got: Words, expected: Words) -> NDArray[np.bool_]:
        right = np.ones(got.shape, dtype=bool)
        for shift in (0, 16):
            g, e = (((words >> shift) & 0xFFFF).astype(np.uint16) for words in (got, expected))
            right &= (g == e) | (np.isnan(_number(kind, g)) & np.isnan(_number(kind, e)))
        return right

    return same


def _per_lane(words: Words, each: int = 4) -> Words:
    return words.reshape(-1, 32, each)


def _all_halves() -> NDArray[np.uint16]:
    return np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)


def _widening(kind: str, shift: int) -> Callable[[np.random.Generator], Iterator[Trial]]:
    """Every 16-bit pattern, something else in the register's other half."""

    def trials(random: np.random.Generator) -> Iterator[Trial]:
        halves = _all_halves()
        other = random.integers(0, 1 << 16, halves.size, dtype=np.uint32)
        words: Words = halves.astype(np.uint32) << np.uint32(shift) | other << np.uint32(16 - shift)
        yield Trial(_per_lane(words), _per_lane(_single(kind, halves)), matches=_same_float)

    return trials


def _floats(random: np.random.Generator) -> NDArray[np.float32]:
    """All exponents, ties and their neighbours, specials."""
    bits = random.integers(0, 1 << 32, 1 << 13, dtype=np.uint64).astype(np.uint32)
    ties = (_all_halves()[::37].astype(np.uint32) << 16)[:1024]
    near = np.concatenate([ties + np.uint32(offset) for offset in (0x8000, 0x7FFF, 0x8001)])
    halves = (_all_halves()[:31744:61]).view(np.float16).astype(np.float32)  # finite fp16 numbers, and between them
    between = ((halves[:-1].astype(np.float64) + halves[1:]) / 2).astype(np.float32).view(np.uint32)
    specials = (0, 1 << 31, 0x7F800000, 0xFF800000, NAN, 0x7F7FFFFF, 1, 0x477FF000, 0x33000000)
    special = np.array(specials, dtype=np.uint32)
    everything = np.concatenate([bits, near, between, special])
    return np.resize(everything, -(-everything.size // 128) * 128).view(np.float32)


def _narrowing(kind: str) -> Callable[[np.random.Generator], Iterator[Trial]]:
    def trials(random: np.random.Generator) -> Iterator[Trial]:
        floats = _floats(random)
        expected = _bits(kind, floats).astype(np.uint32)
        yield Trial(_per_lane(floats.view(np.uint32)), _per_lane(expected), matches=_same_halves(kind))

    return trials


def _narrowing_pairs(kind: str) -> Callable[[np.random.Generator], Iterator[Trial]]:
    def trials(random: np.random.Generator) -> Iterator[Trial]:
        floats = _floats(random)
        halves = _bits(kind, floats).astype(np.uint32)
        expected = np.zeros(floats.size, dtype=np.uint32)
        expected[::2] = halves[::2] | halves[1::2] << 16
        yield Trial(_per_lane(floats.view(np.uint32)), _per_lane(expected), matches=_same_halves(kind))

    return trials


def _exponentials(random: np.random.Generator) -> Iterator[Trial]:
    """2^x to 2 units of the last place; below 2^-126 the result, and a denormal x, count as 0."""
    x = np.concatenate([random.uniform(-127, 128, 4000), random.normal(0, 2, 4000), np.arange(-130, 129)])
    special = [np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-40, -1e-40, 127.99999, 128.0, -126.0]
    x = np.resize(np.concatenate([x, special]), 8320).astype(np.float32)
    with np.errstate(over="ignore"):
        expected = np.exp2(np.where(np.abs(x) < 2.0**-126, 0, x).astype(np.float64))
    expected[expected < 2.0**-126] = 0

    def close(got: Words, wanted: Words) -> NDArray[np.bool_]:
        g, e = (words.view(np.float32).astype(np.float64) for words in (got, wanted))
        with np.errstate(invalid="ignore"):
            near = np.abs(g - e) <= 2.0**-22 * e
        at_the_edge = (e < 2.0**-125.9) & (g < 2.0**-125.9) & (g >= 0)  # either side of where results become 0
        return np.asarray(near | at_the_edge | (g == e) | (np.isnan(g) & np.isnan(e)))

    with np.errstate(over="ignore"):
        single = expected.astype(np.float32)
    yield Trial(_per_lane(x.view(np.uint32)), _per_lane(single.view(np.uint32)), matches=close)


# ---- Memory


def _noise(random: np.random.Generator, warps: int, words: int) -> Words:
    return random.integers(0, 1 << 32, (warps, 32, words), dtype=np.uint64).astype(np.uint32)


def _moves(random: np.random.Generator) -> Iterator[Trial]:
    given = _noise(random, 3, 4)
    yield Trial(given, given)


def _copies(random: np.random.Generator) -> Iterator[Trial]:
    given = _noise(random, 2, 4)
    for count in range(17):
        kept = given.copy()
        kept.view(np.uint8).reshape(2, 32, 16)[:, :, count:] = 0
        yield Trial(given, kept, argument=count)


def _matrices(count: int, transposed: bool) -> Callable[[np.random.Generator], Iterator[Trial]]:
    def trials(random: np.random.Generator) -> Iterator[Trial]:
        given = _noise(random, 2, 8)
        expected = np.full((2, 32, 4), 0xA5A5A5A5, dtype=np.uint32)
        for warp in range(2):
            rows = random.permutation(32)
            given[warp, :, 4] = rows  # lane l points at the row of lane rows[l]
            halves = np.ascontiguousarray(given[warp, :, :4]).view(np.uint16)  # [row, 8 elements]
            for i in range(count):
                matrix = halves[rows[8 * i : 8 * i + 8]]
                matrix = matrix.T if transposed else matrix
                for lane in range(32):
                    low, high = (int(v) for v in matrix[lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2])
                    expected[warp, lane, i] = low | high << 16
        yield Trial(given, expected)

    return trials


# ---- mma. g = lane / 4, t = lane % 4, as the comments of ptx.cuh have it.

_G, _T = np.arange(32) // 4, np.arange(32) % 4
# Of each register: the rows (a, c) or columns (b) g + .., and the first of two neighbours along the other axis.
_PLACES = {
    "a": [(_G, 2 * _T), (_G + 8, 2 * _T), (_G, 2 * _T + 8), (_G + 8, 2 * _T + 8)],
    "b": [(_G, 2 * _T), (_G, 2 * _T + 8)],
    "b of sparse": [(_G, 2 * _T + offset) for offset in (0, 8, 16, 24)],
}


def _registers(kind: str, matrix: Numbers, operand: str) -> Words:
    """[warps, rows, columns] of a (of b: transposed) -> [warps, 32, registers] of two 16-bit numbers."""
    bits = _bits(kind, matrix).astype(np.uint32)
    return np.stack([bits[:, r, k] | bits[:, r, k + 1] << 16 for r, k in _PLACES[operand]], axis=-1)


def _fragment(c: Numbers, operand: str) -> Numbers:
    """[warps, 16, 8] -> [warps, 32, 4]."""
    assert operand == "c"
    return np.stack([c[:, _G + 8 * (i // 2), 2 * _T + i % 2] for i in range(4)], axis=-1)


def _bits_of_c(c: Numbers) -> Words:
    return _fragment(c, "c").astype(np.float32).view(np.uint32)


def _integers(random: np.random.Generator, *shape: int) -> Numbers:
    """So small that every sum is exact, and none is 0, which would leave its place in doubt."""
    return np.asarray(random.integers(1, 16, shape) * random.choice([-1, 1], shape), dtype=np.float64)


def _dense(kind: str, a: Numbers, b: Numbers, c: Numbers) -> Iterator[Trial]:
    given = [_registers(kind, a, "a"), _registers(kind, b.swapaxes(1, 2), "b"), _bits_of_c(c)]
    padding = np.zeros((a.shape[0], 32, 2), dtype=np.uint32)
    yield Trial(np.concatenate([*given, padding], axis=-1), _bits_of_c(a @ b + c), matches=_same_float)


def _multiplies(kind: str) -> Callable[[np.random.Generator], Iterator[Trial]]:
    def trials(random: np.random.Generator) -> Iterator[Trial]:
        yield from _dense(kind, _integers(random, 4, 16, 16), _integers(random, 4, 16, 8), _integers(random, 4, 16, 8))

    return trials


def _sparse(kind: str, selector: int, kept: NDArray[np.int64], values: Numbers, b: Numbers, c: Numbers) -> Trial:
    """kept [warps, 16, 8, 2]: which two of each four columns of a [16, 32] are kept; values [warps, 16, 16]."""
    warps = values.shape[0]
    a = np.zeros((warps, 16, 32))
    columns = (4 * np.arange(8)[:, None] + kept).reshape(warps, 16, 16)
    np.put_along_axis(a, columns, values, axis=2)
    # 16 columns a half: bits 4 f and 4 f + 2 of a row's 16 are those of the f-th four of columns.
    shifts = (4 * np.arange(4)[:, None] + np.array([0, 2])).reshape(-1)
    rows = (kept.reshape(warps, 16, 2, 8).astype(np.uint32) << shifts).sum(-1, dtype=np.uint32)  # [warps, 16, halves]
    metadata = np.full((warps, 32), 0x12345678, dtype=np.uint32)  # what lanes that are not named hold is not looked at
    for half in range(2):
        named = np.flatnonzero(np.equal(_T, 2 * selector + half))
        metadata[:, named] = rows[:, _G[named], half] | rows[:, _G[named] + 8, half] << 16
    given = [
        _registers(kind, values, "a"), _registers(kind, b.swapaxes(1, 2), "b of sparse"), _bits_of_c(c),
        metadata[..., None], np.zeros((warps, 32, 3), dtype=np.uint32),
    ]  # fmt: skip
    return Trial(np.concatenate(given, axis=-1), _bits_of_c(a @ b + c), matches=_same_float)


def _sparse_multiplies(kind: str, selector: int) -> Callable[[np.random.Generator], Iterator[Trial]]:
    def trials(random: np.random.Generator) -> Iterator[Trial]:
        values, b, c = _integers(random, 6, 16, 16), _integers(random, 6, 32, 8), _integers(random, 6, 16, 8)
        # Each of the six pairs everywhere, which tells the order of bits from the order of fours; then all mixed.
        for pair in PAIRS:
            yield _sparse(kind, selector, np.broadcast_to(pair, (6, 16, 8, 2)), values, b, c)
        yield _sparse(kind, selector, PAIRS[random.integers(0, 6, (6, 16, 8))], values, b, c)

    return trials


_CONVERSIONS: dict[str, Callable[[np.random.Generator], Iterator[Trial]]] = {}
for _kind in ("bf16", "f16"):
    _CONVERSIONS[f"float_of_{_kind}"] = _CONVERSIONS[f"float_of_{_kind}_low"] = _widening(_kind, 0)
    _CONVERSIONS[f"float_of_{_kind}_high"] = _widening(_kind, 16)
    _CONVERSIONS[f"{_kind}_of_float"] = _narrowing(_kind)
    _CONVERSIONS[f"{_kind}x2_of_floats"] = _narrowing_pairs(_kind)

TRIALS: dict[str, Callable[[np.random.Generator], Iterator[Trial]]] = {
    **{f"mma_sp_m16n8k32_{k}_{s}": _sparse_multiplies(k, s) for k in ("bf16", "f16") for s in (0, 1)},
    **{f"mma_m16n8k16_{k}": _multiplies(k) for k in ("bf16", "f16")},
    **{f"ldmatrix_x{n}{t}": _matrices(n, bool(t)) for n in (1, 2, 4) for t in ("", "_transposed")},
    **{f"cp_async_{size}": _copies for size in (4, 8, 16)},
    "exp2_approximate": _exponentials,
    "cp_async_groups": _moves,
    "load_stream_16": _moves,
    "load_cached_16": _moves,
    "store_stream_16": _moves,
    **_CONVERSIONS,
}
