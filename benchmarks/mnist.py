"""Gated MLP VAEs on dynamically binarized MNIST beside the published figure: a table and curves from run folders.

latentflows train examples/mnist_gaussian.yaml --data-root DATA --out runs/mnist-gaussian
latentflows train examples/mnist_real_nvp.yaml --data-root DATA --out runs/mnist-real-nvp
python -m benchmarks.mnist runs/mnist-gaussian runs/mnist-real-nvp
"""

import argparse
import csv
import json
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
# Test NLL in nats, gated MLP 784-300-300-40, mean and spread over runs trained for up to 2,000 epochs, 5,000
# importance samples: Norouzi et al., Exemplar VAE, 2020, arXiv 2004.04795, table of density estimation.
PUBLISHED = {
    "VAE, N(0, I)": "84.45 ± 0.12",
    "VAE, VampPrior": "82.43 ± 0.06",
    "VAE, exemplar prior": "82.09 ± 0.18",
}


def read(folder: Path) -> dict[str, Any]:
    """Return what a run folder says of itself."""
    run = json.loads((folder / "run.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {"run": run, "evaluation": json.loads((folder / "evaluation.json").read_text()), "epochs": lines}


def row(result: dict[str, Any]) -> str:
    """Return a run's line of the table."""
    figures, run = result["evaluation"]["figures"], result["run"]
    nll, elbo = figures["nll"], figures["elbo"]
    parameters = run["parameters"]
    return (
        f"| {run['name']} | {parameters['total']:,} ({parameters['prior']:,}) | {result['epochs'][-1]['epoch']} "
        f"| {elbo['mean']:.2f} ± {elbo['standard_error']:.2f} | {nll['mean']:.2f} ± {nll['standard_error']:.2f} "
        f"| {nll['monte_carlo_error']:.3f} | {figures['effective_sample_size']['minimum']:.1f} "
        f"| {run['seconds'] / 60:.0f} |"
    )


def write_table(results: list[dict[str, Any]], path: Path) -> None:
    """Write the table with protocol and published figures."""
    protocol, run = results[0]["evaluation"]["protocol"], results[0]["run"]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    lines = [
        f"# Gated MLP VAEs on MNIST, {date.today().isoformat()}",
        "",
        f"Protocol: {protocol['data']}. {protocol['split']} split, {protocol['num_images']:,} images, "
        f"importance-weighted NLL with K = {protocol['num_importance_samples']:,}; weights of the best epoch by "
        "validation ELBO; one seed each.",
        f"{versions}; {run['hardware']['cpu']}, {run['hardware']['threads']} thread a run, on a busy machine, so the "
        "minutes are an upper bound. Commands: `latentflows train examples/NAME.yaml --data-root FOLDER`, then "
        "`python -m benchmarks.mnist RUN RUN`.",
        "",
        "| run | parameters (of them prior) | epochs | test ELBO, nats | test NLL, nats | error from finite K | "
        "smallest effective sample size | training, minutes |",
        "|---|---|---|---|---|---|---|---|",
        *(row(result) for result in results),
        "",
        "± is the standard error over test images, not over seeds. Where an image has few effective samples its NLL is "
        "too high: the figure is an upper bound, loosest where the effective sample size is smallest.",
        "",
        "| published, same network and data, up to 2,000 epochs | test NLL, nats |",
        "|---|---|",
        *(f"| {name} | {figure} |" for name, figure in PUBLISHED.items()),
        "",
        "Source: Norouzi et al., Exemplar VAE, 2020, arXiv 2004.04795; ± over runs. Theirs trained up to 2,000 epochs "
        "with another optimizer, batch size and warm-up. The runs above do not hold the number of parameters equal.",
        "",
        f"![Validation ELBO]({path.stem}.svg)",
        "",
    ]
    path.write_text("\n".join(lines))


def write_curves(results: list[dict[str, Any]], path: Path) -> None:
    """Write the curves as a picture and as numbers."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    with open(path.with_suffix(".csv"), "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["run", "epoch", "train_elbo", "validation_elbo", "validation_kl"])
        for result, color in zip(results, ("#0072b2", "#d55e00", "#009e73", "#cc79a7"), strict=False):
            name, epochs = result["run"]["name"], result["epochs"]
            x = [line["epoch"] for line in epochs]
            axes.plot(
                x, [line["validation"]["elbo"] for line in epochs], color=color, label=f"{name}, validation"
            )
            axes.plot(
                x, [line["train"]["elbo"] for line in epochs], ":", color=color, label=f"{name}, training"
            )
            for line in epochs:
                parts = (line["train"]["elbo"], line["validation"]["elbo"], line["validation"]["kl"])
                table.writerow([name, line["epoch"], *(f"{value:.3f}" for value in parts)])
    axes.set(xlabel="epoch", ylabel="ELBO, nats", ylim=(-110, -80))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def main() -> None:
    """Read run folders, write `benchmarks/results/DATE-mnist.{md,svg,csv}`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    results = [read(folder) for folder in parser.parse_args().runs]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{date.today().isoformat()}-mnist.md"
    write_table(results, path)
    write_curves(results, path)
    print(path.read_text())


if __name__ == "__main__":
    main()
