"""On a GPU: what `patternc tune` measures, and that the configurations which it may choose are right."""

from dataclasses import replace

import pytest
import torch

import patternc as pc
from patternc.args import bind
from patternc.codegen.backend import call_of
from patternc.codegen.launch import attention_forward
from patternc.runtime import compiled

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_tune_measures_this_card(tmp_path, monkeypatch):
    """Two configurations of every kernel, compiled in other processes; the next run finds the times."""
    from patternc import folder
    from patternc.codegen.fitting import fitted_card
    from patternc.codegen.machine import Machine, versions
    from patternc.codegen.measured import Times
    from patternc.codegen.trials import jobs
    from patternc.codegen.tuning import Bench, measure

    monkeypatch.setenv(folder.ENVIRONMENT, str(tmp_path))
    machine, lines = Machine.current(), []
    found = [job for job in jobs(machine, (64,)) if job.half and job.access in ("descriptors", "pointers")]
    first = {kernel: list(dict.fromkeys(job.config for job in found if job.kernel == kernel))[:2] for kernel in {job.kernel for job in found}}
    some = [job for job in found if job.config in first[job.kernel] or job.merge]
    some += [job for job in found if not job.merge and any(job.config == other.config for other in some if other.merge) and job not in some]
    with Bench(4) as bench:
        measure(some, bench, Times(machine.name, versions()), lambda *line: lines.append(line))
        again = Times(machine.name, versions())
        times = {job: again.find(job) for job in some}
        assert all(times.values()), [line for line in lines if "left out" in line[2]]
        card, choices = fitted_card(times, bench.launch(), machine, versions())
    assert card.name == torch.cuda.get_device_name() and len(choices) == 3 and all(choice.error < 0.3 for choice in choices)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("kernel", ["forward", "backward_dq", "backward_dkdv"])
def test_configurations_of_tune_are_right(kernel, head_dim):
    """Other warps and stages than the candidates', which `patternc tune` may choose."""
    from patternc.codegen import configs
    from patternc.codegen.device import has_tma, shared_memory
    from patternc.codegen.launch import attention_backward

    p = pc.parse("causal & (window(300) | sink(4))")
    q, k, v, do = (torch.randn(2, h, 900, head_dim, device="cuda", dtype=torch.bfloat16) for h in (4, 2, 2, 4))
    variant = "descriptors" if has_tma(q.device) else "pointers"
    call = replace(call_of(compiled(p), head_dim**-0.5, bind(p, {}, 900, heads=4, batch=2), q, k, v), variant=variant)
    wanted = None
    for config in configs.trials(kernel, variant, head_dim, 2, shared_memory(q.device)):
        mine = replace(call, configs={kernel: config})
        out, lse = attention_forward(mine, q, k, v)
        found = out, lse, *attention_backward(mine, q, k, v, out, lse, do)
        wanted = wanted or found
        for a, b in zip(found, wanted):
            torch.testing.assert_close(a.float(), b.float(), atol=3e-2, rtol=3e-2)
