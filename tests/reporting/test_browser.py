"""The pages in a real browser: they load, every picture decodes, nothing overflows a narrow screen."""

import re
import shutil
import subprocess

import pytest

from latentflows.reporting import write_comparison_report, write_run_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
QUIET += (
    " --disable-component-update --disable-sync --allow-file-access-from-files --virtual-time-budget=5000"
)
# Runs in a page that holds the report in a frame, because the report itself forbids every script.
PROBE = """<!DOCTYPE html><iframe src="{page}" style="width:{width}px;height:900px"></iframe><pre></pre><script>
addEventListener("load", () => {{
  const report = document.querySelector("iframe").contentDocument;
  const images = [...report.images];
  document.querySelector("pre").textContent = [
    "images=" + images.length,
    "decoded=" + images.filter(image => image.complete && image.naturalWidth > 0).length,
    "drawings=" + [...report.querySelectorAll("svg")].filter(svg => svg.getBoundingClientRect().height > 50).length,
    "overflow=" + (report.documentElement.scrollWidth - report.documentElement.clientWidth),
    "loaded=" + report.defaultView.performance.getEntriesByType("resource")
      .filter(entry => !entry.name.startsWith("data:")).length,
  ].join(" ");
}});
</script>"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)"
    ),
]


def dump(path, profile):
    command = [CHROMIUM, *QUIET.split(), f"--user-data-dir={profile}", "--dump-dom", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.fixture(scope="module")
def pages(fake, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    fake.write_run(folder / "run", epochs=12, stages=("autoencoder", "prior"))
    fake.add_groups(folder / "run", holes={}, samples={}, units={"reason": "a reason " * 20, "figures": {}})
    run = write_run_report(folder / "run")
    study = fake.write_comparison(
        folder / "study", seeds=(0, 1), gains={"gaussian": 0.0, "a long name of an arm": 2.0}
    )
    for name in ("gaussian-seed0", "a-long-name-of-an-arm-seed0"):
        fake.add_groups(study / "runs" / name, holes={}, samples={})
    budget = {"hold": "decoder_and_prior", "target": 1000, "tolerance": 0.02}
    fake.write_plan(study, budget=budget, gaussian={"amount": 990, "target": 1000, "training_flops": 1e12})
    return {"run": (run, 6, 6), "comparison": (write_comparison_report(study), 3, 6)}


@pytest.mark.parametrize("width", [1200, 420])
@pytest.mark.parametrize("name", ["run", "comparison"])
def test_the_page_loads_whole_and_fits(pages, tmp_path, name, width):
    page, num_images, num_drawings = pages[name]
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.format(page=page.as_uri(), width=width))
    found = dict(
        re.findall(r"(\w+)=(-?\d+)", dump(probe, tmp_path / "profile").split("<pre>")[1].split("</pre>")[0])
    )
    expected = {
        "images": num_images,
        "decoded": num_images,
        "drawings": num_drawings,
        "overflow": 0,
        "loaded": 0,
    }
    assert {key: int(value) for key, value in found.items()} == expected


def test_the_document_has_no_address_of_a_server(pages, tmp_path):
    html = dump(pages["run"][0], tmp_path / "profile")
    assert "<h1>run</h1>" in html
    assert not re.search(r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//""", html)
