"""A training loop of your own over two sites: start it once per site, in any order.

    python examples/script/train.py a &
    python examples/script/train.py b

Kill one of them: the other goes on. Start it again: it joins. Both end with the same model.
"""

from __future__ import annotations

import sys

import torch

import caudal

SITE = sys.argv[1] if len(sys.argv) > 1 else "a"
STORE = sys.argv[2] if len(sys.argv) > 2 else "file:///tmp/caudal-script-example"
SITES = int(sys.argv[3]) if len(sys.argv) > 3 else 2


def spirals(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Points on two arms, and which arm they are on."""
    random = torch.Generator().manual_seed(0)
    turn = 6 * torch.rand(count, generator=random).sqrt()
    arm = torch.randint(0, 2, (count,), generator=random)
    angle = turn + torch.pi * arm
    points = torch.stack([turn * angle.cos(), turn * angle.sin()], dim=1)
    return list(zip(points, arm, strict=True))


torch.set_num_threads(1)
torch.manual_seed(1)
data = spirals(4_000)
model = torch.nn.Sequential(
    torch.nn.Linear(2, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 2)
)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

with caudal.outer(
    model, optimizer, data, run="spirals", store=STORE, site=SITE, sites=SITES, batch=20, epochs=10
) as run:
    for points, arms in run:
        loss = torch.nn.functional.cross_entropy(model(points), arms)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.report(loss)

points = torch.stack([point for point, _ in data])
right = (model(points).argmax(dim=1) == torch.stack([arm for _, arm in data])).float().mean()
weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
print(f"site {SITE}: {run.steps} steps, {right:.1%} right, weights {weights.sum():.6f}")
