"""esvit-visualize: what it draws lies where it says, and its table is right."""

from __future__ import annotations

import json

import pytest
from commandline import MACHINE, TRAINING, VIEWS
from PIL import Image

CPU = "trainer=cpu"


@pytest.fixture
def picture(tmp_path):
    """One of 40 x 60 pixels."""
    path = tmp_path / "a picture.png"
    image = Image.effect_noise((60, 40), 80).convert("RGB")
    image.paste((200, 30, 30), (30, 10, 50, 30))
    image.save(path)
    return path


def drawn(outcome):
    """{name of a file: its size in pixels} of the pictures that a command says it has written."""
    assert outcome.code == 0, outcome.err
    paths = [line for line in outcome.out.splitlines() if line.endswith((".png", ".gif"))]
    sizes = {}
    for path in paths:
        with Image.open(path) as image:
            sizes[path.rpartition("/")[2]] = image.size
    return sizes


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["draw=attention", "query=[40,20]"], ["attention_a_picture.png"]),
        (["draw=attention", "query=[[40,20],[5,5]]", "draw.block=0", "draw.heads=null", "untrained=true"], None),
        (["draw=correspondence"], ["correspondence_a_picture.png"]),
        (["draw=correspondence", "untrained=true", "draw.k=3"], None),
        (["draw=pca", "draw.foreground=true", "draw.side=64"], ["pca.png"]),
        (["draw=views", "draw.cell=8"], ["views_a_picture.png"]),
    ],
    ids=lambda words: " ".join(words) if words else "",
)
def test_pictures_of_an_image(pretrained, commands, picture, tmp_path, words, names):
    words = [*words, f"image={picture}", f"ckpt_path={pretrained.folder}", f"out={tmp_path}/o", CPU]
    sizes = drawn(commands.run("visualize", *words))
    assert sizes
    assert names is None or list(sizes) == names
    assert min(min(size) for size in sizes.values()) > 100


FAMILIES = {
    "swin, windows of 2": ["backbone=swin_tiny_w7", "backbone.embed_dim=4", "backbone.num_heads=[1,1,2,2]",
                           "backbone.depths=[1,1,1,2]", "backbone.window=2", "backbone.img_size=64"],
    "cvt": ["backbone=cvt_tiny_w7", "backbone.dims=[4,4,8,8]", "backbone.depths=[1,1,1,1]",
            "backbone.num_heads=[1,1,2,2]", "backbone.windows=[2,2,2,2]"],
    "vil": ["backbone=vil_tiny", "backbone.dims=[4,4,8,8]", "backbone.depths=[1,1,1,1]",
            "backbone.num_heads=[1,1,2,2]", "backbone.windows=[2,2,2,2]", "backbone.img_size=64"],
    "vit": ["backbone=timm", "backbone.name=vit_tiny_patch16_224", "backbone.img_size=64",
            "+backbone.embed_dim=16", "+backbone.depth=2", "+backbone.num_heads=2"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_drawn(commands, pictures, picture, tmp_path, family):
    data = [f"dataset.root={pictures}", "dataset=folder", "dataset.val_fraction=0.34"]
    views = [
        *VIEWS,
        "augment.global_size=64",
        "augment.local_size=32",
        "augment.eval_resize=64",
        "augment.eval_crop=64",
    ]
    training = [*MACHINE, *TRAINING, "trainer.max_epochs=1", "optimizer.warmup_epochs=0", "evaluation.probes=[]"]
    words = {word.partition("=")[0]: word for word in [*data, *FAMILIES[family], *views, *training]}
    run = commands.run("pretrain", *words.values())
    assert run.code == 0, run.err
    shared = [f"image={picture}", f"ckpt_path={run.folder}", "untrained=true", f"out={tmp_path}/o", CPU]
    for words in (
        ["draw=attention", "query=[[40,20],[5,5]]"],
        ["draw=correspondence", "draw.k=3"],
        ["draw=pca", "draw.foreground=true"],
        ["draw=neighbours", "query=[40,20]"],
        ["draw=neighbours", "image=null"],
        ["draw=views"],
    ):
        sizes = drawn(commands.run("visualize", *{w.partition("=")[0]: w for w in [*shared, *words]}.values()))
        assert sizes, words
        assert min(min(size) for size in sizes.values()) > 100


def test_two_checkpoints_and_the_untrained_backbone_side_by_side(pretrained, commands, picture, tmp_path):
    one = drawn(commands.run("visualize", "draw=attention", "query=[40,20]", f"image={picture}",
                             f"ckpt_path={pretrained.folder}", f"out={tmp_path}/o", CPU))  # fmt: skip
    both = f"ckpt_path={{first:{pretrained.folder},last:{pretrained.last}}}"
    three = drawn(commands.run("visualize", "draw=attention", "query=[40,20]", f"image={picture}", both,
                               "untrained=true", f"out={tmp_path}/o", CPU))  # fmt: skip
    (one,), (three,) = one.values(), three.values()
    assert three[0] == one[0]
    assert three[1] == pytest.approx(3 * one[1], rel=0.02)


def test_neighbours_of_images_and_of_a_region(pretrained, commands, picture, tmp_path):
    words = [f"ckpt_path={pretrained.folder}", f"out={tmp_path}/o", *MACHINE]
    images = commands.run("visualize", "draw=neighbours", "draw.queries=2", "draw.k=3", *words)
    assert list(drawn(images)) == ["neighbours.png"]
    assert "images (those of the checkpoint's training): dataset=folder" in images.out
    regions = commands.run("visualize", "draw=neighbours", "draw.k=3", f"image={picture}", "query=[40,20]", *words)
    (name,) = drawn(regions)
    assert name.startswith("regions_")
    refused = commands.run("visualize", "draw=neighbours", f"image={picture}", *words)
    assert "the nearest regions need query=[x,y]" in refused.err


def test_the_table_of_correspondence(pretrained, commands, tmp_path):
    words = ["measure=correspondence", "measure.ways=[random,same_plain]", "measure.seeds=[0,1]"]
    outcome = commands.run("visualize", *words, f"ckpt_path={pretrained.folder}", f"out={tmp_path}/o", *MACHINE)
    assert outcome.code == 0, outcome.err
    rows = json.loads((tmp_path / "o" / "correspondence.json").read_text())
    title = pretrained.folder.name
    assert [(row["views"], row["backbone"]) for row in rows] == [
        ("two random boxes", "untrained"),
        ("two random boxes", title),
        ("the same box, colours kept", "untrained"),
        ("the same box, colours kept", title),
    ]
    assert {row["exact_by_chance"] for row in rows} == {"0.250 ± 0.000"}  # 2 x 2 regions at 16 px
    assert " ± " in rows[0]["exact"]
    query = pretrained.results["evaluation"]["images"]["query"]
    assert rows[2]["regions"] == 2 * 4 * query
    for row in rows:
        assert row["exact"] in outcome.out
    few = commands.run("visualize", *words, "measure.images=3", f"ckpt_path={pretrained.folder}",
                       f"out={tmp_path}/few", *MACHINE)  # fmt: skip
    assert few.code == 0, few.err
    assert json.loads((tmp_path / "few" / "correspondence.json").read_text())[2]["regions"] == 2 * 4 * 3


def test_the_spread_of_correspondence_over_trainings(pretrained, commands, pictures, tmp_path):
    other = commands.pretrain(pictures, "seed=1")
    words = ["measure=correspondence", "measure.ways=[same]", "measure.seeds=[0,1]", *MACHINE]

    def exact(ckpt_path, name):
        outcome = commands.run("visualize", *words, f"ckpt_path={ckpt_path}", f"out={tmp_path}/{name}")
        assert outcome.code == 0, outcome.err
        rows = json.loads((tmp_path / name / "correspondence.json").read_text())
        return {row["backbone"]: row["exact"] for row in rows}

    def middle(text):
        return float(text.partition(" ± ")[0])

    first, second = (exact(f"{{mine:{run.folder}}}", name) for run, name in ((pretrained, "a"), (other, "b")))
    both = exact(f"{{mine:[{pretrained.folder},{other.folder}]}}", "c")
    assert list(both) == ["untrained", "mine"]
    for title in both:
        one, two = middle(first[title]), middle(second[title])
        assert middle(both[title]) == pytest.approx((one + two) / 2, abs=1e-3)
        assert float(both[title].partition(" ± ")[2]) == pytest.approx(abs(one - two) / 2**0.5, abs=1.5e-3)


def test_curves_of_runs(pretrained, commands, tmp_path):
    runs = f"draw.runs={{a:[{pretrained.folder},{pretrained.folder}],b:[{pretrained.folder}]}}"
    words = ["draw=curves", runs, "draw.metrics=[knn/top1,train/view_loss]", f"out={tmp_path}/o"]
    assert list(drawn(commands.run("visualize", *words))) == ["curves.png"]
    wrong = commands.run("visualize", "draw=curves", f"draw.runs=[{pretrained.folder}]", "draw.metrics=[knn/top2]")
    assert wrong.code == 1
    assert "no run has logged them; there are" in wrong.err
    assert "knn/top1" in wrong.err
    none = commands.run("visualize", "draw=curves", f"draw.runs=[{tmp_path}]")
    assert f"{tmp_path} holds no metrics.csv; draw.runs needs folders of runs" in none.err


def test_a_run_becomes_a_film(commands, pictures, picture, tmp_path):
    run = commands.pretrain(
        pictures, "callbacks=[attention,pca,correspondences,correspondence]", "callbacks.attention_maps.query=[40,20]",
        *(f"callbacks.{name}.images=[{picture}]" for name in ("attention_maps", "pca_maps", "correspondences")),
    )  # fmt: skip
    assert run.code == 0, run.err
    figures = sorted(path.relative_to(run.folder / "figures").as_posix() for path in run.folder.rglob("step_*.png"))
    names = ("attention", "correspondence", "pca")
    assert figures == [f"{name}/step_{step:06d}.png" for name in names for step in (3, 7)]
    assert len(run.metric("correspondence/exact")) == 2
    outcome = commands.run("visualize", "draw=film", f"draw.frames={run.folder}/figures/attention/*.png",
                           f"out={tmp_path}/o")  # fmt: skip
    assert list(drawn(outcome)) == ["attention.gif"]
    with Image.open(tmp_path / "o" / "attention.gif") as gif:
        shown = 0
        for frame in range(gif.n_frames):  # equal pictures become one that is shown for longer
            gif.seek(frame)
            shown += gif.info["duration"]
    assert shown == 400 + 1600
    none = commands.run("visualize", "draw=film", f"draw.frames={tmp_path}/*.bmp")
    assert "names no picture" in none.err


def test_the_throughput_of_esvit_bench_is_drawn_below_the_published_one(commands, tmp_path):
    alone = drawn(commands.run("visualize", "draw=throughput", f"out={tmp_path}/o"))["throughput.png"]
    bench = commands.run("bench", "throughput", "backbones=[swin_tiny_w7]", "trainer=cpu", f"out={tmp_path}/b")
    assert bench.code == 0, bench.err
    file = tmp_path / "b/throughput.json"
    measured, published = json.loads(file.read_text())
    assert measured["rows"][0].pop("rival", "") is None  # files of before have no such column
    file.write_text(json.dumps([measured, published]))
    words = ["draw=throughput", f"draw.file={file}", f"out={tmp_path}/o"]
    assert drawn(commands.run("visualize", *words))["throughput.png"][1] > alone[1]
    (tmp_path / "other.json").write_text('[{"rows": [{"a": 1}]}]')
    wrong = commands.run("visualize", "draw=throughput", f"draw.file={tmp_path}/other.json")
    assert "is not what esvit-bench throughput writes" in wrong.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["draw=pca", "image=PICTURE", "ckpt_path={mine:[a,b]}"],
            "ckpt_path names 2 checkpoints mine; a picture shows one of each",
        ),
        ([], "esvit-visualize needs draw= or measure=, one of them"),
        (["draw=attention"], "draw=attention needs image= and ckpt_path="),
        (["measure=correspondence"], "measure=correspondence needs ckpt_path="),
        (["draw=attention", "image=PICTURE", "ckpt_path=RUN", "query=[60,0]"], "outside the image of 60 x 40 pixels"),
        (["draw=attention", "image=PICTURE", "ckpt_path=RUN", "query=[1]"], "query must be [x,y] in pixels"),
        (["draw=attention", "image=PICTURE", "ckpt_path=RUN"], "no token before the map"),
        (
            ["draw=attention", "image=PICTURE", "ckpt_path=RUN", "query=[1,1]", "draw.block=9"],
            "between -2 and 1, got 9",
        ),
        (["draw=attention", "image=nothing.png", "ckpt_path=RUN", "query=[1,1]"], "nothing.png"),
        (["draw=pca", "image=PICTURE", "ckpt_path=nothing"], "ckpt_path: nothing does not exist"),
        (["draw=atention"], "did you mean draw=attention?"),
        (["measure=correspondence", "ckpt_path=RUN", "measure.ways=[rnadom]"], "measure.ways needs some of random,"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_refused(commands, pretrained, picture, words, said):
    filled = [word.replace("PICTURE", str(picture)).replace("RUN", str(pretrained.folder)) for word in words]
    outcome = commands.run("visualize", *filled, *([CPU] if words else []))
    assert outcome.code == 1
    assert said in outcome.err
