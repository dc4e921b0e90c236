"""A pattern of one's own, written as a comparison: analysed like the named ones, per head, with a width given at call time."""

import torch

import patternc as pc


def main():
    # Pixels of a 32-wide image that are within a runtime radius of each other (a square neighbourhood).
    width = 32

    def near(coordinate):
        return abs(coordinate(pc.q) - coordinate(pc.k)) <= pc.arg("radius")

    square = near(lambda x: x // width) & near(lambda x: x % width)
    # Half of the heads see the square, the others every third pixel of the past.
    p = pc.per_head(square, square, pc.causal & ((pc.q - pc.k) % 3 == 0), pc.causal & ((pc.q - pc.k) % 3 == 0))
    print(p)

    attn = pc.compile(p)
    n = width * width
    q, k, v = (torch.randn(1, 4, n, 16) for _ in range(3))
    for radius in (1, 5):  # one compiled pattern serves every radius
        out = attn(q, k, v, radius=radius)
        mask = p.dense(n, heads=4, radius=radius)
        want = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        assert torch.allclose(out, want, atol=1e-5)
        print(f"radius {radius}: {int(mask[0, 0].sum())} pairs in the first head")


if __name__ == "__main__":
    main()
