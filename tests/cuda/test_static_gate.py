"""The static gate finds what it is there to find: in planted kernels, and in listings written by hand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from control_flow import UncountableError, all_loops, blocks_of, longest_way, loops_of
from sass import HOW_TO_GET_CUOBJDUMP, Instruction, Kernel, ToolError, find_cuobjdump, parse_instructions, short_name
from static_gate import BUDGETS, judge, read_budgets, resident_warps, table

HERE = Path(__file__).parent
GATE = HERE / "static_gate.py"


# ---- Listings


def listing(text: str) -> list[Instruction]:
    """`address: instruction` lines as cuobjdump prints them."""
    lines = ["arch = sm_80", "\t\tFunction : f"]
    for line in text.strip().splitlines():
        address, _, rest = line.strip().partition(": ")
        lines.append(f"        /*{address}*/                   {rest} ;    /* 0x000000fffffff389 */")
        lines.append("                                                     /* 0x000fe200000e00ff */")
    return parse_instructions(lines)["sm_80", "f"]


NESTED = """
0000: MOV R1, c[0x0][0x28]
0010: IMAD.MOV.U32 R2, RZ, RZ, RZ
0020: SHFL.UP P0, R3, R4, 0x1, RZ
0030: FFMA R5, R6, R7, R5
0040: @P1 BRA 0x0070
0050: LDG.E.U16 R6, [R8]
0060: LDG.E.U16 R7, [R8]
0070: FFMA R9, R6, R7, R9
0080: @!P0 BRA 0x0030
0090: @!P2 BRA 0x00c0
00a0: SHFL.UP P0, R3, R4, 0x2, RZ
00b0: SHFL.UP P0, R3, R4, 0x4, RZ
00c0: BRA P3, 0x0010
00d0: EXIT
00e0: BRA 0x00e0
"""


def test_loops_and_their_longest_ways() -> None:
    instructions = listing(NESTED)
    assert [one.opcode for one in instructions][:2] == ["MOV", "IMAD.MOV.U32"]
    assert (instructions[4].guard, instructions[4].target) == ("@P1", 0x70)
    blocks = blocks_of(instructions)
    found = list(all_loops(loops_of(blocks)))
    assert len(found) == 2  # what stands behind EXIT is never reached
    (outer, nothing), (inner, around) = found
    assert nothing is None
    assert around is outer
    assert longest_way(blocks, inner, "FFMA", []).instructions == 6
    fast = longest_way(blocks, inner, "FFMA", [r"LDG\.E\.U16"])
    assert (fast.instructions, fast.marked) == (4, 2)
    # Outside: 2 before, 4 behind, or 2 without the second half of the shuffles.
    assert longest_way(blocks, outer, "FFMA", [r"LDG\.E\.U16"], {inner.head: 3}).instructions == 6 + 3 * 4
    with pytest.raises(UncountableError, match="no way"):
        longest_way(blocks, inner, "FFMA", ["FFMA"])


def test_reconvergence_goes_where_it_was_set() -> None:
    blocks = blocks_of(
        listing("""
        0000: BSSY B0, 0x0050
        0010: @P0 BRA 0x0030
        0020: BSYNC B0
        0030: FADD R1, R1, R1
        0040: BSYNC B0
        0050: EXIT
        """)
    )
    where = {block.instructions[0].address: block for block in blocks}
    last = blocks.index(where[0x50])
    assert where[0x20].after == {last}
    assert where[0x30].after == {last}


def test_diverged_lanes_are_not_counted() -> None:
    blocks = blocks_of(
        listing("""
        0000: FFMA R1, R1, R1, R1
        0010: BRA.DIV ~URZ, 0x0040
        0020: @P0 BRA 0x0000
        0030: EXIT
        0040: WARPSYNC.COLLECTIVE R2, 0x0050
        0050: SHFL.IDX P0, R1, R1, R2, R3
        0060: BRA 0x0020
        """)
    )
    (loop,) = loops_of(blocks)
    assert longest_way(blocks, loop, "FFMA", []).instructions == 3


def test_lanes_that_agree_skip_what_brings_them_together() -> None:
    blocks = blocks_of(
        listing("""
        0000: FFMA R1, R1, R1, R1
        0010: BRA.CONV ~URZ, 0x0040
        0020: MOV R8, 0x0040
        0030: CALL.REL.NOINC 0x0070
        0040: NOP
        0050: @P0 BRA 0x0000
        0060: EXIT
        0070: WARPSYNC R9
        0080: RET.REL.NODEC R8 0x0
        """)
    )
    (loop,) = loops_of(blocks)
    assert longest_way(blocks, loop, "FFMA", []).instructions == 4


def test_a_call_may_leave_a_loop() -> None:
    blocks = blocks_of(
        listing("""
        0000: FFMA R1, R1, R1, R1
        0010: FADD R1, R1, R1
        0020: @P1 CALL.REL.NOINC 0x0040
        0030: BRA 0x0010
        0040: @P0 BRA 0x0000
        0050: EXIT
        """)
    )
    (outer,) = loops_of(blocks)
    (inner,) = outer.inner
    assert longest_way(blocks, inner, "FFMA", []).instructions == 3
    assert longest_way(blocks, outer, "FFMA", []).instructions == 2 + 3


def test_names() -> None:
    assert short_name("void a::(anonymous namespace)::f<(int)1, true>(a::(anonymous namespace)::P)") == "f<1, true>"
    assert short_name("a::f<a::(anonymous namespace)::F16, (bool)0>(int const*, void (*)(int))") == "f<F16, 0>"
    assert short_name("plain(float*)") == "plain"


def test_resident_warps() -> None:
    assert resident_warps("sm_80", 128, 168, 24576) == 12  # registers bind
    assert resident_warps("sm_80", 128, 32, 40 * 1024) == 16  # shared memory: 4 blocks of 41 KB in 164
    assert resident_warps("sm_86", 1024, 32, 0) == 32  # 48 warps hold one block of 32
    assert resident_warps("sm_90", 32, 16, 0) == 32  # blocks


# ---- Budgets


def kernel(**given: Any) -> Kernel:
    made = Kernel("_Z1fv", "sm_80", "f<1>", registers=32, instructions=listing(NESTED))
    for key, value in given.items():
        setattr(made, key, value)
    return made


def judged(tmp_path: Path, made: list[Kernel], **budget: Any) -> list[str]:
    entry = {"kernel": "f<*>", "why": "a test", "threads": 128, "registers": 40, **budget}
    path = tmp_path / "budgets.json"
    data = {"architectures": ["sm_80"], "forbidden": {"local loads or stores": "LDL|STL"}, "kernels": [entry]}
    path.write_text(json.dumps(data), encoding="utf-8")
    return judge(made, read_budgets(path)).violations


LOOP = {"weights": 2, "limit": 3, "why": "two FFMA", "avoid": ["LDG\\.E\\.U16"]}


def test_a_sound_kernel_passes(tmp_path: Path) -> None:
    assert judged(tmp_path, [kernel()], required={"FFMA": "FFMA"}, loop=LOOP) == []


@pytest.mark.parametrize(
    ("given", "budget", "words"),
    [
        ({"registers": 41}, {}, "41 registers, allowed are 40"),
        ({"stack": 8}, {}, "a stack of 8 bytes"),
        ({"local": 8}, {}, "8 bytes of local memory"),
        ({"shared": 16}, {}, "16 bytes of static shared memory"),
        ({}, {"warps": 64, "dynamic_shared": 65536}, "8 resident warps on a multiprocessor, at least 64"),
        ({}, {"required": {"HMMA.SP": "HMMA\\.SP"}}, "no HMMA.SP, which it must have"),
        ({}, {"forbidden": {"SHFL": "SHFL"}}, "3 SHFL, which it must not have"),
        ({}, {"loop": {**LOOP, "limit": 1.9}}, "2.00 instructions per dense weight in the main loop, allowed are 1.9"),
        ({}, {"loop": {**LOOP, "weights": 4}}, "has 2 FFMA, where covering 4 weights takes 4"),
        ({}, {"loop": {**LOOP, "marker": "HFMA"}}, "no loop has HFMA"),
        ({"name": "g"}, {}, "it has no budget"),
        ({"name": "g"}, {}, "no kernel of this name was compiled"),
        ({"architecture": "sm_90"}, {}, "does not name this architecture"),
    ],
)
def test_violations(tmp_path: Path, given: dict[str, Any], budget: dict[str, Any], words: str) -> None:
    violations = judged(tmp_path, [kernel(**given)], **budget)
    assert any(words in sentence for sentence in violations), violations


def test_the_loop_around(tmp_path: Path) -> None:
    around = {"weights": 4, "main_turns": 2, "other_turns": 1, "limit": 3.4, "every_other": ["SHFL.UP"]}
    one = kernel(instructions=[item for item in listing(NESTED) if item.address != 0x20])
    # 2 x 4 + 5 with the shuffles, 2 x 4 + 3 without
    assert judged(tmp_path, [one], loop={**LOOP, "around": around}) == []
    (sentence,) = judged(tmp_path, [one], loop={**LOOP, "around": {**around, "limit": 2.9}})
    assert "3.00 instructions per dense weight with the loop around" in sentence


# The main loop reads ragged edges one by one in a loop of its own, and that around it has one more.
RAGGED = """
0000: SHFL.UP P0, R3, R4, 0x1, RZ
0010: FFMA R5, R6, R7, R5
0020: @P1 BRA 0x0050
0030: LDG.E.U16 R6, [R8]
0040: @P2 BRA 0x0030
0050: FFMA R9, R6, R7, R9
0060: @!P0 BRA 0x0010
0070: LDGSTS.E.BYPASS.128 [R11], [R8.64]
0080: @P3 BRA 0x0070
0090: @P4 BRA 0x0000
00a0: EXIT
"""


def test_loops_inside_of_the_main_loop(tmp_path: Path) -> None:
    around = {"weights": 4, "main_turns": 2, "other_turns": 0, "limit": 2.5}  # 2 x 4 + 2
    one = kernel(instructions=listing(RAGGED))
    assert judged(tmp_path, [one], loop={**LOOP, "limit": 2, "around": around}) == []
    (sentence,) = judged(tmp_path, [one], loop={**LOOP, "around": {**around, "other_turns": 1, "limit": 2.9}})
    assert "3.00 instructions per dense weight with the loop around" in sentence
    # Where a turn cannot pass by the loop inside of it, it is no ragged edge.
    always = kernel(instructions=[item for item in listing(RAGGED) if item.address != 0x20])
    (sentence,) = judged(tmp_path, [always], loop={**LOOP, "limit": 9})
    assert "its main loop cannot be counted: no way through it" in sentence


def test_dynamic_shared_memory_by_name(tmp_path: Path) -> None:
    by_name = {"g*": 16, "f<[01]>": 65536}
    (sentence,) = judged(tmp_path, [kernel()], dynamic_shared=by_name, warps=64)
    assert "8 resident warps" in sentence
    with pytest.raises(ToolError, match="dynamic_shared has no pattern for f<1>"):
        judged(tmp_path, [kernel()], dynamic_shared={"g*": 16})


def test_unknown_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="Budget has no register"):
        judged(tmp_path, [], register=3)


def test_the_budgets_that_are_shipped_can_be_read() -> None:
    budgets = read_budgets(BUDGETS)
    assert len(budgets.architectures) == 5
    assert all(budget.why for budget in budgets.kernels)


def test_without_cuobjdump_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUOBJDUMP", "/nonexistent/cuobjdump")
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    monkeypatch.setattr(Path, "is_file", lambda _path: False)
    with pytest.raises(ToolError, match="pip install nvidia-cuda-cuobjdump"):
        find_cuobjdump()


# ---- Planted kernels


def tool(name: str, found: str | None, how: str) -> str:
    """The tool, or skip; in the lane that asks for it (RLCC_CUDA_LANE), fail."""
    if found:
        return found
    if os.environ.get("RLCC_CUDA_LANE"):
        pytest.fail(f"{name} was not found: {how}")
    pytest.skip(f"{name} was not found: {how}")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wheels = sorted(Path(sys.prefix).glob("lib/python*/site-packages/nvidia/*/bin/nvcc"))
    found = os.environ.get("CUDACXX") or shutil.which("nvcc") or (str(wheels[0]) if wheels else None)
    nvcc = tool("nvcc", found, "a CUDA toolkit, or `make test-cuda`, which installs it from PyPI")
    try:
        cuobjdump: str | None = find_cuobjdump()
    except ToolError:
        cuobjdump = None
    tool("cuobjdump", cuobjdump, HOW_TO_GET_CUOBJDUMP)
    built = tmp_path_factory.mktemp("planted") / "planted.o"
    done = subprocess.run(
        [nvcc, "-std=c++17", "-O3", "-arch=sm_80", "-c", str(HERE / "planted.cu"), "-o", str(built)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return built


def run_gate(built: Path, tmp_path: Path, budgets: list[dict[str, Any]]) -> tuple[int, str, str]:
    shipped = json.loads(BUDGETS.read_text(encoding="utf-8"))
    path = tmp_path / "budgets.json"
    path.write_text(json.dumps({**shipped, "kernels": budgets}), encoding="utf-8")
    command = [sys.executable, str(GATE), str(built), "--budgets", str(path), "--architectures", "sm_80"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_planted_kernels_are_found(planted: Path, tmp_path: Path) -> None:
    plain = {"why": "planted", "threads": 128, "registers": 64}
    status, out, err = run_gate(
        planted,
        tmp_path,
        [
            {
                **plain,
                "kernel": "planted_sound",
                "required": {"LDG.128": "LDG\\.E\\.128", "FFMA": "FFMA"},
                "loop": {"weights": 8, "limit": 3, "why": "eight FFMA"},
            },
            {**plain, "kernel": "planted_narrow", "shared": 128, "required": {"LDG.128": "LDG\\.E\\.128"}},
            {**plain, "kernel": "planted_*"},
        ],
    )
    assert status == 1, err
    said = [line for line in err.splitlines() if line.startswith("violation")]
    assert any("planted_spill: a stack of" in line for line in said), err
    assert any("planted_spill" in line and "local loads or stores" in line for line in said), err
    assert any("planted_local" in line and "local loads or stores" in line for line in said), err
    assert any("planted_atomic" in line and "floating-point atomics" in line for line in said), err
    assert any("planted_narrow: no LDG.128, which it must have" in line for line in said), err
    assert not any("planted_sound" in line for line in said), err
    assert "| `planted_sound` |" in out


def test_a_loop_over_its_budget_is_found(planted: Path, tmp_path: Path) -> None:
    plain = {"why": "planted", "threads": 128, "registers": 64}
    tight = {"weights": 8, "limit": 1.5, "why": "eight FFMA, four loads, and the loop's own"}
    status, _, err = run_gate(planted, tmp_path, [{**plain, "kernel": "planted_sound", "loop": tight}])
    assert status == 1, err
    assert "instructions per dense weight in the main loop, allowed are 1.5" in err


def test_an_object_that_is_none_is_an_error_of_its_own(planted: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing.o").write_text("nothing", encoding="utf-8")
    status, _, err = run_gate(tmp_path / "nothing.o", tmp_path, [])
    assert planted.is_file()
    assert status == 2
    assert "static gate:" in err


def test_the_table_shows_one_value_where_all_agree(tmp_path: Path) -> None:
    path = tmp_path / "budgets.json"
    entry = {"kernel": "f<*>", "why": "a test", "threads": 128, "registers": 40, "required": {"FFMA": "FFMA"}}
    data = {"architectures": ["sm_80", "sm_86"], "forbidden": {}, "kernels": [{**entry, "loop": LOOP}]}
    path.write_text(json.dumps(data), encoding="utf-8")
    budgets = read_budgets(path)
    verdict = judge([kernel(), kernel(architecture="sm_86", registers=33)], budgets)
    row = table(verdict, budgets.architectures).splitlines()[-1]
    assert row == "| `f<1>` | 32 / 33 | 0 + 0 | 64 / 48 | FFMA 2 | 2.00 |"
