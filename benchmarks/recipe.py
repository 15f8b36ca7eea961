"""What a recipe's options cost: a step with each of them against the plain step, in turn and in one process.

    python benchmarks/recipe.py --methods pgd-at,trades --batch 32

Without an option the step is taken twice, so that the table also shows what the machine's noise is. Prints a Markdown
table of the fastest of all rounds, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import step
import torch

OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "none again": {},
    "awp": {"awp": 0.01},
    "awp, restore-first": {"awp": 0.01, "awp_form": "restore-first"},
    "ema": {"average": "ema"},
    "ema, buffers averaged": {"average": "ema", "average_buffers": "averaged"},
    "swa": {"average": "swa"},
    "cosine, Nesterov": {"schedule": "cosine", "per": "iteration", "nesterov": True, "decay_norm": False},
    "adamw": {"optimiser": "adamw"},
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    step.arguments(parser)
    args = parser.parse_args()
    bench = step.Bench(args)
    # On a CPU that of this process alone, whatever else the machine does.
    clock = time.perf_counter if args.device.startswith("cuda") else time.process_time
    print("| method | " + " | ".join(OPTIONS) + " |")
    print("| --- |" + " ---: |" * len(OPTIONS))
    for method in step.methods(args.methods):
        steps = {name: bench.ours(method, "auto", **config) for name, config in OPTIONS.items()}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(args.rounds + 1):
            for name, take in steps.items():
                begun = clock()
                take()
                if args.device.startswith("cuda"):
                    torch.cuda.synchronize()
                if number:
                    seconds[name].append(clock() - begun)
        fastest = {name: min(times) for name, times in seconds.items()}
        shown = [f"{fastest['none']:.3f} s", *(f"{m / fastest['none']:.2f}" for m in list(fastest.values())[1:])]
        print(f"| {method} | " + " | ".join(shown) + " |", flush=True)


if __name__ == "__main__":
    main()
