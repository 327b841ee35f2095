"""Scripts between tables, run by a kernel of a few lines that refuses what nftables refuses."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from hostd.core.nftables import Chain, Elements, Table, change, removed, whole


@dataclass
class Kernel:
    """One table. Raises KeyError for what is not there, AssertionError for what is still in use or there twice."""

    there: bool = False
    chains: dict[str, list[str]] = field(default_factory=dict)
    hooks: dict[str, str] = field(default_factory=dict)
    sets: dict[str, tuple[str, str, set[str]]] = field(default_factory=dict)

    def run(self, script: str) -> None:
        for line in script.splitlines():
            verb, kind, _, _, *rest = line.split(" ", 4)
            self._one(verb, kind, rest[0] if rest else "")

    def _one(self, verb: str, kind: str, rest: str) -> None:
        name, _, said = rest.partition(" ")
        match verb, kind:
            case "add", "table":
                self.there = True
            case "delete", "table":
                assert self.there
                self.there = False
                self.chains, self.hooks, self.sets = {}, {}, {}
            case "add", "set" | "map":
                assert name not in self.sets
                self.sets[name] = (kind, said.strip("{ }"), set())
            case "add", "chain":
                assert name not in self.chains
                self.chains[name] = []
                self.hooks[name] = said
            case "flush", "chain":
                self.chains[name].clear()
            case "flush", "set" | "map":
                self.sets[name][2].clear()
            case "add" | "delete", "element":
                self._elements(verb, self.sets[name][2], set(said[2:-2].split(", ")))
            case "add", "rule":
                assert self._names(said) <= self.chains.keys() | self.sets.keys()
                self.chains[name].append(said)
            case "delete", "chain":
                assert not self.chains[name]
                assert name not in self._used()
                del self.chains[name], self.hooks[name]
            case "delete", "set" | "map":
                assert name not in self._used()
                del self.sets[name]
            case _:
                raise KeyError(f"{verb} {kind}")

    def _elements(self, verb: str, had: set[str], said: set[str]) -> None:
        if verb == "add":
            assert not said & had
            assert set[str]().union(*map(self._names, said)) <= self.chains.keys()
            had |= said
        else:
            assert said <= had
            had -= said

    def _used(self) -> set[str]:
        said = [rule for rules in self.chains.values() for rule in rules]
        said += [element for _, _, elements in self.sets.values() for element in elements]
        return set[str]().union(*map(self._names, said))

    @staticmethod
    def _names(said: str) -> set[str]:
        return set(re.findall(r"(?:jump |@)(\S+)", said))


def loaded(table: Table) -> Kernel:
    kernel = Kernel()
    kernel.run(whole(table))
    return kernel


NAMES = "abcd"


@st.composite
def tables(draw: st.DrawFn) -> Table:
    chains = draw(st.sets(st.sampled_from(NAMES)))
    sets = draw(st.sets(st.sampled_from(["s", "t", "u"])))
    plain = st.sampled_from(["accept", "drop", "tcp dport 22 accept"])
    jumps = [f"jump {name}" for name in sorted(chains)]
    rule = st.one_of(
        plain,
        *([st.sampled_from(jumps)] if jumps else []),
        *([st.sampled_from([f"ip saddr @{name} accept" for name in sorted(sets)])] if sets else []),
    )
    return Table(
        family="bridge",
        name="ours",
        chains={
            name: Chain(tuple(draw(st.lists(rule, max_size=3))), "forward priority 10" if name == "a" else "")
            for name in sorted(chains)
        },
        sets={
            **{
                name: Elements(
                    "set", "type ipv4_addr;", frozenset(draw(st.sets(st.sampled_from(["1", "2", "3"]))))
                )
                for name in sorted(sets)
            },
            "m": Elements(
                "map",
                "type ifname : verdict;",
                frozenset(
                    f'"{name}" : jump {name}'
                    for name in draw(st.sets(st.sampled_from(sorted(chains) or ["x"])))
                )
                if chains
                else frozenset(),
            ),
        },
    )


@given(tables(), tables())
def test_a_change_leads_where_the_whole_leads(before: Table, after: Table) -> None:
    kernel = loaded(before)

    kernel.run(change(before, after))

    assert kernel == loaded(after)


@given(tables())
def test_there_is_nothing_to_change_about_the_same(table: Table) -> None:
    assert change(table, table) == ""


@given(tables(), tables())
def test_the_whole_does_not_care_what_was_there(before: Table, after: Table) -> None:
    kernel = loaded(before)

    kernel.run(whole(after))

    assert kernel == loaded(after)


def test_what_nftables_cannot_change_is_loaded_whole() -> None:
    before = Table(
        family="bridge", name="ours", sets={"s": Elements("set", "type ipv4_addr;", frozenset({"1"}))}
    )
    after = Table(
        family="bridge", name="ours", sets={"s": Elements("set", "type ipv6_addr;", frozenset({"1"}))}
    )

    assert change(before, after) == whole(after)


def test_removing_works_whether_it_is_there_or_not() -> None:
    kernel = Kernel()
    for _ in range(2):
        kernel.run(removed("bridge", "ours"))

        assert not kernel.there
