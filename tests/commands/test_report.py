from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from base64 import b64decode
from contextlib import contextmanager
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def logs(tmp_path) -> Path:
    """Two runs, one of them in a sweep."""
    for name, lr, top1 in [("runs/first", "0.01", 0.5), ("multiruns/sweep/0", "0.1", 0.25)]:
        folder = tmp_path / "logs" / name
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "overrides.yaml").write_text(f"- seed=1\n- optimizer.lr={lr}\n")
        results = {"status": "finished", "knn": {"pretrained": top1}}
        (folder / "results.json").write_text(json.dumps(results))
    return tmp_path / "logs"


def text(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_one_run_gets_its_page(commands, logs):
    run = logs / "runs" / "first"
    outcome = commands.run("report", str(run), "out=null")
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"{run}/report.html\n"
    assert "Run first" in text((run / "report.html").read_text())
    assert "k-NN 50.0%" in text((run / "report.html").read_text())


def test_several_runs_get_a_page_where_one_says(commands, logs, tmp_path):
    out = tmp_path / "new" / "page.html"
    outcome = commands.run("report", f"{logs}/", f"out={out}")
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"{out}\n"
    assert "setting multiruns/sweep/0 runs/first optimizer.lr 0.1 0.01" in text(out.read_text())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{logs}x"], "esvit-report needs folders of runs; there is no {logs}x\n\nFor example:"),
        (["{logs}/runs/first/.hydra"], "no run in {logs}/runs/first/.hydra: a run's folder holds"),
        (["{logs}", "server=8000"], "server=8000: did you mean serve=8000?"),
        (["{logs}", "serve=99999"], "serve must be a port from 0 to 65535, got 99999"),
        (["{logs}", "serve=0", "refresh=0"], "refresh must be 1 second or more, got 0"),
    ],
)
def test_what_is_refused(commands, logs, words, said):
    outcome = commands.run("report", *(word.format(logs=logs) for word in words), "out=null")
    assert outcome.code == 1
    assert said.format(logs=logs) in outcome.err
    assert "Traceback" not in outcome.err


def test_it_loads_no_torch(logs, tmp_path):
    code = (
        "import sys; sys.argv = ['esvit-report', *sys.argv[1:]]\n"
        "from esvit_pl.commands.report import main; main()\n"
        "assert not {'torch', 'pytorch_lightning'} & set(sys.modules)"
    )
    # With curves: they are drawn with matplotlib.
    (logs / "runs" / "first" / "metrics.csv").write_text("step,epoch,name,value\n9,0,knn/top1,0.25\n")
    words = [sys.executable, "-c", code, str(logs), f"out={tmp_path / 'page.html'}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "data:image/png" in (tmp_path / "page.html").read_text()


# -- serve=


@contextmanager
def server(*words: str):
    """A real ``esvit-report serve=0``: its port, and the process."""
    # As from a terminal: a shell script that starts a test run in the background lets its children ignore Ctrl-C.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heed}; import sys; sys.argv[0] = 'esvit-report'; from esvit_pl.commands.report import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words, "serve=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.match(r"http://127\.0\.0\.1:(\d+)/ ", line)
        assert found, line
        yield int(found[1]), process
    finally:
        process.kill()
        process.communicate()


def ask(port: int, path: str = "/", host: str | None = None, method: str = "GET") -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers={"Host": host or f"127.0.0.1:{port}"})
    answer = connection.getresponse()
    content = answer.read().decode()
    connection.close()
    return answer.status, content


def test_a_served_page_is_fresh_and_for_this_machine_alone(logs):
    run = logs / "runs" / "first"
    (run / "results.json").write_text('{"status": "running"}')
    with server(str(run)) as (port, process):
        status, html = ask(port)
        assert status == 200
        assert '<meta http-equiv="refresh" content="10">' in html
        assert "– running" in text(html)
        assert ask(port, "/../results.json")[0] == 404
        assert ask(port, host="a.example")[0] == 403
        assert ask(port, host=f"localhost:{port}")[0] == 200
        assert ask(port, method="POST")[0] == 501
        listening = Path(f"/proc/{process.pid}/net/tcp").read_text()
        assert f"0100007F:{port:04X} 00000000:0000 0A" in listening
        assert f"00000000:{port:04X}" not in listening
        (run / "results.json").write_text('{"status": "finished"}')
        for _ in range(60):
            html = ask(port)[1]
            if "✓ finished" in text(html):
                break
            time.sleep(0.5)
        assert "✓ finished" in text(html)
        assert 'http-equiv="refresh"' not in html
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0
        assert out.strip() == "ended"
        assert err == ""
    assert not (run / "report.html").exists()


def test_a_removed_run_is_told_and_sigterm_ends_it(logs):
    run = logs / "runs" / "first"
    with server(str(run)) as (port, process):
        (run / "results.json").unlink()
        (run / ".hydra" / "overrides.yaml").unlink()
        (run / ".hydra").rmdir()
        run.rmdir()
        status, said = ask(port)
        assert status == 500
        assert "there is no folder" in said
        process.terminate()
        process.communicate(timeout=60)
        assert process.returncode == 143


def test_a_taken_port_is_a_sentence(commands, logs):
    with server(str(logs)) as (port, _):
        outcome = commands.run("report", str(logs), f"serve={port}", "out=null")
    assert outcome.code == 1
    assert f"serve={port}: Address already in use; give another port, such as {port + 1}" in outcome.err


# -- of a training


def test_a_training_ends_with_its_page(pretrained):
    assert "  report.html\n" in pretrained.out
    html = (pretrained.folder / "report.html").read_text()
    said = text(html)
    for words in ("✓ finished", "Is it healthy?", "k-NN", "linear", "untrained backbone", "esvit-knn ckpt_path="):
        assert words in said
    top1 = pretrained.results["knn"]["pretrained"]
    low, high = pretrained.results["evaluation"]["intervals"]["knn"]["pretrained"]
    assert f"{100 * top1:.1f}% ({100 * low:.1f} to {100 * high:.1f})" in said
    assert html.count("<img ") == 7  # curves, crops, comparison, neighbours, attention, correspondence, components


def test_an_error_in_the_page_leaves_the_training_finished(commands, pictures, monkeypatch):
    from esvit_pl.runs import report

    def broken(*args, **kwargs):
        raise RuntimeError("no page today")

    monkeypatch.setattr(report, "page", broken)
    outcome = commands.pretrain(pictures, "trainer.max_epochs=1")
    assert outcome.code == 0
    assert outcome.results["status"] == "finished"
    assert outcome.out.count("report.html could not be written (RuntimeError: no page today)") == 1


def test_pictures_of_its_own_images(commands, pretrained, tmp_path):
    def heights(*words: str) -> dict[str, int]:
        out = tmp_path / "page.html"
        outcome = commands.run("report", str(pretrained.folder), f"out={out}", *words, "trainer=cpu")
        assert outcome.code == 0, outcome.err
        assert outcome.out.endswith(f"{out}\n")
        found = re.findall(r'<img alt="([^"]*)" src="data:image/png;base64,([^"]*)"', out.read_text())
        assert len(found) == 7
        return {alt: Image.open(BytesIO(b64decode(png))).height for alt, png in found}

    lying, two = heights(), heights("pictures=true", "images=2")
    assert list(lying) == list(two)
    changed = [alt for alt in lying if lying[alt] != two[alt]]
    assert [alt.partition(" the heads")[0] for alt in changed] == ["what"]  # two rows of attention in place of four


def test_pictures_without_a_checkpoint_are_left_out_with_a_line(commands, logs, tmp_path):
    out = tmp_path / "page.html"
    outcome = commands.run("report", str(logs / "runs" / "first"), f"out={out}", "pictures=true")
    assert outcome.code == 0, outcome.err
    assert f"note: no new pictures of {logs}/runs/first: " in outcome.out
    assert "k-NN 50.0%" in text(out.read_text())
