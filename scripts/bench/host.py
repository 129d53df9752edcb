"""What the bench sees and does on the host: processes, Docker, health endpoints, the API."""

import base64
import http.client
import json
import os
import pathlib
import re
import signal
import ssl
import subprocess
import tempfile
import time

KUBERNETES = pathlib.Path("/etc/kubernetes")
POD_DIRECTORIES = "/var/lib/plinth/pods/"
"""Hosts files and termination messages of pods: the agent's work, which plain containers do without."""
LIMIT = 60.0
"""Seconds after which something that is waited for is an error of the run."""


class BenchError(Exception):
    """The run cannot go on."""


def run(*command, check=True):
    """Runs `command` quietly and returns its stdout."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise BenchError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def timed(*command):
    """Seconds that `command` takes."""
    start = time.monotonic()
    run(*command)
    return time.monotonic() - start


def until(condition, what, period=0.002, limit=LIMIT):
    """Asks `condition` every `period` seconds until it gives something; returns that."""
    deadline = time.monotonic() + limit
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise BenchError(f"not within {limit:.0f} s: {what}")
        time.sleep(period)
    return found


# Processes


def pids():
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def _read(path):
    try:
        return pathlib.Path(path).read_bytes()
    except OSError:
        return b""


def arguments(pid):
    """argv of `pid`; empty for a zombie."""
    return [part.decode(errors="replace") for part in _read(f"/proc/{pid}/cmdline").split(b"\0")[:-1]]


def process(matches):
    """The pid of the process whose argv matches, or None."""
    return next((pid for pid in sorted(pids()) if matches(arguments(pid))), None)


def program(name):
    """Matches an argv of the program `name`: only after the container's init has become it."""
    return lambda argv: bool(argv) and os.path.basename(argv[0]) == name


def new_process(known, matches, what):
    """Waits for a process that matches and is not among `known`; returns its pid."""
    return until(lambda: next((pid for pid in pids() - known if matches(arguments(pid))), None), what)


def kill(pid):
    os.kill(pid, signal.SIGKILL)


def cpu_seconds(pid):
    """CPU time of all threads that `pid` has now, exact to the nanosecond."""
    threads = pathlib.Path(f"/proc/{pid}/task").iterdir()
    return sum(int(_read(thread / "schedstat").split()[0]) for thread in threads) / 1e9


def memory(pid):
    """(VmRSS, Pss) of `pid` in bytes."""

    def field(file, name):
        found = re.search(rf"^{name}:\s+(\d+) kB$", _read(f"/proc/{pid}/{file}").decode(), re.MULTILINE)
        return int(found[1]) * 1024

    return field("status", "VmRSS"), field("smaps_rollup", "Pss")


# Docker


def inspect(ids):
    return json.loads(run("docker", "inspect", *ids)) if ids else []


def of_component(name):
    """The id of the running container of a component."""
    found = run("docker", "ps", "--quiet", "--filter", f"label=io.kubernetes.container.name={name}").split()
    if len(found) != 1:
        raise BenchError(f"{len(found)} containers of {name} run")
    return found[0]


def container_ids():
    return run("docker", "ps", "--all", "--quiet", "--no-trunc").split()


def run_command(name, container):
    """`docker run` that gives a container of that name like `container` (as inspected)."""
    config, host = container["Config"], container["HostConfig"]
    program = (config["Entrypoint"] or []) + (config["Cmd"] or [])
    command = ["docker", "run", "--detach", "--net", "host", "--name", name]
    for bind in host["Binds"] or []:
        if not bind.startswith(POD_DIRECTORIES):
            command += ["--volume", bind]
    for mount in host.get("Mounts") or []:
        if mount["Source"].startswith(POD_DIRECTORIES):
            continue
        readonly = ",readonly" if mount.get("ReadOnly") else ""
        command += ["--mount", f"type={mount['Type']},source={mount['Source']},target={mount['Target']}{readonly}"]
    return [*command, "--entrypoint", program[0], config["Image"], *program[1:]]


# Health and the API


class Endpoint:
    """One HTTP endpoint, asked over a connection that is kept."""

    def __init__(self, host, port, tls=None):
        self.host, self.port, self.tls = host, port, tls
        self.connection = None

    def request(self, method, path, body=None):
        """(status, body), or None when nobody answers."""
        try:
            if self.connection is None:
                secure = {"context": self.tls()} if self.tls else {}
                kind = http.client.HTTPSConnection if self.tls else http.client.HTTPConnection
                self.connection = kind(self.host, self.port, timeout=2, **secure)
            headers = {"Content-Type": "application/json"} if body else {}
            self.connection.request(method, path, json.dumps(body) if body else None, headers)
            response = self.connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            self.connection = None
            return None

    def healthy(self, path):
        answer = self.request("GET", path)
        return answer is not None and answer[0] == 200


def unverified():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def identity(kubeconfig):
    """A TLS context with the client certificate of a kubeconfig; OSError while that is not there."""
    text = (KUBERNETES / kubeconfig).read_text(encoding="utf-8")
    data = {key: base64.b64decode(value) for key, value in re.findall(r"([\w-]+)-data: (\S+)", text)}
    context = unverified()
    with tempfile.NamedTemporaryFile() as pem:
        pem.write(data["client-certificate"] + b"\n" + data["client-key"])
        pem.flush()
        context.load_cert_chain(pem.name)
    return context


def api(kubeconfig):
    return Endpoint("127.0.0.1", 6443, lambda: identity(kubeconfig))


class ControlPlane:
    """The four health endpoints, asked from outside and in the same way whoever started the components."""

    COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")

    def __init__(self):
        self.endpoints = {
            "etcd": (Endpoint("127.0.0.1", 2381), "/readyz"),
            "kube-apiserver": (api("super-admin.conf"), "/readyz"),
            "kube-controller-manager": (Endpoint("127.0.0.1", 10257, unverified), "/healthz"),
            "kube-scheduler": (Endpoint("127.0.0.1", 10259, unverified), "/readyz"),
        }

    def await_healthy(self, components=COMPONENTS):
        """Asks each of `components` every 10 ms until all have answered 200; returns when each first did."""
        times = {}

        def ask():
            for name in components:
                endpoint, path = self.endpoints[name]
                if name not in times and endpoint.healthy(path):
                    times[name] = time.monotonic()
            return len(times) == len(components)

        until(ask, f"healthy: {', '.join(components)}", period=0.01)
        return times


def await_scheduling(name):
    """Creates a deployment as the administrator and waits until a pod of it was found unschedulable, trying again
    while the API does not answer."""
    server = api("admin.conf")
    labels = {"app": name}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "none"}]}}
    deployment = {
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": labels}, "template": pod},
    }

    def created():
        answer = server.request("POST", "/apis/apps/v1/namespaces/default/deployments", deployment)
        return answer is not None and answer[0] in (201, 409)

    def unschedulable():
        answer = server.request("GET", f"/api/v1/namespaces/default/pods?labelSelector=app%3D{name}")
        if answer is None or answer[0] != 200:
            return False
        conditions = [c for pod in json.loads(answer[1])["items"] for c in pod["status"].get("conditions", [])]
        return any(c.get("reason") == "Unschedulable" for c in conditions)

    until(created, "a deployment can be created", period=0.01)
    until(unschedulable, "the deployment's pod is found unschedulable", period=0.01)
