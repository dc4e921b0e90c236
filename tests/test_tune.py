"""`patternc tune` without a GPU: a card whose times are made up, interrupted, damaged, of other versions, and shown."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
from typer.testing import CliRunner

import patternc as pc
from patternc import cards, cli, folder
from patternc.args import bind
from patternc.codegen import configs, fitting, machine, measured, trials, tuning
from patternc.codegen.backend import _fit
from patternc.codegen.machine import Machine
from patternc.codegen.trials import SAMPLES, Job, jobs
from patternc.errors import BackendError
from patternc.plan import make_plan
from patternc.rates import KERNELS, Config, Shape

CARD = "Some GPU (40GB)"  # of conftest.on_a_card
AMPERE = Machine(CARD, 108, False, 163 << 10, 40 << 30)
HOPPER = Machine(CARD, 132, True, 227 << 10, 80 << 30)
LAUNCH = 4.0
FAST = 0.8  # of the other configurations' times


class FakeBench(tuning.Bench):
    """Times by known costs; an odd number of stages is faster than an even one."""

    timed: list[Job] = []
    stop = None  # interrupted when so many are timed
    broken = staticmethod(lambda job: False)

    def compile(self, some):
        return ["OutOfResources: shared memory" if self.broken(job) else "" for job in some]

    def time(self, job):
        if len(self.timed) == self.stop:
            raise KeyboardInterrupt
        self.timed.append(job)
        draw = np.random.default_rng(zlib.crc32(job.text.encode()))
        area = job.config.block_m * job.config.block_n / 4096
        counts = [64000 / job.config.block_m, *(draw.integers(100, 9000, 2) / area).tolist()]
        counts.append(counts[2] * int(draw.integers(1, 9)))
        work = float(np.dot(counts, [2.0, 0.5 * area, 0.6 * area, 0.01 * area])) * (2.0 if job.merge else 1.0)
        return LAUNCH + work / AMPERE.processors * (FAST if job.config.stages % 2 else 1.0), counts

    def launch(self):
        return LAUNCH


@pytest.fixture
def bench(monkeypatch, on_a_card):
    found = type("Bench", (FakeBench,), {"timed": []})
    monkeypatch.setattr(tuning, "Bench", found)
    monkeypatch.setattr(Machine, "current", staticmethod(lambda: AMPERE))
    return found


def run(*args, code=0):
    result = CliRunner().invoke(cli.app, ["tune", *map(str, args)], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output + str(result.exception)
    return result.output


def times_file(where):
    return where / "times-some-gpu-40gb.json"


def test_a_run(bench, on_a_card):
    out = run("--width", 64)
    assert f"[{len(bench.timed)}/{len(bench.timed)}]" in out and f"wrote {on_a_card / 'rates-some-gpu-40gb.json'}" in out
    assert "64 x 64, 4 warps, 3 stages" in out
    assert set(bench.timed) == set(jobs(AMPERE, (64,))) and len(set(bench.timed)) == len(bench.timed)
    cards.in_use.cache_clear()
    made = cards.card()
    assert made.name == CARD and made.processors == 108 and made.launch == LAUNCH and set(made.merge) == set(made.rows) == {64}
    for (kernel, access, width, half), found in made.rates.items():
        assert kernel in KERNELS and access in ("pointers", "boxes") and width == 64
        tiles = [(r.config.block_m, r.config.block_n) for r in found]
        assert len(tiles) == len(set(tiles))  # one configuration for each size of tile: the fastest
        assert not half or all(r.config.stages % 2 for r in found)
    assert made.rates["backward_dq", "pointers", 64, True][0].full in (pytest.approx(0.5 * FAST), pytest.approx(FAST))


def test_what_the_best_gains(bench):
    _, choices = tuning.tune(AMPERE, (64,))
    found = next(choice for choice in choices if (choice.kernel, choice.access, choice.half) == ("backward_dq", "pointers", True))
    assert 1.15 < found.gain < 2 and found.default == Config(64, 64, 4, 2) and found.best.stages % 2 and found.error < 0.01
    assert all(choice.gain >= 1 for choice in choices) and all(choice.gain == 1 for choice in choices if choice.best == choice.default)


def test_calls_take_what_was_chosen(bench):
    p = pc.parse("causal & window(512)")

    def taken(kernel, access, text=p, width=64):
        found = configs.candidates(kernel, access, width, width, 2)
        return _fit(text, make_plan(text), bind(text, {}, 4096, heads=2), Shape(width), kernel, access, found)

    before = taken("backward_dq", "pointers")
    run("--width", 64)
    cards.in_use.cache_clear()
    assert before.stages == 2 and taken("backward_dq", "pointers").stages in (1, 3)
    assert taken("backward_dq", "groups of boxes") in configs.candidates("backward_dq", "groups of boxes", 64, 64, 2)
    assert taken("backward_dq", "pointers", width=128) in configs.candidates("backward_dq", "pointers", 128, 128, 2)
    assert pc.verify(p, backend="triton", sizes=[(80, 80)], quiet=True).ok


def test_an_interrupted_run_goes_on(bench, on_a_card):
    total = len(jobs(AMPERE, (64,)))
    bench.stop = 100
    out = run("--width", 64, code=130)
    assert "stopped; what was measured is kept: `patternc tune` goes on from here, `patternc tune --restart` begins again" in out
    assert len(json.loads(times_file(on_a_card).read_text())["times"]) == 100
    assert not list(on_a_card.glob("rates-*")) and cards.in_use().path is None  # half a table is none
    first, bench.timed, bench.stop = bench.timed, [], None
    assert f"[100/{total}] 100 of {total} were measured before" in run("--width", 64)
    assert len(bench.timed) == total - 100 and not set(first) & set(bench.timed)
    bench.timed = []
    run("--width", 64)
    assert not bench.timed
    run("--width", 64, "--restart")
    assert len(bench.timed) == total


def test_widths_add_up(bench):
    run("--width", 64)
    run("--width", 128)
    cards.in_use.cache_clear()
    assert {key[2] for key in cards.card().rates} == {64, 128}


def test_an_interruption_while_writing_leaves_what_was_written(bench, on_a_card, monkeypatch):
    bench.stop = 3
    run("--width", 64, code=130)
    before, bench.stop = times_file(on_a_card).read_bytes(), None
    with monkeypatch.context() as patch:
        patch.setattr(folder.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run("--width", 64, code=130)
    assert times_file(on_a_card).read_bytes() == before
    assert sorted(p.name for p in on_a_card.iterdir()) == [times_file(on_a_card).name]


def test_times_of_other_versions_and_kernels_say_nothing(bench, monkeypatch):
    run("--width", 64)
    count, bench.timed = len(bench.timed), []
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "versions", lambda: {"torch": machine.versions()["torch"], "triton": "3.5.1"})
        run("--width", 64)
    assert len(bench.timed) == count
    cards.in_use.cache_clear()
    assert "measured with Triton 3.5.1" in cards.in_use().outdated
    bench.timed = []
    run("--width", 64)  # this Triton's times are still there
    assert not bench.timed
    monkeypatch.setattr(trials, "name_of", lambda text: "another text")
    run("--width", 64)
    assert len(bench.timed) == count


@pytest.mark.parametrize("text", ["", "{", "[]", '{"card": "Other GPU", "fields": [], "times": []}', "rows", "negative", "nested"])
def test_damaged_times_are_begun_anew(bench, on_a_card, text):
    bench.stop = 5
    run("--width", 64, code=130)
    good, path = times_file(on_a_card).read_text(), times_file(on_a_card)
    rows = {"rows": good.replace("64, true", "64"), "negative": good.replace(', "3.6.0", ', ', "3.6.0", -'), "nested": "[" * 100000}
    path.write_text(rows.get(text, text))
    bench.timed, bench.stop = [], 5
    with pytest.warns(UserWarning, match="times-some-gpu-40gb.json cannot be used, and is begun anew"):
        run("--width", 64, code=130)
    assert json.loads(path.read_text())["times"] == json.loads(good)["times"]


def test_times_that_cannot_be_written(bench, on_a_card, monkeypatch):
    monkeypatch.setattr(measured.folder, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.warns(UserWarning, match=r"times-some-gpu-40gb.json cannot be written .No space left.*make room") as warned:
        out = run("--width", 64, "-o", on_a_card / "mine.json", code=2)
    assert sum("times-" in str(w.message) for w in warned) == 1
    assert "rates-some-gpu-40gb.json cannot be written: No space left" in out and "set PATTERNC_CACHE_DIR" in out
    assert json.loads((on_a_card / "mine.json").read_text())["name"] == CARD


def test_a_cache_that_cannot_be_written(bench, on_a_card, monkeypatch):
    blocker = on_a_card / "file"
    blocker.write_text("")
    monkeypatch.setenv(folder.ENVIRONMENT, str(blocker / "cache"))
    with pytest.warns(UserWarning, match="cannot be written"):
        assert "the table would be lost" in run("--width", 64, code=2) and not bench.timed
        assert "calls on this card" not in run("--width", 64, "-o", on_a_card / "mine.json")
    assert json.loads((on_a_card / "mine.json").read_text())["name"] == CARD


def test_what_does_not_run_is_left_out_and_tried_again(bench):
    usual = configs.trials("forward", "pointers", 64, 2, AMPERE.shared)[0]
    bench.broken = staticmethod(lambda job: job.key == ("forward", "pointers", 64, True, usual))
    out = run("--width", 64)
    assert "left out: OutOfResources: shared memory" in out and "it does not run" in out
    cards.in_use.cache_clear()
    assert all(r.config != usual for r in cards.card().rates["forward", "pointers", 64, True])
    bench.broken, bench.timed = staticmethod(lambda job: False), []
    run("--width", 64)
    assert {job.config for job in bench.timed} == {usual}


def test_nothing_runs(bench, on_a_card):
    bench.broken = staticmethod(lambda job: True)
    assert "makes no table: no rates of forward, backward_dq, backward_dkdv" in run("--width", 64, code=2)
    assert not list(on_a_card.glob("rates-*"))


def test_a_crash_of_a_timing_is_left_out(bench, monkeypatch):
    plain = bench.time
    monkeypatch.setattr(bench, "time", lambda self, job: plain(self, job) if job.text != "block(1024)" or job.config.stages > 1 else 1 / 0)
    assert "left out: ZeroDivisionError" in run("--width", 64)


def test_a_bar_in_a_terminal(bench, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = run("--width", 64)
    total = len(bench.timed)
    assert "━" in out and f"{total}/{total}" in out and "[0/" not in out


def test_show(bench, on_a_card):
    out = run("--show")
    assert "the table that comes with patternc" in out and f"This card, {CARD}, was not measured: `patternc tune` does" in out
    run("--width", 64)
    cards.in_use.cache_clear()
    out = run("--show")
    assert str(on_a_card / "rates-some-gpu-40gb.json") in out and f"rates of {CARD}, " in out and "was not measured" not in out
    assert "64 x 64, 4 warps, 1 stage " in out
    path = cards.path_of(CARD)
    path.write_text(path.read_text().replace(machine.versions()["triton"], "3.5.1"))
    cards.in_use.cache_clear()
    assert "They were measured with Triton 3.5.1, and this is Triton" in run("--show")
    assert not [*bench.timed[len(jobs(AMPERE, (64,))) :]]


def test_mistakes(tmp_path, monkeypatch):
    assert "heads of width 96 have no kernels of their own" in run("--width", 96, code=2)
    assert "cannot be written" in run("-o", tmp_path, code=2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "needs a CUDA device" in run(code=2)


@pytest.mark.parametrize("card", [AMPERE, HOPPER, Machine("MI300", 304, False, 64 << 10, 192 << 30)], ids=["Ampere", "Hopper", "MI300"])
def test_what_is_measured_runs_on_the_card(card):
    found = jobs(card)
    assert {job.access for job in found} == {"pointers", "boxes"} | ({"descriptors", "box descriptors"} if card.tma else set())
    for job in found:
        itemsize = 2 if job.half else 4
        assert configs.shared_bytes(job.kernel, job.config, job.width, job.width, itemsize) <= card.shared or configs.smaller(job.config) is None
        assert job.config.possible and (job.kernel == "backward_rows" or job.text in dict(SAMPLES[job.access]))
    assert {job.width for job in found if job.merge} == {64, 128, 256} and all(job in found for job in map(unmerged, found))
    if card is HOPPER:
        for (kernel, access, width, half), rates in cards.committed().rates.items():
            assert {r.config for r in rates} <= {job.config for job in found if job.key[:4] == (kernel, access, width, half)}


def unmerged(job: Job) -> Job:
    return Job(*job.key, job.text, job.stride)


def test_times_below_a_launch_make_no_costs():
    costs, error = fitting.fitted([(1.0, [1, 1, 1, 1])] * 4, 4.0, 1)
    assert not costs.any() and error == 1.0


def test_too_few_times_make_no_table(on_a_card):
    with pytest.raises(BackendError, match="makes no table"):
        fitting.fitted_card({}, LAUNCH, AMPERE, machine.versions())
