"""Patterns as values: printing and parsing, equality at a length with a counterexample, what two choices would cost, a picture."""

import sys
from pathlib import Path

import patternc as pc


def main(folder: str | None = None):
    wide = pc.parse("causal & (window(1024) | sink(4))")
    blocks = pc.causal & (pc.block(512, back=1) | pc.sink(4))
    assert pc.parse(str(blocks)) is blocks

    # Blocks of 512 with one block back hold the window of 512, and not the one of 1024.
    window = pc.causal & pc.window(513)
    print("window(513) lies in the blocks:", bool(pc.equivalent(window & blocks, window, 4096)))
    answer = pc.equivalent(wide & blocks, wide, 4096)
    print(answer)
    assert not answer

    print(f"\n{'tokens':>9}  {'wide: pairs':>14} {'waste':>6}  {'blocks: pairs':>14} {'waste':>6}")
    for n in (4096, 65536, 1 << 20):
        a, b = (pc.compile(p).cost(n) for p in (wide, blocks))
        print(f"{n:>9}  {a.allowed_pairs:>14,} {a.waste:>6.1%}  {b.allowed_pairs:>14,} {b.waste:>6.1%}")

    if folder is not None:
        pc.plot(blocks, 4096, path=Path(folder) / "blocks.png")
        print("\nwrote blocks.png")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
