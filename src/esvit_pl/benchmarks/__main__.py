"""``python -m esvit_pl.benchmarks``: print where the time of a step goes on this machine."""

from __future__ import annotations

import torch

from esvit_pl.benchmarks.step import step_seconds

if __name__ == "__main__":
    parts = step_seconds()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, CPU; micro Swin, batch 8, 2 x 224 + 8 x 96 px"
    )
    for part, seconds in parts.items():
        print(f"{part:<36}{1000 * seconds:9.0f} ms{100 * seconds / parts['whole step']:6.0f} %")
