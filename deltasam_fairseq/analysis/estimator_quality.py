"""How well sentence weights do what they are for, against the exact quantities.

What the weights stand in for is the gradient of the per-instance sharpness, Eq. 3, whose
first line needs no assumption about Hessians:

    D = dR_inst/dw = (1/N) sum_i [grad l_i(w + eps_i) - grad l_i(w)]

The batched engine gives it exactly, for the radius that is asked for. Weights g_i make the
ascent direction v = sum_i g_i grad l_i(w) of Eq. 6; it should be D's (Eq. 4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deltasam_fairseq.analysis.estimator_quality_bench import Bench, Cell
from deltasam_fairseq.analysis.estimator_quality_subject import Subject
from deltasam_fairseq.analysis.estimator_quality_weights import Probes
from deltasam_fairseq.core.noise import seed_for
from deltasam_fairseq.per_instance import Engine


def measure(
    subject: Subject,
    *,
    radii: Sequence[float],
    eta: float,
    seed: int,
    probes: Probes,
    more: Callable[[int], bool] = lambda _: True,
    say: Callable[[str], None] = lambda _: None,
) -> list[list[Cell]]:
    """Measure all batches of a subject, without dropout.

    Args:
        subject: Model and batches.
        radii: Values of rho.
        eta: Floor under the slope of Eq. 5, nats.
        seed: Of the directions; each batch has its own.
        probes: Which other probes are tried.
        more: Asked before each batch but the first whether there is time for it.
        say: Told how far it is.

    Returns:
        The cells of each batch.
    """
    engine = Engine(subject.model)
    found: list[list[Cell]] = []
    with subject.within():
        for number, sentences in enumerate(subject.batches()):
            if number and not more(number):
                say("no time for another batch")
                break
            bench = Bench(subject, sentences, engine, say)
            cells = [
                cell
                for rho in radii
                for cell in bench.cells(rho, eta=eta, seed=seed_for(seed, number), probes=probes)
            ]
            found.append(cells)
            say(f"batch {number + 1} of {subject.count}")
    return found
