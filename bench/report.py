"""The figures as Markdown: medians over the runs, and the goals beside what was reached.

Machines are noisy and shared: only ratios within one run count, so a goal is judged by a ratio
of medians of runs that took turns.
"""

import statistics

import archive
import base
from contestants import DEFAULT, PEER, SAME_LEVEL
from measure import percentile

MIB = 1 << 20


def median(costs, of):
    return statistics.median(of(cost) for cost in costs)


def calls(costs):
    return [seconds for cost in costs for seconds in cost.calls]


def rate(costs, segments):
    return segments / median(costs, lambda cost: cost.seconds)


def processor(costs, segments):
    return median(costs, lambda cost: cost.processor) / segments


def milliseconds(seconds):
    return f"{seconds * 1000:.1f} ms"


def contest(title, costs, segments, stored=False):
    """One table of a contest: a line for each contestant."""
    print(f"### {title}\n")
    print("| | segments/s | lowest to highest | processor per segment | call, median | call, p95 "
          "| largest process | all together |" + (" stored |" if stored else ""))
    print("|---|---|---|---|---|---|---|---|" + ("---|" if stored else ""))
    for name, runs in costs.items():
        rates = sorted(segments / cost.seconds for cost in runs)
        each = calls(runs)
        print(f"| {name} | {rate(runs, segments):.1f} | {rates[0]:.1f} to {rates[-1]:.1f} "
              f"| {milliseconds(processor(runs, segments))} "
              f"| {milliseconds(statistics.median(each)) if each else ''} "
              f"| {milliseconds(percentile(each, 0.95)) if each else ''} "
              f"| {max(cost.largest for cost in runs) / MIB:.0f} MiB "
              f"| {max(cost.together for cost in runs) / MIB:.0f} MiB |"
              + (f" {runs[-1].notes['stored'] / MIB:.0f} MiB |" if stored else ""))
    for name, runs in costs.items():
        failures = sum(cost.notes.get("failures", 0) for cost in runs)
        lingered = max(cost.lingered for cost in runs)
        if failures:
            print(f"\n{name}: {failures} calls failed and were repeated.")
        if lingered > 0.5:
            print(f"\n{name}: processes went on for up to {lingered:.1f} s behind the last call.")
    print()


def paced(title, costs):
    """Calls with pauses between them: each segment had time to be done ahead."""
    print(f"### {title}\n")
    print("| | call, median | p95 | slowest |\n|---|---|---|---|")
    for name, cost in costs.items():
        print(f"| {name} | {milliseconds(statistics.median(cost.calls))} "
              f"| {milliseconds(percentile(cost.calls, 0.95))} "
              f"| {milliseconds(max(cost.calls))} |")
    print()


def recoveries(costs, segments):
    print(f"### A PostgreSQL server recovers {segments} segments\n")
    print("| restore_command | start to end of replay, median | lowest to highest "
          "| start to open |\n|---|---|---|---|")
    for name, runs in costs.items():
        replayed = sorted(run["replayed"] for run in runs)
        print(f"| {name} | {statistics.median(replayed):.2f} s "
              f"| {replayed[0]:.2f} to {replayed[-1]:.2f} s "
              f"| {statistics.median(run['opened'] for run in runs):.2f} s |")
    print()


class Goals:
    """Collects the goals that a run could judge, and prints them as a table."""

    def __init__(self):
        self.rows = []

    def at_least(self, what, goal, reached, unit=""):
        self.rows.append((what, f"at least {goal:g}{unit}", reached, reached / goal, unit, reached >= goal))

    def at_most(self, what, goal, reached, unit=""):
        self.rows.append((what, f"at most {goal:g}{unit}", reached, reached / goal, unit, reached <= goal))

    def print(self):
        if not self.rows:
            return
        print("## Goals\n")
        print("| | goal | reached | reached / goal | met |\n|---|---|---|---|---|")
        for what, goal, reached, ratio, unit, met in self.rows:
            print(f"| {what} | {goal} | {reached:.2f}{unit} | {ratio:.2f} | {'yes' if met else 'no'} |")
        print()

    def archiving(self, where, costs, segments):
        ours = costs[SAME_LEVEL]
        if PEER in costs:
            self.at_least(f"archiving to {where}, level 3: rate over pgBackRest asynchronous",
                          1.5, rate(ours, segments) / rate(costs[PEER], segments))
        for name, level in [(SAME_LEVEL, ("-3",)), (DEFAULT, ("-1", "--zstd=mml=5"))]:
            two = archive.zstd_name(level, 2, False)
            single = archive.zstd_name(level, 1, True)
            if two not in costs:
                continue
            self.at_least(f"archiving to {where}: rate of {name} over two processors of zstd",
                          0.75, rate(costs[name], segments) / rate(costs[two], segments))
            self.at_most(f"archiving to {where}: processor time of {name} over zstd, a process each",
                         1.3, processor(costs[name], segments) / processor(costs[single], segments))
        for name in (SAME_LEVEL, DEFAULT):
            self.at_most(f"archiving to {where}: memory of {name}, all processes together",
                         64, max(max(c.largest, c.together) for c in costs[name]) / MIB, " MiB")

    def fetching(self, where, costs, segments):
        if PEER in costs:
            self.at_least(f"fetching from {where}: rate over pgBackRest asynchronous",
                          2, rate(costs[SAME_LEVEL], segments) / rate(costs[PEER], segments))

    def call_done_ahead(self, what, cost):
        self.at_most(f"{what}: a call whose segment is done already, median",
                     5, statistics.median(cost.calls) * 1000, " ms")

    def recovery(self, costs):
        of = lambda name: statistics.median(run["replayed"] for run in costs[name])
        self.at_most("a server's recovery over one with cp", 1.1, of(DEFAULT) / of("cp"))

    def base(self, where, turns, size):
        """Base backups: `size` is that of the data directory in bytes."""
        ours, ours_3 = base.SEAWALL, base.SEAWALL_3
        full, restored = turns.full, turns.restored
        peers = [name for name in full.costs if "Seawall" not in name and "limit" not in name]
        peer, limit = full.fastest(peers), full.fastest([n for n in full.costs if "limit" in n and "zstd -1" in n])
        if peer:
            self.at_most(f"full backup to {where}: time over the fastest peer's", 0.75, full.median(ours) / peer)
        limits = [(ours, limit), (ours_3, full.fastest([n for n in full.costs if "limit" in n and "zstd -3" in n]))]
        for name, limit in limits:
            if limit:
                self.at_most(f"full backup to {where}, {name}: time over tar and zstd", 1.3, full.median(name) / limit)
        peer = restored.fastest([base.REST_3, base.REST_1])
        if peer:
            self.at_most(f"restore from {where}: time over the fastest peer's", 0.85, restored.median(ours) / peer)
        if base.COPY in restored.costs:
            self.at_most(f"restore from {where}: time over cp -r and sync", 1.25,
                         restored.median(ours) / restored.median(base.COPY))
        for delta, place in ((turns.cold, "on disk"), (turns.warm, "in memory")):
            peer = delta.fastest([base.REST_3, base.REST_1])
            if peer:
                self.at_most(f"restore over an unchanged directory {place}, {where}: time over the fastest peer's",
                             1, delta.median(ours) / peer)
        self.at_most(f"incremental backup to {where}, nothing changed: seconds a 3 GB", 1,
                     turns.same.median(ours) * 3e9 / size, " s")
        if turns.changed.sizes.get(ours):
            self.at_most(f"incremental backup to {where}, 1 % of the pages changed: size over the full one's",
                         0.03, turns.changed.sizes[ours] / full.sizes[ours])
        self.at_most(f"restore of a chain of {base.LINKS} from {where}: time over a full backup's", 1.15,
                     turns.chain.median(ours) / restored.median(ours))
        worst = max(max(cost.largest, cost.together) for results in turns.all()
                    for cost in results.costs[ours])
        self.at_most(f"base backups and restores, {where}: memory of Seawall", 256, worst / MIB, " MiB")
