"""On how many GPUs a recipe runs, and who starts it. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

from deltasam_fairseq.errors import UserError

_CPUS_PER_GPU = 4


@dataclass(frozen=True)
class Launch:
    """Where fairseq-train runs: how many GPUs of one machine (none: all), and whether by SLURM."""

    gpus: int | None = None
    slurm: bool = False

    def prefix(self) -> list[str]:
        """Return what stands before the command: nothing, or a call of ``srun``.

        SLURM starts one task, which starts one process per GPU itself. Partition, time and
        account are SLURM's own variables: ``SLURM_PARTITION`` and so on.

        Returns:
            Program and arguments.

        Example:
            >>> " ".join(Launch(gpus=2, slurm=True).prefix())
            'srun --nodes=1 --ntasks=1 --gpus-per-node=2 --cpus-per-task=8 --kill-on-bad-exit=1'
        """
        if not self.slurm:
            return []
        gpus = self.gpus or 1
        return [
            *("srun", "--nodes=1", "--ntasks=1", f"--gpus-per-node={gpus}"),
            *(f"--cpus-per-task={_CPUS_PER_GPU * gpus}", "--kill-on-bad-exit=1"),
        ]


def update_freq(tokens_per_update: int, *, gpus: int, max_tokens: int) -> int:
    """Return how many micro-batches, of a number of GPUs, make an update of a given size.

    Returns:
        The value of ``--update-freq``.

    Raises:
        UserError: If no whole number does it.

    Example:
        >>> [update_freq(65536, gpus=n, max_tokens=2048) for n in (1, 4, 8)]
        [32, 8, 4]
    """
    freq, rest = divmod(tokens_per_update, gpus * max_tokens)
    if rest or not freq:
        raise UserError(
            f"an update of {tokens_per_update:,} tokens cannot be split over {gpus} GPU(s) with "
            f"--max-tokens {max_tokens}: {gpus} × {max_tokens} × --update-freq must give it; use "
            "1, 2, 4 or 8 GPUs and a --max-tokens that is a power of two, or give --update-freq "
            "yourself"
        )
    return freq
