"""The command that writes: generate."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import RecipeError
from ..terminal import printable
from .app import FILE, JSON, app, document


@app.command()
@click.argument("folder", type=FILE, metavar="BUNDLE")
@click.argument("prompt", required=False)
@click.option("--tokens", metavar="N,N,...", help="The prompt in numbers; numbers are printed.")
@click.option("--source", type=FILE, help="Features that an encoder reads (.npy), not a PROMPT.")
@click.option("--chat", is_flag=True, help="Put PROMPT into the model's chat template.")
@click.option("--max-tokens", type=click.IntRange(1), help="[default: as the context holds]")
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="0 takes the likeliest token.",
)
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Draw among the likeliest tokens that hold this share.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--stop", multiple=True, metavar="TEXT", help="End where this comes.")
@click.option("--threads", type=click.IntRange(1), help="[default: as it was built for]")
@JSON
def generate(
    folder: Path,
    prompt: str | None,
    tokens: str | None,
    source: Path | None,
    chat: bool,
    max_tokens: int | None,
    temperature: float,
    top_p: float,
    seed: int,
    stop: tuple[str, ...],
    threads: int | None,
    as_json: bool,
) -> None:
    """Write on from PROMPT with the language model in BUNDLE, as it comes."""
    from ..generate import Request, Writer

    if (prompt is None) == (tokens is None) and (source is None or prompt is not None):
        raise click.UsageError("give a PROMPT, or --tokens")
    if tokens is not None and (chat or stop):
        raise click.UsageError("--chat and --stop are for text, --tokens is numbers")
    writer = Writer(folder, threads)
    request = Request(max_tokens, temperature, top_p, seed, tuple(one for one in stop if one))
    if tokens is not None:
        given = _numbers(tokens)
        writer.check(given)
        pieces = (f"{token} " for token in writer.tokens(given, request, source))
    else:
        given = [] if prompt is None else writer.encode(prompt, chat=chat)
        pieces = writer.text(given, request, source)
    written = ""
    for piece in pieces:
        written += piece
        if not as_json:
            click.echo(printable(piece, keep="\n"), nl=False)
    prefill, decode = writer.paces()
    if as_json:
        document(
            {
                "prompt_tokens": given,
                "tokens": writer.written,
                **({"text": written} if tokens is None else {}),
                "prefill": prefill.to_data(),
                "decode": decode.to_data(),
            }
        )
        return
    click.echo()
    rates = (
        f"{name} {pace.tokens} tokens, {pace.per_second:.1f} tokens/s"
        for name, pace in (("prefill", prefill), ("decode", decode))
    )
    click.echo(" · ".join(rates), err=True)


def _numbers(text: str) -> list[int]:
    try:
        return [int(one) for one in text.split(",") if one.strip()]
    except ValueError as error:
        raise RecipeError(message=f"--tokens: {text!r} is no list of numbers") from error
