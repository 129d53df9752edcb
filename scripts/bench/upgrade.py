"""What an upgrade costs, and what clients notice of it.

One round is one control plane of the release before: init → a flag of the scheduler → upgrade, with a client and a look
at who serves the `kubernetes` Service → a restart of etcd by plain Docker, with the same client → reset.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import client
import host
from host import KUBERNETES, BenchError, ControlPlane, run, timed

OLD, NEW = "v1.36.3", "v1.37.1"
AFTERWARDS = 5.0
"""Seconds after the command for which its effects are looked at: the old API server may still be ending."""
SLICE = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes"
API_SERVER = KUBERNETES / "manifests" / "kube-apiserver.yaml"
CONFIG = """\
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: {version}
scheduler:
  extraArgs: [{{name: v, value: "{verbosity}"}}]
"""


def measure(bench):
    scratch = bench.scratch

    def config(verbosity):
        path = scratch / f"config-{verbosity}.yaml"
        path.write_text(CONFIG.format(version=OLD, verbosity=verbosity), encoding="utf-8")
        return str(path)

    run(bench.plinth, "init", "--config", config(1))
    bench.add("flag", timed(bench.plinth, "init", "--config", config(2)))
    client.definition(host.api("admin.conf"))
    ControlPlane().await_healthy()
    time.sleep(AFTERWARDS)

    watch = Watch()
    with Client(scratch / "client.log") as asking:
        bench.add("upgrade", timed(bench.plinth, "init", "--kubernetes-version", NEW))
        time.sleep(AFTERWARDS)
    watch.end()
    if watch.exchanged is None:
        raise BenchError("the manifest of kube-apiserver was not exchanged")
    swap = [one for one in asking.asked if one.start >= watch.exchanged]
    bench.add("upgrade: asked", len(swap))
    bench.add("upgrade: failed", sum(not one.good for one in swap))
    for one in swap:
        if not one.good:
            print(f"    {one.start - watch.exchanged:.2f} s: {one.kind}: {one.outcome}", file=sys.stderr)
    bench.add("upgrade: slowest", max(one.end - one.start for one in swap))
    bench.add("upgrade: etcd", longest_gap(end for end in asking.writes() if end < watch.exchanged))
    bench.add("upgrade: slice", watch.emptiest)
    bench.add("upgrade: etcd", restart_of_etcd(bench), floor=True)
    run(bench.plinth, "init")
    bench.add("reset of an upgraded one", timed(bench.plinth, "reset", "--force"))


class Client:
    """client.py at work, from a second before the body to its end; afterwards what became of each request."""

    def __init__(self, log):
        self.log, self.asked = log, []

    def __enter__(self):
        command = [sys.executable, "-B", client.__file__, self.log]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        time.sleep(1)
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        if self.process.wait(host.LIMIT) != 0:
            raise BenchError("the client failed")
        self.asked = [Asked(line) for line in self.log.read_text(encoding="utf-8").splitlines()]

    def writes(self):
        return sorted(one.end for one in self.asked if one.good and one.kind == "create")


class Asked:
    """A line of the client."""

    def __init__(self, line):
        start, end, self.kind, self.outcome = line.split()
        self.start, self.end = float(start), float(end)
        self.good = self.outcome.startswith("2")


class Watch:
    """Sees when the API server's manifest is exchanged, and how long nobody is listed as serving `kubernetes`."""

    def __init__(self):
        self.exchanged, self.emptiest, self.ended = None, 0.0, False
        self.before = API_SERVER.read_bytes()
        self.thread = threading.Thread(target=self.look)
        self.thread.start()

    def look(self):
        server, empty_since = host.api("admin.conf"), None
        while not self.ended:
            now = time.monotonic()
            if self.exchanged is None and API_SERVER.exists() and API_SERVER.read_bytes() != self.before:
                self.exchanged = now
            answer = server.request("GET", SLICE)
            if answer is not None and answer[0] == 200:
                if empty_since is not None:
                    self.emptiest = max(self.emptiest, time.monotonic() - empty_since)
                if serving(json.loads(answer[1])):
                    empty_since = None
                elif empty_since is None:
                    empty_since = now
            time.sleep(0.02)

    def end(self):
        self.ended = True
        self.thread.join()


def serving(endpoints):
    ready = (one for one in endpoints.get("endpoints") or [] if one.get("conditions", {}).get("ready", True))
    return any(one["addresses"] for one in ready)


def longest_gap(moments):
    moments = list(moments)
    return max((later - earlier for earlier, later in zip(moments, moments[1:])), default=0.0)


def restart_of_etcd(bench):
    """The floor: the longest time without a write while plain Docker stops etcd and starts it again, beside the same API
    server, and without an agent that would be quicker."""
    os.kill(bench.agent_pid(), signal.SIGTERM)
    etcd = host.of_component("etcd")
    with Client(bench.scratch / "floor.log") as asking:
        run("docker", "stop", "--time", "30", etcd)
        run("docker", "start", etcd)
        time.sleep(AFTERWARDS)
    return longest_gap(asking.writes())
