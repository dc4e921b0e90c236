"""Streaming attention: a causal window and a few sinks, checked against dense attention, at a length no n x n mask would fit."""

import torch

import patternc as pc


def main():
    p = pc.causal & (pc.window(512) | pc.sink(4))
    attn = pc.compile(p)

    q, k, v = (torch.randn(1, 2, 2000, 64, requires_grad=True) for _ in range(3))
    out = attn(q, k, v)
    out.square().mean().backward()
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=p.dense(2000))
    print("largest difference from dense attention:", (out - dense).detach().abs().max().item())
    assert torch.allclose(out, dense, atol=1e-5)

    # Decoding: one query at the end of the keys; the last position is n_k - 1.
    step = attn(q[:, :, -1:], k, v)
    assert torch.allclose(step, out[:, :, -1:], atol=1e-5)

    print(attn.cost(1 << 20))
    print("pairs as a formula of n:", p.count_formula())


if __name__ == "__main__":
    main()
