"""The figures: what each one is and how it is sampled.

One round is one fresh control plane, and one plain one beside it:
    plinth init → init again → idle → pods → crashes → plinth reset → the same four containers by docker run
"""

import json
import os
import pathlib
import resource
import shutil
import subprocess
import time

import host
from host import KUBERNETES, BenchError, ControlPlane, new_process, pids, program, run, timed

BUSYBOX = "plinth-test/busybox:1"
MANIFESTS = KUBERNETES / "manifests"
ETCD_DATA = pathlib.Path("/var/lib/etcd")
PARTS = ("agent", "pods", "crashes")
"""Parts of a round that can be left out."""
PODS = 4
"""Pods measured per round, and containers beside them."""


def install(binary):
    """Puts plinth where an administrator would have it, so that `init` need not."""
    installed = "/usr/local/bin/plinth"
    if os.path.lexists(installed):
        os.remove(installed)
    shutil.copy(binary, installed)
    return installed


class Bench:
    """Collects samples, in seconds, bytes or shares of a core."""

    def __init__(self, plinth, idle, scratch, only):
        self.plinth, self.idle, self.scratch, self.only = plinth, idle, pathlib.Path(scratch), only
        self.samples = {}
        self.floors = {}
        self.serial = 0

    def add(self, figure, value, floor=False):
        (self.floors if floor else self.samples).setdefault(figure, []).append(value)

    def round(self):
        self.init()
        self.add("no-op init", timed(self.plinth, "init"))
        if "agent" in self.only:
            self.agent()
        if "pods" in self.only:
            for _ in range(PODS):
                self.pod()
                self.container()
        if "crashes" in self.only:
            for component in ControlPlane.COMPONENTS:
                self.crash(component)
            self.crash_of_a_container()
        plain = self.keep()
        settle()
        self.add("reset", timed(self.plinth, "reset", "--force"))
        self.floor(plain)

    def init(self):
        """From the start of the command until the last component is healthy as seen from outside; and until the
        command ends, which is after it has made the RBAC binding and its record."""
        settle()
        spent, start = children_cpu_seconds(), time.monotonic()
        with open(self.scratch / "init.log", "w", encoding="utf-8") as log:
            command = subprocess.Popen([self.plinth, "init"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            times = ControlPlane().await_healthy()
            code = command.wait(host.LIMIT)
        self.add("init: exit", time.monotonic() - start)
        if code != 0:
            raise BenchError(f"plinth init: exit code {code}\n{(self.scratch / 'init.log').read_text()}")
        self.add("init", max(times.values()) - start)
        for component, at in times.items():
            self.add(f"init: {component}", at - start)
        self.add("init: CPU", children_cpu_seconds() - spent + host.cpu_seconds(self.agent_pid()))

    def floor(self, plain):
        """The same four containers by plain `docker run`, with the certificates of the round ready: etcd and API
        server at once, controller manager and scheduler when the API server is ready. Ends with taking them away."""
        shutil.copytree(self.scratch / "kubernetes", KUBERNETES, dirs_exist_ok=True)
        ETCD_DATA.mkdir(mode=0o700, exist_ok=True)
        commands = {name: host.run_command(f"bench-{name}", plain[name]) for name in ControlPlane.COMPONENTS}
        etcd, api, manager, scheduler = ControlPlane.COMPONENTS
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        plane = ControlPlane()
        settle()
        start = time.monotonic()
        running = [subprocess.Popen(commands[name], **quiet) for name in (etcd, api)]
        times = plane.await_healthy((etcd, api))
        running += [subprocess.Popen(commands[name], **quiet) for name in (manager, scheduler)]
        times |= plane.await_healthy((manager, scheduler))
        self.add("init", max(times.values()) - start, floor=True)
        for component, at in times.items():
            self.add(f"init: {component}", at - start, floor=True)
        if any(command.wait(host.LIMIT) != 0 for command in running):
            raise BenchError("docker run failed")
        settle()
        names = [f"bench-{name}" for name in ControlPlane.COMPONENTS]
        start = time.monotonic()
        # Without etcd the API server would use up its whole grace.
        for group in (names[1:], names[:1]):
            run("docker", "stop", "--time", "30", *group)
        run("docker", "rm", *names)
        self.add("reset", time.monotonic() - start, floor=True)
        shutil.rmtree(KUBERNETES)
        shutil.rmtree(ETCD_DATA)

    def keep(self):
        """Keeps what the floor needs: certificates, kubeconfigs, and the containers' settings by component."""
        copy = self.scratch / "kubernetes"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(KUBERNETES, copy, ignore=shutil.ignore_patterns("manifests"))
        containers = host.inspect(host.container_ids())
        return {container["Config"]["Labels"].get("io.kubernetes.container.name"): container for container in containers}

    def agent_pid(self):
        pid = host.process(lambda argv: argv[:2] == [self.plinth, "agent"])
        if pid is None:
            raise BenchError("no agent runs")
        return pid

    def agent(self):
        """Memory and CPU of the agent with the four pods and nothing else to do."""
        pid = self.agent_pid()
        time.sleep(5)
        before, start = host.cpu_seconds(pid), time.monotonic()
        time.sleep(self.idle)
        self.add("agent: CPU", (host.cpu_seconds(pid) - before) / (time.monotonic() - start))
        resident, proportional = host.memory(pid)
        self.add("agent: RSS", resident)
        self.add("agent: PSS", proportional)

    def sleeper(self):
        """Arguments of a program that no other process has."""
        self.serial += 1
        return ["sleep", str(1_000_000_000 + self.serial)]

    def pod(self):
        """From the rename that puts a manifest into the directory until its container's program runs."""
        argv = self.sleeper()
        name = f"bench-{self.serial}"
        container = {"name": "c", "image": BUSYBOX, "command": argv}
        metadata = {"name": name, "namespace": "default"}
        spec = {"hostNetwork": True, "terminationGracePeriodSeconds": 0, "containers": [container]}
        written = MANIFESTS / f".{name}.yaml"
        with open(written, "w", encoding="utf-8") as file:
            json.dump({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}, file)
        settle()
        known, start = pids(), time.monotonic()
        written.rename(MANIFESTS / f"{name}.yaml")
        new_process(known, lambda have: have == argv, f"the program of pod {name}")
        self.add("pod", time.monotonic() - start)
        (MANIFESTS / f"{name}.yaml").unlink()
        label = f"label=io.kubernetes.pod.name={name}-{os.uname().nodename}"
        host.until(lambda: not run("docker", "ps", "-aq", "--filter", label), f"pod {name} is removed", period=0.05)

    def container(self):
        """The pod's floor: from the start of `docker run` until the program runs."""
        argv = self.sleeper()
        settle()
        known, start = pids(), time.monotonic()
        command = docker_run(argv)
        new_process(known, lambda have: have == argv, "the program of docker run")
        self.add("pod", time.monotonic() - start, floor=True)
        run("docker", "rm", "--force", command.communicate()[0].strip())

    def crash(self, component):
        """From SIGKILL of the component's process until its successor runs; and until a deployment made through the
        API leads to a pod that the scheduler has looked at, which takes all four components."""
        settle()
        old = host.process(program(component))
        if old is None:
            raise BenchError(f"{component} does not run")
        known, start = pids(), time.monotonic()
        host.kill(old)
        new_process(known, program(component), f"{component} is started again")
        took = time.monotonic() - start
        self.add("crash", took)
        self.add(f"crash: {component}", took)
        self.serial += 1
        host.await_scheduling(f"bench-{self.serial}")
        self.add(f"works again: {component}", time.monotonic() - start)
        ControlPlane().await_healthy()

    def crash_of_a_container(self):
        """The crash's floor: SIGKILL, `docker wait` returns, `docker run` of another one."""
        argv = self.sleeper()
        known = pids()
        first = docker_run(argv).communicate()[0].strip()
        old = new_process(known, lambda have: have == argv, "the program of docker run")
        waiting = subprocess.Popen(["docker", "wait", first], stdout=subprocess.DEVNULL)
        settle()
        known, start = pids(), time.monotonic()
        host.kill(old)
        waiting.wait(host.LIMIT)
        second = docker_run(argv)
        new_process(known, lambda have: have == argv, "the program of docker run")
        self.add("crash", time.monotonic() - start, floor=True)
        run("docker", "rm", "--force", first, second.communicate()[0].strip())


def docker_run(argv):
    command = ["docker", "run", "--detach", "--net", "host", BUSYBOX, *argv]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)


def children_cpu_seconds():
    """CPU time of all commands that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def settle():
    """Lets earlier writes reach the disk, so that nobody pays for somebody else's."""
    os.sync()
    time.sleep(0.3)
