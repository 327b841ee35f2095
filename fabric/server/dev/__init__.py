"""A whole fabric on one machine: every process of a real one, its stores and its hosts, for trying out and for tests.

- `topology`: what there is, as values: stores, cells, hosts, ports, addresses; kept in the state folder.
- `plan`: what runs, derived from that: every process with its command line, what must be ready before it, and how it is probed.
- `files`: certificates, settings and the client's profile.
- `machine`, `network`: what this machine has, and the network namespaces of simulated hosts.
- `bootstrap`: the records that an operator would make: cells and hosts.
- `supervisor`, `control`: the process that keeps the others running, and how it is spoken to.
- `ending`: how everything is ended and looked for, whoever died before.
- `demo`: the first path, by the commands that a person would type.
"""
