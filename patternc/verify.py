"""`pc.verify`: outputs and all gradients against the dense float64 reference, on the user's device and dtype.

The tolerance is not chosen by hand: it is a small multiple of the error that the dense reference itself makes when it runs in
the tested dtype, plus as many units of roundoff of the largest value.  The multiple is 2 in half precision, where the
reference rounds every intermediate result and a kernel only some, and 8 in float32 and float64, where both round alike, the
largest of a few errors is noise, and kernels use the card's exp2, which is good to two units in the last place.  Rows whose pattern
allows nothing must be exactly 0.  Inputs hide nothing: v has a mean, q and k are peaked.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping

import torch

from patternc import cpu, functional, reference
from patternc.args import bind
from patternc.errors import DeviceError, DtypeError, OperandError, ParameterError, ShapeError
from patternc.expr.attention import Attention
from patternc.expr.bounds import INF
from patternc.expr.calls import fitting
from patternc.expr.node import Node
from patternc.expr.pattern import Pattern
from patternc.forms import count
from patternc.parsing import parse
from patternc.report import Check, Report
from patternc.runtime import DTYPES, check_backend
from patternc.samples import default_sizes, random_args, random_parameters, structural_zeros
from patternc.subscripts import heads_listed

SLOW = 2.0  # seconds after which a progress bar appears


@fitting("verify")
def verify(
    spec: Pattern | Attention | str, *, backend: str = "auto", device=None, dtype: torch.dtype | None = None, sizes=None, heads: int | None = None,
    kv_heads: int | None = None, head_dim: int = 32, value_dim: int | None = None, batch: int = 2, args: dict | None = None,
    seed: int = 0, raise_error: bool = False, quiet: bool = False, run=None,
) -> Report:
    """Compare outputs and all gradients with the dense float64 reference.

    Args:
        spec: a pattern, an attention, or the text of one.
        backend: "auto", "triton" or "cpu".
        device, dtype: by default a GPU in bfloat16 if there is one, else the CPU in float32.
        sizes: pairs (n_q, n_k) or lengths; by default a few that reach beyond the largest number in the pattern.
        heads, kv_heads, head_dim, value_dim, batch: of the random inputs.
        args: runtime args; those that are left out are drawn at random for each size.
        raise_error: raise VerificationError on a difference.
        quiet: print nothing.
        run: what to test instead of a backend: takes (q, k, v, args, **options) of `patternc.reference.attention` and
            returns (out, lse).
    Returns:
        a Report, printed as a table unless `quiet`.
    Raises:
        VerificationError: on a difference, if asked for; PatternSyntaxError and others: for the text; ShapeError and others where `args` do not fit
            the sizes.
    """
    if isinstance(spec, str):
        spec = parse(spec)
    if not isinstance(spec, (Pattern, Attention)):
        raise OperandError(f"verify takes a pattern, an attention or its text, got {spec!r}", fix="write `pc.verify(pc.causal & pc.window(512))`")
    check_backend(backend)
    if args is not None and not isinstance(args, Mapping):
        raise OperandError(f"`args` is a dict of runtime args by name, got {args!r}", fix='write `args={"w": 512}`')
    if run is not None and not callable(run):
        raise OperandError(f"`run` is a function to test, got {run!r}", fix="see `run` in help(pc.verify)")
    device = _device(device)
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    if dtype not in DTYPES:
        raise DtypeError(f"dtype {dtype!r} is not supported", fix="use torch.float16, bfloat16, float32 or float64")
    for name, value in (("heads", heads or 1), ("kv_heads", kv_heads or 1), ("head_dim", head_dim), ("value_dim", value_dim or 1), ("batch", batch)):
        count(name, value, 1)
    count("seed", seed)
    heads = heads or heads_listed(spec) or 4
    kv_heads = kv_heads or (heads // 2 if heads % 2 == 0 else heads)
    if heads % kv_heads:
        raise ParameterError(f"{heads} query heads are no multiple of {kv_heads} kv heads", fix="kv_heads divides heads")
    generator = torch.Generator().manual_seed(seed)
    shape = batch, heads, kv_heads, head_dim, value_dim or head_dim
    cases = _cases(spec, sizes, args or {}, shape, generator, device)
    started, checks = time.perf_counter(), []
    runner = _Runner(spec, backend, run, heads, shape[-2:], generator, device)
    for n_q, n_k, given in _progress(cases, quiet):
        checks += _compare(spec, runner, given, (n_q, n_k), shape, generator, device, dtype)
    name = "custom" if run else backend
    report = Report(_text(spec), name, str(device), str(dtype).removeprefix("torch."), time.perf_counter() - started, tuple(checks))
    if not quiet:
        from rich.console import Console

        Console().print(report.table())
    if raise_error:
        report.raise_if_different()
    return report


def _device(device) -> torch.device:
    """The device to test on.  Raises DeviceError where torch has no such device."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device is None else device)
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise DeviceError(f"this machine has no device {device!r}: {str(error).splitlines()[0]}", fix='use device="cpu"') from None
    return device


def _text(spec: Node) -> str:
    text = str(spec)
    return text if len(text) <= 160 else text[:157] + "..."


def _progress(cases: list, quiet: bool):
    """The cases, with a progress bar once they have taken `SLOW` seconds."""
    if quiet:
        yield from cases
        return
    from rich.progress import Progress

    started, bar, task = time.perf_counter(), None, None
    try:
        for done, case in enumerate(cases):
            if bar is None and time.perf_counter() - started > SLOW:
                bar = Progress(transient=True)
                bar.start()
                task = bar.add_task("verifying", total=len(cases))
            if bar is not None:
                bar.update(task, completed=done, description=f"verifying {case[0]} x {case[1]}")
            yield case
    finally:
        if bar is not None:
            bar.stop()


def _cases(spec, sizes, args: dict, shape, generator, device) -> list:
    """`(n_q, n_k, args)` of every size; default sizes that a static table does not reach are left out."""
    batch, heads = shape[:2]
    chosen = sizes or default_sizes(spec)
    chosen = [n if isinstance(n, (tuple, list)) else (n, n) for n in chosen] if isinstance(chosen, (tuple, list)) else [()]
    if any(len(n) != 2 for n in chosen):
        raise ParameterError(f"`sizes` are lengths or pairs (n_q, n_k), got {sizes!r}", fix="write `sizes=[128, (64, 203)]`")
    out, last = [], None
    for n_q, n_k in chosen:
        n_q, n_k = count("n_q", n_q), count("n_k", n_k)
        reference.check_size(batch, heads, n_q, n_k)
        given = {**random_args(spec, n_q, n_k, heads, batch, generator, device, known=args), **args}
        try:
            bind(spec, given, n_q, n_k, heads, batch, device=device)
        except ShapeError as error:
            if sizes:
                raise
            last = error
        else:
            out.append((n_q, n_k, given))
    if not out:
        raise last
    return out


class _Runner:
    """What is tested, a function or a backend, and the term's parameters."""

    def __init__(self, spec, backend, run, heads, dims, generator, device):
        self.run = run or functools.partial(functional.attention, spec, backend=backend)
        self.parameters = {}
        if isinstance(spec, Attention):
            self.parameters = {name: x.to(device) for name, x in random_parameters(spec.term, heads, *dims, generator).items()}

    def __call__(self, q, k, v, args, **options):
        return self.run(q, k, v, args, **options)

    def leaves(self, dtype) -> dict[str, torch.Tensor]:
        """The term's parameters as the tested call takes them: float32 or wider."""
        return {name: x.to(cpu.compute_dtype(dtype)) for name, x in self.parameters.items()}


def _compare(spec, runner: _Runner, args, lengths, shape, generator, device, dtype) -> list[Check]:
    batch, heads, kv_heads, dim, value_dim = shape
    n_q, n_k = lengths

    def normal(h, n, d):
        return torch.randn(batch, h, n, d, generator=generator)

    inputs = {"q": 2 * normal(heads, n_q, dim), "k": 2 * normal(kv_heads, n_k, dim), "v": normal(kv_heads, n_k, value_dim) + 1}
    if isinstance(spec, Attention):
        inputs.update(tail_q=2 * normal(heads, n_q, dim), tail_k=2 * normal(kv_heads, n_k, dim))
    inputs = {name: x.to(device, dtype) for name, x in inputs.items()}
    d_out, d_lse = normal(heads, n_q, value_dim).to(device, dtype), torch.randn(batch, heads, n_q, generator=generator).to(device)
    constants = runner.leaves(dtype)

    def results(run, of):
        """Outputs and gradients of one implementation, its inputs in the dtype `of`."""
        leaves = {name: x.detach().to(of or x.dtype).requires_grad_() for name, x in inputs.items()}
        given = {name: x.detach().to(of or x.dtype) for name, x in constants.items()}
        learned = {name: x.requires_grad_() for name, x in given.items() if name != "projection"}
        q, k, v, *tail = leaves.values()
        options = dict(zip(("tail_q", "tail_k"), tail), **given)
        out, lse = run(q, k, v, args, **options)
        some = lse > -torch.inf
        total = (out.to(d_out.dtype) * d_out).sum(dtype=torch.float32 if of is None else None) + (torch.where(some, lse, 0.0) * d_lse).sum()
        every = {**leaves, **learned}
        gradients = torch.autograd.grad(total, list(every.values()), allow_unused=True)
        named = {f"d{name}": torch.zeros_like(x) if g is None else g for (name, x), g in zip(every.items(), gradients)}
        return {"out": out.detach(), "lse": lse.detach(), **named}

    def dense(of):
        return results(lambda q, k, v, given, **options: reference.attention(spec, q, k, v, given, dtype=of, **options), of)

    exact, got = dense(torch.float64), results(runner, None)
    errors = _own_error(dense, dtype, exact)
    size, zeros = f"{n_q} x {n_k}", structural_zeros(spec, args, (n_q, n_k, *shape[:3]), device)
    return [_check(size, name, got[name].double(), exact[name], errors[name], dtype, zeros.get(name)) for name in exact]


def _own_error(dense, dtype: torch.dtype, exact: dict) -> dict[str, float]:
    """The largest error of the dense reference run in `dtype`, for every tensor.

    In float64 there is nothing to compare with, and in float16 gradients may overflow: then float32's error, scaled by the
    ratio of the units of roundoff.
    """
    own = {} if dtype == torch.float64 else dense(dtype)
    fallback = None
    out = {}
    for name, want in exact.items():
        error = _largest_error(own[name].double(), want) if name in own else INF
        if not error < INF:
            fallback = fallback or dense(torch.float32)
            error = _largest_error(fallback[name].double(), want) * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
        out[name] = error
    return out


def _largest_error(x, want) -> float:
    difference = torch.where(x == want, 0.0, (x - want).abs())  # equal infinities differ by nothing
    return float(difference.max().nan_to_num(INF)) if difference.numel() else 0.0


def _check(size: str, name: str, got, want, own: float, dtype, zero=None) -> Check:
    finite = torch.where(want.isfinite(), want, 0.0).abs()
    largest = float(finite.max()) if finite.numel() else 0.0
    tolerance = (2 if dtype.itemsize == 2 else 8) * (own + torch.finfo(dtype).eps * largest)
    note = ""
    if got.isnan().any():
        note = "NaN"
    elif zero is not None and (got[zero] != 0).any():
        note = "rows that should be 0"
    elif (got.isinf() != want.isinf()).any():
        note = "infinities"
    return Check(size, name, _largest_error(got, want), tolerance, note)
