"""Measures plinth in a sandbox; scripts/bench.sh is its door."""

import argparse
import json
import os
import statistics
import sys

import figures
import upgrade
from host import BenchError, ControlPlane

MIB = 1024 * 1024


class Row:
    """A line of the table. A goal is a bound of the median, or of its ratio to the floor's, or of every sample."""

    def __init__(self, figure, title, unit="s", goal=None, ratio_goal=None, always=False):
        self.figure, self.title, self.unit, self.goal, self.ratio_goal = figure, title, unit, goal, ratio_goal
        self.always = always

    def result(self, samples, floors):
        values, floor = samples[self.figure], floors.get(self.figure)
        median = statistics.median(values)
        ratio = relation(values, floor) if floor else None
        met = None
        if self.ratio_goal is not None:
            met = ratio <= self.ratio_goal
        elif self.goal is not None:
            met = (max(values) if self.always else median) <= self.goal
        return {
            "figure": self.figure,
            "title": self.title,
            "unit": self.unit,
            "median": median,
            "samples": values,
            "floor": statistics.median(floor) if floor else None,
            "floorSamples": floor,
            "ratio": ratio,
            "goal": self.goal,
            "ratioGoal": self.ratio_goal,
            "met": met,
        }


def relation(values, floor):
    """Samples that were taken in turns are compared in pairs, so that a load that changes changes both."""
    if len(values) == len(floor):
        return statistics.median(value / beside for value, beside in zip(values, floor))
    return statistics.median(values) / statistics.median(floor)


def rows():
    yield Row("init", "init → all four healthy", ratio_goal=1.15)
    for component in ControlPlane.COMPONENTS:
        yield Row(f"init: {component}", f"  {component} healthy")
    yield Row("init: exit", "  init exits")
    yield Row("init: CPU", "  CPU time of init and agent")
    yield Row("no-op init", "init again, nothing to do", goal=1.0)
    yield Row("crash", "SIGKILL → new process, any component", goal=0.25)
    for component in ControlPlane.COMPONENTS:
        yield Row(f"crash: {component}", f"  {component}")
    for component in ControlPlane.COMPONENTS:
        yield Row(f"works again: {component}", f"  {component}: deployment → pod unschedulable")
    yield Row("pod", "manifest written → process runs", ratio_goal=1.5)
    yield Row("agent: RSS", "agent idle, RSS", "MiB", goal=20 * MIB)
    yield Row("agent: PSS", "agent idle, PSS", "MiB")
    yield Row("agent: CPU", "agent idle, share of a core", "%", goal=0.005)
    yield Row("crowd", f"{figures.CROWD} manifests written → all run")
    yield Row("crowd: pod", f"  one more pod beside {figures.CROWD}")
    yield Row("crowd: crash", f"  a crash beside {figures.CROWD}", goal=0.25)
    yield Row("crowd: memory", "  agent: PSS per pod", "KiB")
    yield Row("crowd: CPU", f"  agent idle beside {figures.CROWD}, share of a core", "%")
    yield Row("crowd: removed", f"  {figures.CROWD} manifests removed → all gone")
    yield Row("flag", "init with another flag of the scheduler", goal=4.0)
    yield Row("upgrade", f"init from {upgrade.OLD} to {upgrade.NEW}", goal=20.0)
    yield Row("upgrade: failed", "  requests that failed while the API server was exchanged", unit="", goal=0, always=True)
    yield Row("upgrade: asked", "  of", unit="")
    yield Row("upgrade: slowest", "  the slowest of them")
    yield Row("upgrade: slice", "  nobody serves the kubernetes Service", goal=0.5, always=True)
    yield Row("upgrade: etcd", "  no write while etcd was exchanged (floor: docker stop, start)", ratio_goal=2.0)
    yield Row("reset of an upgraded one", "reset after an upgrade", goal=5.0)
    yield Row("reset", "reset (floor: docker stop and rm)")
    yield Row("binary", "release binary", "MiB", goal=20 * MIB)


def show(value, unit):
    if unit == "MiB":
        return f"{value / MIB:.1f} MiB"
    if unit == "KiB":
        return f"{value / 1024:.0f} KiB"
    if unit == "%":
        return f"{value * 100:.2f} %"
    if not unit:
        return f"{value:.0f}"
    return f"{value:.3f} s"


def line(row):
    unit, samples = row["unit"], row["samples"]
    measured = show(row["median"], unit)
    if len(samples) > 1:
        measured += f" ({show(min(samples), unit).split()[0]}–{show(max(samples), unit).split()[0]})"
    goal = ""
    if row["ratioGoal"] is not None:
        goal = f"≤ {row['ratioGoal']:.2f} ×"
    elif row["goal"] is not None:
        goal = f"≤ {show(row['goal'], unit)}"
    return (
        row["title"],
        measured,
        "" if row["floor"] is None else show(row["floor"], unit),
        "" if row["ratio"] is None else f"{row['ratio']:.2f} ×",
        goal,
        {None: "", True: "yes", False: "NO"}[row["met"]],
    )


def table(results):
    lines = [("figure", "measured (min–max)", "floor", "ratio", "goal", "met"), *map(line, results)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join(" | ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip() for cells in lines)


def main():
    parser = argparse.ArgumentParser(prog="bench.sh")
    parser.add_argument("--binary", required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--only", type=lambda text: text.split(","), default=figures.PARTS)
    parser.add_argument("--gate", action="store_true")
    parser.add_argument("-o", dest="output", choices=("text", "json"), default="text")
    options = parser.parse_args()
    rounds = options.rounds or (2 if options.quick else 5)
    os.environ["CI"] = "1"
    idle = 10 if options.quick else 30
    installed = figures.install(options.binary)
    bench = figures.Bench(installed, idle, os.environ["PLINTH_SANDBOX_DIR"], options.only)
    bench.add("binary", os.path.getsize(options.binary))
    try:
        for number in range(1, rounds + 1):
            print(f"==> round {number} of {rounds} (load {os.getloadavg()[0]:.1f})", file=sys.stderr)
            bench.round()
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    measured = (row for row in rows() if row.figure in bench.samples)
    results = [row.result(bench.samples, bench.floors) for row in measured]
    if options.output == "json":
        print(json.dumps({"rounds": rounds, "figures": results}, indent=2))
    else:
        print(f"medians of {rounds} rounds\n\n{table(results)}")
    return 1 if options.gate and any(row["met"] is False for row in results) else 0


if __name__ == "__main__":
    sys.exit(main())
