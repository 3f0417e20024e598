"""The command line, run in this process: what it prints, its exit codes, and one message for every mistake."""

import errno
import json
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from latentflows import __version__
from latentflows.cli import app, main
from latentflows.cli_common import alone
from latentflows.core.errors import ConfigurationError
from latentflows.reporting.base import read_run
from latentflows.studies.execution.engines import Event, LocalPool
from latentflows.studies.running import run as run_room
from latentflows.studies.running.run import RunResult
from latentflows.studies.settings.overrides import configuration_from
from tests.studies.conftest import tiny  # noqa: F401 - a fixture

COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LATENTFLOWS_DEBUG", raising=False)
    monkeypatch.delenv("LATENTFLOWS_DATA", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):  # noqa: F811
    """A trained run folder; tests that change it work on other files."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert run_room.run(configuration_from({}, tiny), folder).status == "finished"
    return folder


def test_importing_the_command_line_loads_nothing_heavy():
    code = "import sys, latentflows.cli; print([m for m in ('torch', 'numpy', 'pydantic', 'rich') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_help_loads_no_torch_and_lists_every_command():
    code = (
        "import sys; from latentflows.cli import main; codes = main(['--help']), main(['train', '--help']); "
        "print(codes, 'torch' in sys.modules, 'rich' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "(0, 0) False False"
    assert set(COMMANDS) == {"demo", "train", "evaluate", "sample", "report", "list", "download"}
    assert all(re.search(rf"^  {command} ", result.stdout, re.MULTILINE) for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"Example: latentflows {command}" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"latentflows {__version__}\n"


def test_train_leaves_a_run_and_prints_its_figures(tiny, capsys, tmp_path):  # noqa: F811
    assert main(["train", *tiny, "seed=3", "--quiet", "--resume"]) == 0
    folder = tmp_path / "runs" / "tiny-seed3"
    assert (folder / "report.html").is_file()
    out, said = capsys.readouterr()
    assert said == "--resume: there is nothing in runs/tiny-seed3 yet, so it starts from the beginning.\n"
    record, nll = (
        read_run(folder).record,
        json.loads((folder / "evaluation.json").read_text())["figures"]["nll"],
    )
    assert record is not None
    assert record.seed == 3
    assert f"nll  {nll['mean']:.3f} ± {nll['standard_error']:.3f} nats" in out
    assert "Run: runs/tiny-seed3" in out
    assert main(["train", *tiny, "seed=3", "--quiet"]) == 2
    assert "holds this run already" in capsys.readouterr().err
    assert main(["train", *tiny, "seed=3", "--resume"]) == 0
    assert "--resume" not in capsys.readouterr().err
    assert main(["train", *tiny, "seed=3", "training.epochs=1", "--overwrite", "--out", str(folder)]) == 0
    assert "Parameters: posterior" in capsys.readouterr().out
    assert len(read_run(folder).epochs) == 1


def test_train_logs_to_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    small = ["latent_dim=3", "network.width=16", "training.epochs=2", "evaluation.num_importance_samples=5"]
    assert main(["train", *small, "--quiet", "--out", "run"]) == 0
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    epochs = read_run(tmp_path / "run").epochs
    for name in ("elbo", "reconstruction", "kl"):
        read = events.Scalars(f"validation/{name}")
        assert [event.step for event in read] == [epoch.step for epoch in epochs] == [9, 18]
        assert [event.value for event in read] == pytest.approx([epoch.validation[name] for epoch in epochs])


def test_train_reads_a_file_and_the_data_root(tiny, tmp_path, capsys):  # noqa: F811
    overrides = dict(text.split("=") for text in tiny)
    root = overrides.pop("data.root")
    (tmp_path / "c.yaml").write_text("name: other\nlatent_dim: 3\ntraining: {epochs: 1}\n")
    rest = [f"{key}={value}" for key, value in overrides.items() if key not in ("name", "latent_dim")]
    assert main(["train", "c.yaml", *rest, "--data-root", root, "--quiet", "--out", "here"]) == 0
    assert read_run(tmp_path / "here").record.name == "other"  # pyright: ignore[reportOptionalMemberAccess]


def test_an_interrupted_run_says_how_to_go_on(monkeypatch, capsys, tiny):  # noqa: F811
    def stop(configuration, folder, **_):
        return RunResult(folder, "interrupted", "Stopped by SIGINT", None, {}, 1.0)

    monkeypatch.setattr(run_room, "run", stop)
    assert main(["train", *tiny, "--quiet", "--out", "my runs/a"]) == 130
    command = "latentflows train 'my runs/a/config.yaml' --out 'my runs/a' --resume"
    assert f"Continue with:\n  {command}\n" in capsys.readouterr().err


def test_a_diverged_run_says_why(monkeypatch, capsys, tiny):  # noqa: F811
    def diverge(configuration, folder, **_):
        return RunResult(folder, "diverged", "The loss became NaN.", None, {}, 1.0)

    monkeypatch.setattr(run_room, "run", diverge)
    assert main(["train", *tiny, "--quiet"]) == 1
    assert "diverged: The loss became NaN." in capsys.readouterr().err


MISTAKES = {
    "an unknown command": (["tarin"], "No such command 'tarin'"),
    "an unknown option": (["train", "--ouf", "x"], "No such option"),
    "an unknown key": (["train", "latnt_dim=3"], "Did you mean latent_dim?"),
    "an unknown kind": (["train", "posterior=planr"], "got 'planr'. Did you mean planar?"),
    "parts that do not fit": (["train", "training.plan=two_stage"], "prior N(0, I) has no parameters"),
    "a missing configuration": (["train", "nowhere.yaml"], "nowhere.yaml: no such file"),
    "a configuration that is no YAML": (
        ["train", "bad.yaml"],
        "bad.yaml: malformed yaml: expected ',' or ']', but got '<stream end>' (at line 1, column 6).\n",
    ),
    "no GPU": (
        ["train", "training.accelerator=cuda", "--out", "on_gpu"],
        '`accelerator` is "cuda", but PyTorch sees no GPU',
    ),
    "no folder of its own": (
        ["train", "training.epochs=1", "--out", "/"],
        "A run needs a folder of its own; got /.",
    ),
    "a folder inside a file": (
        ["train", "training.epochs=1", "--out", "bad.yaml/run"],
        "Error: bad.yaml/run: Not a directory. Choose another path.",
    ),
    "two configurations": (["train", "a.yaml", "b.yaml"], "One configuration at a time; got a.yaml, b.yaml"),
    "no data": (["train", "data=mnist", "--data-root", "nowhere"], "`mnist` needs"),
    "too many images": (
        ["train", "evaluation.num_images=401"],
        "must be at most the 400 data points of the test split",
    ),
    "too many samples": (
        ["train", "evaluation.samples=401", "evaluation.gaps=402"],
        "`evaluation.gaps` must be at most the 400 data points of the test split; got 402. Use evaluation.gaps=400",
    ),
    "evaluate: no run": (["evaluate", "nowhere"], "nowhere is no run folder"),
    "evaluate: no samples": (
        ["evaluate", "RUN", "--num-importance-samples", "0"],
        "`evaluation.num_importance_samples` must be an integer above 0; got '0'",
    ),
    "evaluate: a key twice": (
        ["evaluate", "RUN", "--num-images", "3", "evaluation.num_images=4"],
        "`evaluation.num_images` is given twice: 'evaluation.num_images=4', and 3 by its option",
    ),
    "train: the data root twice": (
        ["train", "data.root=there", "--data-root", "here"],
        "`data.root` is given twice: 'data.root=there', and here by its option",
    ),
    "evaluate: no images": (["evaluate", "RUN", "--num-images", "0"], "`evaluation.num_images` must be"),
    "evaluate: no such split": (
        ["evaluate", "RUN", "--split", "tset"],
        "test | validation; got 'tset'. Did you mean",
    ),
    "evaluate: no such seed": (
        ["evaluate", "RUN", "--seed=-1"],
        "`evaluation.seed` must be an integer at least 0",
    ),
    "evaluate: no data": (["evaluate", "RUN", "--data-root", "nowhere"], "nowhere"),
    "evaluate: a setting of the training": (
        ["evaluate", "RUN", "prior=real_nvp"],
        "takes evaluation.KEY=VALUE and data.root=FOLDER alone; got 'prior=real_nvp'",
    ),
    "evaluate: no such setting": (
        ["evaluate", "RUN", "evaluation.gap=3"],
        "`evaluation.gap` (given '3') is no key of `evaluation`",
    ),
    "sample: no run": (["sample", "nowhere"], "nowhere is no run folder"),
    "sample: nothing": (["sample", "RUN", "--num", "0"], "`num` must be a positive integer; got 0"),
    "sample: far too many": (
        ["sample", "RUN", "--num", "100000000000"],
        "Invalid value for '--num': Input should be less than",
    ),
    "sample: no such seed": (
        ["sample", "RUN", "--seed", "-1"],
        "Invalid value for '--seed': Input should be greater",
    ),
    "sample: no number": (["sample", "RUN", "--num", "ten"], "Invalid value for '--num'"),
    "sample: cold": (
        ["sample", "RUN", "--temperature", "0"],
        "`temperature` must be positive and finite; got 0",
    ),
    "sample: no picture": (["sample", "RUN", "--out", "x.jpg"], "`out` must end in .png (a picture) or .npy"),
    "train: two ways with a folder": (
        ["train", "--out", "RUN", "--resume", "--overwrite"],
        "--resume goes on with what is in the folder, --overwrite replaces it; got both. Choose one.",
    ),
    "train: halved too often": (
        ["train", "model=vq_vae", "model.halvings=5", "--out", "on_gpu"],
        "Use model.halvings=3 at most.",
    ),
    "train: an endless bound": (
        ["train", "model=segmentation_vae", "data=ambiguous_shapes", "model.scale_bound=inf"],
        "`model.scale_bound` must be a finite number; got 'inf'.",
    ),
    "demo: two ways with a folder": (["demo", "--resume", "--overwrite", "--out", "RUN"], "Choose one."),
    "report: nothing there": (["report", "nowhere"], "nowhere must be a run folder"),
    "list: nothing there": (
        ["list", "nowhere"],
        "`nowhere` must be a folder of runs, `components` or `options`",
    ),
    "download: no such data": (
        ["download", "mnits"],
        "No download for 'mnits'; expected one of mnist, fashion_mnist, omniglot, cifar10. Did you mean 'mnist'?",
    ),
    "train: a folder of data for digits": (
        ["train", "--data-root", "d", "--out", "on_gpu"],
        "`root` (--data-root) does not apply to `digits`; got d.",
    ),
    "train: a name that is no folder": (
        ["train", "name=../up"],
        "The folder of a run is called by its `name`, which '../up' cannot be.",
    ),
    "train: data in a file": (
        ["train", "data=mnist", "--data-root", "bad.yaml"],
        "bad.yaml: a file, where a folder was expected.",
    ),
    "sample: a place in a file": (["sample", "RUN", "--out", "bad.yaml/x.png"], "bad.yaml"),
    "study: a folder of data for digits": (
        ["study", "plan", "stages", "--data-root", "d"],
        "--data-root has no effect: digits is not read from files; got d. Leave it out.",
    ),
    "download: no folder": (["download", "mnist"], "`--root` is missing"),
    "demo: no workers": (["demo", "--workers", "0"], "`workers` must be at least 1; got 0"),
    "train: more than the memory holds": (
        ["train", "latent_dim=100000000000", "training.epochs=1", "--out", "on_gpu"],
        "Out of memory. Lower training.batch_size, objective.num_samples, the sizes of the model",
    ),
    "train: a folder": (["train", "d"], "d: a folder. Name a YAML or TOML file.\n"),
    "train: a run folder": (["train", "RUN"], "/config.yaml.\n"),
    "train: a study": (["train", "s.yaml"], "Run it by `latentflows study run s.yaml`."),
    "train: a key without a value": (["train", "training.epochs"], "an override is key=value, such as"),
    "evaluate: a seed beyond all": (
        ["evaluate", "RUN", "--seed", "4294967296"],
        "`evaluation.seed` must be an integer at least 0 and below 4294967296",
    ),
    "sample: a seed beyond all": (["sample", "RUN", "--seed", "4294967296"], "Invalid value for '--seed'"),
    "sample: far too hot": (
        ["sample", "RUN", "--temperature", "1e300", "--out", "on_gpu/x.npy"],
        "The draws hold NaN or infinity at temperature 1e+300; nothing is written. Lower --temperature",
    ),
    "report: a file": (["report", "bad.yaml"], "it is a file."),
    "list: a file": (["list", "bad.yaml"], "it is a file."),
    "download: nothing to download": (
        ["download", "digits"],
        "No download for 'digits'; expected one of mnist, fashion_mnist, omniglot, cifar10. Other data sets need none",
    ),
    "download: into a file": (
        ["download", "mnist", "--root", "bad.yaml"],
        "bad.yaml/mnist: cannot be made (Not a directory). Name another `root`.",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_with_one_message_and_code_2(name, trained, capsys, monkeypatch, tmp_path):
    arguments, message = MISTAKES[name]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "bad.yaml").write_text("a: [1")
    (tmp_path / "s.yaml").write_text("arms: [{name: a}]\nseeds: [0]\n")
    (tmp_path / "d").mkdir()
    assert main([str(trained) if text == "RUN" else text for text in arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert not (tmp_path / "on_gpu").exists()


@pytest.mark.parametrize("command", ["train", "demo", "study run stages"])
def test_a_folder_stays_where_it_is_to_be_continued_and_replaced(command, capsys, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "study.jsonl").write_text("x\n")
    assert main([*command.split(), "--resume", "--overwrite", "--out", "kept"]) == 2
    assert "Choose one." in capsys.readouterr().err
    assert (tmp_path / "kept" / "study.jsonl").read_text() == "x\n"


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("LATENTFLOWS_DEBUG", "1")
    with pytest.raises(ConfigurationError):
        main(["train", "latent_dim=0"])
    monkeypatch.setenv("LATENTFLOWS_DEBUG", "")
    with pytest.raises(ConfigurationError):
        main(["--debug", "train", "latent_dim=0"])


def test_evaluate_measures_anew(trained, capsys):
    options = ["--num-importance-samples", "4", "--num-images", "3", "--split", "validation", "--seed", "2"]
    assert main(["evaluate", str(trained), *options]) == 0
    out = capsys.readouterr().out
    assert re.search(
        "Measured on: validation split, 3 data points, K = 4 importance.*dynamic binarization", out
    )
    assert re.search(r"nll  \d+\.\d{3} ± \d+\.\d{3} nats \(Monte Carlo error \d[\d.e-]*\)\n", out)
    assert "±: standard error over data points." in out
    assert "The weights were selected on the validation split" in out
    protocol = json.loads((trained / "evaluation.json").read_text())["protocol"]
    assert [protocol[key] for key in ("split", "num_images", "num_importance_samples", "seed")] == [
        "validation", 3, 4, 2,
    ]  # fmt: skip


def test_evaluate_says_which_figures_it_replaces(trained, capsys, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    (folder / "evaluation.json").unlink()
    few = ["--num-importance-samples", "4", "--num-images", "3", "--seed", "0", "evaluation.holes=6"]
    assert main(["evaluate", str(folder), *few]) == 0
    assert "Replaced" not in capsys.readouterr().out
    assert main(["evaluate", str(folder), *few]) == 0
    assert "Replaced" not in capsys.readouterr().out
    assert main(["evaluate", str(folder), *few, "--split", "validation"]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Replaced")]
    assert told[0] == "Replaced: figures on the test split, 3 data points, K = 4, seed 0"
    assert told[1].startswith("Replaced: figures of holes (split test, seed 0, holes 6)")


def test_an_autoencoder_says_that_it_was_not_trained_for_its_figures(tiny, capsys):  # noqa: F811
    assert main(["train", *tiny, "objective=autoencoder", "--quiet", "--out", "run"]) == 0
    told = "The model was trained by objective=autoencoder, which is no bound on log p(x)"
    assert told in capsys.readouterr().out
    assert main(["evaluate", "run"]) == 0
    assert told in capsys.readouterr().out


def test_a_misspelled_list_is_guessed(capsys):
    assert main(["list", "componets"]) == 2
    assert "no such folder. Did you mean components?" in capsys.readouterr().err


def test_train_shows_its_groups(tiny, capsys):  # noqa: F811
    assert main(["train", *tiny, "evaluation.holes=6", "--out", "run"]) == 0
    out = capsys.readouterr().out
    assert "evaluation ...\nevaluation: holes ...\npictures ...\n" in out
    assert re.search(r"\nPrior holes\n +MMD², Gaussian kernels", out)


def test_evaluate_measures_groups_later_and_says_why_not(trained, capsys):
    asked = ["evaluation.holes=6", "evaluation.information=6", "evaluation.disentanglement=6"]
    assert main(["evaluate", str(trained), *asked]) == 0
    out, told = capsys.readouterr()
    for name in ("holes", "information", "units", "disentanglement"):
        assert f"evaluation: {name} ...\n" in told
    assert re.search(
        r"Prior holes\n +MMD², Gaussian kernels  -?\d.\d{5} ± .* squared MMD \(p-value \d.\d{3}\)\n", out
    )
    assert "By: test split; compared: one draw of q(z|x) per image" in out
    assert "Not measured: The data have no known factors. Use data=shapes2d, which has." in out
    page = (trained / "report.html").read_text()
    assert "Prior holes" in page
    assert "Not measured: The data have no known factors." in page
    assert main(["evaluate", str(trained)]) == 0
    assert "Prior holes" in capsys.readouterr().out  # kept from before


def test_list_shows_a_run_without_a_likelihood(trained, capsys, tmp_path):
    folder = tmp_path / "copies" / "a"
    shutil.copytree(trained, folder)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    del evaluation["figures"]["nll"]
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    assert main(["list", str(tmp_path / "copies")]) == 0
    assert re.search(r"finished +no NLL", capsys.readouterr().out)


def test_sample_draws_a_picture(trained, capsys, tmp_path):
    assert main(["sample", str(trained), "--num", "4", "--mean", "--temperature", "0.7", "--seed", "5"]) == 0
    path = trained / "samples" / "drawn.png"
    assert capsys.readouterr().out == f"{path}\n"
    assert "temperature 0.7, seed 5" in read_run(trained).pictures[-1].caption
    assert main(["sample", str(trained), "--num", "4", "--out", "x/y.png"]) == 0
    assert (tmp_path / "x" / "y.png").is_file()


def test_report_writes_the_page(trained, capsys):
    assert main(["report", str(trained)]) == 0
    assert capsys.readouterr().out == f"{trained / 'report.html'}\n"


def test_list_shows_runs_components_and_options(trained, capsys):
    assert main(["list"]) == 0
    assert "No runs in runs" in capsys.readouterr().out
    (trained.parent / "broken").mkdir(exist_ok=True)
    (trained.parent / "broken" / "run.json").write_text("{")
    assert main(["list", str(trained.parent)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"broken  unreadable", out)
    assert re.search(
        r"tiny  finished +(test|validation) NLL \d+\.\d\d ± \d+\.\d\d nats .K = \d+., probability mass +[\d,]+ par",
        out,
    )
    assert main(["list", "components"]) == 0
    assert re.search(r"^posterior=iaf +Inverse autoregressive flow", capsys.readouterr().out, re.MULTILINE)
    assert main(["list", "options"]) == 0
    out = capsys.readouterr().out
    assert "prior.num_layers=4 [maf]\n    Number of autoregressive layers. Takes an integer above 0.\n" in out


class Ends:
    """Stands for the worker processes: every run ends at once, better with a flow as the prior."""

    def __init__(self, status="finished"):
        self.status = status

    def __call__(self, task, jobs, stop):
        for position, job in enumerate(jobs):
            yield Event(position, "started")
            if self.status == "lost once":
                yield Event(position, "again", "its process was killed.")
            status = self.status.replace("lost once", "finished")
            gain = job.runs[0].configuration.prior.kind != "standard"
            counts = {"posterior": 5, "prior": 1000 * gain, "likelihood": 5, "total": 10 + 1000 * gain}
            protocol = {
                "split": "test",
                "num_images": 9,
                "num_importance_samples": 5,
                "seed": 0,
                "data": "digits",
            }
            line = {"protocol": protocol, "parameters": counts, "seconds": 3.0, "reason": "bad luck"}
            nll = {"standard_error": 0.17, "unit": "nats"}
            means = [
                22.0 - gain + 0.03 * position + (0.01 + 0.002 * position) * n for n in range(len(job.runs))
            ]
            lines = [line | {"figures": {"nll": nll | {"mean": mean}}, "status": status} for mean in means]
            yield Event(position, "result", list(enumerate(lines)))


def test_demo_prints_a_table_and_what_it_supports(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(LocalPool, "over_jobs", Ends())
    monkeypatch.setenv("COLUMNS", "500")
    assert main(["demo", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert re.search(r"Real NVP prior, one stage +1,010 +21\.04\d* +\[21\.\d+, 21\.\d+\]", captured.out)
    assert re.search(r"Real NVP prior, one stage +−0\.9\d+ +\[−0\.9\d+, −0\.9\d+\] +< 0\.001", captured.out)
    assert "supports a lower (better) test NLL of “Real NVP prior, one stage”" in captured.out
    assert "does not hold the number of parameters equal" in captured.out
    assert "Test NLL in nats: mean over seeds with its 95% t interval." in captured.out
    assert "What does not follow. Seeds vary the training alone" in captured.out
    assert "Report: runs/demo/report.html" in captured.out
    assert (tmp_path / "runs" / "demo" / "report.html").is_file()
    assert main(["demo", "--quiet"]) == 2
    assert "--resume" in capsys.readouterr().err


def test_no_figure_is_cut_in_a_narrow_terminal(monkeypatch, capsys):
    monkeypatch.setattr(LocalPool, "over_jobs", Ends())
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["demo", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"1,010 +21\.04\d* +\[21\.\d+, 21\.\d+\]", out)
    assert "…" not in out


def test_make_demo_can_be_repeated_and_goes_on_after_an_interrupt(monkeypatch, capsys, tmp_path):
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    (command,) = re.findall(r"^\t\$\(BIN\)/latentflows (demo .*)$", makefile, re.MULTILINE)
    words = [*command.replace("$(RUNS)", "runs").split(), "--quiet"]
    for status, code in (("interrupted", 130), ("finished", 0), ("finished", 0)):
        monkeypatch.setattr(LocalPool, "over_jobs", Ends(status))
        (tmp_path / "runs" / "demo" / "report.html").unlink(missing_ok=True)
        assert main(words) == code
    assert "supports a lower (better) test NLL" in capsys.readouterr().out
    assert (tmp_path / "runs" / "demo" / "report.html").is_file()
    assert len((tmp_path / "runs" / "demo" / "study.jsonl").read_text().splitlines()) == 30


def test_an_interrupted_comparison_says_how_to_go_on(monkeypatch, capsys):
    monkeypatch.setattr(LocalPool, "over_jobs", Ends("interrupted"))
    assert main(["demo", "--out", "d"]) == 130
    assert "Continue with:\n  latentflows demo --workers 2 --out d --resume\n" in capsys.readouterr().err


def test_a_comparison_without_a_finished_run_fails(monkeypatch, capsys, tmp_path):
    (tmp_path / "s.yaml").write_text("name: s\narms: [{name: a, label: A}]\nseeds: [0]\nbaseline: a\n")
    monkeypatch.setattr(LocalPool, "over_jobs", Ends("diverged"))
    assert main(["study", "run", "s.yaml", "--out", "c"]) == 1
    assert "a-seed0 did not finish: bad luck" in capsys.readouterr().err


def test_a_run_whose_process_died_is_told(monkeypatch, capsys):
    Path("s.yaml").write_text("name: s\narms: [{name: a, label: A}]\nseeds: [0]\nbaseline: a\n")
    monkeypatch.setattr(LocalPool, "over_jobs", Ends("lost once"))
    assert main(["study", "run", "s.yaml", "--out", "c", "--quiet"]) == 0
    assert capsys.readouterr().err == "a-seed0 will go on in another process: its process was killed.\n"


def test_a_warning_is_one_line_without_a_place_in_the_code(tmp_path, capsys):
    gray = [
        "likelihood=gray_bernoulli",
        "data.preparation=unit",
        "network.width=4",
        "latent_dim=2",
        "--quiet",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code = main(
            ["train", *gray, "training.epochs=1", "training.trackers=[]", "--out", str(tmp_path / "run")]
        )
    told = capsys.readouterr().err
    assert code == 0
    assert "Warning: A Bernoulli cross-entropy on gray values is no likelihood" in told
    assert ".py" not in told


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_run_folder_is_one_process_s_at_a_time(command, trained, capsys):
    held = [str(trained / "config.yaml"), "--out", str(trained), "--resume"]
    with alone(trained):
        assert main([command, *(held if command == "train" else [str(trained)])]) == 2
    assert f"The run {trained.resolve()} is in use by process" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "list"])
@pytest.mark.parametrize("processes", ["2", "two"])
def test_an_environment_that_torchrun_did_not_make_is_named(
    command, processes, monkeypatch, capsys, tmp_path
):
    monkeypatch.setenv("WORLD_SIZE", processes)
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert main([command]) == 2
    said = {
        "train": f"has WORLD_SIZE={processes} without RANK, MASTER_ADDR, MASTER_PORT, which `torchrun` sets.",
        "list": "`torchrun` runs `latentflows train` alone; got `list`.",
    }
    assert said[command] in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_of_the_library_shows_where(monkeypatch):
    def fail(_: Path) -> None:
        raise RuntimeError("odd")

    monkeypatch.setattr("latentflows.cli.write_report", fail)
    with pytest.raises(RuntimeError, match="odd"):
        main(["report", "x"])


def test_a_refused_run_leaves_no_folder(tmp_path):
    out = tmp_path / "new" / "runs" / "one"
    with pytest.raises(ConfigurationError), alone(out):
        raise ConfigurationError("no")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_within_one_that_cannot_be_written_to_needs_no_lock(monkeypatch, tmp_path):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "lock")

    monkeypatch.setattr("latentflows.studies.execution.locks.locked", refuse)
    with alone(tmp_path):
        pass
    with pytest.raises(PermissionError), alone(tmp_path / "new"):
        pass
