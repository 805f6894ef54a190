"""``--method``: parts, their sums, the flags that they stand for, and what is refused."""

from itertools import product
from pathlib import Path

import pytest

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.base import Model, Recipe
from deltasam_fairseq.recipes.catalogue import RECIPES
from deltasam_fairseq.recipes.command import flag_values, train_command
from deltasam_fairseq.recipes.methods import (
    NOISE,
    PARTS,
    REGULARIZER,
    Part,
    by_kind,
    find_method,
    in_usual_order,
)

# A criterion of its own that adds noise; there R3F is that noise alone.
NOISY = Recipe(
    name="mine/noisy",
    version=1,
    description="",
    prepare="",
    flags={"criterion": "mine", "lr": 1},
    methods={"sam": {"sam-rho": 0.1}, "sam+noise": {"noise": 0.4}},
    parts={
        "noise": Part(NOISE, {"noise": 0.1}, searched=("noise",)),
        "r3f": Part(NOISE, {"noise": 0.1}, searched=("noise",)),
    },
    models={"small": Model("small", {}, methods={"noise": {"noise": 0.2}})},
)


def flags(recipe: Recipe, method: str, *typed: str) -> dict[str, str]:
    command = train_command(
        recipe, data=Path("d"), save_dir=Path("s"), method=method, seed=1, overrides=typed
    )
    return flag_values(command)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("r3f", "r3f"),
        ("r3f+sam", "sam+r3f"),
        ("freelb + rdrop + delta_sam", "delta_sam+rdrop+freelb"),
        ("none+smart", "smart"),
        ("freelb+random", "random+freelb"),
    ],
)
def test_a_sum_has_one_name(typed: str, name: str) -> None:
    assert find_method(typed).name == name


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (
            "sam+delta_sam",
            "more than one perturbation of the weights .sam, delta_sam.; a method is",
        ),
        ("none+sam", "more than one perturbation"),
        (
            "r3f+smart+sam",
            "more than one regularizer .r3f, smart.*; regularizer: rdrop, r3f, smart",
        ),
        ("freelb+freelb", "more than one noise on the embeddings"),
        ("sam+r4f", "unknown method 'r4f' in 'sam.r4f'; did you mean 'r3f'"),
        ("sam+", "unknown method '' in 'sam.'"),
    ],
)
def test_what_is_no_method(typed: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_method(typed)


def test_sums_come_after_their_parts() -> None:
    typed = [
        "sam+r3f",
        "mine",
        "r3f",
        "none+mine",
        "freelb",
        "sam",
        "sam+rdrop+freelb",
        "sam+rdrop",
    ]
    assert in_usual_order(typed) == [
        *("sam", "r3f", "freelb", "mine"),
        *("none+mine", "sam+rdrop", "sam+r3f", "sam+rdrop+freelb"),
    ]


EVERY_SUM = [
    "+".join(part for part in parts if part)
    for parts in product(*[("", *names) for names in by_kind(PARTS).values()])
    if any(parts)
]


@pytest.mark.parametrize("name", [name for name in RECIPES.names() if name != "mirror"])
def test_every_sum_of_every_recipe_has_the_flags_of_its_parts(name: str) -> None:
    recipe = RECIPES.get(name)
    for model in tuple(recipe.models) or (None,):
        one = recipe.with_model(model) if model else recipe
        for method in EVERY_SUM:
            found, parts = flags(one, method), find_method(method).parts
            sam = next((part.sam_method for part in parts.values() if part.sam_method), "none")
            assert found["sam-method"] == sam
            assert ("freelb-steps" in found) == ("freelb" in parts)
            kinds = [name for name, part in parts.items() if part.kind == REGULARIZER]
            assert found.get("regularizer", "") == "".join(kinds)
            assert not kinds or found["criterion"].startswith("deltasam_")
            for part in parts:
                own = one.methods.get(PARTS[part].like or part, {})
                for flag in {*own} & {*PARTS[part].searched}:
                    assert found[flag] == str(own[flag])


@pytest.mark.parametrize(
    ("recipe", "without", "with_one"),
    [
        ("cnndm", "label_smoothed_cross_entropy", "deltasam_label_smoothed_cross_entropy"),
        ("text", "label_smoothed_cross_entropy", "deltasam_label_smoothed_cross_entropy"),
        ("glue/rte", "sentence_prediction", "deltasam_sentence_prediction"),
        ("glue/cola", "deltasam_sentence_prediction", "deltasam_sentence_prediction"),
    ],
)
def test_a_regularizer_changes_the_criterion_and_nothing_else_does(
    recipe: str, without: str, with_one: str
) -> None:
    found = RECIPES.get(recipe)
    for method in ("none", "sam", "delta_sam", "sam+freelb"):
        assert flags(found, method)["criterion"] == without
    assert flags(found, "sam+rdrop")["criterion"] == with_one
    assert flags(found, "r3f", "--criterion", with_one)["criterion"] == with_one


@pytest.mark.parametrize(
    ("recipe", "method", "typed", "message"),
    [
        (
            "mine/noisy",
            "sam+rdrop",
            (),
            "rdrop needs a criterion with --regularizer, which mine has",
        ),
        (
            "text",
            "r3f",
            ("--criterion", "cross_entropy"),
            "which cross_entropy has not; r3f trains",
        ),
        ("text", "r3f", ("--regularizer", "smart"), "--regularizer cannot be given as a flag"),
        ("mine/noisy", "r3f+noise", (), "more than one noise on the embeddings .r3f, noise."),
    ],
)
def test_what_a_criterion_cannot_do_is_refused(
    recipe: str, method: str, typed: tuple[str, ...], message: str
) -> None:
    found = NOISY if recipe == NOISY.name else RECIPES.get(recipe)
    with pytest.raises(UserError, match=message):
        flags(found, method, *typed)


@pytest.mark.parametrize(
    ("model", "method", "expected"),
    [
        (None, "noise", {"noise": "0.1"}),
        ("small", "noise", {"noise": "0.2"}),
        ("small", "noise+sam", {"noise": "0.4", "sam-rho": "0.1", "sam-method": "sam"}),
        ("small", "r3f", {"noise": "0.1", "criterion": "mine", "sam-method": "none"}),
    ],
)
def test_a_recipe_has_parts_of_its_own(
    model: str | None, method: str, expected: dict[str, str]
) -> None:
    found = flags(NOISY.with_model(model) if model else NOISY, method)
    assert expected.items() <= found.items()
    assert "regularizer" not in found


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("r3f", {"noise": "0.2", "sam-method": "none"}),
        ("noise+sam", {"noise": "0.2", "sam-rho": "0.02"}),
        ("delta_sam+freelb", {"freelb-steps": "3", "sam-eta": "1.0"}),
    ],
)
def test_mirror_has_the_rows_of_table_2(method: str, expected: dict[str, str]) -> None:
    recipe = RECIPES.get("mirror").with_model("roberta_base")
    found = flags(recipe, method)
    assert expected.items() <= found.items()
    assert "regularizer" not in found
    with pytest.raises(UserError, match="which deltasam_infonce has not"):
        flags(recipe, "rdrop")


def test_parts_that_disagree_are_settled_by_an_entry_or_by_the_user() -> None:
    entries = {"sam": {"lr": 1}, "r3f": {"lr": 2}}
    recipe = Recipe("x", 1, "", "", {"criterion": "sentence_prediction"}, methods=entries)
    message = r"the method sam\+r3f have different values of --lr: 1 and, of r3f, 2; give --lr your"
    with pytest.raises(UserError, match=message):
        flags(recipe, "sam+r3f")
    assert flags(recipe, "sam+r3f", "--lr", "3")["lr"] == "3"
    settled = Recipe("x", 1, "", "", recipe.flags, methods={**entries, "sam+r3f": {"lr": 4}})
    for method in ("sam+r3f", "r3f+sam+freelb"):
        assert flags(settled, method)["lr"] == "4"
    assert flags(settled, "sam+freelb")["lr"] == "1"


# Jiang et al. 2020, Zhu et al. 2020 (adv_steps is one less), Aghajanyan et al. 2020 and Liang et
# al. 2021, as their papers and scripts have it.
@pytest.mark.parametrize(
    ("task", "method", "published"),
    [
        ("rte", "freelb", "--freelb-steps 4 --freelb-lr 0.03 --freelb-init 0.16 --lr 1e-05"),
        ("mrpc", "freelb", "--freelb-init 0.64 --freelb-max-norm 0.4 --lr 5e-06"),
        ("qnli", "freelb", "--freelb-steps 3 --freelb-max-norm 0.2 --batch-size 32 --lr 1e-05"),
        ("sst-2", "freelb", "--freelb-init 1.0 --freelb-max-norm 0.6 --warmup-updates 1256"),
        ("rte", "r3f", "--lr 1e-05 --batch-size 8 --max-update 3120 --warmup-updates 187"),
        ("qqp", "r3f", "--lr 5e-06 --batch-size 32 --max-update 113272 --warmup-updates 6796"),
        ("cola", "r3f", "--lr 1e-05 --weight-decay 0.01 --r3f-eps 1e-05 --regularizer-weight 1.0"),
        ("rte", "rdrop", "--lr 1e-05 --weight-decay 0.01 --batch-size 8 --total-num-update 2036"),
        (
            "mnli",
            "smart",
            "--pooler-dropout 0.3 --clip-norm 1.0 --smart-bregman 1.0 --smart-steps 1",
        ),
        ("rte", "per_instance+r3f", "--total-num-update 6240 --max-update 6240 --max-epoch 20"),
    ],
)
def test_rivals_have_their_published_values(task: str, method: str, published: str) -> None:
    found = flags(RECIPES.get(f"glue/{task}").with_model("roberta_large"), method)
    assert flag_values(published.split()).items() <= found.items()


def test_other_models_have_the_terms_with_their_own_schedule() -> None:
    for model in ("bert_base_cased", "minilm_l6"):
        recipe = RECIPES.get("glue/rte").with_model(model)
        for method in ("rdrop", "r3f", "freelb"):
            assert not {"lr", "batch-size", "total-num-update"} & recipe.methods[method].keys()
        assert recipe.methods["freelb"]["freelb-lr"] == 0.03


def test_cnndm_has_the_published_weights_per_token() -> None:
    recipe = RECIPES.get("cnndm")
    assert flags(recipe, "rdrop")["regularizer-weight"] == "0.7"
    assert flags(recipe, "sam+r3f")["regularizer-weight"] == "0.7"  # 0.01 times 70 tokens
    assert recipe.grid["r3f-lambda"] == (0.07, 0.7, 7.0)
