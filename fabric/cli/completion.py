"""`fabric completion`: what a shell needs to complete nouns, verbs, options and names."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class

from fabric.cli.params import examples

SHELLS = ("bash", "zsh", "fish")


@click.command(
    epilog=examples(
        "fabric completion bash > ~/.local/share/bash-completion/completions/fabric",
        "fabric completion zsh",
        "fabric completion fish > ~/.config/fish/completions/fabric.fish",
    )
)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, *, shell: str) -> None:
    """Print the completion script of a shell."""
    kind = get_completion_class(shell)
    assert kind is not None
    # The base class's: bash's own first runs bash to learn its version.
    click.echo(ShellComplete.source(kind(ctx.find_root().command, {}, "fabric", "_FABRIC_COMPLETE")))
