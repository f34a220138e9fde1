"""Clients as processes of their own, and what servers cost meanwhile."""

import multiprocessing
import os
import time
from pathlib import Path

import wire

TICKS = os.sysconf("SC_CLK_TCK")
PATIENCE = 600


def drive(connection, requests, clients, seconds, pids):
    """Asks from several processes at once, each one request after the other; queries, seconds, the servers' CPU."""
    start = multiprocessing.get_context("spawn")
    barrier, told = start.Barrier(clients + 1), start.Queue()
    share = len(requests) // clients
    started = []
    for number in range(clients):
        # Each begins elsewhere, so that they do not ask the same at one time.
        own = requests[number * share :] + requests[: number * share]
        process = start.Process(target=_client, args=(connection, own, seconds, barrier, told), daemon=True)
        process.start()
        started.append(process)
    barrier.wait(PATIENCE)
    before = cpu_seconds(pids)
    barrier.wait(PATIENCE)
    counts = [told.get(timeout=PATIENCE) for _ in started]
    # Connections are open still: what they cost is seen where a server has a process for each.
    cpu = cpu_seconds(pids) - before
    barrier.wait(PATIENCE)
    for process in started:
        process.join(PATIENCE)
    return sum(count for count, _ in counts), max(took for _, took in counts), cpu


def _client(connection, requests, seconds, barrier, told):
    kind, arguments = connection
    server = getattr(wire, kind)(*arguments)
    for request in requests[:50]:
        server.ask(request)
    barrier.wait(PATIENCE)
    barrier.wait(PATIENCE)
    count, began = 0, time.perf_counter()
    while True:
        for request in requests:
            server.ask(request)
            count += 1
            took = time.perf_counter() - began
            if took >= seconds:
                break
        if took >= seconds:
            break
    told.put((count, took))
    barrier.wait(PATIENCE)
    server.close()


def once(connection, requests):
    """One answer a request, in order."""
    kind, arguments = connection
    server = getattr(wire, kind)(*arguments)
    try:
        return [server.ask(request) for request in requests]
    finally:
        server.close()


def cpu_seconds(pids):
    """Processor time of these processes and all that came of them, ended ones too."""
    parents, ticks = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        words = text.rsplit(")", 1)[1].split()
        pid = int(stat.parent.name)
        parents[pid] = int(words[1])
        # Its own, and that of its children that ended.
        ticks[pid] = sum(int(word) for word in words[11:15])
    ours, grown = set(pids), True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in ours} - ours
        ours |= more
        grown = bool(more)
    return sum(ticks.get(pid, 0) for pid in ours) / TICKS


def idle(pids, looks=10, every=0.5, share=0.2, patience=1800):
    """Waits until the servers have little to do by themselves: a broker that is asked for news all the time takes a tenth of a processor."""
    quiet, before, until = 0, cpu_seconds(pids), time.monotonic() + patience
    while quiet < looks:
        if time.monotonic() > until:
            raise RuntimeError("the server does not come to rest")
        time.sleep(every)
        now = cpu_seconds(pids)
        quiet = quiet + 1 if now - before < share * every else 0
        before = now
