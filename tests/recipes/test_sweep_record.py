import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasam_fairseq.data.glue import GLUE
from deltasam_fairseq.recipes.sweep_record import examples, neutral, pack


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/me/run/checkpoints", "checkpoints"),
        ("/srv/data/", "data"),
        ("/home/a/x:/home/b/y", "x:y"),
        ("{'data': '/home/me/d', 'lr': 1}", "{'data': 'd', 'lr': 1}"),
        ("--user-dir=/home/me/user_dir", "--user-dir=user_dir"),
        ("models/m/model.pt", "models/m/model.pt"),
        ("../data/bin", "../data/bin"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("glue/rte 1/2", "glue/rte 1/2"),
        ("(0.9, 0.98)", "(0.9, 0.98)"),
        ("/", "/"),
        ("", ""),
        ("/home/jane doe/my project/sweeps/x/checkpoints", "checkpoints"),
        ("/home/jane doe/my project", "my project"),
        ("/home/jane/a,b/checkpoints", "checkpoints"),
        ("/home/jane/runs (old) [2]/{x};y/checkpoints/", "checkpoints"),
        ("/home/jane's/x", "x"),
        ("//home//jane//x//", "x"),
        ("/home/my a/x:/home/my b/y", "x:y"),
        ("/home/my a/x /home/my b/y, /home/z", "x y, z"),
        (
            "/home/my a/python -m x --data=/home/my/y --out runs/z",
            "python -m x --data=y --out runs/z",
        ),
        ("file:///home/jane/x", "x"),
        ("file:/home/jane doe/x", "x"),
        ("file://localhost/home/jane%20doe/x", "x"),
        ("--user-dir=/home/jane doe/user_dir", "--user-dir=user_dir"),
        ("{'data': '/home/jane doe/d', 'lr': 1}", "{'data': 'd', 'lr': 1}"),
        ('{"data": "file:///home/jane doe/d"}', '{"data": "d"}'),
        ("see file:///home/jane/x, then docs/y", "see x, then docs/y"),
        ("--data /home/jane/a,b/d --lr 1", "--data d --lr 1"),
        ("--data //home//jane/d --lr 1", "--data d --lr 1"),
        ("[/home/a/x, /home/b/y]", "[x, y]"),
        ("runs (old)/x[1]/y", "runs (old)/x[1]/y"),
        ("models/a,b/model.pt", "models/a,b/model.pt"),
        ("~/x", "~/x"),
        ("1 / 2", "1 / 2"),
    ],
)
def test_absolute_paths_keep_their_last_name_and_all_else_stays(text: str, expected: str) -> None:
    assert neutral(text) == expected
    assert neutral({"a": [text], "b": {"c": text}}) == {"a": [expected], "b": {"c": expected}}


NAMES = st.text("abcXYZ019_-.+ü", min_size=1).filter(lambda name: name.strip("."))


@given(st.lists(NAMES, min_size=2, max_size=5))
def test_of_any_path_nothing_but_the_last_name_is_left(parts: list[str]) -> None:
    assert neutral(f"--save-dir /{'/'.join(parts)}") == f"--save-dir {parts[-1]}"


TEXTS = st.lists(
    st.sampled_from(["file:", "/", "//", "a", " ", ":", "--b", "=", "'", '"', "(", ")", ","])
).map("".join)
ANY_NAMES = st.text("abü 0,;()[]{}'\".-_+").filter(lambda name: name.strip(" .-"))


@given(st.sampled_from(["", "file:", "file://", "--data="]), st.lists(ANY_NAMES, min_size=2))
def test_of_a_value_that_is_a_path_no_folder_is_left(before: str, parts: list[str]) -> None:
    names = [f"{name.strip()}." for name in parts]  # no space in front of a slash or of a dash
    path = "/".join(["", *(name.replace(" -", "-") for name in names)])
    assert (
        neutral(before + path) == before.removeprefix("file:").strip("/") + path.rpartition("/")[2]
    )


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text("ab /:.,'\"=-")
    | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_a_second_time_changes_nothing_and_numbers_stay(value: object) -> None:
    once = neutral(value)
    assert neutral(once) == once
    assert type(once) is type(value)
    json.dumps(once)


def test_classes_are_kept_by_their_ids() -> None:
    mnli = GLUE["mnli"]
    assert pack(mnli, ["contradiction", "entailment", "neutral", "2"]) == "2 0 1 2"
    kept = examples(GLUE["cola"], "valid", ["0", "1"], ["1", "1"])
    assert kept == {"split": "valid", "predictions": "0 1", "labels": "1 1"}


@given(st.lists(st.floats(0, 5), min_size=1))
def test_scores_are_kept_with_four_decimals(values: list[float]) -> None:
    kept = pack(GLUE["sts-b"], [repr(value) for value in values])
    assert [float(text) for text in kept.split(" ")] == pytest.approx(values, abs=5.001e-5)
