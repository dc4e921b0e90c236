"""The kernels against dense attention: every operation of a mask, reads, args, and plans whose tiles are tables or lists."""

from __future__ import annotations

import pytest
import torch
from kernel_check import DEVICE, MARKS, check, everywhere, q_and_k, window

import patternc as pc
from patternc.codegen.parameters import TileLists
from patternc.plan import AxisPlan, Plan

pytestmark = MARKS


ARITHMETIC = {
    "residue": ((pc.q - pc.k) % 3 == 1, lambda q, k: (q - k) % 3 == 1),
    "residue of a power of two": ((pc.q - pc.k) % 4 == 3, lambda q, k: (q - k) % 4 == 3),
    "dilated": ((pc.q - pc.k) % 3 == 0, lambda q, k: (q - k) % 3 == 0),
    "remainders compared": ((pc.q - 2 * pc.k) % 7 >= 3, lambda q, k: (q - 2 * k) % 7 >= 3),
    "quotient": ((pc.q - pc.k) // 5 == -1, lambda q, k: (q - k) // 5 == -1),
    "negative quotient": ((pc.k - pc.q - 3) // 4 < -2, lambda q, k: (k - q - 3) // 4 < -2),
    "variable divisor": ((pc.k - pc.q) % (pc.h + 2) == 1, lambda q, k: torch.stack([(k - q) % 2 == 1, (k - q) % 3 == 1])),
    "blocks": (pc.block(10, 1), lambda q, k: (q // 10 - k // 10 >= 0) & (q // 10 - k // 10 <= 1)),
    "abs, min, max": (abs(pc.min(pc.q, 20) - pc.max(pc.k, 7)) < 6, lambda q, k: (q.clamp(max=20) - k.clamp(min=7)).abs() < 6),
    "product": (pc.q * pc.k % 5 < 2, lambda q, k: q * k % 5 < 2),
    "where": (pc.where(pc.q < 20, pc.k, pc.q) >= 15, lambda q, k: torch.where(q < 20, k, q) >= 15),
    "not, xor": (~(pc.k <= pc.q) ^ (pc.q % 2 == 0), lambda q, k: ~(k <= q) ^ (q % 2 == 0)),
    "far bounds": (pc.q - pc.k < 2**31 - 1, lambda q, k: q - k < 2**31 - 1),
    "positions": (pc.cols([3, 17, 18, 40]), lambda q, k: (k == 3) | (k == 17) | (k == 18) | (k == 40) | (q < 0)),
}


@pytest.mark.parametrize("case", ARITHMETIC)
def test_arithmetic(case):
    pattern, meaning = ARITHMETIC[case]
    q, k = q_and_k(45, 45)
    check(everywhere(pattern), meaning(q, k), 45)


def test_reads():
    """An index outside its tensor makes the comparison false, and its negation true."""
    n = 45
    q, k = q_and_k(n, n)
    t = torch.tensor([5, 1, 4, 1, 5, 9, 2, 6])
    table = pc.table(t.tolist())
    inside = (k - 10 >= 0) & (k - 10 < 8)
    value = t[(k - 10).clamp(0, 7)]
    check(everywhere(table[pc.k - 10] <= 4), inside & (value <= 4) & (q >= 0), n)
    check(everywhere(~(table[pc.k - 10] <= 4)), ~(inside & (value <= 4)) & (q >= 0), n)
    grid = pc.table([[1, 0, 0], [1, 1, 0], [0, 1, 1]])
    blocks = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 1]]).bool()
    check(everywhere(grid[pc.q // 15, pc.k // 15] == 1), blocks[q // 15, k // 15], n)


def test_args():
    n, batch = 40, 2
    q, k = q_and_k(n, n)
    ids = torch.randint(-1, 3, (batch, n), generator=torch.Generator().manual_seed(0)).sort(-1).values
    same = (ids[:, None, :, None] == ids[:, None, None, :]) & (ids >= 0)[:, None, :, None]
    documents = {"doc": ids.int().to(DEVICE)}
    check(everywhere(pc.documents(pc.arg("doc"))), same, n, batch=batch, args=documents)
    check(everywhere(pc.documents(pc.arg("doc"))), same[:1], n, batch=batch, args={"doc": documents["doc"][:1]})
    width = torch.tensor([3, 12], dtype=torch.int32)
    per_row = (q - k).abs() < width[:, None, None, None]
    wide = pc.window(pc.arg("w"))
    check(everywhere(wide), per_row, n, batch=batch, args={"w": width.to(DEVICE)})
    check(everywhere(wide), (q - k).abs() < 5, n, batch=batch, args={"w": 5})
    check(everywhere(wide), (q - k).abs() >= 0, n, args={"w": 2**31 - 1})
    mask = torch.rand(batch, n, generator=torch.Generator().manual_seed(1)) < 0.5
    check(everywhere(pc.valid(pc.arg("keep"))), mask[:, None, None, :], n, batch=batch, args={"keep": mask.to(DEVICE)})
    check(everywhere(pc.arg("bias")[pc.q, pc.k] > 0), (q * k) % 3 > 0, n, args={"bias": ((q * k) % 3).int()[None].to(DEVICE)})


def tables(run):
    """Bounds for a "table" plan from a Python function of (direction, r0, r1)."""

    def bounds(direction, rows, cols, n=100):
        entries = [[run(direction, r, min(r + rows, n) - 1)] for r in range(0, n, rows)]
        return torch.tensor(entries, dtype=torch.int32, device=DEVICE)[None, None]

    return bounds


def test_table_kind():
    axis = AxisPlan("table", (), 1, True)
    q, k = q_and_k(100, 100)

    def run(direction, r0, r1):
        return (r0 - 19, r1, r1 - 19, r0) if direction == "forward" else (r0, r1 + 19, r1, r0 + 19)

    check(Plan(window(20).mask, axis, axis), (k <= q) & (q - k < 20), 100, bounds=tables(run))


def test_list_kind():
    axis = AxisPlan("list", (), 0, True)
    q, k = q_and_k(100, 100)
    allowed = torch.stack([(k <= q) & (q - k < 20), k <= q])  # two groups of heads

    def bounds(direction, rows, cols):
        pointers, entries = ([], []), ([], [])
        for mask in allowed if direction == "forward" else allowed.mT:
            for kind in (0, 1):
                pointers[kind].append([])
            for r in range(0, 100, rows):
                for kind in (0, 1):
                    pointers[kind][-1].append(len(entries[kind]))
                for c in range(0, 100, cols):
                    part = mask[r : r + rows, c : c + cols]
                    if part.any():
                        entries[1 if part.all() and c + cols <= 100 else 0].append(c // cols)
            for kind in (0, 1):
                pointers[kind][-1].append(len(entries[kind]))
        tensor = lambda x: torch.tensor(x, dtype=torch.int32, device=DEVICE)
        return TileLists(tensor([0, 1, 0, 1]), *(tensor(x) for i in (0, 1) for x in (pointers[i], [*entries[i], 0])))

    mask = pc.per_head(*[window(20).mask, pc.causal] * 2)
    check(Plan(mask, axis, axis), allowed.repeat(2, 1, 1), 100, heads=4, kv_heads=2, bounds=bounds)
