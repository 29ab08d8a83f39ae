"""The command `hybridgen`: what is installed, memory found and measured, a run's statistics, and a demonstration."""

import pathlib
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
_console = Console()


@app.command()
def info() -> None:
    """Versions, CPU features, kernel rows, and every setting."""
    from importlib.metadata import version

    from rich.table import Table

    from hybridgen import _core, window
    from hybridgen.config import SETTINGS

    try:
        vllm = window.installed_version()
        window.check_version(vllm)
    except ImportError as error:
        vllm = str(error)
    _console.print(f"hybridgen {version('hybridgen')}, vLLM {vllm} (supported: >={window.MINIMUM},<{window.BELOW})")
    _console.print(_core.build_info(), highlight=False)
    table = Table(title="Settings", title_justify="left")
    for column in ("variable", "default", "accepted"):
        table.add_column(column)
    for setting in SETTINGS:
        table.add_row(setting.variable, setting.default or "(empty)", setting.accepted)
    _console.print(table)


@app.command()
def stats(
    file: Annotated[pathlib.Path, typer.Argument(help="A file that HYBRIDGEN_STATS named.")],
) -> None:
    """Prints the tiers of a statistics file, and where their memory lies."""
    from hybridgen import report

    try:
        statistics = report.read(file)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    title = f"{statistics['device_kind']} device kind, {statistics['binding']} binding, process {statistics['pid']}"
    _console.print(report.tier_table(statistics, title))
    if (table := report.arena_table(statistics)) is not None:
        _console.print(table)


@app.command()
def topology(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON (docs/topology.md).")] = False,
    override: Annotated[
        str | None, typer.Option(envvar="HYBRIDGEN_TOPOLOGY", help="What nodes are, if you know better: 2:cxl,3:hbm")
    ] = None,
    root: Annotated[
        pathlib.Path | None, typer.Option(help="A directory that holds sys and proc; default: this machine.")
    ] = None,
    measure: Annotated[
        bool | None,
        typer.Option("--measure/--no-measure", help="Measure every node, within a second; default: on this machine."),
    ] = None,
) -> None:
    """Memory nodes, devices and GPUs, how each was recognised and how fast it reads, and the tiers to use."""
    import json

    from hybridgen import _core, errors
    from hybridgen import topology as tables
    from hybridgen.config import format_size

    if root is not None and measure:
        raise typer.BadParameter("--measure needs the machine itself; leave out --root")
    try:
        if root is None and measure is not False:
            text = _core.topology_measured_json(override=override)
        else:
            text = _core.topology_json(root=None if root is None else str(root), override=override)
    except errors.InvalidArgument as error:
        raise typer.BadParameter(str(error)) from None
    if as_json:
        typer.echo(text)
        return
    found = json.loads(text)
    machine = found["machine"]
    if machine["total_bytes"] is not None and machine["available_bytes"] is not None:
        _console.print(
            f"machine: {format_size(machine['available_bytes'])} available of {format_size(machine['total_bytes'])}, "
            f"transparent huge pages: {machine['transparent_huge_pages']}",
            highlight=False,
        )
    if found["nodes"]:
        _console.print(tables.node_table(found))
    else:
        _console.print("the kernel lists no memory nodes")
    for table in tables.device_tables(found):
        _console.print(table)
    if found["measurement"]:
        _console.print(f"measured: {found['measurement']}", highlight=False, soft_wrap=True)
    _console.print(tables.tier_table(found["advice"]))
    for line in tables.advice_lines(found["advice"]):
        _console.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command()
def demo(
    prompt_tokens: Annotated[int, typer.Option(min=64, help="Length of the prompt.")] = 8192,
    generate: Annotated[int, typer.Option(min=2, help="Tokens to generate.")] = 64,
    device_share: Annotated[int, typer.Option(min=2, help="The prompt's KV is this many times the device tier.")] = 8,
    folder: Annotated[
        pathlib.Path | None, typer.Option(help="For the model and the logs; default: below the user's cache.")
    ] = None,
) -> None:
    """Generates with vLLM on HybridGen and on vLLM's own backend, and compares."""
    from hybridgen import demonstration

    same = demonstration.run(_console, folder, prompt_tokens, generate, device_share)
    raise typer.Exit(0 if same else 1)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
