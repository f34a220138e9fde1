#!/usr/bin/env python3
"""Checks every locked package against deny.toml: licence, banned crates, source.

Reads `cargo metadata --format-version 1` on standard input. It is the part of `cargo deny` that needs neither the
network nor a compiled tool; advisories are not looked at. Ends with 1 and one line a fault.
"""
import json
import re
import sys
import tomllib


def words(expression):
    """The tokens of an SPDX expression; `/`, the old spelling, is OR."""
    return re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))


def is_allowed(expression, allowed):
    """Whether an SPDX expression can be met with the allowed licences: OR needs one side, AND both."""
    tokens = words(expression)
    place = 0

    def peek():
        return tokens[place] if place < len(tokens) else None

    def take():
        nonlocal place
        place += 1
        return tokens[place - 1]

    def any_of():
        met = all_of()
        while peek() == "OR":
            take()
            met = all_of() or met
        return met

    def all_of():
        met = one()
        while peek() == "AND":
            take()
            met = one() and met
        return met

    def one():
        if peek() is None:
            raise ValueError(f"licence expression ends early: {expression!r}")
        token = take()
        if token == "(":
            met = any_of()
            if peek() != ")":
                raise ValueError(f"no closing bracket: {expression!r}")
            take()
            return met
        if peek() == "WITH":
            take()
            token = f"{token} WITH {take()}"
        return token in allowed

    met = any_of()
    if peek() is not None:
        raise ValueError(f"cannot read licence expression {expression!r} at {peek()!r}")
    return met


def faults(metadata, policy):
    """One line for each package that breaks the policy."""
    allowed = set(policy["licenses"]["allow"])
    excepted = {e["crate"]: set(e["allow"]) for e in policy["licenses"].get("exceptions", [])}
    banned = {b["crate"] for b in policy["bans"].get("deny", [])}
    found = []
    for package in metadata["packages"]:
        label = f"{package['name']} {package['version']}"
        if package["source"] is None:
            continue  # a crate of this workspace
        if not package["source"].startswith("registry+"):
            found.append(f"{label}: source {package['source']} is not the default registry")
        if package["name"] in banned:
            found.append(f"{label}: banned by deny.toml")
        licence = package.get("license")
        if not licence:
            found.append(f"{label}: names no licence")
            continue
        try:
            if not is_allowed(licence, allowed | excepted.get(package["name"], set())):
                found.append(f"{label}: licence {licence} is not allowed by deny.toml")
        except ValueError as error:
            found.append(f"{label}: {error}")
    return found


def check_itself():
    """The checker's own cases: a check that cannot fail is no check."""
    allowed = {"MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"}
    good = ["MIT", "MIT/GPL-3.0", "GPL-3.0 OR (MIT AND Apache-2.0)", "Apache-2.0 WITH LLVM-exception OR GPL-2.0"]
    bad = ["GPL-3.0", "MIT AND GPL-3.0", "GPL-2.0 WITH LLVM-exception", "(MIT OR Apache-2.0) AND GPL-3.0"]
    assert all(is_allowed(e, allowed) for e in good)
    assert not any(is_allowed(e, allowed) for e in bad)
    planted = {"packages": [
        {"name": "ours", "version": "1", "source": None},
        {"name": "a", "version": "1", "source": "registry+x", "license": "GPL-3.0"},
        {"name": "b", "version": "1", "source": "git+x", "license": "MIT"},
        {"name": "c", "version": "1", "source": "registry+x", "license": "MIT"},
        {"name": "d", "version": "1", "source": "registry+x", "license": None},
    ]}
    policy = {"licenses": {"allow": ["MIT"]}, "bans": {"deny": [{"crate": "c"}]}}
    assert [line.split()[0] for line in faults(planted, policy)] == ["a", "b", "c", "d"]


def main():
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        print("usage: cargo metadata --locked --format-version 1 | check.py deny.toml", file=sys.stderr)
        return 2
    check_itself()
    with open(sys.argv[1], "rb") as file:
        policy = tomllib.load(file)
    metadata = json.load(sys.stdin)
    found = faults(metadata, policy)
    for line in found:
        print(line, file=sys.stderr)
    print(f"licences: {len(metadata['packages'])} packages, {len(found)} faults")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
