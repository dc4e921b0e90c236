"""Cards that were never seen: the portable kernels, in tiles that fit their shared memory."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch

import patternc as pc
from patternc.args import bind
from patternc.codegen import configs, device, hopper_launch, offline, prepared, tail_steps
from patternc.codegen.backend import _make_call
from patternc.codegen.call import Call
from patternc.codegen.kernels import generate
from patternc.codegen.prepared import _first, _variant
from patternc.plan import make_plan
from patternc.rates import KERNELS, Shape
from patternc.runtime import compiled

CUDA = torch.device("cuda", 0)
WIDTHS, SIZES = (64, 128, 256), (2, 4)


@dataclass(frozen=True)
class FakeCard:
    """What a card says of itself.

    Attributes:
        capability: as torch gives it, on AMD's cards too.
        shared: bytes of shared memory that a program may have.
        arch: of `offline.Job`.
    """

    capability: tuple[int, int]
    shared: int
    arch: int | str

    @property
    def amd(self) -> bool:
        return isinstance(self.arch, str)


CARDS = {
    "A100": FakeCard((8, 0), 163 << 10, 80), "RTX 4090": FakeCard((8, 9), 99 << 10, 89), "RTX 5090": FakeCard((12, 0), 99 << 10, 120),
    "MI300": FakeCard((9, 4), 64 << 10, "gfx942"),
}  # fmt: skip


@pytest.fixture(params=CARDS)
def fake(request, monkeypatch):
    found = CARDS[request.param]
    device.has_tma.cache_clear()
    device.is_hopper.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: found.capability)
    monkeypatch.setattr(torch.version, "hip", "6.4" if found.amd else None)
    for module in (device, prepared, hopper_launch):
        monkeypatch.setattr(module, "shared_memory", lambda _: found.shared)
    yield found
    device.has_tma.cache_clear()
    device.is_hopper.cache_clear()


def first(text: str, kernel: str, variant: str, width: int, itemsize: int):
    """The configuration that a call takes on the card."""
    p = pc.parse(text)
    bound, shape = bind(p, {}, 4096, heads=2), Shape.of(width, width, itemsize)
    call = _make_call(compiled(p), 1.0, bound, torch.device("cpu"), shape, True)
    return _first(call, generate(call.plan, variant).kernels[kernel], width, width, itemsize, CUDA)


PATTERNS = ("causal & (window(512) | sink(4))", "causal & dilate(4) & window(2048)", "neighborhood([64, 64], 13)", "per_head(window(64), causal & dilate(8))")


@pytest.mark.parametrize("text", PATTERNS)
def test_every_kernel_fits(fake, text):
    for kernel, width, itemsize in itertools.product(KERNELS, WIDTHS, SIZES):
        variant = "descriptors" if itemsize == 2 and device.has_tma(CUDA) else "pointers"
        config = first(text, kernel, variant, width, itemsize)
        fits = configs.shared_bytes(kernel, config, width, width, itemsize) <= fake.shared
        # The estimate of the smallest tile is four times what AMD's compiler takes (`test_compiled_for_other_cards`).
        assert fits or (fake.amd and configs.smaller(config) is None and (width, itemsize) == (256, 4)), (kernel, width, itemsize, config)


def test_every_candidate_fits_once_stepped_down(fake):
    """Also those that a pattern's predicted time may choose."""
    for variant, kernel, width, itemsize in itertools.product((*configs.TABLES, "descriptors"), KERNELS, WIDTHS, SIZES):
        if variant == "hopper":
            continue
        for config in configs.candidates(kernel, variant, width, width, itemsize):
            fitted = configs.fit(kernel, config, width, width, itemsize, fake.shared)
            assert configs.shared_bytes(kernel, fitted, width, width, itemsize) <= fake.shared or configs.smaller(fitted) is None


def test_descriptors_only_where_the_card_has_them(fake):
    tma = fake.capability >= (9, 0) and not fake.amd
    assert device.has_tma(CUDA) == tma

    @dataclass
    class Matrix:  # a tensor of the card, which is not here
        device = CUDA
        dtype = torch.bfloat16
        shape = (1, 2, 256, 64)

        def __getattr__(self, name):
            return getattr(torch.empty(self.shape, dtype=self.dtype), name)

    matrices = {name: Matrix() for name in "qkv"}
    assert _variant(matrices.values()) == ("descriptors" if tma else "pointers")
    assert tail_steps.has_tma(CUDA) == tma
    assert hopper_launch.refusal(Call(make_plan(pc.causal), 1.0), False, matrices) == "it needs a Hopper card"


ARCHITECTURES = [
    (name, kernel, width, dtype) for name in CARDS for kernel in KERNELS for width, dtype in ((128, "bf16"), (256, "fp32"))
]


@pytest.fixture(scope="module")
def reports():
    plan, jobs = make_plan(pc.parse("causal & window(512)")), []
    for name, kernel, width, dtype in ARCHITECTURES:
        card, itemsize = CARDS[name], 2 if dtype == "bf16" else 4
        variant = "descriptors" if card.arch == 120 and itemsize == 2 else "pointers"
        config = configs.fit(kernel, configs.candidates(kernel, variant, width, width, itemsize)[0], width, width, itemsize, card.shared)
        jobs.append(offline.Job(generate(plan, variant), kernel, dtype, width, width, config, arch=card.arch))
    return dict(zip(ARCHITECTURES, offline.compile_all(jobs)))


@pytest.mark.parametrize("case", ARCHITECTURES, ids=str)
def test_compiled_for_other_cards(reports, case):
    assert reports[case].shared <= CARDS[case[0]].shared
