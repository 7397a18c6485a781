#!/usr/bin/env python3
"""Measures what a device does at its best, by torch, and prints it as JSON: products in TFLOP/s, copies in GB/s.

    tools/device_rates.py cuda:0
    tools/device_rates.py cpu --size 1024 --megabytes 64
"""

import argparse
import json
import time

import torch

SECONDS = 0.2


def seconds_of(work, wait) -> float:
    """Of one call: the mean of as many as a fifth of a second has room for, after three that do not count."""
    for _ in range(3):
        work()
    wait()
    calls, started = 0, time.perf_counter()
    while True:
        for _ in range(5):
            work()
        wait()
        calls += 5
        taken = time.perf_counter() - started
        if taken >= SECONDS:
            return taken / calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device")
    parser.add_argument("--size", type=int, default=8192, help="rows and columns of the products")
    parser.add_argument("--megabytes", type=int, default=2048, help="of the copies")
    arguments = parser.parse_args()
    device, size = torch.device(arguments.device), arguments.size
    is_cuda = device.type == "cuda"
    wait = (lambda: torch.cuda.synchronize(device)) if is_cuda else (lambda: None)
    result = {
        "device": torch.cuda.get_device_name(device) if is_cuda else "cpu",
        "torch": torch.__version__, "size": size, "tflops": {}, "copy_gb_per_second": {},
    }
    kinds = {"bf16": (torch.bfloat16, True), "tf32": (torch.float32, True), "fp32": (torch.float32, False)}
    for name, (kind, is_tf32) in kinds.items():
        torch.backends.cuda.matmul.allow_tf32 = is_tf32
        left, right = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
        out = torch.empty(size, size, device=device, dtype=kind)
        taken = seconds_of(lambda: torch.matmul(left, right, out=out), wait)
        result["tflops"][name] = 2 * size**3 / taken / 1e12
        del left, right, out
    count = arguments.megabytes << 20
    here = torch.zeros(count, dtype=torch.uint8, device=device)
    there = torch.empty_like(here)
    # Bytes read and bytes written count both; across the bus they count once.
    result["copy_gb_per_second"]["device"] = 2 * count / seconds_of(lambda: there.copy_(here), wait) / 1e9
    if is_cuda:
        host = torch.zeros(count, dtype=torch.uint8, pin_memory=True)
        to_device = seconds_of(lambda: here.copy_(host, non_blocking=True), wait)
        to_host = seconds_of(lambda: host.copy_(here, non_blocking=True), wait)
        result["copy_gb_per_second"] |= {"to_device": count / to_device / 1e9, "to_host": count / to_host / 1e9}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
