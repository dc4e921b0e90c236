"""What `pc.verify` found: compared tensors, and a table of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from patternc.errors import VerificationError


@dataclass(frozen=True)
class Check:
    """One compared tensor: the largest absolute error against float64, and what was allowed."""

    size: str
    tensor: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def ok(self) -> bool:
        return not self.note and self.error <= self.tolerance


@dataclass(frozen=True)
class Report:
    """What `verify` found.  True in a condition if everything agrees."""

    pattern: str
    backend: str
    device: str
    dtype: str
    seconds: float
    checks: tuple[Check, ...] = field(repr=False)

    @property
    def ok(self) -> bool:
        return all(c.ok for c in self.checks)

    __bool__ = ok.fget

    def table(self):
        """A rich table: a row for each size, errors in percent of their tolerance."""
        from rich.table import Table

        names = list(dict.fromkeys(c.tensor for c in self.checks))
        title = f"{self.pattern}\n{self.backend} on {self.device}, {self.dtype}: error as a share of the tolerance"
        out = Table(title=title, title_justify="left", caption=f"{'agrees' if self.ok else 'DIFFERS'} ({self.seconds:.1f} s)")
        for name in ("size", *names):
            out.add_column(name, justify="left" if name == "size" else "right")
        for size in dict.fromkeys(c.size for c in self.checks):
            found = {c.tensor: c for c in self.checks if c.size == size}
            out.add_row(size, *(_cell(found.get(name)) for name in names))
        return out

    def raise_if_different(self) -> None:
        """Raise VerificationError that names the worst tensor."""
        wrong = [c for c in self.checks if not c.ok]
        if wrong:
            c = max(wrong, key=lambda c: (bool(c.note), c.error / max(c.tolerance, 1e-300)))
            what = c.note or f"error {c.error:.2e}, tolerance {c.tolerance:.2e}"
            raise VerificationError(
                f"{self.backend} on {self.device} in {self.dtype} differs from the reference: `{c.tensor}` at {c.size}: {what}",
                typed=self.pattern,
                fix="this is a bug in patternc; please report the pattern and this message",
            )


def _cell(c: Check | None) -> str:
    if c is None:
        return ""
    share = f"{100 * c.error / c.tolerance:.0f}%" if c.tolerance > 0 else f"{c.error:.0e}"
    return share if c.ok else f"[bold red]{c.note or share}[/]"
