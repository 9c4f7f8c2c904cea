"""Every fused operation on the GPU, forward and backward, at the Conformers' shapes, beside PyTorch and beside what the card can do.

    python -m benchmarks.gpu_kernels [--only conv2d ...] [--configs cifar-micro:512:32 ...] [--precision float32] [--rounds 3] [--resume] [--quick]

The cases are those of `op_cases.py`: every call of a training step of the first configuration; of the others the largest call of each operation.
Both sides take turns in one run; an operation is called on inputs that the cache does not hold, or is marked "cache" (`gpu_sides.py`). What it must
do is counted in `gpu_counts.py`; what the card can do is measured in `gpu_ceilings.py`, in the same run, and is in every row. A pass then reaches so
many percent of its ceiling: of the speed of copying memory, or of cuBLAS's products, whichever it must wait for. What is read a second time counts
only as far as it exceeds the L2 cache; the share with each array counted once, and that with every pass, stand beside. The list of memory-bound
passes below 70 % ends the output.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

import minigrad
from benchmarks import files, gpu, gpu_ceilings, gpu_networks, gpu_sides, gpu_updates, op_cases
from benchmarks.gpu_counts import BACKWARD, FORWARD, NAMES, UPDATES, Work, footprint, work_of
from benchmarks.sides import failure

NAME = "gpu_kernels"
CONFIGS = ["cifar-micro:512:32", "cifar-small:512:32", "tiny-patch16:64:224"]
ENOUGH = 0.7  # of the speed of copying memory
TOLERANCE = {"float32": 1e-4, "tf32": 5e-3}  # of the difference of both sides, relative to the norm
MILLISECONDS = 4.0  # that a turn measures, at least three launches


def cases_of(configs: Sequence[str], only: Iterable[str] | None = None) -> list[dict]:
    """What is measured. configs: "name:batch:size"."""
    cases: list[dict] = []
    for number, config in enumerate(configs):
        name, batch, size = config.split(":")
        found = op_cases.cases_of(name, int(batch), int(size))
        if number:  # of the other networks the largest call of each operation
            largest = {}
            for case in found:
                if case["op"] not in largest or op_cases.least_bytes(case) > op_cases.least_bytes(largest[case["op"]]):
                    largest[case["op"]] = case
            found = list(largest.values())
        cases += [{**case, "size": int(size)} for case in found]
        if number == len(configs) - 1:  # the largest network: its parameters do not fit into the cache
            cases += gpu_updates.cases_of(name, int(batch), int(size))
    return [case for case in cases if not only or case["op"] in only]


def measured(case: dict, rounds: int, card: dict) -> list[dict]:
    """A row for each pass: samples in milliseconds of a call, of both sides, taken in turns. card: see `gpu_ceilings.of_card`."""
    update, cache = case["op"] in UPDATES, card["l2_bytes"]
    sides: dict[str, gpu_sides.Side] = {}
    failed: dict[str, str] = {}
    data, preparing = None, gpu_updates.sides(case) if update else {"minigrad": gpu_sides.our_side, "torch": gpu_sides.torch_side}
    for name, prepare in preparing.items():
        try:
            data = data or (None if update else gpu_sides.Data(case, gpu_sides.copies_of(case, cache)))
            side = prepare(data)
            gpu.synchronise()  # what it has done wrong is told of here
            sides[name] = side
        except Exception as error:  # the other side, and the other cases, are still worth measuring
            failed[name] = failure(error)
    rows = []
    for which, work in work_of(case).items():
        timed = {name: side.passes[which] for name, side in sides.items() if which in side.passes}
        samples: dict[str, list[float]] = {name: [] for name in timed}
        for _ in range(rounds):
            for name, what in timed.items():
                if name in failed:
                    continue
                try:
                    samples[name] += [ms / what.calls for ms in enough(what.launch)]
                except Exception as error:
                    failed[name] = failure(error)
        samples = {name: each for name, each in samples.items() if name not in failed}
        copies = len(data.inputs) if data else 1
        held = copies * footprint(case) < gpu_sides.CACHES * cache
        row = {"case": case, "pass": which, **work._asdict(), "copies": copies, "in_cache": held, "card": card, "ms": samples}
        row["methods"] = {name: what.method for name, what in timed.items()}
        if which == FORWARD and len(samples) == 2:
            try:
                row["differences"] = gpu_sides.differences(sides["minigrad"], sides["torch"])
            except Exception as error:
                failed["comparison"] = failure(error)
        rows.append({**row, "failed": failed} if failed else row)
    return rows


def enough(launch: Callable[[], Any]) -> list[float]:
    """Milliseconds of launches one after the other, the first left out: as many as `MILLISECONDS` hold, three to thirty."""
    (once,) = gpu.each_ms(launch, 1)
    return gpu.each_ms(launch, int(min(30, max(3, MILLISECONDS / max(once, 1e-3)))))


# --- what the samples say


def label(case: dict) -> str:
    """Operation, shapes, and what else tells it from others of its kind."""
    if case["op"] in UPDATES:
        return f"{case['op']} {case['config']}, {case['out'][0]:,} parameters"
    shapes = " ".join("x".join(map(str, given["shape"])) for given in case["inputs"] if given and len(given["shape"]) > 1)
    kept = ("stride", "relu", "groups", "kernel_size", "scale_factor")
    extra = "".join(f" {key}={case['values'][key]}" for key in kept if case["values"].get(key) not in (None, False, 1, (1, 1), [1, 1]))
    return (f"{case['op']} {shapes}".strip() + extra).replace("scaled_dot_product_attention", "attention")


def summary(row: dict) -> dict[str, Any]:
    """ours and theirs: milliseconds (None where it failed). bound: "memory", "products", or "cache": memory, so little that the cache may hold it.
    share: of the ceiling that ours reaches. least_share, moved_share: of the speed of copying, with each array counted once, and with every pass; the
    share of a memory-bound pass is between the two. gb_s, tflop_s.
    """
    work = Work(row["least"], row["moved"], row["flops"])
    bandwidth, rate, cache = (row["card"][key] for key in ("bytes_s", "flops_s", "l2_bytes"))
    ours, theirs = (median(row["ms"][name]) if row["ms"].get(name) else None for name in ("minigrad", "torch"))
    bound = work.bound(bandwidth, rate, cache)
    return {
        "ours": ours,
        "theirs": theirs,
        "bound": "cache" if bound == "memory" and row["in_cache"] else bound,
        "share": work.ideal_ms(bandwidth, rate, cache) / ours if ours else None,
        "least_share": 1e3 * work.least / bandwidth / ours if ours else None,
        "moved_share": 1e3 * work.moved / bandwidth / ours if ours else None,
        "gb_s": work.traffic(cache) / ours / 1e6 if ours else None,
        "tflop_s": work.flops / ours / 1e9 if ours and work.flops else None,
    }


def counted(found: dict, between: str = "-") -> str:
    """A summary's two other shares in percent, such as "47-70"; nothing where they are its share, or where it does not wait for memory."""
    least, moved = found["least_share"], found["moved_share"]
    return "" if least is None or least == moved or found["bound"] == "products" else f"{100 * least:.0f}{between}{100 * moved:.0f}"


def table_of(rows: list[dict]) -> str:
    cells = []
    for row in rows:
        found = summary(row)
        percent = "-" if found["share"] is None else f"{100 * found['share']:.0f} {found['bound'][:3]}"
        ours, theirs = (None if ms is None else 1e3 * ms for ms in (found["ours"], found["theirs"]))
        ratio = ours / theirs if ours and theirs else None
        name, count = f"{label(row['case'])} {row['pass'][:3]}", row["case"]["count"]
        cells.append([name, count, ours, theirs, ratio, found["gb_s"], found["tflop_s"], percent, counted(found)])
    return gpu.text_table(["operation", "calls", "us", "torch us", "ratio", "GB/s", "TFLOP/s", "% of bound", "once-every pass"], cells)


def judged(rows: list[dict]) -> list[tuple[dict, dict]]:
    """The memory-bound passes that were measured, with their summaries: those that the goal is about."""
    return [(row, what) for row in rows if (what := summary(row))["bound"] == "memory" and what["share"] is not None]


def exceptions(rows: list[dict]) -> list[tuple[dict, dict]]:
    """Those of `judged` below `ENOUGH` of the speed of copying; the one that loses most of a step first."""
    slow = [(row, what) for row, what in judged(rows) if what["share"] < ENOUGH]
    return sorted(slow, key=lambda pair: -pair[0]["case"]["count"] * pair[1]["ours"] * (1 - pair[1]["share"]))


def disagreeing(rows: list[dict], precision: str) -> list[tuple[dict, float]]:
    """The cases whose output or gradient differs from PyTorch's by more than `TOLERANCE`."""
    # max alone passes over a NaN that is not the first
    worst = [(row, max(row["differences"], key=lambda off: math.inf if math.isnan(off) else off)) for row in rows if row.get("differences")]
    return [(row, off) for row, off in worst if not off <= TOLERANCE[precision]]


def config_of(case: dict) -> str:
    """Which of --configs it belongs to."""
    return f"{case['config']}:{case['batch']}:{case['size']}"


def of_a_step(rows: list[dict], config: str) -> list[dict]:
    """Those of a training step of `config`, "name:batch:size"."""
    return [row for row in rows if config_of(row["case"]) == config and row["case"]["where"] == "training step"]


def sums(rows: list[dict], config: str) -> list[list[Any]]:
    """By operation, over the calls of a training step of `config`: ours and theirs in milliseconds, the ratio, and ours at the ceiling.

    What was not measured on both sides is in none of them: see `left_out`.
    """
    total: dict[str, list[float]] = {}
    for row in of_a_step(rows, config):
        case, found = row["case"], summary(row)
        if found["ours"] and found["theirs"]:
            of_op = total.setdefault(f"{case['op']} {row['pass']}", [0.0, 0.0, 0.0])
            for k, value in enumerate((found["ours"], found["theirs"], found["share"] * found["ours"])):
                of_op[k] += case["count"] * value
    ordered = sorted(total.items(), key=lambda item: -item[1][0])
    if ordered:
        ordered.append(("all of these", [sum(values[k] for values in total.values()) for k in range(3)]))
    return [[name, ours, theirs, ours / theirs, ideal] for name, (ours, theirs, ideal) in ordered]


def left_out(rows: list[dict], config: str, missing: Iterable[dict] = ()) -> list[str]:
    """Sentences that say what `sums` leaves out: passes where a side failed, and the cases in `missing`, which were not measured at all."""
    one_sided = [label(row["case"]) + f" {row['pass']}" for row in of_a_step(rows, config) if not all(map(row["ms"].get, ("minigrad", "torch")))]
    not_yet = len(of_a_step([{"case": case} for case in missing], config))
    measured_cases = len([row for row in of_a_step(rows, config) if row["pass"] == FORWARD])
    told = [f"Only {measured_cases} of {measured_cases + not_yet} cases have been measured."] if not_yet else []
    return told + ([f"Left out, since a side failed: {'; '.join(one_sided)}."] if one_sided else [])


def main(argv: list[str] | None = None) -> None:
    parser = gpu.resumable(gpu.arguments(__doc__))
    parser.add_argument("--configs", nargs="+", default=CONFIGS, metavar="NAME:BATCH:SIZE")
    parser.add_argument("--only", nargs="+", choices=[*NAMES, *UPDATES], metavar="OPERATION", help="these operations alone")
    parser.add_argument("--precision", choices=list(TOLERANCE), default="float32")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    options = parser.parse_args(argv)
    gpu.connect()
    if options.quick:
        name, _, size = options.configs[0].split(":")
        options.configs, options.rounds = [f"{name}:2:{size}"], 1
    found = json.loads(json.dumps(cases_of(options.configs, options.only)))  # as they are in the file, which has no tuples
    ceilings = gpu_ceilings.measure_ceilings(options.quick)
    gpu_networks.set_torch_precision(options.precision)
    card = gpu_ceilings.of_card(ceilings, options.precision, gpu.environment().get("l2_bytes", 0))  # the emulator has no cache
    how = {"precision": options.precision, "rounds": options.rounds}
    before = gpu.kept(NAME, options, options.precision, **how)
    # The file keeps what it has of other operations.
    only = sorted({*options.only, *(before.get("only") or [])}) if options.only and before.get("only", True) else None
    more = {"ceilings": ceilings, "only": only, **how}
    write = functools.partial(gpu.save, NAME, options=options, argv=argv, variant=options.precision, **more)
    cases = gpu.Cases(found, lambda row: row["case"], lambda _, rows: not any("failed" in row for row in rows), before, write)
    began = time.monotonic()
    with minigrad.precision(options.precision):
        for case in cases.left():
            cases.add(case, measured(case, options.rounds, card))
            gpu.free_memory()
    print(f"{len(found)} cases in {time.monotonic() - began:.0f} s", flush=True)
    files.told(cases.save())
    rows = cases.rows()
    print(gpu_ceilings.table_of(ceilings))
    print(table_of(rows))
    config = options.configs[0]
    if of_step := sums(rows, config):
        print(f"\n{config}, sums over a training step{', of ' + ', '.join(options.only) + ' alone' if options.only else ''}:")
        print(gpu.text_table(["operation", "ms", "torch ms", "ratio", "ms at the ceiling"], of_step))
        print("\n".join(left_out(rows, config)))
    slow = exceptions(rows)
    print(f"\nmemory-bound passes below {100 * ENOUGH:.0f} % of copying: {len(slow)} of {len(judged(rows))}")
    for row, what in slow:
        called = f"{row['case']['count']} times: {label(row['case'])} {row['pass']}"
        print(f"  {100 * what['share']:.0f} % {counted(what)}  {1e3 * what['ours']:.1f} us, {called}")
    for row, off in disagreeing(rows, options.precision):
        print(f"DIFFERENT from PyTorch by {off:.1e}: {label(row['case'])}")
    for row in rows:
        if row.get("failed") and row["pass"] != BACKWARD:
            print(f"FAILED: {label(row['case'])}: {row['failed']}")


if __name__ == "__main__":
    main()
