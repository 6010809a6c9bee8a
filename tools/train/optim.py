"""Muon for the matrices inside the layers, AdamW for everything else.

Muon (K. Jordan, 2024): momentum, made orthogonal by a Newton-Schulz iteration, scaled to AdamW's
usual update size as in arXiv 2502.16982 (0.2 * sqrt(max(rows, columns))). Matrices of one shape,
the experts among them, are orthogonalised together.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(g: Tensor, iterations: int = 5) -> Tensor:
    """g [n, rows, columns] with rows <= columns -> nearly semi-orthogonal, in bfloat16."""
    a, b, c = COEFFICIENTS
    x = (g / (g.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(iterations):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """Parameters of two dimensions, or three (a stack of matrices)."""

    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"])
                update = update.view(-1, *update.shape[-2:])
                update = update.mT if update.shape[1] > update.shape[2] else update
                by_shape[tuple(update.shape[1:])].append((p, update))
            for (_, columns), members in by_shape.items():
                stacked = orthogonalize(torch.cat([u for _, u in members]))
                for (p, u), o in zip(members, stacked.split([len(u) for _, u in members])):
                    o = o if p.shape[-1] == columns else o.mT
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(o.reshape(p.shape).float(), alpha=-0.2 * columns**0.5 * group["lr"])


def optimizers(model: nn.Module, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """Both optimizers; their peak rates are kept in each group's `peak`."""
    inner = [p for n, p in model.named_parameters() if p.dim() >= 2 and n.startswith("layers") and "router" not in n]
    chosen = {id(p) for p in inner}
    outer = [p for p in model.parameters() if id(p) not in chosen]
    pair = [
        Muon(inner, muon_lr, weight_decay=0.1),
        torch.optim.AdamW(outer, adam_lr, betas=(0.9, 0.98), weight_decay=0.0, foreach=True),
    ]
    for optimizer in pair:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return pair
