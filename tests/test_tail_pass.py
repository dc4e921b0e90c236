"""The one-pass kernels of a linear tail: their numbers by numpy, their compiled form, how slots are dealt."""

import re

import numpy as np
import pytest
import torch
from gluon_memory import Pointer
from gluon_numbers import Card

import patternc as pc
from patternc import runtime
from patternc.codegen import offline, tail_pass, tail_pass_launch, tail_pass_sums
from patternc.codegen.descriptors import reachable
from patternc.codegen.tail_pass_form import OF_SUMS, PassForm, SumsForm, kernels_of
from patternc.codegen.tail_pass_launch import Pieces
from patternc.errors import InternalError
from patternc.tail import feature_map

HEADS = 2


def problem(feature, d, group, n_q, n_k, offset, mirrored, seed=0):
    """Matrices by name, and the gradients of a sum over the pairs of a shifted prefix, or suffix."""
    torch.manual_seed(seed)
    heads = (HEADS, HEADS // group, HEADS // group)
    q, k, v = (torch.randn(1, h, n, d, dtype=torch.float64, requires_grad=True) for h, n in zip(heads, (n_q, n_k, n_k)))
    do = torch.randn(1, HEADS, n_q, d, dtype=torch.float64)
    rows, keys = torch.arange(n_q)[:, None], torch.arange(n_k)
    reads = n_k - 1 - keys <= n_q - 1 - rows - offset if mirrored else keys <= rows - offset
    phi = feature_map(feature)
    o = (phi(q) @ phi(k).repeat_interleave(group, 1).mT * reads) @ v.repeat_interleave(group, 1)
    dq, dk, dv = torch.autograd.grad(o, (q, k, v), do)
    return {name: x.detach().numpy() for name, x in (("q", q), ("k", k), ("v", v), ("do", do), ("o", o), ("dq", dq), ("dk", dk), ("dv", dv))}, phi


def entering(form, m, phi, pieces, spans, offset, group):
    """What other kernels find: the states that enter programs, or the gradients of those that leave them, where these look for them."""
    q, k, v, do = (m[x][:, :, ::-1] if form.mirrored else m[x] for x in ("q", "k", "v", "do"))
    d, halves = k.shape[3], 2 if form.feature == "softmax" else 1
    phi_q, phi_k = (phi(torch.from_numpy(x.copy())).numpy() for x in (q, k))
    states = np.full((k.shape[1], len(starts(pieces)) + 1, halves, d, d), np.nan)
    for h, span, half in np.ndindex(k.shape[1], spans, halves):
        part, cell = slice(half * d, (half + 1) * d), sum(start < span * pieces.each for start in starts(pieces))
        if form.of_rows:
            stop = span * pieces.each * 64
            states[h, cell, half] = phi_k[0, h, :stop, part].T @ v[0, h, :stop]
        else:
            first, heads = max((span + 1) * pieces.each * 64 + offset, 0), range(h * group, (h + 1) * group)
            states[h, cell, half] = sum(phi_q[0, r, first:, part].T @ do[0, r, first:] for r in heads)
    return states


def starts(pieces):
    return [x for x in range(pieces.total) if x % pieces.unit == 0 or x % pieces.each == 0]


def result(form, d, group, n_q, n_k, offset, span, seed, edit=lambda text: text):
    """`(found, wanted)`, the results of a kernel."""
    m, phi = problem(form.feature, d, group, n_q, n_k, offset, form.mirrored)
    chunks, each = -(-max(n_k, n_q - offset) // 64), 2 * span
    spans = -(-chunks // each)
    pieces = Pieces(0, (spans - 1) * each, each, 3) if form.of_rows else Pieces(each, max(chunks - each, 0), each, 3)
    states = entering(form, m, phi, pieces, spans, offset, group)
    start = {o: np.random.default_rng(1).normal(size=m[o].shape) * form.add for o in form.results}
    given = {**m, **{o: x.copy() for o, x in start.items()}}
    source, values = tail_pass.generate(form), tail_pass_launch.constants(form, d, HEADS, group)
    values |= {f"{matrix}_desc": Card.describe(given[matrix], 64, values[columns]) for matrix, columns in form.described.items()}
    for o in form.results:
        strides = (s // 8 for s in given[o].strides)
        values |= {f"{o}_ptr": Pointer(given[o]), **{f"{o}_stride_{a}": s for a, s in zip("bhn", strides)}}
    values |= {"states_ptr": Pointer(states), "spans": spans, "each": each, **pieces.cuts, "n_q": n_q, "n_k": n_k, "offset": offset}
    values |= {"extent": n_q - offset if form.of_rows else max(n_k, n_q - offset)}
    kernel = source.kernels[form.kernel]
    grid = HEADS // group * spans * tail_pass.parts(form, d)
    values["counts_ptr"] = Pointer(np.zeros(1 + grid, np.int32))
    given_to = (values[p] for p in (*kernel.parameters, *kernel.constants))
    Card(edit(source.text), form.kernel, seed).run(grid, *given_to, together=1 + form.apart)
    return [given[o] for o in form.results], [start[o] + m[o] for o in form.results]


def assert_equal(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("feature, kernel", [(f, kernel) for f in ("elu+1", "softmax") for kernel in kernels_of(f)])
@pytest.mark.parametrize("group, n_q, n_k, offset, span, mirrored, add", [
    (1, 300, 300, 0, 9, False, False), (2, 330, 330, 77, 1, False, False), (1, 200, 330, -130, 2, False, True), (2, 257, 200, 40, 1, True, True),
    (1, 300, 190, -50, 2, True, False),
])  # fmt: skip
def test_numbers(kernel, feature, group, n_q, n_k, offset, span, mirrored, add):
    form = PassForm(kernel, feature, mirrored, add, shared=group > 1)
    found, wanted = result(form, 64, group, n_q, n_k, offset, span, seed=n_q)
    assert_equal(found, wanted)


@pytest.mark.parametrize("feature, kernel", [(f, kernel) for f in ("identity", "elu+1", "softmax") for kernel in kernels_of(f)])
def test_slices_and_groups(kernel, feature):
    """At head_dim 128: slices of columns, or rings of two; tiles of one head or two."""
    for group in (1, 2):
        found, wanted = result(PassForm(kernel, feature, shared=group > 1, wide=True), 128, group, 190, 190, 5, 2, seed=0)
        assert_equal(found, wanted)


@pytest.mark.parametrize("feature", ["identity", "elu+1", "softmax"])
@pytest.mark.parametrize("kernel", OF_SUMS)
@pytest.mark.parametrize("d, group, n_q, n_k, offset, pieces, mirrored, dead", [
    (64, 1, 500, 500, 0, Pieces(0, 16, 8, 5), False, False), (64, 2, 700, 300, 70, Pieces(4, 9, 3, 6), False, True),
    (128, 2, 300, 450, -130, Pieces(0, 8, 2, 8), True, False), (64, 2, 400, 520, 40, Pieces(3, 7, 6, 4), True, True),
])  # fmt: skip
def test_sums_of_pieces(kernel, feature, d, group, n_q, n_k, offset, pieces, mirrored, dead):
    """What pieces add to states, and nothing else: nothing by keys that are dead, or rows that are not there."""
    check_sums(kernel, feature, d, group, n_q, n_k, offset, pieces, mirrored, dead, seed=n_q)


def check_sums(kernel, feature, d, group, n_q, n_k, offset, pieces, mirrored, dead, seed, edit=lambda text: text):
    m, phi = problem(feature, d, group, n_q, n_k, offset, mirrored)
    live = np.random.default_rng(0).integers(0, 2, n_k) if dead else np.ones(n_k)
    given = {x: m[x][:, :, ::-1] if mirrored else m[x] for x in OF_SUMS[kernel]}
    around = 2048  # rows of zeros before and after
    y, z = (np.pad(x, ((0, 0), (0, 0), (around, around), (0, 0))) for x in given.values())
    if kernel == "key_states":
        z[:, :, around : around + n_k] *= live[:, None]  # counted as keys are
    kv_heads, halves, of_rows, cuts = HEADS // group, 2 if feature == "softmax" else 1, kernel == "row_states", [*starts(pieces), pieces.total]
    wanted = np.full((kv_heads, len(cuts), halves, d, d), np.nan)
    for h, piece, half in np.ndindex(kv_heads, len(cuts) - 1, halves):
        start, stop = (around + (pieces.first + x) * 64 + (offset if of_rows else 0) for x in cuts[piece : piece + 2])
        heads = range(h * group, (h + 1) * group) if of_rows else [h]
        features = phi(torch.from_numpy(y[0, heads, start:stop])).numpy()[..., half * d : (half + 1) * d]
        wanted[h, piece + of_rows, half] = np.einsum("hid,hie->de", features, z[0, heads, start:stop])
    form, found = SumsForm(kernel, feature, mirrored, dead), np.full_like(wanted, np.nan)
    source, values = tail_pass_sums.generate(form), tail_pass_launch.constants(form, d, HEADS, group)
    values |= {f"{x}_desc": Card.describe(m[x], 64, values[columns]) for x, columns in form.described.items()}
    values |= {"states_ptr": Pointer(found), "live_ptr": Pointer(live), "per_row": 0, "first": pieces.first, "total": pieces.total, "each": pieces.each}
    values |= {**pieces.cuts, "n_q": n_q, "n_k": n_k, "offset": offset}
    assert values["cells"] == len(cuts)
    kernel = source.kernels[kernel]
    Card(edit(source.text), kernel.name, seed).run(kv_heads * pieces.programs, *(values[p] for p in (*kernel.parameters, *kernel.constants)))
    np.testing.assert_allclose(found, wanted, atol=1e-9)


SUMS_MISTAKES = {
    "tiles are not given back": ("mbarrier.arrive(yz_empty.index(slot), count=1)", "pass"),
    "tiles are overwritten": ("mbarrier.wait(yz_empty.index(slot), (n // STAGES & 1) ^ 1)", "pass"),
    "one reader counts for all": ("mbarrier.init(yz_empty.index(i), count=4)", "mbarrier.init(yz_empty.index(i), count=1)"),
    "features are overwritten": ("mbarrier.wait(phi_empty.index(own // 2 * 2 + (n + 1) % 2), ((n + 1) // 2 & 1) ^ 1)", "pass"),
    "features are read before they are made": ("mbarrier.wait(phi_full.index(own // 2 * 2 + n % 2), n // 2 & 1)", "pass"),
    "a piece begins with the sum before it": ("s = tl.zeros([D, W], tl.float32, layout)", "s = s if piece else tl.zeros([D, W])"),
    "features are multiplied without a fence": ("                fence_async_shared()\n                mbarrier.arrive(phi_full", "                mbarrier.arrive(phi_full"),
}


@pytest.mark.parametrize("mistake", SUMS_MISTAKES)
def test_mistakes_in_sums_are_found(mistake):
    (right, wrong), form = SUMS_MISTAKES[mistake], SumsForm("row_states", "softmax")
    assert right in tail_pass_sums.generate(form).text
    with pytest.raises((AssertionError, InternalError)):
        for seed in range(6):
            check_sums("row_states", "softmax", 64, 2, 700, 700, 0, Pieces(4, 4, 3, 4), False, False, seed, lambda text: text.replace(right, wrong))


class Emulated:
    """A launch whose kernel runs by numpy, on the memory of torch tensors."""

    def __init__(self, form, matrices, heads, kv_heads):
        assert all(map(reachable, matrices.values()))
        self.form, self.source = form, tail_pass_launch.module(form).generate(form)
        self.constants = tail_pass_launch.constants(form, matrices[form.y].shape[3], heads, heads // kv_heads)
        fixed = {f"{m}_{what}" for m in matrices for what in ("ptr", "stride_b", "stride_h", "stride_n")}
        self.decided = [p for p in self.source.kernels[form.kernel].parameters if p not in fixed and not p.endswith("_desc")]

    def run(self, programs, values, matrices):
        given = {p: Pointer(x.numpy()) if isinstance(x, torch.Tensor) else x for p, x in values.items()}
        given |= {f"{m}_desc": Card.describe(matrices[m].numpy(), 64, self.constants[columns]) for m, columns in self.form.described.items()}
        for m, x in matrices.items():
            given |= {f"{m}_ptr": Pointer(x.numpy()), **{f"{m}_stride_{axis}": x.stride(i) for i, axis in enumerate("bhn")}} | self.constants
        kernel = self.source.kernels[self.form.kernel]
        parameters = (given[p] for p in (*kernel.parameters, *kernel.constants))
        Card(self.source.text, self.form.kernel, 0).run(programs, *parameters, together=2 if "counts_ptr" in given else 1)


@pytest.mark.parametrize("text, kv_heads, n_q, n_k, span", [
    ("causal & (window(20) + linear_tail)", 2, 150, 150, 1), ('causal & (window(20) + linear_tail(feature="elu+1", norm="none"))', 2, 150, 150, 9),
    ('causal & (window(30) + linear_tail(norm="none"))', 2, 100, 170, 2), ('window(30) + linear_tail(feature="elu+1")', 1, 130, 130, 2),
    ('window(30) + linear_tail(norm="none")', 2, 130, 130, 1), ('causal & ((window(20) | sink(70)) + linear_tail(norm="none"))', 2, 150, 150, 2),
    ('causal & ((window(20) | sink(5)) + linear_tail(feature="identity", norm="none"))', 2, 130, 140, 1),
])  # fmt: skip
def test_calls(monkeypatch, text, kv_heads, n_q, n_k, span):
    """A module whose term takes these kernels, beside the reference, outputs and all gradients."""
    for module in (tail_pass, tail_pass_launch):
        monkeypatch.setattr(module, "SLOT", 128)
    monkeypatch.setattr(tail_pass_launch, "slots_of_program", lambda *_: span)
    monkeypatch.setattr(tail_pass_launch, "launch_of", Emulated)
    monkeypatch.setitem(runtime.compiled(pc.parse(text)).state, "bound", {})  # nothing that other kernels were chosen for
    torch.manual_seed(0)
    rows = [torch.randn(1, h, n, 64) for h, n in ((2, n_q), (kv_heads, n_k), (kv_heads, n_k))]
    grad, results = torch.randn(1, 1, n_q, 64).expand(1, 2, n_q, 64), []
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        module = pc.compile(text, backend, num_heads=2, head_dim=64).to(dtype)
        given = [x.to(dtype).requires_grad_() for x in rows]
        out = module(*given)
        results.append([out, *torch.autograd.grad(out, [*given, *module.parameters()], grad.to(dtype))])
    for a, b in zip(*results):
        torch.testing.assert_close(a.double(), b.double(), atol=2e-4, rtol=2e-4)


ONE, HALVES = PassForm("forward", "elu+1"), PassForm("forward", "softmax")
MISTAKES = {
    "results do not wait for the state": (ONE, "mbarrier.wait(s_full.index(p % 2), p // 2 & 1)", "pass"),
    "states are overwritten": (ONE, "mbarrier.wait(s_empty.index((p - BUFFERS) % 2), (p - BUFFERS) // 2 & 1, pred=p >= BUFFERS)", "pass"),
    "tiles are overwritten": (ONE, "mbarrier.wait(yz_empty.index(yz_slot), (t // STAGES & 1) ^ 1)", "pass"),
    "nobody gives tiles back": (ONE, "mbarrier.arrive(x_empty.index(number % AHEAD), count=1)", "pass"),
    "a tile that threads read is given back without a fence": (ONE, "fence_async_shared()\n        mbarrier.arrive(x_empty", "mbarrier.arrive(x_empty"),
    "results are overwritten": (ONE, "mbarrier.wait(o_empty.index(own), (number // 2 & 1) ^ 1)", "pass"),
    "the diagonal is left out": (ONE, "allowed = j <= i", "allowed = j < i"),
    "TMA stores before the first row": (ONE, "if first < 0:", "if False:"),
    "a state is of the chunks up to this one": (ONE, "state_tiles.index(p % BUFFERS).store(s.to", "state_tiles.index(p % BUFFERS).store((s + 1.0).to"),
    "the second half does not wait": (HALVES, "if (column != 0) & (n % 2 == 0):", "if (column != 0) & (n < 0):"),
    "the second half's rows do not wait": (HALVES, "_await(counts_ptr, number + 1)", "pass"),
    "results are announced too early": (HALVES, "_announce(counts_ptr, n + 1)", "_announce(counts_ptr, n + 2)"),
    "the second half stores its results": (HALVES, "_add(o_desc", "_store(o_desc"),
    "the second half stores its rows": (HALVES, ", o, column != 0)", ", o, False)"),
    "the last results are not announced": (HALVES, " | (n == total - 1)", ""),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_found(mistake):
    """What these tests would miss, they would miss silently."""
    form, right, wrong = MISTAKES[mistake]
    assert right in tail_pass.generate(form).text
    with pytest.raises((AssertionError, InternalError)):
        for seed in range(6):
            found, wanted = result(form, 64, 1, 560, 600, -100, 9, seed, lambda text: text.replace(right, wrong))
            assert_equal(found, wanted)


def test_compiled():
    """Products run while others are issued, and at most some addresses go through the stack."""
    cases = [
        (PassForm(kernel, "softmax", add=group > 1, shared=group > 1, wide=True), 128, group) for kernel in kernels_of("softmax") for group in (1, 4)
    ]
    cases += [(PassForm("backward_q", "elu+1", wide=True), 128, 1), (PassForm("backward_k", "elu+1", True, True, dead=True), 64, 4)]
    cases += [(PassForm("backward_kv", "softmax", True, True, dead=True, shared=True, wide=d > 64), d, 4) for d in tail_pass_launch.WIDTHS]
    cases += [(PassForm("backward_q", "softmax"), 64, 1)]

    jobs = [offline.TailJob(tail_pass.generate(f), f.kernel, "bf16", d, d, tail_pass.config_of(f, d), heads=16, group=group) for f, d, group in cases]
    for (form, d, group), report in zip(cases, offline.compile_all(jobs)):
        products = d // 16 * form.terms + d // 16 + 4  # of a warpgroup that computes results: by the state, scores, and values
        assert report.instructions["HGMMA"] == 2 * products + d // 64 * 4, (form, d, group)
        assert len(re.findall(r"WARPGROUP.DEPBAR", report.sass)) <= 7, (form, d, group)  # else products wait for each other
        assert report.stack <= (128 if form.apart and d == 128 else 32), (form, d, group, report.stack)
        assert report.shared <= offline.SHARED_LIMIT


DEALT = [(16, 128, 132, 16), (16, 64, 132, 8), (16, 32, 132, 4), (64, 2, 132, 1), (4, 160, 132, 1), (8, 256, 132, 8)]


@pytest.mark.parametrize("slots, heads, processors, wanted", DEALT)
def test_deal(slots, heads, processors, wanted):
    assert tail_pass_launch.deal(slots, heads, processors) == wanted


@pytest.mark.parametrize("slots, each, heads, unit", [(16, 4, 16, 24), (64, 1, 1, 16), (64, 16, 16, 96), (16, 2, 8, 16), (5, 2, 3, 16), (4, 4, 16, 1)])
def test_pieces(slots, each, heads, unit):
    """One round of programs where they can be as many as processors, of a slot at least."""
    for name in OF_SUMS:
        pieces = tail_pass_launch.pieces(name, slots, each, heads, processors=132)
        assert pieces.unit == unit and pieces.programs * heads <= 132
        assert pieces.cuts["cells"] == len(starts(pieces)) + 1
        of_last = slots % each or each
        assert pieces.total == 16 * (slots - of_last if name == "key_states" else slots - each)


@pytest.mark.parametrize("feature, kernel", [(f, kernel) for f in ("elu+1", "softmax") for kernel in kernels_of(f)])
def test_everything_fits(kernel, feature):
    form = PassForm(kernel, feature)
    for d in tail_pass_launch.WIDTHS:
        assert tail_pass.shared_bytes(form, d, tail_pass.config_of(form, d)) <= tail_pass.SHARED_LIMIT


def test_sums_compiled():
    """Nothing on the stack, and features are made beside products."""
    cases = [(SumsForm(kernel, feature), d) for kernel in OF_SUMS for feature in ("softmax", "elu+1") for d in tail_pass_launch.WIDTHS]
    cases.append((SumsForm("key_states", "softmax", True, True), 128))
    jobs = [offline.TailJob(tail_pass_sums.generate(f), f.kernel, "bf16", d, d, tail_pass_sums.config_of(f, d), heads=16, group=4) for f, d in cases]
    for (form, d), report in zip(cases, offline.compile_all(jobs)):
        assert report.stack == 0 and report.shared <= offline.SHARED_LIMIT, (form, d)
        warpgroups = 4 if form.halves else 2
        assert report.instructions["HGMMA"] == warpgroups * 4 * d // 64, (form, d)
        assert len(re.findall(r"WARPGROUP.DEPBAR", report.sass)) == warpgroups, (form, d)  # else products wait for each other
