"""A prompt in the chat template that came with a model, as transformers renders it.

The template is a program of the model's: it is run in jinja2's sandbox.
"""

from __future__ import annotations

import json
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from .errors import EnvironmentalError, RecipeError

if TYPE_CHECKING:
    from jinja2 import Template

SETTINGS = "tokenizer_config.json"
_SPECIAL = tuple(f"{one}_token" for one in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


def rendered(folder: Path, prompt: str) -> str:
    """The user's turn, and what makes the model answer.

    Raises: RecipeError when the folder has no template, or it fails; EnvironmentalError without
            jinja2.
    """
    template = _template(folder)
    if find_spec("jinja2") is None:
        raise EnvironmentalError(
            message="a chat template needs jinja2, not installed here",
            hint="pip install 'jinja2>=3.1.6'",
        )
    messages = [{"role": "user", "content": prompt}]
    try:
        return _compiled(template).render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=True,
            **special_tokens(folder),
        )
    except Exception as error:  # the model's own code: anything may come out of it
        reason = f"{type(error).__name__}: {error}"
        raise RecipeError(message=f"the chat template fails: {reason}") from error


def settings_of(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of the folder; {} where there is none."""
    path = folder / name
    return cast("dict[str, Any]", json.loads(path.read_bytes())) if path.is_file() else {}


def special_tokens(folder: Path) -> dict[str, str]:
    """The special tokens that the tokenizer has, by name: `bos_token`, …"""
    settings = settings_of(folder, "special_tokens_map.json") | settings_of(folder, SETTINGS)
    found = {name: _content(settings.get(name)) for name in _SPECIAL}
    return {name: text for name, text in found.items() if text is not None}


def _content(token: object) -> str | None:
    """A special token, which may be given with its properties."""
    if isinstance(token, dict):
        token = cast("dict[str, object]", token).get("content")
    return token if isinstance(token, str) else None


def _template(folder: Path) -> str:
    """The template; of several that have names, `default`."""
    if (own := folder / "chat_template.jinja").is_file():
        return own.read_text(encoding="utf-8")
    given: object = settings_of(folder, SETTINGS).get("chat_template")
    if isinstance(given, list):
        rows = [
            cast("dict[str, object]", one)
            for one in cast("list[object]", given)
            if isinstance(one, dict)
        ]
        named = {str(one.get("name")): one.get("template") for one in rows}
        given = named.get("default")
        if given is None:
            raise RecipeError(
                message=f"{folder} has no chat template `default`, only {', '.join(sorted(named))}",
                hint=f"write the wanted one into {folder / 'chat_template.jinja'}",
            )
    if not isinstance(given, str):
        raise RecipeError(message=f"{folder} has no chat template; leave out --chat")
    return given


def _compiled(text: str) -> Template:
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what training counts; here it is only its body."""

        tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def fail(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(
        value: object,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:  # jinja2's own escapes for HTML
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def strftime_now(form: str) -> str:
        return datetime.now().strftime(form)

    environment: Any = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=fail, strftime_now=strftime_now)
    return environment.from_string(text)
