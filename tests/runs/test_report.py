"""The page about a run: what it says, that nothing of a run folder becomes markup, and that it can be read."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from esvit_pl.metrics.health import Healthy
from esvit_pl.runs import report
from esvit_pl.runs.report import Facts, page, pictures_in, write_at_the_end

CHROMIUM = shutil.which("chromium")
VOID = {"meta", "img", "link", "br", "input"}
ALLOWED = {"html", "head", "meta", "title", "style", "body", "header", "main", "nav", "section", "h1", "h2", "h3"}
ALLOWED |= {"p", "ul", "li", "a", "div", "span", "small", "strong", "dl", "dt", "dd", "figure", "figcaption", "img"}
ALLOWED |= {"table", "thead", "tbody", "tr", "th", "td", "pre", "code", "details", "summary"}
ATTRIBUTES = {"lang", "charset", "name", "content", "http-equiv", "class", "id", "href", "role", "tabindex", "scope"}
ATTRIBUTES |= {"aria-label", "aria-labelledby", "aria-hidden", "colspan", "alt", "src", "open"}


class Reader(HTMLParser):
    """Elements, attributes and text of a page, and whether its tags are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.stack: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if "style" not in self.stack:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def assert_sound(html: str) -> Reader:
    """Only elements, attributes and addresses of ours; headings in order; each picture with words."""
    reader = Reader(html)
    assert {tag for tag, _ in reader.elements} <= ALLOWED
    assert {name for _, attributes in reader.elements for name in attributes} <= ATTRIBUTES
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"] for link in reader.all("a")} <= {f"#{name}" for name in ids}
    assert {each["aria-labelledby"] for each in reader.all("section")} <= set(ids)
    for picture in reader.all("img"):
        assert re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/=]+", picture["src"])
        assert picture["alt"].strip()
    levels = [int(tag[1]) for tag, _ in reader.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert reader.all("html") == [{"lang": "en"}]
    return reader


def png(colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(file, format="png")
    return file.getvalue()


def write_run(folder: Path, *, lr: float = 0.1, top1: float = 0.5, overrides=("loss=view",), **results) -> Path:
    for name in (".hydra", "figures", "checkpoints"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps([*overrides, f"optimizer.lr={lr}"]))
    config = {
        "seed": 0,
        "dataset": {"_target_": "esvit_pl.datasets.folder", "root": "photos", "labels": None},
        "backbone": {"_target_": "esvit_pl.backbones.build", "name": "swin", "depths": [1, 1]},
        "optimizer": {"name": "adamw", "lr": lr, "lr_end": 0.0, "lr_schedule": "cosine"},
        "paths": {"output_dir": str(folder)},
    }
    (folder / "config.yaml").write_text(json.dumps(config))  # which is YAML, too
    environment = {"command": ["esvit-pretrain", "loss=view"], "python": "3.11.7", "packages": {"torch": "2.14.1"}}
    (folder / "environment.json").write_text(json.dumps(environment))
    told = {
        "status": "finished",
        "metrics": {
            "health/feature_spread": 0.6,
            "health/view_kl": 0.001,
            "health/view_center_norm": 2.0,
            "health/alarm": 1.0,
            "train/view_loss": 2.5,
        },
        "knn": {"chance": 0.1, "pretrained": top1},
        "evaluation": {
            "images": {"train": 4672, "bank": 4672, "query": 1140},
            "classes": 19,
            "intervals": {"knn": {"pretrained": [top1 - 0.03, top1 + 0.03]}},
        },
    }
    (folder / "results.json").write_text(json.dumps({**told, **results}))
    rows = [(9, 0, "train/view_loss", 5.0), (9, 0, "knn/top1", 0.25), (19, 1, "train/view_loss", 2.5)]
    rows.append((19, 1, "knn/top1", top1))
    lines = ["step,epoch,name,value", *(",".join(map(str, row)) for row in rows)]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    (folder / "figures" / "crops.png").write_bytes(png())
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"")
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    return write_run(tmp_path / "logs" / "a run")


# -- what it says


def test_a_run_of_one_epoch_in_words(run):
    lines = (run / "metrics.csv").read_text().splitlines()
    (run / "metrics.csv").write_text("\n".join(lines[:3]) + "\n")
    alt = assert_sound(page([run])).all("img")[0]["alt"]
    assert alt == "view loss 5 after epoch 1; k-NN top-1 25.0% after epoch 1"


def test_results_stand_below_the_name_of_their_run(tmp_path):
    runs = [write_run(tmp_path / name) for name in ("a", "unmeasured", "b")]
    (runs[1] / "results.json").write_text('{"status": "stopped"}')
    html = page(runs)
    heads = re.findall(r'<th scope="colgroup" colspan="1">([^<]*)</th>', html)
    assert heads == ["a", "b"]


def test_a_page_about_one_run(run):
    reader = assert_sound(page([run]))
    for said in (
        "Run a run",
        "✓ finished",
        "folder: root photos, 4,672 images to train on, 19 classes, measured with 1,140 query images",
        "swin: depths [1, 1]",
        "adamw, learning rate 0.1 (cosine to 0) per 256 images",
        "50.0% (47.0 to 53.0)",
        "chance 10.0%",
        "python 3.11.7",
        "torch 2.14.1",
    ):
        assert said in reader.text
    alts = [picture["alt"] for picture in reader.all("img")]
    assert alts[0] == (
        "view loss from 5 after epoch 1 to 2.5 after epoch 2; "
        "k-NN top-1 from 25.0% after epoch 1 to 50.0% after epoch 2"
    )
    assert len(alts) == 2
    assert "(figures/crops.png)." in reader.text
    assert "http-equiv" not in [name for meta in reader.all("meta") if meta.get("content") == "10" for name in meta]


def test_health_is_told_by_word_sign_and_colour(run):
    reader = assert_sound(page([run]))
    assert "✓ 0.6, healthy" in reader.text
    assert "✗ 0.001, outside" in reader.text
    assert "view_kl = 0.001 below 0.01: the student predicts the teacher without seeing what it saw" in reader.text
    assert "– 2, no range" in reader.text
    assert "✗ 1 of 2 outside: view_kl" in reader.text
    kinds = [each["class"] for each in reader.all("span") if each.get("class", "").startswith("mark")]
    assert {"mark good", "mark bad", "mark unknown"} == set(kinds)


def test_ranges_are_those_of_the_runs_own_monitor(run):
    monitor = {"_target_": "CollapseMonitor", "thresholds": {"view_kl": [0.0001, None], "feature_spread": None}}
    (run / "config.yaml").write_text(json.dumps({"callbacks": {"collapse": monitor, "other": None}}))
    found = {measure.name: measure for measure in Facts.of(run, "a").health}
    assert found["view_kl"].healthy == Healthy(low=0.0001)
    assert found["feature_spread"].healthy == Healthy()
    assert "✓ the measure is healthy" in Reader(page([run])).text


def test_not_a_number_is_outside(run):
    write_run(run, metrics={"health/feature_spread": float("nan")})
    text = assert_sound(page([run])).text
    assert "✗ nan, outside" in text
    assert "feature_spread is not a number" in text


def test_measures_without_labels_are_no_percentages(run):
    write_run(run, rankme={"untrained": 12.5, "pretrained": 30.25}, knn=None)
    text = assert_sound(page([run])).text
    assert "untrained backbone 12.5" in text
    assert "RankMe 30.25" in text


def test_measures_of_each_block_stand_below_the_results(run, tmp_path):
    measured = {"rankme/block2": 20.5, "lidar/block2": 9.0, "rankme/block1": 31.0, f"rankme/block{'9' * 5000}": 1.0}
    write_run(run, metrics=measured)
    text = assert_sound(page([run])).text
    assert "block RankMe LiDAR block 1 31 - block 2 20.5 9" in text
    other = write_run(tmp_path / "logs" / "other", metrics={"rankme/block2": 7.0})
    text = assert_sound(page([run, other])).text
    assert "block a run: RankMe a run: LiDAR other: RankMe block 1 31 - - block 2 20.5 9 7" in text


def test_several_runs_begin_with_what_differs(run, tmp_path):
    other = write_run(tmp_path / "logs" / "other", lr=0.2, top1=0.75, overrides=("loss=view_region",))
    html = page([run, other])
    reader = assert_sound(html)
    assert "2 runs side by side" in reader.text
    assert html.index('id="differs"') < html.index('id="glance"')
    assert "setting a run other loss view view_region optimizer.lr 0.1 0.2" in reader.text
    assert "paths.output_dir" not in reader.text.partition("At a glance")[0]  # it differs for all runs
    assert "50.0% (47.0 to 53.0) 75.0% (72.0 to 78.0)" in reader.text
    assert "other: k-NN top-1 from 25.0% after epoch 1 to 75.0% after epoch 2" in reader.all("img")[0]["alt"]
    assert [picture["alt"][:6] for picture in reader.all("img")[1:]] == ["a run:", "other:"]


def test_settings_that_nobody_typed_differ_too(run, tmp_path):
    other = write_run(tmp_path / "logs" / "other")
    config = json.loads((other / "config.yaml").read_text())
    (other / "config.yaml").write_text(json.dumps({**config, "seed": 7}))
    text = Reader(page([run, other])).text
    assert "Settings that differ (1) setting a run other seed 0 7" in text


def test_a_run_that_has_just_begun(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "results.json").write_text('{"status": "running"}')
    reader = assert_sound(page([tmp_path / "new"]))
    assert "– running" in reader.text
    assert "This run has kept no checkpoint" in reader.text


def test_a_failed_run_says_why(run):
    write_run(run, status="failed", error="ValueError: too hot")
    assert "the run has failed. ValueError: too hot" in assert_sound(page([run])).text


FILES = ["config.yaml", "environment.json", "results.json", "metrics.csv", ".hydra/overrides.yaml"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"[1, 2]", b'{"callbacks": 3, "evaluation": [1], "command": 4}', b"- '${'\n- ["]
)
def test_broken_files_leave_their_part_out(run, name, content):
    (run / name).write_bytes(content)
    assert_sound(page([run]))


def test_only_a_served_page_of_a_run_that_goes_on_renews_itself(run):
    def refreshes(html: str) -> bool:
        return any(meta.get("http-equiv") == "refresh" for meta in Reader(html).all("meta"))

    assert not refreshes(page([run], refresh=10))
    write_run(run, status="running")
    assert refreshes(page([run], refresh=10))
    assert not refreshes(page([run]))


# -- commands


def test_commands_can_be_pasted(tmp_path):
    run = write_run(tmp_path / "it's a run; $(rm)", overrides=("loss=view", "tags=[a b]", "out=x"))
    lines = report.commands(Facts.of(run, "a"))
    assert shlex.split(lines["k-NN on the images of its training"]) == ["esvit-knn", f"ckpt_path={run}"]
    assert shlex.split(lines["Go on with it"]) == [
        "esvit-pretrain",
        "loss=view",
        "tags=[a b]",
        "optimizer.lr=0.1",
        f"ckpt_path={run}/checkpoints/last.ckpt",
    ]
    assert {shlex.split(line)[0] for line in lines.values()} == {
        "esvit-knn",
        "esvit-linear",
        "esvit-report",
        "esvit-pretrain",
        "esvit-convert",
    }


def test_secrets_are_stars(tmp_path):
    run = write_run(tmp_path / "run", overrides=("logger.wandb.api_key=abcdef123", "loss=view"))
    other = write_run(tmp_path / "other")
    html = page([run, other])
    assert "abcdef123" not in html
    assert "logger.wandb.api_key=***" in html


# -- pictures


def test_the_newest_of_each_kind(tmp_path):
    names = ["attention_photo.png", "attention/step_000009.png", "attention/step_000019.png", "pca/step_000009.png"]
    names += ["correspondence/1/step_000009.png", "learning_curve.png", "for_the_paper.png"]
    for number, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png() + name.encode())
        os.utime(path, (number, number))
    found = {picture.kind: picture.png[len(png()) :].decode() for picture in pictures_in(tmp_path)}
    assert found == {
        "attention": "attention/step_000019.png",
        "pca": "pca/step_000009.png",
        "correspondence": "correspondence/1/step_000009.png",
        "for_the_paper": "for_the_paper.png",
    }


def test_a_file_that_is_no_png_stays_where_it_is(run, tmp_path):
    (tmp_path / "secret").write_text("my secret words")
    (run / "figures" / "comparison.png").symlink_to(tmp_path / "secret")
    (run / "figures" / "pca.png").write_text("<svg onload=alert(1)>")
    (run / "figures" / "folder.png").mkdir()
    assert [picture.kind for picture in pictures_in(run / "figures")] == ["crops"]


# -- names that somebody else made up

HOSTILE = [
    "<script>alert(1)</script>",
    "</pre></td></table><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "https://a.example/<b>",
    "\x1b[2J\x00\x07\u202egnp",
    "]]><!--",
    "&lt;script&gt;",
]


@pytest.fixture
def hostile(tmp_path) -> Path:
    """A run in which every name and every text that is no number is a hostile one."""
    all_of_them = " ".join(HOSTILE)
    folder = write_run(tmp_path / all_of_them.replace("/", "\u2044").replace("\x00", ""))
    metrics = {f"health/{name}_kl": 0.001 for name in HOSTILE} | {f"train/{name}_loss": 1.0 for name in HOSTILE}
    probes = {name: {HOSTILE[0]: 0.5, "pretrained": 0.5} for name in HOSTILE}
    results = {
        "status": all_of_them,
        "error": all_of_them,
        "metrics": metrics,
        "evaluation": {"images": {"train": all_of_them}},
    }
    (folder / "results.json").write_text(json.dumps(probes | results))
    config = {name: {name: name, "_target_": name} for name in HOSTILE} | {
        group: {"_target_": f"a.{HOSTILE[0]}", **{name: [name] for name in HOSTILE}}
        for group in ("dataset", "backbone", "loss", "optimizer", "augment", "trainer", "module")
    }
    config["optimizer"] |= {"name": all_of_them, "lr": all_of_them}
    (folder / "config.yaml").write_text(json.dumps(config))
    packages = {name: name for name in HOSTILE}
    (folder / "environment.json").write_text(json.dumps({"command": HOSTILE, "packages": packages, **packages}))
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps([f"{name}={name}" for name in HOSTILE]))
    lines = [f"9,0,train/{name}_loss,1.0" for name in HOSTILE if "\n" not in name and "\x00" not in name]
    (folder / "metrics.csv").write_text("\n".join(["step,epoch,name,value", *lines]))
    for number, name in enumerate(HOSTILE):
        (folder / "figures" / f"{name.replace('/', '_').replace(chr(0), '')}{number}.png").write_bytes(png())
    (folder / "figures" / b"\xff\xfe.png".decode("utf-8", "surrogateescape")).write_bytes(png())
    return folder


def assert_harmless(reader: Reader) -> None:
    assert "<script>alert(1)</script>" in reader.text
    assert "{{ 7 * 7 }}" in reader.text
    assert "&lt;script&gt;" in reader.text  # it was escaped once
    assert "\\x1b[2J\\x00\\x07\\u202egnp" in reader.text
    assert all(sign.isprintable() for sign in reader.text)


def test_nothing_of_a_run_folder_becomes_markup(hostile):
    html = page([hostile])
    assert_harmless(assert_sound(html))
    html.encode("utf-8")


def test_nor_of_several(hostile, run):
    assert_harmless(assert_sound(page([hostile, run])))


def test_the_browser_is_told_to_run_and_load_nothing(run):
    (policy,) = [
        meta["content"] for meta in Reader(page([run])).all("meta") if "Security" in meta.get("http-equiv", "")
    ]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")


# -- how it looks


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_contrast_of_all_texts_in_light_dark_and_print(run):
    blocks = re.findall(r":root \{([^}]*)\}", page([run]))
    assert len(blocks) == 3
    for block in blocks:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        pairs = [(name, "page") for name in ("text", "quiet", "link")] + [("text", "soft")]
        pairs += [(name, f"{name}-page") for name in ("good", "bad", "unknown")]
        for text, behind in pairs:
            light, dark = sorted((luminance(colours[text]), luminance(colours[behind])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, behind)


def browse(tmp_path: Path, html: str, *flags: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    path = tmp_path / "page.html"
    path.write_text(html, encoding="utf-8")
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", *flags]
    words += ["--window-size=390,844", f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_opens_it(run, tmp_path):
    picture = tmp_path / "page.png"
    done = browse(tmp_path, page([run]), f"--screenshot={picture}")
    assert "CONSOLE" not in done.stderr
    with Image.open(picture) as shown:
        assert shown.size == (390, 844)
        assert len(shown.convert("RGB").getcolors(2**20) or []) > 50
    reader = Reader(browse(tmp_path, page([run]), "--dump-dom").stdout)
    assert "50.0% (47.0 to 53.0)" in reader.text


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_finds_no_markup_in_hostile_names(hostile, tmp_path):
    done = browse(tmp_path, page([hostile]), "--dump-dom")
    assert "CONSOLE" not in done.stderr
    reader = Reader(done.stdout)
    assert {tag for tag, _ in reader.elements} <= ALLOWED
    assert {name for _, attributes in reader.elements for name in attributes} <= ATTRIBUTES
    assert_harmless(reader)


# -- at the end of a training


def test_what_goes_wrong_at_the_end_is_one_line(run, capsys, monkeypatch):
    write_at_the_end(run)
    assert "✓ finished" in Reader((run / "report.html").read_text()).text
    assert capsys.readouterr().out == ""

    def broken(folders):
        raise RuntimeError("a\nb")

    monkeypatch.setattr(report, "page", broken)
    write_at_the_end(run)
    assert capsys.readouterr().out == f"note: {run}/report.html could not be written (RuntimeError: a b)\n"
