"""Times of one card's kernels, on disk as soon as they are measured: a run that is interrupted goes on where it stopped."""

from __future__ import annotations

import json
import warnings
from dataclasses import astuple
from pathlib import Path

from patternc import cards, folder
from patternc.codegen.fitting import Sample
from patternc.codegen.trials import Job


class Times:
    """Samples by what was measured: job, text of the kernels, and versions of torch and Triton.

    Attributes:
        path: the file, None where it could not be written.
    """

    def __init__(self, card: str, versions: dict[str, str], restart: bool = False):
        """Open the file of a card; one that is damaged is begun anew, with a warning, and so is one that is to `restart`."""
        self.card, self.versions = card, versions
        self.path: Path | None = cards.path_of(card, "times", folder.folder())
        self.samples: dict[tuple, Sample] = {} if restart else self._read()

    def find(self, job: Job) -> Sample | None:
        return self.samples.get(self._key(job))

    def put(self, job: Job, sample: Sample) -> None:
        self.samples[self._key(job)] = sample
        if self.path is None:
            return
        try:
            folder.write(self.path, self._text().encode())
        except OSError as error:
            what = f"{self.path} cannot be written ({error.strerror}): an interruption would lose what is measured"
            warnings.warn(f"{what}; make room, or set {folder.ENVIRONMENT} to a folder that can be written", stacklevel=2)
            self.path = None

    def _key(self, job: Job) -> tuple:
        what = (*job.key[:-1], astuple(job.config), job.text, job.stride, job.merge)
        return *what, job.source, self.versions["torch"], self.versions["triton"]

    def _text(self) -> str:
        rows = [json.dumps([*key, time, counts]) for key, (time, counts) in self.samples.items()]
        return f'{{"card": {json.dumps(self.card)}, "fields": {json.dumps(FIELDS)}, "times": [\n' + ",\n".join(rows) + "\n]}\n"

    def _read(self) -> dict[tuple, Sample]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if (found["card"], found["fields"]) != (self.card, FIELDS):
                raise ValueError("it holds other fields, or another card's times")
            return dict(map(_sample, found["times"]))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            warnings.warn(f"{self.path} cannot be used, and is begun anew: {type(error).__name__}: {error}", stacklevel=3)
            return {}


FIELDS = [
    "kernel", "access", "width", "half", "config", "pattern", "stride", "merge", "source", "torch", "triton", "microseconds", "counts"
]  # fmt: skip


def _sample(row: list) -> tuple[tuple, Sample]:
    *key, time, counts = row
    if len(row) != len(FIELDS) or not time > 0 or len(counts) != 4:
        raise ValueError(f"no sample: {row}")
    key[4] = tuple(key[4])
    return tuple(key), (float(time), [float(x) for x in counts])
