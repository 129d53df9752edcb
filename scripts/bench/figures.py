"""The figures: what each one is and how it is sampled.

One round is one fresh control plane, and one plain one beside it:
    plinth init → init again → idle → pods → crashes → a crowd of pods → plinth reset → the same four containers by
    docker run → an upgrade (upgrade.py)
"""

import concurrent.futures
import json
import os
import pathlib
import resource
import shutil
import subprocess
import time

import host
import upgrade
from host import KUBERNETES, BenchError, ControlPlane, new_process, pids, program, run, timed

BUSYBOX = "plinth-test/busybox:1"
MANIFESTS = KUBERNETES / "manifests"
ETCD_DATA = pathlib.Path("/var/lib/etcd")
PARTS = ("agent", "pods", "crashes", "crowd", "upgrade")
"""Parts of a round that can be left out."""
PODS = 4
"""Pods measured per round, and containers beside them."""
CROWD = 60
"""Pods beside the control plane's four, for what each one costs."""
AT_ONCE = 8
"""How many `docker run` make the crowd's floor; more are no faster."""


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
        if "crowd" in self.only:
            self.crowd()
        plain = self.keep()
        settle()
        self.add("reset", timed(self.plinth, "reset", "--force"))
        self.floor(plain)
        if "upgrade" in self.only:
            upgrade.measure(self)

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
        cpu, (resident, proportional) = self.idle_agent()
        self.add("agent: CPU", cpu)
        self.add("agent: RSS", resident)
        self.add("agent: PSS", proportional)

    def idle_agent(self):
        """Share of a core, and memory, of an agent that has nothing to do."""
        pid = self.agent_pid()
        # Threads that only waited for the disk end after ten seconds, and their time with them.
        time.sleep(12)
        before, start = host.cpu_seconds(pid), time.monotonic()
        time.sleep(self.idle)
        return (host.cpu_seconds(pid) - before) / (time.monotonic() - start), host.memory(pid)

    def sleeper(self):
        """Arguments of a program that no other process has."""
        self.serial += 1
        return ["sleep", str(1_000_000_000 + self.serial)]

    def pod(self):
        """From the rename that puts a manifest into the directory until its container's program runs."""
        took, manifest = self.new_pod()
        self.add("pod", took)
        remove([manifest])

    def new_pod(self):
        """Makes a pod; from the rename until its program runs, and its manifest."""
        argv = self.sleeper()
        written = self.write_pod(argv)
        settle()
        known, start = pids(), time.monotonic()
        manifest = publish(written)
        new_process(known, lambda have: have == argv, f"the program of {manifest}")
        return time.monotonic() - start, manifest

    def write_pod(self, argv):
        """Writes a manifest where it does not count yet."""
        name = f"bench-{self.serial}"
        container = {"name": "c", "image": BUSYBOX, "command": argv}
        metadata = {"name": name, "namespace": "default"}
        spec = {"hostNetwork": True, "terminationGracePeriodSeconds": 0, "containers": [container]}
        written = MANIFESTS / f".{name}.yaml"
        with open(written, "w", encoding="utf-8") as file:
            json.dump({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}, file)
        return written

    def crowd(self):
        """Sixty pods at once, what the agent needs for them, one more pod and one crash beside them, and their end."""
        _, before = host.memory(self.agent_pid())
        programs, written = [], []
        for _ in range(CROWD):
            programs.append(self.sleeper())
            written.append(self.write_pod(programs[-1]))
        settle()
        start = time.monotonic()
        manifests = [publish(path) for path in written]
        await_programs(programs)
        self.add("crowd", time.monotonic() - start)
        cpu, (_, proportional) = self.idle_agent()
        self.add("crowd: CPU", cpu)
        self.add("crowd: memory", (proportional - before) / CROWD)
        for _ in range(PODS):
            took, manifest = self.new_pod()
            self.add("crowd: pod", took)
            remove([manifest])
        for argv in programs[:PODS]:
            settle()
            known, start = pids(), time.monotonic()
            host.kill(host.process(lambda have: have == argv))
            new_process(known, lambda have: have == argv, "the program is started again")
            self.add("crowd: crash", time.monotonic() - start)
        start = time.monotonic()
        remove(manifests)
        self.add("crowd: removed", time.monotonic() - start)
        self.crowd_of_containers()

    def crowd_of_containers(self):
        """The crowd's floor: as many `docker run`, some at a time."""
        programs = [self.sleeper() for _ in range(CROWD)]
        settle()
        start = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            ids = list(pool.map(lambda argv: docker_run(argv).communicate()[0].strip(), programs))
        await_programs(programs)
        self.add("crowd", time.monotonic() - start, floor=True)
        start = time.monotonic()
        # The least grace of a pod, which `sleep` as the first process uses up.
        run("docker", "stop", "--time", "2", *ids)
        run("docker", "rm", *ids)
        self.add("crowd: removed", time.monotonic() - start, floor=True)

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


def publish(written):
    """Renames a manifest into its place; returns that."""
    return written.rename(written.with_name(written.name.removeprefix(".")))


def remove(manifests):
    """Removes the manifests and waits until their containers are gone."""
    for manifest in manifests:
        manifest.unlink()
    names = {f"{manifest.stem}-{os.uname().nodename}" for manifest in manifests}
    listed = ("docker", "ps", "--all", "--format", '{{.Label "io.kubernetes.pod.name"}}')
    host.until(lambda: names.isdisjoint(run(*listed).split()), "the pods are removed", period=0.05)


def await_programs(programs):
    """Waits until each of these runs, by its arguments."""
    missing = {tuple(argv) for argv in programs}
    host.until(lambda: missing <= {tuple(host.arguments(pid)) for pid in pids()}, "all programs run", period=0.02)


def children_cpu_seconds():
    """CPU time of all commands that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def settle():
    """Lets earlier writes reach the disk, so that nobody pays for somebody else's."""
    os.sync()
    time.sleep(0.3)
