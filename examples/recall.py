"""Associative recall beyond the window: a two-layer model with a window, a window and a linear tail, or full attention.

A row is pairs of a key and a value, noise that is longer than two windows, and all keys again: the model names each one's value.
`python examples/recall.py 1500 docs/recall.svg` is the real run (minutes on a CPU); without arguments it takes a few steps.
"""

import sys

import torch
from torch import nn

import patternc as pc

PAIRS, GAP, SYMBOLS, WINDOW, WIDTH, HEADS = 6, 36, 16, 16, 64, 2
MODELS = {"window": pc.causal & pc.window(WINDOW), "window + linear tail": pc.zoo.rattention(window=WINDOW - 1), "full": pc.causal}


class Model(nn.Module):
    def __init__(self, pattern):
        super().__init__()
        self.embed, self.place = nn.Embedding(2 * SYMBOLS + 1, WIDTH), nn.Embedding(3 * PAIRS + GAP, WIDTH)
        self.attention = nn.ModuleList(pc.nn.PatternAttention(WIDTH, HEADS, pattern) for _ in range(2))
        self.mlp = nn.ModuleList(nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 128), nn.GELU(), nn.Linear(128, WIDTH)) for _ in range(2))
        self.norm, self.head = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3)), nn.Linear(WIDTH, SYMBOLS)

    def forward(self, tokens):
        x = self.embed(tokens) + self.place.weight
        for norm, attention, mlp in zip(self.norm, self.attention, self.mlp):
            x = x + attention(norm(x))
            x = x + mlp(x)
        return self.head(self.norm[2](x[:, -PAIRS:]))


def rows(batch, generator):
    """Tokens: keys are 0 .. SYMBOLS - 1, values SYMBOLS .., noise is the last; and the values of the keys at the end."""
    keys = torch.rand(batch, SYMBOLS, generator=generator).argsort(1)[:, :PAIRS]
    values = torch.randint(SYMBOLS, (batch, PAIRS), generator=generator)
    order = torch.rand(batch, PAIRS, generator=generator).argsort(1)
    pairs = torch.stack([keys, values + SYMBOLS], 2).flatten(1)
    return torch.cat([pairs, torch.full((batch, GAP), 2 * SYMBOLS), keys.gather(1, order)], 1), values.gather(1, order)


def train(pattern, steps, batch=64, every=50):
    torch.manual_seed(0)
    model, generator = Model(pattern), torch.Generator().manual_seed(1)
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
    curve, right = [], 0.0
    for step in range(1, steps + 1):
        tokens, wanted = rows(batch, generator)  # never seen before: accuracy in training is accuracy on new rows
        logits = model(tokens)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        right += (logits.argmax(-1) == wanted).float().mean().item() / every
        if step % every == 0:
            curve, right = [*curve, (step, right)], 0.0
    return curve


def main(steps=4, picture=None):
    curves = {name: train(pattern, steps, every=min(50, steps)) for name, pattern in MODELS.items()}
    for name, curve in curves.items():
        print(f"{name:22s} accuracy {curve[-1][1]:.2f} after {curve[-1][0]} steps")
    if picture:
        from matplotlib import pyplot

        for name, curve in curves.items():
            pyplot.plot(*zip(*curve), label=name)
        pyplot.gca().set(xlabel="steps", ylabel="share of keys recalled", ylim=(0, 1.02))
        pyplot.legend()
        pyplot.savefig(picture)


if __name__ == "__main__":
    main(*(int(x) if x.isdigit() else x for x in sys.argv[1:]))
