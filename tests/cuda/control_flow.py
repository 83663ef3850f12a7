"""The loops of a kernel, and how many instructions a turn through one of them issues.

A count is of the longest way from a loop's head back to it that a warp can take whose lanes agree, so it is an
upper bound: an instruction that a predicate switches off is issued all the same, and is counted. Ways that the caller
knows to be rare (the ragged edges of a matrix) are left out by naming an instruction that only they have.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from sass import Instruction

# Ends of a block. A call counts as one instruction and goes on behind it; and where it leads, since nvcc leaves loops
# by a CALL to the place behind them (sm_80).
_TURNS = ("BRA", "CALL", "BSSY", "BSYNC", "EXIT", "RET", "KILL")


@dataclass
class Block:
    """Instructions that run one after the other."""

    instructions: list[Instruction]
    after: set[int] = field(default_factory=set)  # numbers of the blocks that may follow


@dataclass
class Loop:
    """A natural loop: the blocks on all ways from the head back to it."""

    head: int
    blocks: set[int]
    inner: list[Loop] = field(default_factory=list)  # directly inside


@dataclass(frozen=True)
class Way:
    """The longest way through a loop, once."""

    instructions: int
    marked: int  # of them, those that the marker matches

    def then(self, other: Way) -> Way:
        return Way(self.instructions + other.instructions, self.marked + other.marked)


class UncountableError(Exception):
    """The loop that was to be counted is not there, or not as it was described."""


def _always(instruction: Instruction) -> bool:
    """A branch may have a guard, a predicate operand (`BRA P1, 0x140`), or neither."""
    return instruction.guard in ("", "@PT", "@UPT") and not re.match(r"!?U?P[T0-9]", instruction.operands)


def _cut(instructions: list[Instruction]) -> list[Block]:
    places = {instruction.address: index for index, instruction in enumerate(instructions)}
    starts = {0}
    for index, one in enumerate(instructions):
        kind = one.opcode.split(".")[0]
        if kind in _TURNS:
            starts.add(index + 1)
            if one.target in places and kind in ("BRA", "CALL", "BSSY"):
                starts.add(places[one.target])
    edges = sorted(start for start in starts if start < len(instructions))
    return [Block(instructions[a:b]) for a, b in zip(edges, [*edges[1:], len(instructions)], strict=True)]


def blocks_of(instructions: list[Instruction]) -> list[Block]:
    """The control-flow graph; block 0 is the entry, and what is never reached has no `after`.

    BRA.DIV leads to code for a warp whose lanes have diverged before a collective, BRA.CONV past it. Lanes here agree,
    so the one is not taken and the other is.
    """
    blocks = _cut(instructions)
    number = {block.instructions[0].address: index for index, block in enumerate(blocks)}
    # BSYNC B0 goes on where the BSSY B0 that the warp came through says: targets flow along the edges.
    targets: dict[int, dict[str, frozenset[int]]] = {0: {}}
    waiting = [0]
    while waiting:
        index = waiting.pop()
        block, out = blocks[index], dict(targets[index])
        last = block.instructions[-1]
        kind, *modifiers = last.opcode.split(".")
        after = {index + 1} if index + 1 < len(blocks) else set()
        if kind == "BRA" and "DIV" not in modifiers:
            if _always(last) or "CONV" in modifiers:
                after = set()
            if last.target in number:
                after.add(number[last.target])
        elif kind == "CALL" and last.target in number:
            after.add(number[last.target])
        elif kind == "BSSY" and last.target in number:
            out[last.operands.split(",")[0]] = frozenset([number[last.target]])
        elif kind == "BSYNC":
            after = set(out.get(last.operands, after))
        elif kind in ("EXIT", "RET", "KILL") and _always(last):
            after = set()
        block.after |= after
        for following in block.after:
            known = targets.get(following)
            merged = {name: (known or {}).get(name, frozenset()) | places for name, places in out.items()}
            merged = {**(known or {}), **merged}
            if merged != known:
                targets[following] = merged
                waiting.append(following)
    return blocks


def _dominators(blocks: list[Block]) -> dict[int, set[int]]:
    """For each block that is reached: the blocks that every way to it passes."""
    order: list[int] = []  # depth first
    waiting = [0]
    while waiting:
        index = waiting.pop()
        if index not in order:
            order.append(index)
            waiting += sorted(blocks[index].after)
    before: dict[int, list[int]] = {index: [] for index in order}
    for index in order:
        for following in blocks[index].after:
            before[following].append(index)
    over = {index: set(order) for index in order}
    over[0] = {0}
    changed = True
    while changed:
        changed = False
        for index in order[1:]:
            new = set.intersection(*(over[one] for one in before[index])) | {index}
            if new != over[index]:
                over[index], changed = new, True
    return over


def loops_of(blocks: list[Block]) -> list[Loop]:
    """The outermost loops, with those inside of them."""
    over = _dominators(blocks)
    before: dict[int, set[int]] = {index: set() for index in over}
    for index in over:
        for following in blocks[index].after:
            before[following].add(index)
    found: dict[int, set[int]] = {}
    for latch in over:
        for head in blocks[latch].after & over[latch]:
            inside = found.setdefault(head, {head})
            waiting = [latch]
            while waiting:
                index = waiting.pop()
                if index not in inside:
                    inside.add(index)
                    waiting += before[index]
    outermost: list[Loop] = []
    for head, inside in sorted(found.items(), key=lambda one: -len(one[1])):
        siblings = outermost
        while parents := [loop for loop in siblings if head in loop.blocks]:
            siblings = parents[0].inner
        siblings.append(Loop(head, inside))
    return outermost


def all_loops(loops: list[Loop]) -> Iterator[tuple[Loop, Loop | None]]:
    """Each loop with the one directly around it."""
    waiting: list[tuple[Loop, Loop | None]] = [(loop, None) for loop in loops]
    while waiting:
        loop, around = waiting.pop()
        yield loop, around
        waiting += [(inner, loop) for inner in loop.inner]


def longest_way(
    blocks: list[Block],
    loop: Loop,
    marker: str,
    avoid: list[str],
    turns: dict[int, int] | None = None,
    others: int | None = 1,
) -> Way:
    """The longest way once through `loop`, past no instruction that one of `avoid` matches.

    A loop inside counts as many turns as `turns` says for its head, `others` where it says nothing; None: no way leads
    through it. No way does through a loop inside of one that `turns` names.
    """
    avoided = [re.compile(pattern) for pattern in avoid]
    marks = re.compile(marker)
    # Each block, or loop inside as a whole, is a place; the way leads from place to place.
    place_of = {index: index for index in loop.blocks}
    weights: dict[int, Way | None] = {}
    for inner in loop.inner:
        for index in inner.blocks:
            place_of[index] = inner.head
        named = turns is not None and inner.head in turns
        count = turns[inner.head] if turns is not None and named else others
        weights[inner.head] = None
        if count is None:
            continue
        try:
            once = longest_way(blocks, inner, marker, avoid, turns, None if named else others)
            weights[inner.head] = Way(count * once.instructions, count * once.marked)
        except UncountableError:  # only ragged ways through it
            pass
    following: dict[int, set[int]] = {place: set() for place in place_of.values()}
    for index in loop.blocks:
        place = place_of[index]
        if place not in weights:
            body = blocks[index].instructions
            rare = any(pattern.match(one.opcode) for one in body for pattern in avoided)
            weights[place] = None if rare else Way(len(body), sum(bool(marks.match(one.opcode)) for one in body))
        for after in blocks[index].after:
            if after == loop.head:
                following[place].add(loop.head)
            elif after in loop.blocks and place_of[after] != place:
                following[place].add(place_of[after])

    best: dict[int, Way | None] = {}  # from the place on, back to the head
    begun: set[int] = set()

    def from_here(place: int) -> Way | None:
        if place in best:
            return best[place]
        if place in begun:
            raise UncountableError("a loop with two entries")
        begun.add(place)
        own = weights[place]
        ways = [Way(0, 0) if one == loop.head else from_here(one) for one in following[place]] if own else []
        onward = max((way for way in ways if way), key=lambda way: way.instructions, default=None)
        best[place] = own.then(onward) if own and onward else None
        return best[place]

    way = from_here(loop.head)
    if way is None:
        raise UncountableError(f"no way through it avoids {' and '.join(avoid)}")
    return way
