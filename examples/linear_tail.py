"""Exact attention in a window plus a linear tail over everything before it, in a small layer that learns to copy."""

import torch

import patternc as pc


def main(steps: int = 30):
    torch.manual_seed(0)
    spec = pc.causal & (pc.window(left=16, right=0) + pc.linear_tail)
    print("exact part:", spec.exact)
    print("left to the tail:", spec.domain - spec.exact)

    attn = pc.compile(spec, num_heads=2, head_dim=16)
    project = torch.nn.Linear(32, 96)
    optimiser = torch.optim.Adam([*project.parameters(), *attn.parameters()], lr=3e-3)
    first = last = None
    for _ in range(steps):
        x = torch.randn(4, 64, 32)
        q, k, v = project(x).view(4, 64, 3, 2, 16).permute(2, 0, 3, 1, 4)
        out = attn(q, k, v).transpose(1, 2).reshape(4, 64, 32)
        loss = (out - x.cumsum(1) / torch.arange(1, 65)[:, None]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        first, last = loss.item() if first is None else first, loss.item()
    print(f"loss {first:.3f} -> {last:.3f}")
    assert last < first


if __name__ == "__main__":
    main()
