#!/usr/bin/env python3
"""Checks a compose file and the Dockerfiles it builds, without a container engine.

What a parser can know is checked: duplicate and unknown keys, services without an image, dependencies that are not
there, that have no health check or that go in a circle, ports given twice or open to the world, undeclared volumes,
processes that run as root, addresses of services that do not exist, and SHOAL_ variables that Shoal does not read.
With `--shoal` each of Shoal's services is also asked to check its own settings, as the file gives them.
It does not pull, build or start any container. Before the file, the checker tests itself with planted faults.
"""
import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

TOP_KEYS = {"name", "services", "volumes", "networks", "configs", "secrets"}
# The keys of a service in the compose specification.
SERVICE_KEYS = set(
    """annotations attach blkio_config build cap_add cap_drop cgroup cgroup_parent command configs container_name
    cpu_count cpu_percent cpu_period cpu_quota cpu_rt_period cpu_rt_runtime cpu_shares cpus cpuset credential_spec
    depends_on deploy develop device_cgroup_rules devices dns dns_opt dns_search domainname entrypoint env_file
    environment expose extends external_links extra_hosts gpus group_add healthcheck hostname image init ipc isolation
    label_file labels links logging mac_address mem_limit mem_reservation mem_swappiness memswap_limit models
    network_mode networks oom_kill_disable oom_score_adj pid pids_limit platform ports post_start pre_stop privileged
    profiles provider pull_policy read_only restart runtime scale secrets security_opt shm_size stdin_open
    stop_grace_period stop_signal storage_opt sysctls tmpfs tty ulimits use_api_socket user userns_mode uts volumes
    volumes_from working_dir""".split()
)
BUILD_KEYS = set(
    """additional_contexts args cache_from cache_to context dockerfile dockerfile_inline entitlements extra_hosts
    isolation labels network no_cache platforms privileged pull secrets shm_size ssh tags target ulimits""".split()
)
HEALTH_KEYS = {"disable", "interval", "retries", "start_interval", "start_period", "test", "timeout"}
DEPENDS_KEYS = {"condition", "required", "restart"}
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}
DURATION = re.compile(r"^(\d+(us|ms|s|m|h))+$")


class Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping; YAML's merge key `<<` still works."""

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                message = f"key `{key_node.value}` stands twice"
                raise yaml.constructor.ConstructorError(None, None, message, key_node.start_mark)
            seen.add(key_node.value)
        return node


def unknown(where, found, known):
    """One fault for each key that the specification does not know; `x-` keys are anybody's."""
    return [f"{where}: unknown key `{key}`" for key in found if key not in known and not str(key).startswith("x-")]


def environment_of(service):
    """The environment as a mapping, from either of its two spellings."""
    given = service.get("environment") or {}
    if isinstance(given, dict):
        return {key: "" if value is None else str(value) for key, value in given.items()}
    return dict(line.split("=", 1) if "=" in line else (line, "") for line in given)


def depends_of(service):
    """The dependencies as {service: options}, from either of the two spellings."""
    given = service.get("depends_on") or {}
    return given if isinstance(given, dict) else {name: {"condition": "service_started"} for name in given}


def published(port):
    """(host address, host port) of a port entry; None where only the container's port is given."""
    if isinstance(port, dict):
        number = interpolate(str(port.get("published", "")))
        return (interpolate(port.get("host_ip", "")), number) if number else None
    parts = interpolate(str(port)).split("/")[0].rsplit(":", 2)
    if len(parts) == 1:
        return None
    return ("", parts[0]) if len(parts) == 2 else (parts[0], parts[1])


def interpolate(text):
    """Text with `${NAME:-default}` replaced by its default, as in an empty environment."""
    return re.sub(r"\$\{\w+:?-([^}]*)\}", r"\1", text)


def service_faults(name, service, model):
    """Faults of one service."""
    if not isinstance(service, dict):
        return [f"{name}: is no mapping"]
    faults = unknown(name, service, SERVICE_KEYS)
    if not service.get("image") and not service.get("build"):
        faults.append(f"{name}: has neither image nor build")
    image = interpolate(str(service.get("image", "")))
    if image and not service.get("build") and (":" not in image.rsplit("/", 1)[-1] or image.endswith(":latest")):
        faults.append(f"{name}: image `{image}` is not pinned to a version")
    build = service.get("build")
    if isinstance(build, dict):
        faults += unknown(f"{name}.build", build, BUILD_KEYS)
        if build.get("privileged"):
            faults.append(f"{name}.build: is privileged")

    health = service.get("healthcheck")
    if health is not None:
        faults += unknown(f"{name}.healthcheck", health, HEALTH_KEYS)
        test = health.get("test")
        if not health.get("disable") and not test:
            faults.append(f"{name}.healthcheck: has no test")
        if isinstance(test, list) and test[:1] not in (["CMD"], ["CMD-SHELL"], ["NONE"]):
            faults.append(f"{name}.healthcheck: test begins with neither CMD nor CMD-SHELL")
        for key in ("interval", "timeout", "start_period", "start_interval"):
            if key in health and not DURATION.match(str(health[key])):
                faults.append(f"{name}.healthcheck: {key} `{health[key]}` is no duration")

    for target, options in depends_of(service).items():
        options = options or {}
        faults += unknown(f"{name}.depends_on.{target}", options, DEPENDS_KEYS)
        condition = options.get("condition")
        other = model["services"].get(target)
        if other is None:
            faults.append(f"{name}: depends on `{target}`, which is no service")
        elif condition not in CONDITIONS:
            faults.append(f"{name}: depends on `{target}` with the unknown condition `{condition}`")
        elif condition == "service_healthy":
            check = other.get("healthcheck") or {}
            if not check.get("test") or check.get("disable"):
                faults.append(f"{name}: waits for `{target}` to be healthy, but that has no health check")

    for volume in service.get("volumes") or []:
        source = volume.get("source", "") if isinstance(volume, dict) else str(volume).split(":")[0]
        kind = volume.get("type", "volume") if isinstance(volume, dict) else None
        if "docker.sock" in source:
            faults.append(f"{name}: mounts the container engine's socket")
        is_path = source.startswith((".", "/", "~", "$")) or kind in ("bind", "tmpfs")
        if not is_path and source not in (model.get("volumes") or {}):
            faults.append(f"{name}: volume `{source}` is not declared")
    for network in service.get("networks") or []:
        if network != "default" and network not in (model.get("networks") or {}):
            faults.append(f"{name}: network `{network}` is not declared")

    if service.get("privileged"):
        faults.append(f"{name}: is privileged")
    if service.get("cap_add"):
        faults.append(f"{name}: adds capabilities {service['cap_add']}")
    if str(service.get("user", "")).split(":")[0] in ("0", "root"):
        faults.append(f"{name}: runs as root")
    for key in ("network_mode", "pid", "ipc"):
        if service.get(key) == "host":
            faults.append(f"{name}: {key} is the host's")

    for key, value in environment_of(service).items():
        if "${" in interpolate(value).replace("$${", ""):
            faults.append(f"{name}: {key} needs a variable that has no default")
        for host in re.findall(r"(?:^|[/,@=])([a-z][a-z0-9.-]*):\d+", interpolate(value)):
            if host not in model["services"] and host != "localhost":
                faults.append(f"{name}: {key} names the host `{host}`, which is no service")
    return faults


def circle(services):
    """A circle of dependencies as a list of names; empty where there is none."""
    done, path = set(), []

    def visit(name):
        if name in path:
            return path[path.index(name):] + [name]
        if name in done or name not in services:
            return []
        path.append(name)
        for target in depends_of(services[name]):
            found = visit(target)
            if found:
                return found
        path.pop()
        done.add(name)
        return []

    return next((found for found in map(visit, services) if found), [])


def model_faults(model):
    """Faults of a whole compose file, as parsed."""
    if not isinstance(model, dict) or not isinstance(model.get("services"), dict):
        return ["the file has no services"]
    faults = unknown("file", model, TOP_KEYS)
    taken = {}
    used = set()
    for name, service in model["services"].items():
        faults += service_faults(name, service, model)
        if not isinstance(service, dict):
            continue
        for port in service.get("ports") or []:
            host = published(port)
            if host is None:
                continue
            address, number = host
            if address not in ("127.0.0.1", "::1", "[::1]"):
                faults.append(f"{name}: port {number} is open on `{address or 'every address'}`, not only on this host")
            if number in taken:
                faults.append(f"{name}: port {number} is taken by {taken[number]}")
            taken[number] = name
        for volume in service.get("volumes") or []:
            used.add(volume.get("source") if isinstance(volume, dict) else str(volume).split(":")[0])
    faults += [f"volume `{volume}` is declared but not used" for volume in (model.get("volumes") or {}) if volume not in used]
    found = circle({name: service for name, service in model["services"].items() if isinstance(service, dict)})
    if found:
        faults.append("dependencies go in a circle: " + " -> ".join(found))
    return faults


def environment_faults(model, known):
    """SHOAL_ variables that Shoal does not read."""
    faults = []
    for name, service in model["services"].items():
        for key in environment_of(service):
            if key.startswith("SHOAL_") and key not in known:
                faults.append(f"{name}: Shoal reads no variable `{key}`")
    return faults


def settings_faults(model, shoal):
    """What Shoal itself says of the settings of its services: the ones that are built here."""
    faults = []
    for name, service in model["services"].items():
        if not service.get("build"):
            continue
        given = {key: interpolate(value) for key, value in environment_of(service).items()}
        clean = {key: value for key, value in os.environ.items() if not key.startswith("SHOAL_")}
        command = [str(shoal), *service.get("command", []), "--check"]
        done = subprocess.run(command, env=clean | given, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            faults += [f"{name}: {line}" for line in done.stderr.strip().splitlines() or ["its check fails"]]
    return faults


def dockerfile_faults(text, where):
    """Faults of a Dockerfile: unpinned images, unknown stages, a last stage that runs as root."""
    faults, stages, user = [], [], None
    joined = re.sub(r"\\\n", " ", text)
    for line in joined.splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        order = words[0].upper()
        if order == "FROM":
            image = next(word for word in words[1:] if not word.startswith("--"))
            if image not in stages and (":" not in image or image.endswith(":latest")):
                faults.append(f"{where}: image `{image}` is not pinned to a version")
            stages.append(words[-1] if words[-2].upper() == "AS" else None)
            user = None
        elif order == "USER":
            user = words[1]
        elif order == "COPY":
            source = next((word[len("--from="):] for word in words if word.startswith("--from=")), None)
            if source is not None and source not in stages:
                faults.append(f"{where}: copies from `{source}`, which is no stage before it")
    if not stages:
        faults.append(f"{where}: has no FROM")
    if user is None or user.split(":")[0] in ("0", "root"):
        faults.append(f"{where}: the last stage runs as root")
    return faults


def built(model, folder):
    """The Dockerfiles that the services build, once each."""
    files = set()
    for service in model["services"].values():
        build = service.get("build") if isinstance(service, dict) else None
        if isinstance(build, str):
            files.add(folder / build / "Dockerfile")
        elif isinstance(build, dict):
            files.add(folder / build.get("context", ".") / build.get("dockerfile", "Dockerfile"))
    return sorted(files)


def check_itself():
    """Every rule finds its planted fault, and a sound file passes: a check that cannot fail is no check."""
    sound = """
services:
  broker:
    image: a/kafka:1.0
    ports: ["127.0.0.1:${P:-9092}:9092"]
    volumes: ["data:/d"]
    healthcheck: {test: [CMD, "true"], interval: 5s}
  query:
    build: .
    image: shoal:local
    environment: {SHOAL_KAFKA__BROKERS: "broker:9092", A: "${B:-c}"}
    depends_on: {broker: {condition: service_healthy}}
volumes: {data: {}}
"""
    assert model_faults(yaml.load(sound, Loader)) == [], model_faults(yaml.load(sound, Loader))
    planted = [
        ("image: a/kafka:1.0", "image: a/kafka", "not pinned"),
        ("image: a/kafka:1.0", "imagine: a/kafka:1.0", "unknown key"),
        ("image: a/kafka:1.0", "restart: always", "neither image nor build"),
        ("broker: {condition", "brooker: {condition", "which is no service"),
        ("service_healthy}", "service_happy}", "unknown condition"),
        ("test: [CMD, \"true\"], ", "", "no health check"),
        ("interval: 5s", "interval: soon", "no duration"),
        ("[CMD, \"true\"]", "[\"true\"]", "neither CMD"),
        ("127.0.0.1:$", "$", "open on"),
        (":9092\"]", ":9092\", \"127.0.0.1:9092:1\"]", "is taken by"),
        ("\"data:/d\"", "\"other:/d\"", "is not declared"),
        ("\"data:/d\"", "\"/var/run/docker.sock:/d\"", "socket"),
        ("{data: {}}", "{data: {}, more: {}}", "declared but not used"),
        ("build: .", "build: {contxt: .}", "unknown key `contxt`"),
        ("build: .", "privileged: true\n    build: .", "is privileged"),
        ("build: .", "user: \"0:0\"\n    build: .", "runs as root"),
        ("build: .", "network_mode: host\n    build: .", "is the host's"),
        ("build: .", "cap_add: [SYS_ADMIN]\n    build: .", "capabilities"),
        ("build: .", "networks: [wan]\n    build: .", "network `wan`"),
        ("\"broker:9092\"", "\"brooker:9092\"", "names the host"),
        ("${B:-c}", "${B}", "no default"),
        ("image: a/kafka:1.0", "image: a/kafka:1.0\n    depends_on: [query]", "in a circle"),
    ]
    for old, new, expected in planted:
        assert old in sound, old
        found = model_faults(yaml.load(sound.replace(old, new, 1), Loader))
        assert any(expected in fault for fault in found), f"planted {new!r}: {found}"
    try:
        yaml.load("services: {a: {image: b:1, image: c:1}}", Loader)
        raise AssertionError("a key that stands twice was not found")
    except yaml.YAMLError:
        pass
    model = yaml.load(sound, Loader)
    assert environment_faults(model, {"SHOAL_KAFKA__BROKERS"}) == []
    assert len(environment_faults(model, set())) == 1
    good = "FROM a:1 AS build\nFROM b:1\nCOPY --from=build /a /a\nUSER 10001\n"
    assert dockerfile_faults(good, "f") == []
    for old, new in [("FROM b:1", "FROM b"), ("=build", "=bild"), ("USER 10001", "USER root"), ("USER 10001\n", "")]:
        assert len(dockerfile_faults(good.replace(old, new), "f")) == 1, new


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--shoal", type=Path, help="the program, to ask which variables it reads and what it says of them")
    options = parser.parse_args()
    check_itself()
    try:
        model = yaml.load(options.file.read_text(), Loader)
    except yaml.YAMLError as error:
        print(f"{options.file}: {error}", file=sys.stderr)
        return 1
    faults = model_faults(model)
    if not faults:
        for dockerfile in built(model, options.file.parent):
            if dockerfile.exists():
                faults += dockerfile_faults(dockerfile.read_text(), dockerfile)
            else:
                faults.append(f"{dockerfile}: is not there")
        if options.shoal:
            names = subprocess.run([options.shoal, "config", "--env-names"], capture_output=True, text=True, check=True)
            faults += environment_faults(model, set(names.stdout.split()))
            faults += settings_faults(model, options.shoal)
    for fault in faults:
        print(f"{options.file}: {fault}", file=sys.stderr)
    if not faults:
        print(f"{options.file}: {len(model['services'])} services, no fault")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
