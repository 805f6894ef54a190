import pytest

from examples.docstrings.text import first_sentence_and_rest, plain_text


@pytest.mark.parametrize(
    ("docstring", "sentence", "rest"),
    [
        ("Add two numbers.", "Add two numbers.", ""),
        ("Add. Fast.\n\nMore.", "Add.", "Fast. More."),
        ("Sort a list\n\nIn place.", "Sort a list", "In place."),
        ("Spans\ntwo lines. Rest.", "Spans two lines.", "Rest."),
        ("Read files, e.g. logs. Rest.", "Read files, e.g. logs.", "Rest."),
        ("Read logs (etc.) now. Rest.", "Read logs (etc.) now.", "Rest."),
        ("Use version 1.2 of it. Rest.", "Use version 1.2 of it.", "Rest."),
        ("Invert the matrix A. Rest.", "Invert the matrix A.", "Rest."),
        ("Is it open? Rest.", "Is it open?", "Rest."),
        ('Say "stop." Rest.', 'Say "stop."', "Rest."),
        ("abs(input, *, out=None) -> Tensor\n\nTake the size. Rest.", "Take the size.", "Rest."),
        ("f(x)", "", ""),
        ("", "", ""),
    ],
)
def test_first_sentence(docstring: str, sentence: str, rest: str) -> None:
    assert first_sentence_and_rest(docstring) == (sentence, rest)


@pytest.mark.parametrize(
    ("markup", "plain"),
    [
        ("See :class:`~torch.nn.Linear`.", "See Linear."),
        ("See :func:`the sum <numpy.sum>`.", "See the sum."),
        ("See :py:meth:`!close`.", "See close."),
        ("Set ``x`` to `y`.", "Set x to y."),
        ("See `the site <https://example.org/a>`_ now.", "See the site now."),
        ("Read https://example.org/a?b=c first.", "Read first."),
        ("As in [1]_ and **bold** or *slanted*.", "As in and bold or slanted."),
        ("2 * x * y and *args and **kwargs", "2 * x * y and *args and **kwargs"),
        ("Parameters\n----------\nx : int", "Parameters\n\nx : int"),
        ("Before.\n\n>>> f(1)\n2\n>>> g()\n\nAfter.", "Before.\n\nAfter."),
        ("Before.\n\n```python\nf()\n\ng()\n```\nAfter.", "Before.\n\nAfter."),
        ("Before.\n\n.. math::\n\n    x^2\n\nAfter.", "Before.\n\nAfter."),
        (".. versionadded:: 1.2\n\nAfter.", "After."),
        ("Like this::\n\n    run", "Like this:\n\nrun"),
    ],
)
def test_plain_text(markup: str, plain: str) -> None:
    assert plain_text(markup) == plain
