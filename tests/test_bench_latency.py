"""`patternc bench latency`: what is counted, on a machine without a card; what it prints."""

import json

import pytest
import torch

import patternc as pc
from patternc.bench import first_call, latency
from patternc.bench.latency import CallRow, FirstRow, Report
from patternc.codegen import launches
from patternc.errors import BackendError

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array", "ignore:divide by zero")


@pytest.fixture
def report():
    calls = [CallRow("torch add_", "in place", 10.04), CallRow("causal", "forward", 60.0, 1, 18.0)]
    first = [FirstRow("causal", False, 0.1, 1.5, 0.75, 0.25, 4, {"129": 0, "1000": 2}), FirstRow("causal", True, 0.1, 0.1, 0.05, 0.0, 0, {"129": 0})]
    return Report("Some GPU", {"torch": "2.11"}, 128, calls, first)


def test_report(report):
    assert report.calls[0].cells() == ["torch add_", "in place", "10.0", "-", "-", "-"]
    assert report.calls[1].cells() == ["causal", "forward", "60.0", "1", "18.0", "42.0"]
    assert [row.cells()[-1] for row in report.first] == ["2 (n 1000)", "0"]
    text = report.markdown()
    assert "| `causal` | forward | 60.0 | 1 | 18.0 | 42.0 |" in text and "| `causal` | empty | 0.10 | 1.50 | 0.75 | 0.25 | 4 | 2 (n 1000) |" in text
    assert "at most 40 us aimed at beyond launches: Some GPU, torch 2.11" in text and "at most 3 s aimed at, 0.2 s with a cache" in text
    found = json.loads(report.json())
    assert found["calls"][1]["added_us"] == 42 and found["calls"][0]["added_us"] is None and found["first"][1]["cached"] is True
    assert len(report.tables()) == 2 and len(Report("Some GPU", {}, 128).tables()) == 1


def test_launches_are_recorded_and_made_again(monkeypatch):
    """One call's launches, and no longer."""
    made = []
    monkeypatch.setattr(launches.Positional, "run", lambda self, *given: made.append(given))
    launch = launches.Positional(None, [], [], [], [], [])
    row = latency.split("causal", "forward", lambda: (launch.run(1, {}, {}), launch.run(2, {}, {})), 2)
    assert row.launches == 2 and row.launches_us >= 0 and row.added_us == row.us - row.launches_us
    calls = 3 + latency.ROUNDS * 2
    assert made == [(1, {}, {}), (2, {}, {})] * (2 * calls + 2)


def test_passes():
    q = torch.ones(3, requires_grad=True)
    rows = latency.passes("square", lambda: q * q, (q,), lambda *given: (*given[:2], given[2]()))
    assert [row[1] for row in rows] == ["forward, no gradients", "forward", "backward"]
    assert not rows[0][2].requires_grad and rows[1][2].requires_grad and rows[2][2][0].shape == (3,)


def test_decoding(monkeypatch):
    monkeypatch.setattr(latency, "ROUNDS", 1)
    monkeypatch.setattr(latency, "DECODE_HEADS", (2, 1))
    monkeypatch.setattr(latency, "DECODE_DIM", 16)
    rows = latency.decoding(1, keys=20)
    assert [row.pattern for row in rows] == ["causal, 1 query after 20 keys", "causal, 1 query after one more key each time"]
    assert all(row.us > 0 for row in rows)


@pytest.mark.parametrize("text", ["causal & window(16)", "causal & documents(ids)"])
def test_first_call(text):
    """Interpreted, so that nothing is compiled."""
    found = first_call.measure(text, 40, [41, 60])
    row = FirstRow(text, False, **found)
    assert row.forward_s > 0 and row.backward_s > 0 and row.compiled == 0 and row.lengths == {"41": 0, "60": 0}
    assert first_call.of_spec(pc.parse("causal"), {"ids": 1}) == {}


def test_a_first_call_that_fails(monkeypatch):
    with pytest.raises(BackendError, match="the first call of `causal & nonsense` failed in a new process: .*nonsense"):
        latency.first_calls("causal & nonsense", 16)


def test_it_needs_a_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="times launches and needs a CUDA device"):
        latency.run()
