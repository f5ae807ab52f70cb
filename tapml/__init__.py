"""tapml: declarative recipes that build, tune, validate and measure deployable model libraries.

`run(recipe)` and `load(run_or_path)` are the Python entry points; the command `tapml` does the same from a shell.
"""
