"""The steps of tools/cuda-check: each takes a Bench, runs programs, and returns its figures."""

import contextlib
import importlib.machinery
import importlib.util
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import wide_layer
from token_file import write_tokens

TOOLS = Path(__file__).resolve().parent
FALCON_LAYERS = 80
SANITIZER_STATUS = 99


class Failure(Exception):
    """Why a step has no figures, or not all of them."""


class LeftOut(Exception):
    """Why a step was not begun."""


def llama_model(scale: int) -> tuple[dict, dict[str, list[int]]]:
    """A layer of a part of Llama-3-8B's width."""
    hidden, width, head, heads, key_value_heads = 4096 // scale, 14336 // scale, 128, 32 // scale, 8 // scale
    layer = "model.layers.0."
    configuration = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "head_dim": head,
        "intermediate_size": width, "num_attention_heads": heads, "num_key_value_heads": key_value_heads,
        "num_hidden_layers": 1, "vocab_size": 4096, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "max_position_embeddings": 8192, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    return configuration, {
        "model.embed_tokens.weight": [4096, hidden],
        "model.norm.weight": [hidden],
        layer + "input_layernorm.weight": [hidden],
        layer + "post_attention_layernorm.weight": [hidden],
        layer + "self_attn.q_proj.weight": [heads * head, hidden],
        layer + "self_attn.k_proj.weight": [key_value_heads * head, hidden],
        layer + "self_attn.v_proj.weight": [key_value_heads * head, hidden],
        layer + "self_attn.o_proj.weight": [hidden, heads * head],
        layer + "mlp.gate_proj.weight": [width, hidden],
        layer + "mlp.up_proj.weight": [width, hidden],
        layer + "mlp.down_proj.weight": [hidden, width],
    }


def falcon_model(scale: int) -> tuple[dict, dict[str, list[int]]]:
    """As tools/falcon-layer makes it."""
    loader = importlib.machinery.SourceFileLoader("falcon_layer", str(TOOLS / "falcon-layer"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("falcon_layer", loader))
    loader.exec_module(module)
    return module.model(scale)


def library_folders() -> list[str]:
    """Where CUDA's libraries may lie that the loader does not know: Python's packages of them, and the toolkit."""
    found = importlib.util.find_spec("nvidia")
    packages = [Path(place) for place in (found.submodule_search_locations if found else [])]
    folders = [folder for package in packages for folder in sorted(package.glob("*/lib"))]
    folders += [Path("/usr/local/cuda/lib64"), Path("/usr/local/nvidia/lib64")]
    return [str(folder) for folder in folders if any(folder.glob("lib*.so*"))]


class MemoryWatch:
    """The most memory in use on the device, by nvidia-smi, ten times a second; with that of other programs."""

    def __init__(self, device: str):
        self.most_bytes = self.least_bytes = None
        self.process = None
        tool = shutil.which("nvidia-smi")
        if device == "cpu" or not tool:
            return
        index = device.partition(":")[2] or "0"
        command = [tool, "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", index, "-lms", "100"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        threading.Thread(target=self.read, daemon=True).start()

    def read(self) -> None:
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                now = int(line) << 20
                self.most_bytes = max(now, self.most_bytes or now)
                self.least_bytes = min(now, self.least_bytes if self.least_bytes is not None else now)

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()


class Bench:
    """What the steps share: the program, its environment, a place for files, and the time that is left."""

    def __init__(self, options, scratch: Path, log):
        self.options, self.scratch, self.log = options, scratch, log
        program = options.program.resolve()
        self.environment = dict(os.environ)
        folders = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
        if program.is_dir():
            program = program / "run"
        self.environment["LD_LIBRARY_PATH"] = ":".join(folders + library_folders())
        self.program = program
        self.ends_at = time.monotonic() + options.within
        self.step_ends_at = self.ends_at

    def on(self, device: str) -> list[str]:
        """A program that knows no devices is run as it is."""
        return [] if device == "cpu" and not self.options.name_cpu else ["--device", device]

    def run(self, command: list, watch: str = "cpu") -> dict:
        """Runs a program to its end or the step's; raises Failure with the last of what it said."""
        command = [str(part) for part in command]
        print("$", " ".join(command), file=self.log, flush=True)
        seconds = self.step_ends_at - time.monotonic()
        if seconds <= 1:
            raise Failure("no time left")
        memory = MemoryWatch(watch)
        before = self.log.tell()
        started = time.monotonic()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self.log, env=self.environment, text=True, start_new_session=True
        )
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise Failure(f"not done after {seconds:.0f} s: {self.last_line(before)}") from None
        finally:
            memory.stop()
        print(output, file=self.log, flush=True)
        if process.returncode:
            raise Failure(f"status {process.returncode}: {self.last_line(before)}")
        return {
            "wall_seconds": time.monotonic() - started, "output": output,
            "device_bytes_used": memory.most_bytes, "device_bytes_used_by_others": memory.least_bytes,
        }

    def last_line(self, start: int) -> str:
        self.log.flush()
        text = Path(self.log.name).read_bytes()[start:].decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("$")]
        return lines[-1][:300] if lines else "said nothing"

    def quantize(self, model: Path, tokens: Path, rows: int, length: int, bits: int, device: str, output: Path) -> dict:
        """The report's settings, totals and linears, and what was seen from outside."""
        command = [self.program, "quantize", model, "--output", output, "--calibration", tokens, "--bits", bits]
        command += ["--samples", rows, "--sequence-length", length, *self.on(device), *self.options.quantize_options]
        ran = self.run(command, watch=device)
        report = json.loads((output / "quantease_report.json").read_text())
        del ran["output"]
        return ran | {key: report[key] for key in ("settings", "totals", "linears")}

    def perplexity(self, model: Path, device: str) -> dict:
        command = [self.program, "eval", model, "--tokens", self.options.test, "--json", *self.on(device)]
        return json.loads(self.run(command)["output"])


def token_shape(path: Path) -> tuple[int, int]:
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    return tuple(header["input_ids"]["shape"])


def devices(bench: Bench, figures: dict) -> None:
    if bench.options.device == "cpu" and not bench.options.name_cpu:
        raise LeftOut("there is none but the processor")
    figures["text"] = bench.run([bench.program, "devices"])["output"]
    figures["json"] = json.loads(bench.run([bench.program, "devices", "--json"])["output"])


def sanitizer(bench: Bench, figures: dict) -> None:
    """memcheck around a tiny quantization. On the processor the quantization is run alone."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    prefix = [tool, "--tool", "memcheck", "--target-processes", "all", "--error-exitcode", SANITIZER_STATUS]
    if bench.options.device == "cpu":
        prefix = []
    elif not Path(tool).exists():
        raise LeftOut("no compute-sanitizer on the PATH")
    tokens = bench.scratch / "tiny.safetensors"
    write_tokens(tokens, 8, 64)
    for name in bench.options.fixtures:
        output = bench.scratch / f"tiny-{name}"
        fixture = TOOLS.parent / "Tests/Fixtures/models" / name
        command = [*prefix, bench.program, "quantize", fixture, "--output", output, "--calibration", tokens]
        command += ["--samples", 8, "--sequence-length", 64, *bench.on(bench.options.device)]
        ran = bench.run(command)
        said = [line for line in ran["output"].splitlines() if "ERROR SUMMARY" in line]
        figures[name] = {"wall_seconds": ran["wall_seconds"], "summary": said}
        totals = json.loads((output / "quantease_report.json").read_text())["totals"]
        figures[name]["mean_relative_error"] = totals["mean_relative_error"]


def model(bench: Bench, figures: dict) -> None:
    """A whole model on the device and on the processor: errors, perplexities, seconds."""
    options = bench.options
    if not (options.model and options.calibration and options.test):
        raise LeftOut("takes --model, --calibration and --test")
    rows, length = token_shape(options.calibration)
    if options.rows:
        rows = min(rows, options.rows)
    places = [options.device] if options.no_cpu or options.device == "cpu" else [options.device, "cpu"]
    failures = []
    for device in places:
        figures[device] = {}
        for bits in [None, *options.bits]:
            entry = figures[device][str(bits or "unquantized")] = {}
            output = bench.scratch / f"model-{device.replace(':', '')}-{bits}"
            try:
                if bits:
                    entry |= bench.quantize(options.model, options.calibration, rows, length, bits, device, output)
                    figures[device][str(bits)] = entry
                source = output if bits else options.model
                entry["eval"] = bench.perplexity(source, device)
                # Tells whether it is the weights that differ or what is measured on them.
                if bits and device != "cpu":
                    entry["eval_on_cpu"] = bench.perplexity(source, "cpu")
            except Failure as failure:
                entry["failure"] = str(failure)
                failures.append(f"{device}, {bits or 'no'} bits: {failure}")
            finally:
                shutil.rmtree(output, ignore_errors=True)
    if failures:
        raise Failure("; ".join(failures))


def layer(bench: Bench, figures: dict, name: str, make) -> None:
    options = bench.options
    configuration, shapes = make(options.scale)
    source, tokens, output = (bench.scratch / f"{name}-{part}" for part in ("model", "tokens.safetensors", "output"))
    started = time.monotonic()
    try:
        wide_layer.write_model(source, configuration, shapes, is_fast=True)
        write_tokens(tokens, max(options.samples), options.sequence_length, configuration["vocab_size"])
        figures["seconds_to_make"] = time.monotonic() - started
        for samples in options.samples:
            try:
                figures |= bench.quantize(
                    source, tokens, samples, options.sequence_length, options.layer_bits, options.device, output
                )
                break
            except Failure as failure:
                figures.setdefault("failures", {})[str(samples)] = str(failure)
                if samples == options.samples[-1]:
                    raise
    finally:
        shutil.rmtree(source, ignore_errors=True)
        shutil.rmtree(output, ignore_errors=True)
    parts = [linear["shape"] for linear in figures["linears"]]
    tokens_seen = figures["totals"]["tokens"]
    figures["flop_of_one_forward"] = sum(2 * tokens_seen * rows * columns for rows, columns in parts)
    figures["flop_of_a_gram_matrix_each"] = sum(2 * tokens_seen * columns**2 for _, columns in parts)
    if name == "falcon":
        figures["hours_of_80_layers"] = FALCON_LAYERS * figures["totals"]["seconds"] / 3600


def llama(bench: Bench, figures: dict) -> None:
    layer(bench, figures, "llama", llama_model)


def falcon(bench: Bench, figures: dict) -> None:
    layer(bench, figures, "falcon", falcon_model)


def rates(bench: Bench, figures: dict) -> None:
    """torch's own, in a process of its own, so that no memory stays taken."""
    if not importlib.util.find_spec("torch"):
        raise LeftOut(f"{sys.executable} has no torch")
    device = bench.options.device.replace("auto", "cuda")
    small = ["--size", "512", "--megabytes", "32"] if device == "cpu" else []
    figures |= json.loads(bench.run([sys.executable, TOOLS / "device_rates.py", device, *small])["output"])
