import json
import os
from pathlib import Path

from tapml.recipe import json_schema, reference
from tapml.recipe.schema import compose
from tapml.registry import Registry, installed

ROOT = Path(__file__).parents[2]
DOCS, SCHEMA = ROOT / "docs/recipes.md", ROOT / "recipes/recipe.schema.json"


def shipped() -> Registry:
    """The stages of tapml alone: a machine's plug-ins are in no document of ours."""
    loaders = installed().loaders
    own = {n: f for n, f in loaders.items() if f().__module__.startswith("tapml_stages.")}
    return Registry(own)


def test_golden_reference_of_recipes_is_what_the_models_say() -> None:
    text = reference.markdown(shipped())
    if os.environ.get("TAPML_UPDATE_GOLDEN"):
        DOCS.write_text(text, encoding="utf-8")
    assert DOCS.read_text(encoding="utf-8") == text, "`make golden` writes docs/recipes.md anew"


def test_golden_schema_beside_the_recipes_is_what_the_models_say() -> None:
    text = json.dumps(json_schema(shipped()), indent=1, ensure_ascii=False) + "\n"
    if os.environ.get("TAPML_UPDATE_GOLDEN"):
        SCHEMA.write_text(text, encoding="utf-8")
    assert SCHEMA.read_text(encoding="utf-8") == text, "`make golden` writes it anew"


def test_every_field_of_every_section_is_in_the_reference() -> None:
    text = reference.markdown(shipped())
    for name, model in compose(shipped()).sections.items():
        for field in model.model_fields:
            assert f"| `{name}.{field}` |" in text


def test_fields_of_alternatives_are_listed_under_the_one_they_belong_to() -> None:
    text = reference.markdown(shipped())
    assert (
        "| `sparsity.prune (method: magnitude).density` | number > 0 ≤ 1 | **required** |" in text
    )
    assert "| `model.dims.NAME.min` |" in text
