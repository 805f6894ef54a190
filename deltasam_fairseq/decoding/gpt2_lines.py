"""GPT-2's BPE, decoded so that any output of a model is one line of text."""

from __future__ import annotations

from fairseq.data.encoders import register_bpe
from fairseq.data.encoders.gpt2_bpe import GPT2BPE, GPT2BPEConfig


@register_bpe("deltasam_gpt2", dataclass=GPT2BPEConfig)
class OneLineGpt2Bpe(GPT2BPE):
    """fairseq's ``--bpe gpt2``, which stops at symbols that are no numbers.

    An untrained model produces ``<unk>`` and the filling words of the dictionary
    (``madeupword0000``); they stand for no text. Ends of lines become spaces.
    """

    def decode(self, x: str) -> str:
        """Put tokens together.

        Args:
            x: Numbers, separated by spaces.

        Returns:
            The text, on one line.
        """
        numbers = (token for token in x.split() if token.isdecimal())
        return " ".join(super().decode(" ".join(numbers)).split())
