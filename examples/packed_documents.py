"""Several documents packed into each row of a batch: ids are given at call time, positions count within each document."""

import torch

import patternc as pc


def main():
    # Causal inside documents, and the first two tokens of each document stay visible.
    ids, place = pc.arg("ids"), pc.arg("place")
    p = pc.causal & pc.documents(ids) & (pc.window(64) | (place[pc.k] < 2))
    attn = pc.compile(p)
    print(p)

    lengths = [[100, 260, 140], [30, 30, 440]]
    n = 500
    ids = torch.stack([torch.repeat_interleave(torch.arange(3), torch.tensor(row)) for row in lengths])
    place = torch.stack([torch.cat([torch.arange(m) for m in row]) for row in lengths])

    q, k, v = (torch.randn(2, 4, n, 32) for _ in range(3))
    out = attn(q, k, v, ids=ids, place=place, check=True)

    # The same as each document alone.
    alone = pc.compile(pc.causal & (pc.window(64) | pc.sink(2)))
    start = 0
    for length in lengths[0]:
        s = slice(start, start + length)
        want = alone(q[:1, :, s], k[:1, :, s], v[:1, :, s])
        assert torch.allclose(out[:1, :, s], want, atol=1e-5)
        start += length
    print("every document attends as if it were alone")


if __name__ == "__main__":
    main()
