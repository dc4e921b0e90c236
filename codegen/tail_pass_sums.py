"""What enters the programs of the one-pass kernels of a linear tail (`tail_pass.py`), where heads are few and several share one: in Gluon too.

Sums of phi(k)^T v over keys, or of phi(q)^T do over rows, in float32: no product has a state for an operand before it is rounded, so none
is centred.  They are of pieces, which end where a program of the pass ends, and where one of these programs does, which take as many chunks
as let processors end together.  One warp loads.  Warpgroups sum one half of the columns each, of one half of the features where these are
softmax; both that multiply the same features make half of the rows of them, the next ones beside the last product.
"""

from __future__ import annotations

from functools import lru_cache

from patternc.codegen import tail_pass_text as text
from patternc.codegen.frame import header, indent
from patternc.codegen.helpers import used_by
from patternc.codegen.tail_pass import HEADER, HELPERS, PassConfig, PassSource
from patternc.codegen.tail_pass_form import OF_SUMS, SumsForm
from patternc.codegen.tail_text import TailKernel, indented

CONSTANTS = ("HEADS", "GROUP", "D", "W", "STAGES")


def config_of(form: SumsForm, d: int) -> PassConfig:
    return PassConfig(stages=4, buffers=0, ahead=0)


def constants(form: SumsForm, d: int) -> dict[str, int]:
    """Constexprs that are these kernels' own."""
    return {"W": d // 2, "STAGES": config_of(form, d).stages}


@lru_cache(maxsize=64)
def generate(form: SumsForm) -> PassSource:
    """The source of a form's kernel; equal bytes for equal forms, in every process."""
    sums, loads, warpgroups = _sums(form), _loads(form), 4 if form.halves else 2
    tables = ["live_ptr", "per_row"] * form.masked
    pieces = ["first", "total", "each", "unit", "both", "cells"]
    parameters = [f"{form.y}_desc", f"{form.z}_desc", "states_ptr", *tables, *pieces, "n_q", "n_k", "offset"]
    body = [
        "program, parts = tl.program_id(0), tl.cdiv(total, unit)",
        "kv_h = program // parts % (HEADS // GROUP)",
        "b = program // parts // (HEADS // GROUP)",
        *["live_ptr += b * per_row * n_k  # of the batch row's keys"] * form.masked,
        "begin = program % parts * unit  # chunks, from chunk `first` on",
        "from_chunk = first + begin",
        "count, ahead = tl.minimum(total - begin, unit), begin % each  # chunks, and those of the first piece that are another program's",
        "pieces = (ahead + count - 1) // each + 1",
        f"before = _pieces_before(begin, unit, each, both){'' if form.y == 'k' else ' + 1'}",
        f"states_ptr += ((b * (HEADS // GROUP) + kv_h).to(tl.int64) * cells + before){' * 2' * form.halves} * D * D",
        *_memory(form),
        *_barriers("yz", "STAGES", 1, warpgroups),
        *(_barriers("phi", str(warpgroups), 2, 2) if form.made else []),
        "fence_async_shared()",
        "tl.warp_specialize([",
        *indented([*(sums[1].format(own=own) for own in range(warpgroups)), loads[1]]),
        f"], [{'4, 4, 4, 1], [112, 112, 112, 24' if form.halves else '4, 1], [240, 24'}])",
    ]
    what = f"phi({form.y})^T {form.z} over the {'keys' if form.y == 'k' else 'rows'} of each piece"
    top = header(form.kernel, parameters, list(CONSTANTS), f"{what}.  One program `unit` chunks of a key head.").replace("@triton.jit", "@gluon.jit")
    kernel = TailKernel(form.kernel, top + indent(body), tuple(parameters), CONSTANTS)
    whole = "\n\n\n".join([sums[0], loads[0], kernel.text])
    return PassSource(f"{HEADER}{used_by(whole, HELPERS)}\n\n{whole}\n\n\n# {form}\n", {form.kernel: kernel}, form)


def _memory(f: SumsForm) -> list[str]:
    def tiles(name: str, count: str, like: str) -> str:
        return f"{name}_tiles = tl.allocate_shared_memory({like}_desc.dtype, [{count}] + {like}_desc.block_type.shape, {like}_desc.layout)"

    return [tiles(f.y, "STAGES", f.y), tiles(f.z, "STAGES * 2", f.z), *[tiles("phi", "4" if f.halves else "2", f.y)] * f.made]


def _barriers(ring: str, slots: str, writers: int, readers: int) -> list[str]:
    return [
        *(f"{ring}_{x} = tl.allocate_shared_memory(tl.int64, [{slots}, 1], mbarrier.MBarrierLayout())" for x in ("full", "empty")),
        f"for i in tl.static_range({slots}):",
        f"    mbarrier.init({ring}_full.index(i), count={writers})",
        f"    mbarrier.init({ring}_empty.index(i), count={readers})",
    ]


def _of_pieces(tile: list[str], before: list[str] = (), after: list[str] = ()) -> list[str]:
    """Statements about each piece, from the program's chunk `at` on, and each of its tiles, numbered over the program.

    No `at` is carried from piece to piece: Triton 3.6 takes what only bounds an inner loop for dead, and leaves it as it was at first.
    """
    return [
        "for piece in range(pieces):",
        *indented([
            "at, end = tl.maximum(piece * each - ahead, 0), tl.minimum((piece + 1) * each - ahead, count)",
            *before,
            "for n in range(at * SHARING, end * SHARING):",
            *indented(tile),
            *after,
        ]),
    ]  # fmt: skip


def _loads(f: SumsForm) -> tuple[str, str]:
    def load(matrix: str, column: str, tile: str) -> str:
        head = "kv_h" if matrix in OF_SUMS["key_states"] else "kv_h * GROUP + tile // (end - at)"
        return f"_load({matrix}_desc, [b, {head}, {text.first(f, matrix)}, {column}], yz_full.index(slot), {matrix}_tiles.index({tile}))"

    step = [
        "tile = n - at * SHARING", "c = from_chunk + at + tile % (end - at)", "slot = n % STAGES",
        "mbarrier.wait(yz_empty.index(slot), (n // STAGES & 1) ^ 1)",
        f"mbarrier.expect(yz_full.index(slot), {f.y}_desc.block_type.nbytes + 2 * {f.z}_desc.block_type.nbytes)",
        load(f.y, "0", "slot"),
        "for i in tl.static_range(2):", "    " + load(f.z, "i * W", "slot * 2 + i"),
    ]  # fmt: skip
    return text.partition("_loads", "Loads the tiles of every chunk, a head after the other.", [], [_sharing(f), *_of_pieces(step)])


def _sharing(f: SumsForm) -> str:
    """How many heads' tiles are summed."""
    return f"SHARING: tl.constexpr = {'1' if f.y == 'k' else 'GROUP'}"


def _sums(f: SumsForm) -> tuple[str, str]:
    """A warpgroup."""
    tile = f"phi_tiles.index({_place('n')})" if f.made else f"{f.y}_tiles.index(slot)"
    wait = f"phi_full.index({_place('n')}), n // 2 & 1" if f.made else "yz_full.index(slot), n // STAGES & 1"
    step = [
        "slot = n % STAGES",
        f"mbarrier.wait({wait})",
        f"y, z = {tile}.reshape([64, D]), {f.z}_tiles.index(slot * 2 + own % 2).reshape([64, W])",
        "more = warpgroup_mma(y.permute((1, 0)), z, s, is_async=True)",
        *(["if n + 1 < count * SHARING:  # beside the product", *indented(_make(f, "n + 1"))] if f.made else []),
        "s = warpgroup_mma_wait(0, deps=[more])",
        *[f"mbarrier.arrive(phi_empty.index({_place('n')}), count=1)"] * f.made,
        "mbarrier.arrive(yz_empty.index(slot), count=1)",
    ]
    lines = [
        _sharing(f),
        text.product_layout("layout", "W"),
        *[f"plain: tl.constexpr = {text.PLAIN}"] * f.made,
        *(_make(f, "0") if f.made else []),
        *_of_pieces(step, ["s = tl.zeros([D, W], tl.float32, layout)"], [
            "d, e = tl.arange(0, D, tl.SliceLayout(1, layout))[:, None], tl.arange(0, W, tl.SliceLayout(0, layout))[None, :]",
            f"cell = piece{' * 2 + own // 2' * f.halves}",
            "tl.store(states_ptr + cell * D * D + d * D + own % 2 * W + e, s)",
        ]),
    ]  # fmt: skip
    doc = f"Sums y^T z over the chunks of each piece: {'of half own // 2 of the features, ' * f.halves}of half own % 2 of the columns."
    return text.partition("_sums", doc, ["own"], lines)


def _place(n: str) -> str:
    """Where what is made of tile n is."""
    return f"own // 2 * 2 + {n} % 2"


def _make(f: SumsForm, number: str) -> list[str]:
    """Make half of the rows of what is multiplied, in a place of its own: features, 0 for keys that are dead.

    The warpgroup of the other columns makes the other half.
    """
    n = number if number == "0" else f"({number})"
    made = text.features(f, "rows.load(plain)", "D", "1.0 - 2.0 * (own // 2)" if f.halves else "1.0")
    return [
        f"mbarrier.wait(yz_full.index({n} % STAGES), {n} // STAGES & 1)",
        f"mbarrier.wait(phi_empty.index({_place(n)}), ({n} // 2 & 1) ^ 1)",
        f"rows = {f.y}_tiles.index({n} % STAGES).reshape([64, D]).slice(own % 2 * 32, 32, 0)",
        *(text.live(f, f"(from_chunk + {n})", "plain", "32", "own % 2 * 32") if f.masked else []),
        f"phi = phi_tiles.index({_place(n)}).reshape([64, D]).slice(own % 2 * 32, 32, 0)",
        f"phi.store({f'tl.where(live[:, None], {made}, 0.0)' if f.masked else made}.to(phi.dtype))",
        "fence_async_shared()",
        f"mbarrier.arrive(phi_full.index({_place(n)}), count=1)",
    ]
