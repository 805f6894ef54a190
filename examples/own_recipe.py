"""A recipe of one's own: MRPC at half of the published learning rate, for the small BERT.

    deltasam prepare glue/mrpc --glue DIR --model minilm_l6
    deltasam train my/mrpc --recipe-file examples/own_recipe.py --model minilm_l6 \
        --data data/glue/mrpc/minilm_l6 --method sam

A recipe is data: what is changed here is a copy of another one.
"""

from __future__ import annotations

from dataclasses import replace

from deltasam_fairseq.recipes.base import Recipe
from deltasam_fairseq.recipes.catalogue import find_recipe, register_recipe


@register_recipe
def my_mrpc() -> Recipe:
    """Return the recipe."""
    published = find_recipe("glue/mrpc")
    model = published.model("minilm_l6")
    gentle = replace(model, flags={**model.flags, "lr": "2.5e-05"})
    return replace(
        published,
        name="my/mrpc",
        description="MRPC at half of the learning rate",
        models={"minilm_l6": gentle},
    )
