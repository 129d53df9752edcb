"""What an upgrade costs, and what clients notice of it.

One round is one control plane of the release before: init → a flag of the scheduler → upgrade, with a client, a look
at who serves the `kubernetes` Service, and the same exchange of etcd by plain Docker beside it → reset.
"""

import base64
import json
import pathlib
import subprocess
import sys
import threading
import time

import client
import host
from host import KUBERNETES, BenchError, ControlPlane, run, timed

OLD, NEW = "v1.36.3", "v1.37.1"
OLD_ETCD, NEW_ETCD = "registry.k8s.io/etcd:3.6.8-0", "registry.k8s.io/etcd:3.7.0-0"
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

    log = scratch / "client.log"
    asking = subprocess.Popen(
        [sys.executable, "-B", client.__file__, log], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    watch = Watch()
    time.sleep(1)
    start = time.monotonic()
    bench.add("upgrade", timed(bench.plinth, "init", "--kubernetes-version", NEW))
    time.sleep(AFTERWARDS)
    asking.stdin.close()
    if asking.wait(host.LIMIT) != 0:
        raise BenchError("the client failed")
    watch.end()
    if watch.exchanged is None:
        raise BenchError("the manifest of kube-apiserver was not exchanged")
    asked = [Asked(line) for line in log.read_text(encoding="utf-8").splitlines()]
    swap = [one for one in asked if one.start >= watch.exchanged]
    bench.add("upgrade: asked", len(swap))
    bench.add("upgrade: failed", sum(not one.good for one in swap))
    for one in swap:
        if not one.good:
            print(f"    {one.start - watch.exchanged:.2f} s: {one.kind}: {one.outcome}", file=sys.stderr)
    bench.add("upgrade: slowest", max(one.end - one.start for one in swap))
    writes = sorted(one.end for one in asked if one.good and one.kind == "create" and start <= one.end)
    before = [end for end in writes if end < watch.exchanged]
    bench.add("upgrade: etcd", longest_gap(before))
    bench.add("upgrade: slice", watch.emptiest)
    bench.add("reset of an upgraded one", timed(bench.plinth, "reset", "--force"))
    bench.add("upgrade: etcd", exchange_of_etcd(scratch), floor=True)


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
                if serving(json.loads(answer[1])):
                    empty_since = None
                else:
                    empty_since = empty_since or now
                    self.emptiest = max(self.emptiest, time.monotonic() - empty_since)
            time.sleep(0.02)

    def end(self):
        self.ended = True
        self.thread.join()


def serving(endpoints):
    ready = (one for one in endpoints.get("endpoints") or [] if one.get("conditions", {}).get("ready", True))
    return any(one["addresses"] for one in ready)


def longest_gap(moments):
    return max((later - earlier for earlier, later in zip(moments, moments[1:])), default=0.0)


def exchange_of_etcd(scratch):
    """The floor: the longest time without a write while plain Docker stops the old etcd and starts the new one."""
    data = scratch / "etcd"
    data.mkdir(mode=0o700)
    flags = [
        "--data-dir=/data",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--feature-gates=InitialCorruptCheck=true",
        "--snapshot-count=10000",
    ]

    def start(image):
        command = ("docker", "run", "--detach", "--net", "host", "--name", "bench-etcd", "--volume", f"{data}:/data")
        run(*command, image, "etcd", *flags)

    start(OLD_ETCD)
    server, moments, ended = host.Endpoint("127.0.0.1", 2379), [], threading.Event()
    value = base64.b64encode(b"bench").decode()

    def put():
        answer = server.request("POST", "/v3/kv/put", {"key": value, "value": value})
        return answer is not None and answer[0] == 200

    def write():
        while not ended.is_set():
            if put():
                moments.append(time.monotonic())
            time.sleep(0.02)

    host.until(put, "etcd accepts a write", period=0.02)
    writer = threading.Thread(target=write)
    writer.start()
    time.sleep(AFTERWARDS)
    run("docker", "stop", "--time", "30", "bench-etcd")
    run("docker", "rm", "bench-etcd")
    stopped = time.monotonic()
    start(NEW_ETCD)
    host.until(lambda: moments[-1] > stopped, "the new etcd accepts a write", period=0.02)
    ended.set()
    writer.join()
    run("docker", "rm", "--force", "--volumes", "bench-etcd")
    run("rm", "-r", str(data))
    return longest_gap(moments)
