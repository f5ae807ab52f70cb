from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tapml.errors import RecipeError
from tapml.recipe import Recipe, loader
from tapml.recipe.positions import Source
from tapml.terminal import columns

HEAD = "version: 1\nname: tiny\n"
ErrorsOf = Callable[..., list[RecipeError]]
Load = Callable[..., Recipe]


def parse(text: str) -> loader.Document:
    return loader.parse(Source("f.yaml", text))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("Null", None),
        ("012", 12),
        ("-7", -7),
        ("0o17", 15),
        ("0x1F", 31),
        ("1e3", 1000.0),
        ("1E-5", 1e-5),
        (".5", 0.5),
        ("2.", 2.0),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2026-11-22", "2026-11-22"),
        ("=", "="),
        ("0b1", "0b1"),
    ],
)
def test_plain_scalars_have_the_core_types_of_yaml_1_2(text: str, value: object) -> None:
    data = parse(f"k: {text}").root.data["k"]
    assert (type(data), data) == (type(value), value)


def test_quoted_scalars_are_strings() -> None:
    assert parse("a: '1'\nb: \"true\"\nc: |\n  1\n").root.data == {
        "a": "1",
        "b": "true",
        "c": "1\n",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("k: !!python/object:os.system x", "tag .* is not allowed"),
        ("k: !!str 1", "tag .* is not allowed"),
        ("k: !x [1]", "tag .* is not allowed"),
        ("k: 1\nk: 2", r"duplicate key \(first at line 1\)"),
        ("<<: {a: 1}", "merge keys"),
        ("1: a", "key 1 is no string; write it in quotes"),
        ("? [a]\n: b", "a key must be a string"),
        ("k: .inf", "not a finite number"),
        ("k: .NaN", "not a finite number"),
        ("k: 1e999", "no float64 can hold"),
        ("k: " + "9" * 5000, "more than 64 bits"),
        ('k: "a\\0b"', "no text"),
    ],
)
def test_what_yaml_allows_and_recipes_do_not_is_an_error(text: str, message: str) -> None:
    (error,) = parse(text).errors
    with pytest.raises(RecipeError, match=message):
        raise error


def test_half_a_character_is_refused(errors_of: ErrorsOf) -> None:
    (error,) = errors_of(HEAD + 'description: "\\uD800"\n')
    assert error.where.startswith("recipe.yaml:3:")


def test_of_very_many_mistakes_the_first_are_shown(errors_of: ErrorsOf) -> None:
    found = errors_of(HEAD + "k: 1\n" * 400)
    assert len(found) == 21
    assert found[-1].message == "and 380 more"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("k: [1", "broken YAML"),
        ("k: {a: b", "broken YAML"),
        ("k:\n\t- 1", "broken YAML"),
        ("k: \x07", r"U\+0007 is not allowed"),
        ("a: 1\n---\nb: 2", "a second document"),
        ("k: *nowhere", "is defined nowhere above"),
        ("k: &a [*a]", "stands inside its own value"),
        ("k: " + "[" * 100_000, "nested deeper than 40"),
        ("k: [" + "1," * 50_001 + "]", "more than 50000 values"),
    ],
)
def test_what_leaves_no_tree_is_one_error(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse(text)


def test_aliases_count_each_time() -> None:
    laughs = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n"
        for old, new in zip("abcdef", "bcdefg", strict=True)
    )
    with pytest.raises(RecipeError, match="aliases count each time"):
        parse(laughs)


def test_aliases_do_not_nest_deeper_than_the_limit() -> None:
    chain = "a: &a0 [x]\n" + "".join(f"k{i}: &a{i + 1} [[*a{i}]]\n" for i in range(40))
    with pytest.raises(RecipeError, match="nested deeper"):
        parse(chain)


def test_an_alias_has_the_value_of_its_anchor() -> None:
    assert parse("a: &x {b: 1}\nc: *x").root.data == {"a": {"b": 1}, "c": {"b": 1}}


def test_a_large_file_is_refused_before_it_is_parsed(errors_of: ErrorsOf) -> None:
    start = time.monotonic()
    (error,) = errors_of(HEAD + "#" * (1 << 20))
    assert "at most 1048576" in error.message
    assert time.monotonic() - start < 1


def test_bytes_that_are_no_utf8_are_placed() -> None:
    with pytest.raises(RecipeError, match=r"f:2:4: byte 0xff is not UTF-8"):
        loader.decode(b"a: 1\nb: \xff", "f")


@pytest.mark.parametrize(
    ("text", "message"), [("", "empty"), ("# note\n", "empty"), ("- 1", "holds no mapping")]
)
def test_a_root_that_is_no_mapping_is_one_error(
    errors_of: ErrorsOf, text: str, message: str
) -> None:
    (error,) = errors_of(text)
    assert message in error.message


def test_an_error_shows_place_line_and_caret(errors_of: ErrorsOf) -> None:
    (error,) = errors_of(HEAD + "tuning:\n  trails: 3\n")
    assert str(error) == (
        "recipe.yaml:4:3: tuning.trails: unknown key\n"
        "     4 |   trails: 3\n"
        "       |   ^^^^^^\n"
        "  did you mean 'trials'? (fields here: max_seconds, seed, trials)"
    )


def test_a_long_line_is_cut_around_the_caret(errors_of: ErrorsOf) -> None:
    text = HEAD + "tuning: {" + "seed: 1" + " " * 50_000 + ", trials: x" + " " * 50_000 + "}\n"
    (error,) = errors_of(text)
    line, caret = error.excerpt.split("\n")
    assert columns(line) <= 160
    assert line[caret.index("^")] == "x"


def test_the_caret_stands_below_wide_characters(errors_of: ErrorsOf) -> None:
    (error,) = errors_of(HEAD + 'tuning: {"語": 1, trials: x}\n'.replace('"語": 1, ', "seed: 1, "))
    assert error.excerpt.split("\n")[1].endswith("^")
    (wide, *_) = errors_of(HEAD + "tags: {語: 1}\n")
    line, caret = wide.excerpt.split("\n")
    assert columns(line[: line.index("1}")]) == caret.index("^")


@pytest.mark.parametrize("nasty", ["\\e[31mred", "\\u202eevil", "\\x9b31m", "a\\nb"])
def test_no_control_character_of_a_value_is_printed(errors_of: ErrorsOf, nasty: str) -> None:
    found = errors_of(HEAD + f'model: {{source: "{nasty}", path: x}}\n"{nasty}": 1\n')
    assert len(found) == 2
    for error in found:
        assert all(c.isprintable() or c == "\n" for c in str(error))
        assert "\n" not in error.message


def test_all_independent_mistakes_are_reported_once_in_order(errors_of: ErrorsOf) -> None:
    found = errors_of("version: 1\nname: [x]\nfoo: 1\ntuning: {trials: -1, trials: 2}\nmodel: {}\n")
    assert [(error.where, error.field) for error in found] == [
        ("recipe.yaml:2:7", "name"),
        ("recipe.yaml:3:1", "foo"),
        ("recipe.yaml:4:18", "tuning.trials"),
        ("recipe.yaml:4:22", "tuning.trials"),
        ("recipe.yaml:5:1", "model.source"),
    ]


def test_what_only_follows_from_a_mistake_is_not_reported(errors_of: ErrorsOf) -> None:
    (error,) = errors_of(HEAD + "model: {sauce: onnx}\n")
    assert error.field == "model.sauce"
    (error,) = errors_of(HEAD + "tuning: {trials: !!int 3.5}\n")
    assert "tag" in error.message


def test_set_replaces_a_value_by_the_same_rules(load: Load, whole: str) -> None:
    data = load(whole, "tuning.trials=012", "sparsity.layers=[no]", "tuning.max_seconds=1e3").data
    assert data["tuning"] == {"trials": 12, "max_seconds": 1000.0}
    assert data["sparsity"]["layers"] == ["no"]


def test_set_makes_the_sections_on_its_way(load: Load) -> None:
    assert load(HEAD, "target.device.threads=3").target.device.threads == 3


def test_set_of_a_mapping_replaces_it_whole(load: Load, whole: str) -> None:
    data = load(whole, "sparsity.format={kind: csr}").data
    assert data["sparsity"]["format"] == {"kind": "csr"}


def test_set_of_a_kind_drops_the_fields_of_the_old_kind(load: Load, whole: str) -> None:
    assert load(whole, "sparsity.format.kind=csr").data["sparsity"]["format"] == {"kind": "csr"}
    same = load(whole, "sparsity.format.kind=bsr").data["sparsity"]["format"]
    assert same == {"kind": "bsr", "block": [8, 8]}


def test_what_set_did_not_touch_keeps_its_place(errors_of: ErrorsOf) -> None:
    text = HEAD + "model:\n  source: onnx\n  dims: {b: {min: 1}}\n"
    (error,) = errors_of(text, "model.dims.b.min=2")
    assert (error.where, error.field) == ("recipe.yaml:5:10", "model.dims.b.max")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tuning.trials=x", r"^--set tuning.trials=x: tuning.trials: expected an integer"),
        ("tuning.trails=3", r"^--set tuning.trails=3: tuning.trails: unknown key"),
        ("tuning=[", r"^--set tuning=\[: broken YAML"),
        ("tuning", "--set takes a.b=value"),
        ("=3", "--set takes a.b=value"),
        ("a..b=3", "--set takes a.b=value"),
        ("name.x=3", "name is 'tiny', not a section"),
        ("sparsity.layers.0=3", "sparsity.layers is a list, not a section"),
        ("tuning.trials=!!int 3", "tag"),
    ],
)
def test_a_mistake_in_set_names_it(
    errors_of: ErrorsOf, whole: str, text: str, message: str
) -> None:
    (error,) = errors_of(whole, text)
    with pytest.raises(RecipeError, match=message):
        raise error
