"""What the engine's products may take, counted to the byte."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deltasam_fairseq.benchmarks.instruments import peak_bytes
from deltasam_fairseq.per_instance import Plan
from deltasam_fairseq.per_instance.factors import Dense, Form, Outer, Rows
from deltasam_fairseq.per_instance.norms import squared_norms
from deltasam_fairseq.per_instance.perturbation import Perturbation

CPU = torch.device("cpu")
N, T, S, HEIGHT, WIDTH = 3, 40, 60, 500, 16
MEMORY = 4096


def forms() -> dict[str, Form]:
    torch.manual_seed(0)
    return {
        "linear": Outer(torch.randn(N, T, HEIGHT), torch.randn(N, T, WIDTH)),
        "embedding": Rows(torch.randint(HEIGHT, (N, S)), torch.randn(N, S, WIDTH)),
        "formed": Dense(torch.randn(N, HEIGHT, WIDTH)),
    }


def moved(own: list[Form], memory: int) -> Perturbation:
    shape = torch.Size((HEIGHT, WIDTH))
    return Perturbation(shape, own, torch.ones(N), Plan(memory=memory))


# Three temporaries of a block and what is as large as a block's rows.
@pytest.mark.parametrize("kinds", [["linear"], ["embedding"], ["linear", "embedding"], ["formed"]])
def test_products_stay_within_the_memory(kinds: list[str]) -> None:
    own = [forms()[kind] for kind in kinds]
    x, y = torch.randn(N, T, WIDTH), torch.randn(N, T, HEIGHT)
    weight = torch.randn(HEIGHT, WIDTH) if kinds == ["formed"] else None
    for product, rows, width in (
        (Perturbation.add_product, x, HEIGHT),
        (Perturbation.add_back_product, y, WIDTH),
    ):
        results = []
        for memory in (MEMORY, 2**30):
            onto = torch.zeros(N, T, width)
            work = bound(product, moved(own, memory), rows, onto, weight)
            if memory == MEMORY:
                assert peak_bytes(work, CPU) <= 4 * MEMORY
            else:
                work()
            results.append(onto)
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def bound(
    product: Callable, own: Perturbation, rows: Tensor, onto: Tensor, weight: Tensor | None
) -> Callable[[], None]:
    return lambda: product(own, rows, onto, weight)


@pytest.mark.parametrize("kinds", [["linear"], ["embedding"], ["linear", "embedding"], ["formed"]])
def test_norms_stay_within_the_memory(kinds: list[str]) -> None:
    own = [forms()[kind] for kind in kinds]
    tight: list[Tensor] = []
    assert peak_bytes(lambda: tight.append(squared_norms(own, Plan(MEMORY))), CPU) <= 4 * MEMORY
    torch.testing.assert_close(tight[0], squared_norms(own, Plan()), rtol=1e-5, atol=0)


def test_rows_of_an_embedding_stay_within_the_memory() -> None:
    own = [form for kind, form in forms().items() if kind != "formed"]
    ids = torch.randint(HEIGHT, (N, 2 * T))
    result = 4 * N * 2 * T * WIDTH
    work = moved(own, MEMORY).picked_rows
    assert peak_bytes(lambda: work(ids), CPU) <= result + 4 * MEMORY
    torch.testing.assert_close(work(ids), moved(own, 2**30).picked_rows(ids))
