import subprocess
import sys

from esvit_pl.evaluation.names import knn_metrics, loss_title
from esvit_pl.metrics import TopK


def test_the_main_measure_has_the_plain_name_and_the_others_say_what_they_are() -> None:
    one, two = TopK(0.1, 0.5), TopK(0.2, 0.6)
    assert knn_metrics({20: one, 10: two}) == {
        "knn/top1": 0.1,
        "knn/top5": 0.5,
        "knn/k10/top1": 0.2,
        "knn/k10/top5": 0.6,
    }
    assert [*knn_metrics({20: one, 10: one}, "knn", "teacher")] == [
        "knn/top1",
        "knn/top5",
        "knn/teacher/k10/top1",
        "knn/teacher/k10/top5",
    ]
    assert [*knn_metrics({20: two}, "knn", "student", main=False)] == ["knn/student/k20/top1", "knn/student/k20/top5"]


def test_the_names_are_there_without_torch() -> None:
    """esvit-table reads them, and is quick because it loads no torch."""
    code = "import sys, esvit_pl.evaluation.names, esvit_pl.runs.table; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_losses_are_told_from_other_metrics() -> None:
    assert loss_title("train/view_loss") == "view loss"
    assert loss_title("knn/top1") == "knn/top1"
