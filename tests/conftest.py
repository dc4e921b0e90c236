"""Kernels are interpreted where there is no GPU; this must be said before triton is imported.  Shared fixtures."""

import math
import os
import sys
from unittest import mock

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: threads of each would wait for one another longer than they compute
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("untimed", deadline=None)  # how long an example takes says nothing on a busy machine
hypothesis.settings.load_profile("untimed")

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

if os.environ.get("TRITON_INTERPRET") == "1":
    from interpreted import hasten

    hasten()


@pytest.fixture(autouse=True, scope="session")
def committed_rates():
    """What is chosen by the committed table, whatever was measured on this machine."""
    from patternc import cards

    with mock.patch.object(cards, "device_name", return_value=None):
        cards.in_use.cache_clear()
        yield


@pytest.fixture(autouse=True)
def traces():
    """All modules share one `forward`, of which dynamo keeps few traces."""
    yield
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()


@pytest.fixture
def poison(monkeypatch):
    """What the launcher leaves unwritten is NaN."""
    plain = torch.empty

    def poisoned(*args, **kwargs):
        x = plain(*args, **kwargs)
        return x.fill_(math.nan) if x.is_floating_point() else x

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture
def on_a_card(tmp_path, monkeypatch):
    """A machine with a card, which is not there, and an empty cache; whose rates are in use is decided anew."""
    from patternc import cards, folder

    monkeypatch.setenv(folder.ENVIRONMENT, str(tmp_path))
    monkeypatch.setattr(cards, "device_name", lambda: "Some GPU (40GB)")
    cards.in_use.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    cards.in_use.cache_clear()
