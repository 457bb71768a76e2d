"""Names that somebody else made up, through the real commands: nothing moves the cursor, no cell is a formula."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from commandline import write_pictures
from matplotlib.cbook import is_math_text
from matplotlib.text import Text
from PIL import Image

from esvit_pl.loggers import read_metrics
from esvit_pl.safe_text import for_figure
from esvit_pl.visualize.figures.comparison import comparison
from esvit_pl.visualize.figures.learning_curve import learning_curve
from esvit_pl.visualize.figures.style import save
from esvit_pl.visualize.figures.sweep import sweep

CLASSES = [
    "\x1b[2J\x1b[31mred",
    "=cmd|' C calc'!A0",
    "$\\frac{",
    "<script>alert(1)<script>",
    "[x](javascript:alert(1))",
    "a\u202egnp.exe",
    "line\nresults: all is well",
    "\r\x9b1Aover",
]
IMAGE = "=\x1b]0;title\x07\n$^$\u202e<b>.jpg"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """Eight classes and an image in each that has such a name; one of them is broken, one has hostile metadata."""
    root = tmp_path_factory.mktemp("hostile")
    for hue, name in enumerate(CLASSES):
        write_pictures(root / name, 4, hue % 3)
        (root / name / "00.jpg").rename(root / name / IMAGE)
    (root / CLASSES[1] / IMAGE).write_bytes(b"\x1b[2J no image \x1b]0;x\x07")
    told = Image.Exif()
    told[0x010E], told[0x0112] = "\x1b[2J=1+1", 6
    Image.new("RGB", (40, 40)).save(root / CLASSES[0] / IMAGE, exif=told)
    (root / CLASSES[2] / "\x1b[2J.webp").write_bytes(b"RIFF\x1b[2JWEBP")
    return root


def assert_safe(text: str) -> None:
    """Only line breaks, and the carriage returns of tqdm's bar, are no signs that one can see."""
    unseen = {sign for sign in text if not sign.isprintable()} - {"\n"}
    assert unseen <= {"\r"}
    assert all("it/s" in part or "images" in part or not part for part in re.findall(r"\r([^\r\n]*)", text))
    assert "\nresults: all is well" not in text


def assert_no_formula(path: Path) -> None:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert cells
    wrong = [cell for cell in cells if cell.lstrip(" \n").startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert [cell for cell in wrong if not re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", cell)] == []


@pytest.fixture(scope="module")
def trained(commands, hostile):
    words = ["dataset.on_bad_image=skip", "dataset.bad_image_budget=0.5", "callbacks=default", "logger=csv"]
    outcome = commands.pretrain(hostile, *words, "evaluation.probes=[knn]", "trainer.max_epochs=1", "tags=['$x^$']")
    assert outcome.code == 0, outcome.err
    return outcome


def test_a_training(trained):
    assert_safe(trained.out + trained.err)
    for name in ("metrics.csv", "bad_images.csv"):
        assert_no_formula(trained.folder / name)
    assert "\\x1b" in trained.out  # the broken image is named
    assert {path.name for path in (trained.folder / "figures").iterdir()} >= {"crops.png", "learning_curve.png"}


def test_the_list_of_bad_images_is_the_same_when_the_run_goes_on(trained, commands, hostile):
    before = (trained.folder / "bad_images.csv").read_bytes()
    words = ["dataset.on_bad_image=skip", "dataset.bad_image_budget=0.5", "trainer.max_epochs=1"]
    again = commands.pretrain(hostile, *words, f"ckpt_path={trained.folder}", folder=trained.folder)
    assert again.code == 0, again.err
    assert (trained.folder / "bad_images.csv").read_bytes() == before
    assert_safe(again.out + again.err)


@pytest.mark.parametrize("process", ["this one", pytest.param("its own", marks=pytest.mark.slow)])
def test_a_check_of_the_images(process, commands, hostile, tmp_path):
    words = ["check", "dataset=folder", f"dataset.root={hostile}", f"out={tmp_path}", "workers=0"]
    if process == "this one":
        outcome = commands.run("data", *words)
        text = outcome.out + outcome.err
    else:
        command = [sys.executable, "-m", "esvit_pl.commands.data", *words]
        done = subprocess.run(command, capture_output=True, cwd=tmp_path, timeout=120, check=False)
        text = (done.stdout + done.stderr).decode()
    assert_safe(text)
    assert "\\x1b" in text
    (table,) = tmp_path.glob("*.csv")
    assert_no_formula(table)


def test_an_image_that_ends_a_run(commands, hostile):
    refused = commands.pretrain(hostile, "trainer.max_epochs=1", "datamodule.batch_size=16")
    assert refused.code == 1
    assert_safe(refused.out + refused.err)
    assert "cannot read the image file" in refused.err


def test_an_evaluation(trained, commands, hostile):
    words = ["dataset.on_bad_image=skip", "dataset.bad_image_budget=0.5"]
    outcome = commands.evaluate("knn", trained.last, hostile, *words)
    assert outcome.code == 0, outcome.err
    assert_safe(outcome.out + outcome.err)


def test_a_table_of_runs(trained, commands, tmp_path):
    for number, value in enumerate(CLASSES[:3]):
        run = tmp_path / f"{value}{number}"
        (run / ".hydra").mkdir(parents=True)
        (run / ".hydra" / "overrides.yaml").write_text(f"- 'tags=[{number}\\x1b]'\n- \"loss={number}\\e[2J=1\"\n")
        (run / "results.json").write_text('{"status": "failed", "error": "\\u001b[2J=x", "metrics": {"=1+1": 0.5}}')
    outcome = commands.run("table", str(tmp_path), f"out={tmp_path / 'table.csv'}")
    assert outcome.code == 0, outcome.err
    assert_safe(outcome.out + outcome.err)
    assert_no_formula(tmp_path / "table.csv")


def test_a_model_card(trained, commands, tmp_path, monkeypatch):
    class Hub:
        def __init__(self, **_):
            pass

        def create_repo(self, repo, **_):
            return f"https://hub/{repo}\x1b[2J"

        def file_exists(self, *_):
            return False

        def upload_folder(self, **_):
            pass

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=Hub))
    checkpoint = tmp_path / "[x](javascript:alert(1))<script>\x1b[2J.ckpt"
    checkpoint.write_bytes(trained.last.read_bytes())
    words = [f"ckpt_path='{checkpoint}'", "to=timm", f"out={tmp_path / 'out'}", "push=somebody/swin"]
    outcome = commands.run("convert", *words)
    assert outcome.code == 0, outcome.err
    assert_safe(outcome.out + outcome.err)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "javascript:" in card
    assert not {sign for sign in card if not sign.isprintable()} - {"\n"}
    outside = re.sub(r"`[^`\n]*`|```.*?```", "", card, flags=re.DOTALL)  # in code style nothing is a link
    assert "<script" not in outside
    links = re.findall(r"(?<!\\)\]\(([^)]*)\)", outside)
    assert all(link.startswith(("https://", "http://")) for link in links)


@pytest.mark.parametrize("name", [*CLASSES, "$\\frac{1}{2}$", "$$", "\\$x$", "a $ b"])
def test_figures_show_names_as_they_are(name, tmp_path):
    pictures = {
        "sweep": sweep({name: [0.5, 0.25], "b": [0.1]}, name),
        "comparison": comparison({name: {"chance": 0.1, name: 0.5}}, probes=[name]),
        "curve": learning_curve(
            [{"step": 0, "epoch": 0, f"train/{name}_loss": 1.0, name: 0.5}], {name: 0.2}, accuracy=name
        ),
    }
    for title, figure in pictures.items():
        save(figure, tmp_path / f"{title}.png")
        texts = [text.get_text() for text in figure.findobj(Text)]
        assert for_figure(name)[:60] in "".join(texts)
        assert not any(map(is_math_text, texts))


def test_the_metrics_of_a_hostile_run_are_read_again(trained):
    assert read_metrics(trained.folder / "metrics.csv")
