"""What a loop carries and only bounds an inner loop is dead for Triton 3.6, which leaves it as it was at first: no generated text has such a number.

Neither the text nor the interpreter shows that; on a card a kernel that is printed so waits for ever, or sums too little.
"""

import ast
from itertools import product

import pytest
from test_hopper import CASES, PATTERNS, row_tile

import patternc as pc
from patternc.codegen import hopper, tail_blocks, tail_kernels, tail_pass, tail_pass_sums
from patternc.codegen.kernels import generate
from patternc.codegen.tail_blocks import BlockForm
from patternc.codegen.tail_pass_form import OF_SUMS, PassForm, SumsForm, kernels_of
from patternc.codegen.tail_text import Form
from patternc.plan import make_plan, mask_of

LINES = "def kernel(p, each, pieces, stop):\n    at = 0\n    for piece in range(pieces):\n        {}\n        for n in range(at, end):\n            {}\n        at = end\n"
END = "end = min(stop, (at // each + 1) * each)"


def frozen(text: str) -> list[str]:
    """The loop-carried names of a module's functions that nothing but bounds of inner loops depends on."""
    return [name for f in ast.walk(ast.parse(text)) if isinstance(f, ast.FunctionDef) for loop in _loops(f) for name in _frozen(loop)]


def _loops(node) -> list[ast.For]:
    return [x for x in ast.walk(node) if isinstance(x, ast.For)]


def _names(node, kind) -> list[str]:
    return [x.id for x in ast.walk(node) if isinstance(x, ast.Name) and isinstance(x.ctx, kind)]


def _frozen(loop: ast.For) -> set[str]:
    read_first, written, reads, bounds, used = set(), set(), [], set(), set()
    for statement in _in_order(loop.body):
        if isinstance(statement, ast.For):
            values, targets = _names(statement.iter, ast.Load), _names(statement.target, ast.Store)
            bounds |= set(values)
        elif isinstance(statement, (ast.Assign, ast.AugAssign)):
            goals = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            targets = [name for goal in goals for name in _names(goal, ast.Store)]
            values = _names(statement.value, ast.Load) + (targets if isinstance(statement, ast.AugAssign) else [])
            reads += [(target, value) for target in targets for value in values]
        else:  # a call, or the condition of an `if`
            values, targets = _names(statement, ast.Load), []
            used |= set(values)
        read_first |= set(values) - written
        written |= set(targets)
    return _behind(bounds, reads) & read_first & written - _behind(used, reads)


def _behind(names: set[str], reads: list[tuple[str, str]]) -> set[str]:
    """Names with those that they are made of."""
    while more := {value for target, value in reads if target in names} - names:
        names = names | more
    return names


def _in_order(body):
    for statement in body:
        yield statement.test if isinstance(statement, ast.If) else statement
        for part in ("body", "orelse"):
            yield from _in_order(getattr(statement, part, []))


@pytest.mark.parametrize("end, step, found", [
    (END, "p += 1", {"at"}), (END, "p.store(n)", {"at"}), (END, "p.store(at)", set()), (END, "if at > n:\n                p.store(n)", set()),
    (END + "; s = at * 2; p.store(s)", "pass", set()), ("end = min(stop, (piece + 1) * each); at = piece * each", "p.store(n)", set()),
    ("more = at // each; end = (more + 1) * each", "p.store(n)", {"at"}),
])  # fmt: skip
def test_found(end, step, found):
    assert set(frozen(LINES.format(end, step))) - {"p"} == found


PORTABLE = [
    "causal", "causal & (window(300) | sink(4))", 'causal & documents(arg("ids"))', 'window(arg("w")) | global(4)', "causal & dilate(4) & window(64)", "random_blocks(3, 64)",
    "per_head(causal, full, dilate(3))", "neighborhood([32, 32], 7)", 'block_table(arg("t"), 64, width=3)', "same(i // 64) | causal & window(9)",
]  # fmt: skip
PASSES = [PassForm(kernel, feature, shared=shared) for feature in ("softmax", "elu+1") for kernel in kernels_of(feature) for shared in (False, True)]
SUMS = [SumsForm(kernel, feature, dead=dead) for kernel in OF_SUMS for feature in ("softmax", "elu+1", "identity") for dead in (False, True)]
SCANS = [Form("softmax", sums, *more) for sums in (False, True) for more in product((False, True), repeat=3)]
BLOCKS = [BlockForm.of("softmax", sums, apart, True) for sums in (False, True) for apart in (False, True)]


def texts() -> dict[str, str]:
    plans = {text: make_plan(pc.parse(text)) for text in PORTABLE}
    found = {f"{text}, {how}": generate(plan, how).text for text, plan in plans.items() for how in ("pointers", "descriptors")}
    for case in CASES:
        tile = row_tile(*case)
        found[f"{case} for Hopper"] = hopper.generate(make_plan(PATTERNS[case[0]]), tile.narrow, tile.consumers).text
    found |= {str(form): tail_pass.generate(form).text for form in PASSES} | {str(form): tail_pass_sums.generate(form).text for form in SUMS}
    found |= {str(form): tail_kernels.generate(form).text for form in SCANS}
    return found | {str(form): tail_blocks.generate(form, mask_of(pc.parse("causal & ~dilate(3)"))).text for form in BLOCKS}


def test_nothing_is_frozen():
    assert {name: names for name, text in texts().items() if (names := frozen(text))} == {}


def test_a_position_carried_from_piece_to_piece_is_found():
    text = tail_pass_sums.generate(SUMS[0]).text
    for right, wrong in (
        ("    for piece in range(pieces):\n", "    at = 0\n    for piece in range(pieces):\n"),
        ("at, end = tl.maximum(piece * each - ahead, 0), ", "end = "),
        ("own % 2 * W + e, s)\n", "own % 2 * W + e, s)\n        at = end\n"),
    ):  # fmt: skip
        assert right in text
        text = text.replace(right, wrong)
    assert frozen(text) == ["at"]
