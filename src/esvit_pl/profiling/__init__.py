"""What a training costs on this machine: memory before its first step, images a second, and what bounds them."""

from esvit_pl.profiling.available_memory import available_bytes
from esvit_pl.profiling.batch_size import Verdict, judge
from esvit_pl.profiling.memory import Need, predict
from esvit_pl.profiling.report import Report
from esvit_pl.profiling.training import Noise, Training

__all__ = ["Need", "Noise", "Report", "Training", "Verdict", "available_bytes", "judge", "predict"]
