"""A client that never reuses a connection: 50 requests a second with admin.conf, gets and creates, each by itself.

    client.py FILE      writes a line per request to FILE: start, end (seconds of the monotonic clock), kind, outcome

Every request counts, whatever became of those before it. It ends with its stdin.
"""

import concurrent.futures
import http.client
import json
import os
import select
import sys
import time

import host

PER_SECOND = 50
LIMIT = 2.0
"""Seconds after which a request has failed."""
GROUP, PLURAL, KIND = "bench.plinth.dev", "marks", "Mark"
DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": f"{PLURAL}.{GROUP}"},
    "spec": {
        "group": GROUP,
        "scope": "Namespaced",
        "names": {"plural": PLURAL, "singular": "mark", "kind": KIND},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


def definition(server):
    """Makes the custom resource and waits until it can be listed."""
    host.until(
        lambda: (server.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", DEFINITION) or [0])[0]
        in (201, 409),
        "a custom resource can be defined",
        period=0.1,
    )
    path = f"/apis/{GROUP}/v1/namespaces/default/{PLURAL}"
    host.until(lambda: (server.request("GET", path) or [0])[0] == 200, "the custom resource is served", period=0.1)


def question(number):
    """What is asked by the request of this number: its kind, method, path and body."""
    name = f"bench-{os.getpid()}-{number}"
    match number % 4:
        case 0:
            body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
            return "create", "POST", "/api/v1/namespaces/default/configmaps", body
        case 1:
            return "get", "GET", "/api/v1/namespaces/kube-system", None
        case 2:
            body = {"apiVersion": f"{GROUP}/v1", "kind": KIND, "metadata": {"name": name}}
            return "create", "POST", f"/apis/{GROUP}/v1/namespaces/default/{PLURAL}", body
        case _:
            return "get", "GET", f"/apis/{GROUP}/v1/namespaces/default/{PLURAL}?limit=1", None


def ask(number, tls):
    kind, method, path, body = question(number)
    start = time.monotonic()
    try:
        connection = http.client.HTTPSConnection("127.0.0.1", 6443, timeout=LIMIT, context=tls)
        headers = {"Content-Type": "application/json"} if body else {}
        connection.request(method, path, json.dumps(body) if body else None, headers)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        outcome = str(answer.status)
    except (OSError, http.client.HTTPException) as error:
        outcome = type(error).__name__
    end = time.monotonic()
    return f"{start:.4f} {end:.4f} {kind} {outcome if end - start <= LIMIT else 'late'}\n"


def main():
    tls = host.identity("admin.conf")
    with open(sys.argv[1], "w", encoding="utf-8") as log, concurrent.futures.ThreadPoolExecutor(256) as pool:
        asked, start, number = [], time.monotonic(), 0
        ended = []
        while not ended:
            asked.append(pool.submit(ask, number, tls))
            number += 1
            pause = max(0.0, start + number / PER_SECOND - time.monotonic())
            ended, _, _ = select.select([sys.stdin], [], [], pause)
        log.writelines(one.result() for one in asked)


if __name__ == "__main__":
    main()
