"""Recipes: which rule decides, what a bad file says."""

import pytest

from oss_tools.convert.recipe import (
    KEEP,
    Recipe,
    Rule,
    Traits,
    is_layer,
    load_recipe,
    recipe_names,
    recipe_of_format,
    writable_formats,
)
from oss_tools.errors import BadRecipe
from oss_tools.models import TensorSpec

EXPERT = TensorSpec("model.layers.3.mlp.experts.down_proj", (4, 64, 32), "experts.down", 3)
QUERY = TensorSpec("model.layers.3.self_attn.q_proj.weight", (64, 64), "attention.q", 3)
ROUTER = TensorSpec("model.layers.3.mlp.router.weight", (4, 64), "router", 3)
NORM = TensorSpec("model.norm.weight", (64,), "norm")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_leaves_vectors_to_floats(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.rules
    assert recipe.description
    assert recipe.rule_for(NORM).format in (KEEP, "bf16", "f16", "f32")


def test_openai_recipe_touches_only_experts_of_a_mixture() -> None:
    recipe = load_recipe("mxfp4")
    assert recipe.rule_for(EXPERT).format == "mxfp4"
    assert recipe.rule_for(QUERY).format == KEEP
    assert recipe.rule_for(ROUTER).format == KEEP


def test_first_matching_rule_decides() -> None:
    recipe = Recipe("r", (Rule("q8_0", name="model.layers.3.*"), Rule("mxfp4", role="experts.*"), Rule("q4_0")))
    assert recipe.rule_for(EXPERT).format == "q8_0"
    other = TensorSpec("model.layers.4.mlp.experts.down_proj", (4, 64, 32), "experts.down", 4)
    assert recipe.rule_for(other).format == "mxfp4"


def test_modules_to_not_convert_come_first() -> None:
    recipe = recipe_of_format("q4_0").keeping(("model.layers.*.self_attn", "lm_head"))
    assert recipe.rule_for(QUERY).format == KEEP
    assert recipe.rule_for(EXPERT).format == "q4_0"


def test_a_quantized_format_leaves_the_router_alone_and_a_float_takes_everything() -> None:
    assert recipe_of_format("q8_0").rule_for(ROUTER).format == KEEP
    assert recipe_of_format("f16").rule_for(ROUTER).format == "f16"
    assert recipe_of_format("f16").rule_for(NORM).format == "f16"


def test_readable_only_formats_are_refused() -> None:
    with pytest.raises(BadRecipe, match="read but not written"):
        recipe_of_format("iq4_xs")
    assert "iq4_xs" not in writable_formats()
    assert {"mxfp4", "int8", "q8_0", "bf16"} <= set(writable_formats())


def test_quantization_rule_applies_where_it_is_known() -> None:
    recipe = load_recipe("mxfp4-q8").quantizing_by("floor")
    assert recipe.rule_for(EXPERT).quantization == "floor"
    assert recipe.rule_for(QUERY).quantization is None
    with pytest.raises(BadRecipe, match="no format of recipe q8_0"):
        load_recipe("q8_0").quantizing_by("floor")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("- 1", "mapping with a list"),
        ("rules: {}", "mapping with a list"),
        ("rules: [{format: mxfp5}]", "no number format named 'mxfp5'"),
        ("rules: [{format: iq4_xs}]", "read but not written"),
        ("rules: [{role: norm}]", "format is missing"),
        ("rules: [{format: 4}]", "format is missing, or a field is not text"),
        ("rules: [{format: mxfp4, quantization: best}]", "no quantization rule 'best'"),
        ("rules: [{format: mxfp4, roles: experts}]", "a rule is a mapping of"),
        ("rules: []\nmodules: []", "unknown field 'modules'"),
        ("rules: [{format: q8_0, otherwise: 3}]", "otherwise is a format or a list of formats"),
        ("rules: [{format: q8_0, otherwise: iq4_xs}]", "rule 1: iq4_xs can be read but not written"),
        ("rules: [{format: q4_k, layers: last 4}]", "rule 1: layers is `more_bits`, `first 4` or `first 1/8`, not 'last 4'"),
        ("rules: [{format: q4_k, layers: first 1/0}]", "not 'first 1/0'"),
        ("rules: [{format: q4_k, layers: 4}]", "a field is not text"),
        ("rules: [{format: q4_k, when: tied}]", "when is a mapping of traits of a model: layers, experts, tied"),
        ("rules: [{format: q4_k, when: {tied: 1}}]", "when is a mapping of traits of a model: layers, experts, tied"),
        ("rules: [{format: q4_k, when: {experts: true}}]", "when is a mapping of traits"),
        ("rules: [{format: q4_k, when: {[a]: 3}}]", "cannot be read|when is a mapping"),
        ("rules: [{format: q4_k, when: {heads: 8}}]", "when is a mapping of traits"),
        ("rules: []\nno_fallback: maybe", "no_fallback is true or false"),
        ("rules: []\nmodules_to_not_convert: lm_head", "is a list of names"),
        ("rules: [", "cannot be read"),
        ("rules: [" + "[" * 5000, "cannot be read"),
    ],
)
def test_bad_recipes_get_one_line_that_names_the_file(tmp_path, text: str, complaint: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(BadRecipe, match=complaint) as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)
    assert "mine.yaml" in str(caught.value) or "mxfp5" in str(caught.value)


def test_unknown_recipe_lists_what_there_is() -> None:
    with pytest.raises(BadRecipe, match=r"no recipe named 'q9'.*mxfp4-q8"):
        load_recipe("q9")


def layers_of(which: str, layers: int) -> list[int]:
    return [layer for layer in range(layers) if is_layer(which, layer, layers)]


def test_rules_choose_layers() -> None:
    assert layers_of("first 4", 32) == [0, 1, 2, 3]
    assert layers_of("first 4", 2) == [0, 1]
    assert layers_of("first 1/8", 32) == [0, 1, 2, 3]
    assert layers_of("first 3/16", 32) == [0, 1, 2, 3, 4, 5]
    assert layers_of("first 1/8", 7) == []
    assert layers_of("more_bits", 16) == [0, 1, 4, 7, 10, 13, 14, 15]


def specs(layers: int, experts: int = 0, tied: bool = False, keys: int = 64) -> list[TensorSpec]:
    found = [TensorSpec("model.embed_tokens.weight", (100, 64), "embedding")]
    for i in range(layers):
        found.append(TensorSpec(f"{i}.q", (64, 64), "attention.q", i))
        found.append(TensorSpec(f"{i}.k", (keys, 64), "attention.k", i))
        shape = (experts, 64, 64) if experts else (64, 64)
        found.append(TensorSpec(f"{i}.down", shape, "experts.down" if experts else "mlp.down", i))
    return found if tied else [*found, TensorSpec("lm_head.weight", (100, 64), "output")]


def test_rules_ask_what_a_model_is() -> None:
    assert Traits.of(specs(3, 8, True, 16)) == Traits(layers=3, experts=8, tied=True, grouped=True)
    assert Traits.of(specs(2)) == Traits(layers=2)
    assert Traits.of([]) == Traits(tied=True)
    mixture = load_recipe("Q4_K_M")
    down = TensorSpec("1.down", (64, 64), "mlp.down", 1)
    assert mixture.for_model(specs(32)).rule_for(down).format == "q6_k"
    assert mixture.for_model(specs(6)).rule_for(down).format == "q4_k"
    embedding = specs(1)[0]
    assert [mixture.for_model(specs(1, tied=t)).rule_for(embedding).format for t in (True, False)] == ["q6_k", "q4_k"]
    key = specs(1)[2]
    assert [mixture.for_model(specs(1, n)).rule_for(key).format for n in (8, 16)] == ["q8_0", "q4_k"]


def test_names_of_mixtures_are_recipes() -> None:
    assert recipe_of_format("Q4_K_M") == load_recipe("q4_k_m")
    assert recipe_of_format("q4_k").rules[-1] == Rule("q4_k", otherwise=("q5_0",))
    for name in ("Q2_K_L", "UD-Q4_K_XL", "IQ4_XS_M"):
        with pytest.raises(
            BadRecipe, match="no number format" if name == "IQ4_XS_M" else "recipes of such mixtures: q3_k_m, q4_k_m"
        ):
            recipe_of_format(name)
