from esvit_pl.evaluation.names import knn_metrics
from esvit_pl.metrics import TopK


def test_the_main_measure_has_the_plain_name_and_the_others_say_what_they_are() -> None:
    one, two = TopK(0.1, 0.5), TopK(0.2, 0.6)
    assert knn_metrics("knn", [(None, {20: one, 10: two})]) == {
        "knn/top1": 0.1,
        "knn/top5": 0.5,
        "knn/k10/top1": 0.2,
        "knn/k10/top5": 0.6,
    }
    assert list(knn_metrics("knn", [("teacher", {20: one, 10: one}), ("student", {20: two})])) == [
        "knn/top1",
        "knn/top5",
        "knn/teacher/k10/top1",
        "knn/teacher/k10/top5",
        "knn/student/k20/top1",
        "knn/student/k20/top5",
    ]
