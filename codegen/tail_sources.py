"""The text of the kernels that a term asks for at one length, for those who want to read it."""

from __future__ import annotations

from patternc.args import Bound
from patternc.codegen import tail_blocks, tail_kernels, tail_pass
from patternc.codegen.tail_backend import plan_of, rest_of
from patternc.codegen.tail_blocks_text import BlockForm
from patternc.codegen.tail_pass_form import PassForm, kernels_of
from patternc.codegen.tail_text import Form
from patternc.plan import mask_of
from patternc.tail_blocks import best_blocks
from patternc.tail_runtime import KERNEL_FEATURES
from patternc.tail_slots import slots_of

WIDTH, BLOCK = 64, 256  # of heads and slots; sizes decide little of a text


def portable(compiled, bound: Bound) -> str:
    """The kernels of scans, or of block sums; of class N, which is summed either way, the latter."""
    plan, (feature, sums) = plan_of(compiled, bound), _term(compiled)
    if plan.scans:
        return "\n\n".join(dict.fromkeys(tail_kernels.generate(form).text for form in _forms(compiled, bound)))
    if plan.kind == "0":
        return f"# {plan}"
    blocks = best_blocks(rest_of(compiled), bound, bound.heads, (2 if feature == "softmax" else 1) * WIDTH, WIDTH)
    return tail_blocks.generate(BlockForm.of(feature, sums, blocks.apart, blocks.live_rows is not None), mask_of(rest_of(compiled))).text


def one_pass(compiled, bound: Bound) -> str:
    """The kernels for Hopper, or why there are none."""
    forms = _forms(compiled, bound)
    texts = [
        tail_pass.generate(PassForm(kernel, form.feature, form.mirrored, i > 0, form.dead)).text
        for i, form in enumerate(forms) if not (form.steps or form.gated or form.sums) for kernel in kernels_of(form.feature)
    ]  # fmt: skip
    why = ", with tables or sums of weights" * bool(forms)
    return "\n\n".join(texts) or f"# the term is left to the portable kernels: {plan_of(compiled, bound)}{why}"


def _term(compiled) -> tuple[str, bool]:
    """The features that kernels make, and whether they sum weights."""
    term = compiled.spec.term
    return (term.feature if term.feature in KERNEL_FEATURES else "identity"), term.norm == "denominator"


def _forms(compiled, bound: Bound) -> list[Form]:
    found, start = [], bound.numpy().q_start
    for scan in plan_of(compiled, bound).scans:
        slots = slots_of(scan, start, bound.n_q, bound.n_k, BLOCK)
        found.append(Form.of(*_term(compiled), slots))
    return found
