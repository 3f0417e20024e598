"""Samples per second of a full training run, beside pythae, Pyro, normflows and a bare PyTorch loop.

    python -m benchmarks.training --data-root DATA/mnist

Every contender builds the same networks, sees the same images in the same batch size for the same number of
epochs, and runs in a process of its own. The contenders take turns (A B C A B C ...), so that a slow minute of
the machine falls on all of them; ratios are formed within a round and their median is reported.
"""

import argparse
import importlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import measure


@dataclass(frozen=True)
class Entry:
    """One contender: what it is called, where it lives, and with whom it is compared.

    Args:
        name: For `--only`.
        group: Contenders of one group train the same model.
        label: For the table.
        function: `module:function` under `benchmarks.peers`.
        module: What must be importable.
        role: `peer`, `ours`, or `bare`.
    """

    name: str
    group: str
    label: str
    function: str
    module: str
    role: str


GROUPS = {
    "vae": "Gaussian posterior, N(0, I) prior",
    "iaf": "Posterior through an IAF",
    "maf": "MAF prior",
    "planar": "Posterior through planar layers",
    "coupling": "Posterior through affine coupling layers",
}

ENTRIES = (
    Entry("bare", "vae", "bare PyTorch loop", "bare_loop:train_vae", "torch", "bare"),
    Entry("bare-fused", "vae", "bare loop, fused Adam", "bare_loop:train_vae_fused", "torch", "bare"),
    Entry(
        "bare-bf16",
        "vae",
        "bare loop, fused Adam, bfloat16",
        "bare_loop:train_vae_bfloat16",
        "torch",
        "bare",
    ),
    Entry("pythae-vae", "vae", "pythae `VAE`", "pythae_vae:train_vae", "pythae", "peer"),
    Entry("pythae-iaf", "iaf", "pythae `VAE_IAF`", "pythae_vae:train_iaf", "pythae", "peer"),
    Entry("pyro-maf", "maf", "Pyro, as its tutorial", "pyro_flow_prior:train_maf", "pyro", "peer"),
    Entry(
        "pyro-maf-tuned",
        "maf",
        "Pyro, logits and no checks",
        "pyro_flow_prior:train_maf_tuned",
        "pyro",
        "peer",
    ),
    Entry(
        "normflows-planar", "planar", "normflows `Planar`", "normflows_vae:train_planar", "normflows", "peer"
    ),
    Entry(
        "normflows-coupling",
        "coupling",
        "normflows `MaskedAffineFlow`",
        "normflows_vae:train_coupling",
        "normflows",
        "peer",
    ),
    *(
        Entry(
            f"ours-{group}{suffix}",
            group,
            f"**latentflows{words}**",
            f"latentflows_runs:train_{group}{ending}",
            "latentflows",
            "ours",
        )
        for group in GROUPS
        for suffix, words, ending in (("", "", ""), ("-bf16", ", bfloat16", "_bfloat16"))
    ),
)

EPOCHS = {"mnist": 2, "digits": 60}
QUICK_EPOCHS = {"mnist": 1, "digits": 10}
QUICK_IMAGES = {"mnist": 12_800, "digits": 1_792}

NOTES = """\
Samples per second count the images of all epochs over the seconds of the whole training call, its own
logging, checks and checkpoints included; excluded are imports, building the model, and a throwaway run over
one batch. `x fastest peer` is the median over the rounds of the ratio to that peer of the group which has
the highest median; `x bare` the same against the bare loop in float32. Peak memory is that of the process
(imports and data included); growth is what training added to it. The loss is the mean negative ELBO of the
last epoch in nats per image, to show that the same work is done.

Where the contenders differ:

- pythae takes the KL of its plain VAE in closed form, and so do the bare loop and latentflows in that group;
  everywhere else the KL is by Monte Carlo. pythae's decoder ends in probabilities, because its loss wants them.
- pythae and the examples of Pyro and normflows read through a `DataLoader`, image by image; the bare loop and
  latentflows index the tensor. The images are in memory for all.
- No flow sees x, as in pythae and normflows. normflows' `MaskedAffineFlow` runs two networks over all latents in
  each layer, latentflows' coupling one network from one half to the other: hence fewer parameters.
- latentflows bounds log-scales softly, looks at loss and gradient norm in every step, writes a run folder with log
  and checkpoint, and always takes Adam's fused kernel; the bare loop is shown with and without it.
- None of the peers has bfloat16 on a CPU (pythae switches its mixed precision off for this loss), so bfloat16 rows
  are held against the peers' float32. latentflows keeps the networks of IAF and MAF in float32 even then.
"""


def main() -> None:
    """Read the arguments and run, or be one worker."""
    arguments = _arguments()
    if arguments.worker:
        print(json.dumps(work(json.loads(arguments.worker))))
        return
    print(run(arguments))


def run(arguments: argparse.Namespace) -> Path:
    """Measure every contender that is installed and write the result file; returns its path."""
    load_average = measure.load_average()
    entries = installed(arguments.only)
    runs = []
    for size in arguments.sizes:
        for threads in arguments.threads:
            for repeat in range(arguments.repeats):
                for entry in entries:
                    runs.append(measured(entry, size, threads, repeat, arguments))
    body = [NOTES]
    for size in arguments.sizes:
        for threads in arguments.threads:
            body += section(runs, size, threads)
    facts = {"load_average": load_average, "quick": arguments.quick, "runs": runs}
    return measure.write("training-quick" if arguments.quick else "training", facts, body, arguments.out)


def installed(only: list[str] | None) -> list[Entry]:
    """The contenders asked for; one line for each that cannot run here."""
    chosen = [entry for entry in ENTRIES if not only or entry.name in only]
    for entry in chosen:
        if not measure.is_installed(entry.module):
            print(f"skipping {entry.name}: `{entry.module}` is not installed (benchmarks/requirements.txt)")
    return [entry for entry in chosen if measure.is_installed(entry.module)]


def measured(entry: Entry, size: str, threads: int, repeat: int, arguments: argparse.Namespace) -> dict:
    """One run of one contender in its own process."""
    task = {
        "function": entry.function,
        "size": size,
        "threads": threads,
        "seed": repeat,
        "epochs": (QUICK_EPOCHS if arguments.quick else EPOCHS)[size],
        "num_images": QUICK_IMAGES[size] if arguments.quick else None,
        "data_root": str(arguments.data_root) if arguments.data_root else None,
    }
    result = measure.in_own_process("benchmarks.training", task, threads)
    print(
        f"{size:7}{threads} thread(s)  round {repeat + 1}  {entry.name:20}"
        f"{result['samples_per_second']:10,.0f}/s  loss {result['loss']:.2f}  peak {result['peak_mib']:.0f} MiB",
        flush=True,
    )
    return {"name": entry.name, "size": size, "threads": threads, "round": repeat, **result}


def work(task: dict) -> dict:
    """The measurement itself, inside the worker process."""
    import torch

    from benchmarks.peers.problem import PROBLEMS, load

    torch.set_num_threads(task["threads"])
    module, function = task["function"].split(":")
    train = getattr(importlib.import_module(f"benchmarks.peers.{module}"), function)
    problem = PROBLEMS[task["size"]]
    root = Path(task["data_root"]) if task["data_root"] else None
    data, description = load(problem, root, task["num_images"])
    before, _ = measure.memory()
    train(problem, data[: problem.batch_size], 1, task["seed"])  # warms up: lazy imports, first allocations
    outcome = train(problem, data, task["epochs"], task["seed"])
    _, peak = measure.memory()
    return {
        **asdict(outcome),
        "samples_per_second": len(data) * task["epochs"] / outcome.seconds,
        "peak_mib": round(peak, 1),
        "growth_mib": round(peak - before, 1),
        "epochs": task["epochs"],
        "num_images": len(data),
        "data": description,
    }


def section(runs: list[dict], size: str, threads: int) -> list[str]:
    """The table of one size at one number of threads."""
    here = [run for run in runs if run["size"] == size and run["threads"] == threads]
    if not here:
        return []
    first = here[0]
    header = (
        "contender",
        "samples/s",
        "x fastest peer",
        "x bare",
        "peak MiB",
        "growth MiB",
        "loss, nats",
        "parameters",
    )
    lines = [
        f"## {size}, {threads} thread(s)",
        "",
        f"{first['data']}; images: {first['num_images']:,}, epochs: {first['epochs']}.",
        "",
    ]
    for group, title in GROUPS.items():
        rows = group_rows(here, group)
        if rows:
            lines += [f"### {title}", "", *measure.table(header, rows), ""]
    return lines


def group_rows(runs: list[dict], group: str) -> list[tuple[str, ...]]:
    """The rows of one group, the runs of one size and number of threads given."""
    speeds = {
        entry.name: [run["samples_per_second"] for run in runs if run["name"] == entry.name]
        for entry in ENTRIES
    }
    members = [entry for entry in ENTRIES if entry.group == group and speeds[entry.name]]
    peers = [entry.name for entry in members if entry.role == "peer"]
    fastest = max(peers, key=lambda name: measure.median(speeds[name]), default=None)
    rows = []
    for entry in members:
        mine = [run for run in runs if run["name"] == entry.name]
        rows.append(
            (
                entry.label,
                measure.spread(speeds[entry.name]),
                ratio(speeds, entry.name, fastest),
                ratio(speeds, entry.name, "bare" if group == "vae" else None),
                f"{measure.median(run['peak_mib'] for run in mine):,.0f}",
                f"{measure.median(run['growth_mib'] for run in mine):,.0f}",
                f"{measure.median(run['loss'] for run in mine):.2f}",
                f"{mine[0]['parameters']:,}",
            )
        )
    return rows


def ratio(speeds: dict[str, list[float]], name: str, reference: str | None) -> str:
    """Median over rounds of the ratio of two contenders' speeds, with its range."""
    if reference is None or not speeds[reference]:
        return ""
    return measure.spread([a / b for a, b in zip(speeds[name], speeds[reference], strict=True)], 2)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Samples per second of a full training run, beside the peers."
    )
    parser.add_argument("--sizes", nargs="+", choices=list(EPOCHS), default=list(EPOCHS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5, help="rounds; every contender runs once in each")
    parser.add_argument("--only", nargs="+", choices=[entry.name for entry in ENTRIES])
    parser.add_argument(
        "--data-root", type=Path, help="folder of MNIST's IDX .gz files; else synthetic images"
    )
    parser.add_argument("--quick", action="store_true", help="few images and epochs: does it run at all")
    parser.add_argument("--out", type=Path, default=measure.RESULTS, help="folder of the result files")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
