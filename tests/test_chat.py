"""Chat templates give what transformers gives, whatever they use of it; what fails is told."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tapml.chat import rendered
from tapml.errors import RecipeError

TEMPLATES = {
    "a loop that is left": "{% for m in messages %}{{ m.content }}{% break %}{% endfor %}",
    "tools": "{% if tools is not none or documents is not none %}T{% endif %}{{ messages|length }}",
    "special tokens": "{{ bos_token }}{{ pad_token }}{{ sep_token is defined }}{{ eos_token }}",
    "plain json": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}",
    "counted by training": "{% generation %}\n{{ messages[0].content }}\n{% endgeneration %}\nend",
    "blocks": "  {% if add_generation_prompt %}\nyes\n  {% endif %}\n",
    "the year": '{% if strftime_now is defined %}{{ strftime_now("%Y") }}{% endif %}',
    "a namespace": "{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}",
}
SPECIAL = {"bos_token": "<s>", "pad_token": {"content": "<pad>", "lstrip": False}}
PROMPT = "<é & 'ü'>"


def folder(path: Path, template: object, **settings: object) -> Path:
    data = {"chat_template": template, **SPECIAL, **settings}
    (path / "tokenizer_config.json").write_text(json.dumps(data))
    (path / "special_tokens_map.json").write_text('{"eos_token": "</s>", "bos_token": "<old>"}')
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a loop that is left", PROMPT),
        ("tools", "1"),
        ("special tokens", "<s><pad>False</s>"),
        (
            "plain json",
            f'[{{"role": "user", "content": "{PROMPT}"}}]'
            f'{{\n  "role": "user",\n  "content": "{PROMPT}"\n}}',
        ),
        ("counted by training", f"{PROMPT}\nend"),
        ("blocks", "yes\n"),
        ("the year", str(datetime.now().year)),
        ("a namespace", "2"),
    ],
)
def test_a_template_is_given_all_that_it_may_use(tmp_path: Path, name: str, text: str) -> None:
    assert rendered(folder(tmp_path, TEMPLATES[name]), PROMPT) == text


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_gives_what_transformers_gives(tmp_path: Path, name: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    special: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    (theirs,), _ = render_jinja_template(
        [[{"role": "user", "content": PROMPT}]],
        chat_template=TEMPLATES[name],
        add_generation_prompt=True,
        **special,
    )
    assert rendered(folder(tmp_path, TEMPLATES[name]), PROMPT) == theirs


def test_of_several_templates_the_default_is_taken(tmp_path: Path) -> None:
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    assert rendered(folder(tmp_path, several), PROMPT) == "yes"
    with pytest.raises(RecipeError, match="no chat template `default`, only tool_use") as caught:
        rendered(folder(tmp_path, several[:1]), PROMPT)
    assert "chat_template.jinja" in caught.value.hint
    (tmp_path / "chat_template.jinja").write_text("own")
    assert rendered(tmp_path, PROMPT) == "own"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ('{{ 1 + "a" }}', "TypeError: unsupported operand"),
        ('{{ raise_exception("roles must alternate") }}', "TemplateError: roles must alternate"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
    ],
)
def test_a_template_that_fails_is_told_in_one_error(
    tmp_path: Path, template: str, said: str
) -> None:
    with pytest.raises(RecipeError, match=f"the chat template fails: {said}"):
        rendered(folder(tmp_path, template), PROMPT)


def test_a_folder_without_a_template_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="has no chat template; leave out --chat"):
        rendered(tmp_path, PROMPT)
