"""nftables tables as values, and the scripts that bring a kernel to them or from one to another. Pure.

A rule is a line of nft's language without the words that say where it goes. Only who builds the tables knows what the lines mean;
nothing here quotes, so nothing foreign may be in them that was not checked before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Chain:
    """Rules in their order. `hook` is empty for a chain that others jump to, else such as `forward priority 10`; `kind` is what
    nftables calls its type: filter or nat.
    """

    rules: tuple[str, ...] = ()
    hook: str = ""
    kind: str = "filter"


@dataclass(frozen=True, slots=True)
class Elements:
    """A named set or map. `kind` is set or map, `shape` what it holds: `type ipv4_addr; flags interval;`. No order."""

    kind: str
    shape: str
    elements: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table. Its names are ours to choose, so they need no quoting."""

    family: str
    name: str
    chains: Mapping[str, Chain] = field(default_factory=dict)
    sets: Mapping[str, Elements] = field(default_factory=dict)


def whole(table: Table) -> str:
    """The script after which the table is exactly this, whatever it was: one transaction, so no packet meets half of it."""
    lines = [
        f"add table {table.family} {table.name}",
        f"delete table {table.family} {table.name}",
        f"add table {table.family} {table.name}",
        *_change(Table(family=table.family, name=table.name), table),
    ]
    return _script(lines)


def change(loaded: Table, wanted: Table) -> str:
    """The script from one to the other, empty if they are equal. It touches only the sets and chains that differ.

    A chain that differs is written anew: chains are made small for this. Where a set's type or a hook differs, which nftables
    cannot change, it is the whole table.
    """
    if any(
        (it.kind, it.shape) != (wanted.sets[name].kind, wanted.sets[name].shape)
        for name, it in loaded.sets.items()
        if name in wanted.sets
    ) or any(
        (chain.hook, chain.kind) != (wanted.chains[name].hook, wanted.chains[name].kind)
        for name, chain in loaded.chains.items()
        if name in wanted.chains
    ):
        return whole(wanted)
    return _script(_change(loaded, wanted))


def removed(family: str, name: str) -> str:
    """The script that removes a table, whether it is there or not."""
    return _script([f"add table {family} {name}", f"delete table {family} {name}"])


def _change(loaded: Table, wanted: Table) -> Iterator[str]:
    at = f"{wanted.family} {wanted.name}"
    gone_chains = [name for name in loaded.chains if name not in wanted.chains]
    gone_sets = [name for name in loaded.sets if name not in wanted.sets]
    # What is referred to comes first and goes last; references go in between.
    for name, it in wanted.sets.items():
        if name not in loaded.sets:
            yield f"add {it.kind} {at} {name} {{ {it.shape} }}"
    for name, chain in wanted.chains.items():
        if name not in loaded.chains:
            hook = f" {{ type {chain.kind} hook {chain.hook}; policy accept; }}" if chain.hook else ""
            yield f"add chain {at} {name}{hook}"
    changed = [name for name, chain in wanted.chains.items() if chain != loaded.chains.get(name, Chain())]
    for name in (*(it for it in changed if it in loaded.chains), *gone_chains):
        yield f"flush chain {at} {name}"
    for name, it in wanted.sets.items():
        had = loaded.sets[name].elements if name in loaded.sets else frozenset()
        yield from _elements("delete", f"{at} {name}", had - it.elements)
    for name in gone_sets:
        yield f"flush {loaded.sets[name].kind} {at} {name}"
    for name, it in wanted.sets.items():
        had = loaded.sets[name].elements if name in loaded.sets else frozenset()
        yield from _elements("add", f"{at} {name}", it.elements - had)
    for name in changed:
        for rule in wanted.chains[name].rules:
            yield f"add rule {at} {name} {rule}"
    for name in gone_chains:
        yield f"delete chain {at} {name}"
    for name in gone_sets:
        yield f"delete {loaded.sets[name].kind} {at} {name}"


def _elements(verb: str, at: str, elements: frozenset[str]) -> Iterator[str]:
    if elements:
        yield f"{verb} element {at} {{ {', '.join(sorted(elements))} }}"


def _script(lines: Iterator[str] | list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
