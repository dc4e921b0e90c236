"""From the times of a card's kernels to its table of rates, and what the table chooses."""

from __future__ import annotations

import datetime
import itertools
import math
from dataclasses import dataclass, replace

import numpy as np

from patternc.codegen.machine import Machine
from patternc.codegen.trials import BATCH, HEADS, SAMPLES, Job, N, default
from patternc.errors import BackendError
from patternc.prediction import ROWS
from patternc.rates import KERNELS, Card, Config, Rate

Sample = tuple[float, list[float]]  # microseconds, and [programs, full tiles, partial tiles, operations of masks on partial tiles]


@dataclass(frozen=True)
class Choice:
    """What was found of one kernel, way of reaching memory, width and dtype.

    Attributes:
        default: what is taken on a card that was never measured; None where it does not run on this one.
        best: the configuration whose times are least, in the geometric mean over the patterns.
        gain: the default's time over the best one's, 1 where they are the same.
        error: the largest relative error of the rates that explain the best one's times.
    """

    kernel: str
    access: str
    width: int
    half: bool
    default: Config | None
    best: Config
    gain: float
    error: float


def fitted_card(times: dict[Job, Sample], launch: float, machine: Machine, versions: dict[str, str]) -> tuple[Card, list[Choice]]:
    """The table that explains the times, best configurations first, one for each size of tile; and what it chooses.

    Raises BackendError where a kernel has no times.
    """
    rates: dict[tuple, tuple[Rate, ...]] = {}
    masks: dict[tuple, float] = {}
    choices = []
    for key, scores in _scores(times).items():
        kernel, access, width, half = key
        best = min(scores, key=scores.get)
        errors = {}
        for config in _one_of_each_tile(sorted(scores, key=scores.get)):
            # In digits all masks are much alike: what an operation costs is known from the natural order.
            known = masks.get((kernel, half)) if access in ("boxes", "box descriptors") else None
            area = config.block_m * config.block_n / 4096
            found = [sample for job, sample in times.items() if job.key == (*key, config) and not job.merge]
            costs, errors[config] = fitted(found, launch, machine.processors, None if known is None else known * area)
            masks.setdefault((kernel, half), costs[3] / area)
            rates[key] = (*rates.get(key, ()), Rate(config, *map(float, costs)))
        usual = default(*key, machine.shared)
        usual = usual if usual in scores else None
        choices.append(Choice(*key, usual, best, scores[usual] / scores[best] if usual else math.nan, errors[best]))
    merge, rows = _merge_and_rows(times, launch, machine.processors)
    made = Card(machine.name, versions, datetime.date.today().isoformat(), machine.processors, round(launch, 2), merge, rows, rates)
    if problem := made.problem():
        raise BackendError(f"what was measured of {machine.name} makes no table: {problem}", fix="see above why kernels were left out")
    return made, choices


def _scores(times: dict[Job, Sample]) -> dict[tuple, dict[Config, float]]:
    """For each kernel, access, width and dtype the geometric mean of the times of every configuration that ran on all patterns."""
    logs: dict[tuple, dict[Config, list[float]]] = {}
    for job, (time, _) in times.items():
        if job.kernel in KERNELS and not job.merge:
            logs.setdefault(job.key[:4], {}).setdefault(job.config, []).append(math.log(time))
    whole = {
        key: {c: math.exp(sum(x) / len(x)) for c, x in found.items() if len(x) == len(SAMPLES[key[1]])} for key, found in logs.items()
    }
    return {key: found for key, found in whole.items() if found}


def _one_of_each_tile(configs: list[Config]) -> list[Config]:
    """The first configuration with each size of tile: warps and stages are no choice that a pattern makes."""
    return list({(c.block_m, c.block_n): c for c in reversed(configs)}.values())[::-1]


def _merge_and_rows(times: dict[Job, Sample], launch: float, processors: int) -> tuple[dict[int, float], dict[int, float]]:
    """`Card.merge` and `Card.rows`."""
    merge, rows = {}, {}
    for job, (time, counts) in sorted(times.items(), key=lambda item: -item[1][0]):  # what is fastest comes last, and counts
        if job.kernel == "backward_rows":
            rows[job.width] = round(max(0.0, time - launch) * processors / (BATCH * HEADS * N / ROWS), 4)
        elif job.merge and (plain := times.get(replace(job, merge=False))):
            merge[job.width] = round(max(0.0, time - plain[0]) * processors / counts[0] * 64 / job.config.block_m, 4)
    return merge, rows


def fitted(found: list[Sample], launch: float, processors: int, mask: float | None = None) -> tuple[np.ndarray, float]:
    """Costs (program, full, partial, mask), none negative, that explain times in microseconds best by relative error, and the worst error.

    Args:
        found: `(time, [programs, full tiles, partial tiles, operations])` of every sample.
        mask: what an operation of a mask costs, where that is known.
    """
    time = np.array([t for t, _ in found])
    counts = np.array([c for _, c in found], float) / processors
    columns = range(3) if mask is not None else range(4)
    target = time - launch - (counts[:, 3] * mask if mask is not None else 0)
    best = np.inf, np.zeros(4), 1.0
    for size in range(1, len(columns) + 1):
        for kept in itertools.combinations(columns, size):
            part, *_ = np.linalg.lstsq(counts[:, kept] / time[:, None], target / time, rcond=None)
            if (part < 0).any():
                continue
            costs = np.zeros(4)
            costs[list(kept)] = part
            costs[3] = mask if mask is not None else costs[3]
            error = np.abs(counts @ costs + launch - time) / time
            if (error**2).sum() < best[0]:
                best = (error**2).sum(), costs, error.max()
    return best[1], float(best[2])
