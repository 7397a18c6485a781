"""Turns a text into token ids: tokenize.py MODEL_DIR TEXT_FILE > OUTPUT

MODEL_DIR holds tokenizer.json, or else tokenizer.model (sentencepiece), or vocab.json and merges.txt.
TEXT_FILE is .txt, or .jsonl with a field `text` in every line, whose documents are joined by an empty line;
either may be compressed (.zst). The text is tokenized whole, as one string, with the special tokens that the
tokenizer itself adds. Standard output gets the ids as little-endian int32 and nothing else.

A failure is one line on standard error and an exit status of sysexits.h.
"""

import argparse
import array
import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

DATA_ERROR, NO_INPUT, UNAVAILABLE, CANNOT_CREATE = 65, 66, 69, 73


class Failure(Exception):
    """What is wrong, how to mend it, and the exit status."""

    def __init__(self, status: int, problem: str, mend: str):
        super().__init__(" ".join(f"{problem}; mend: {mend}".split()))
        self.status = status


def load_tokenizer(model: Path) -> Callable[[str], list[int]]:
    """What turns a text into a checkpoint's token ids, by the first file that says how."""
    kinds = {
        "tokenizer.json": load_fast_tokenizer,
        "tokenizer.model": load_sentencepiece,
        "vocab.json": load_byte_level_tokenizer,
    }
    for name, load in kinds.items():
        file = model / name
        if file.is_file():
            return load(file)
    raise Failure(
        NO_INPUT,
        f"{model}/tokenizer.json does not exist, nor tokenizer.model or vocab.json",
        "write it with transformers: AutoTokenizer.from_pretrained(MODEL).save_pretrained(MODEL)",
    )


def package(name: str):
    """A Python package that may be missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        python = sys.executable or "python3"
        mend = f"{python} -m pip install {name}"
        raise Failure(UNAVAILABLE, f"{python}: {error}", mend) from None


def load_fast_tokenizer(file: Path) -> Callable[[str], list[int]]:
    """Neither truncates nor pads, whatever its file says."""
    tokenizers = package("tokenizers")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # The package raises nothing narrower.
        raise Failure(DATA_ERROR, f"{file}: {error}", "upgrade tokenizers, or get the file anew") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: tokenizer.encode(text, add_special_tokens=True).ids


def load_sentencepiece(file: Path) -> Callable[[str], list[int]]:
    """Models that publish the file of sentencepiece alone begin a text with its first token, unless they say otherwise."""
    sentencepiece = package("sentencepiece")
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
    except Exception as error:
        mend = "get the file anew, or write a tokenizer.json with transformers"
        raise Failure(DATA_ERROR, f"{file}: {error}", mend) from None
    begins = tokenizer_setting(file.parent, "add_bos_token", True) and processor.bos_id() >= 0
    ends = tokenizer_setting(file.parent, "add_eos_token", False) and processor.eos_id() >= 0
    return lambda text: processor.encode(text, add_bos=begins, add_eos=ends)


def load_byte_level_tokenizer(file: Path) -> Callable[[str], list[int]]:
    """vocab.json and merges.txt, of GPT-2 and what took its tokens over (OPT)."""
    tokenizers = package("tokenizers")
    merges = file.parent / "merges.txt"
    try:
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(file), str(merges)))
    except Exception as error:
        raise Failure(DATA_ERROR, f"{file} and {merges}: {error}", "get both anew") from None
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    first = []
    if tokenizer_setting(file.parent, "add_bos_token", False):
        token = tokenizer_setting(file.parent, "bos_token", None)
        token = token["content"] if isinstance(token, dict) else token
        identifier = None if token is None else tokenizer.token_to_id(token)
        if identifier is None:
            config = file.parent / "tokenizer_config.json"
            raise Failure(DATA_ERROR, f"{config}: no bos_token that {file} has", "name the one that it has")
        first = [identifier]
    return lambda text: first + tokenizer.encode(text, add_special_tokens=False).ids


def tokenizer_setting(model: Path, key: str, fallback):
    """A setting of tokenizer_config.json, which need not be there."""
    file = model / "tokenizer_config.json"
    try:
        settings = json.loads(file.read_text("utf-8"))
        value = settings.get(key)
    except FileNotFoundError:
        return fallback
    except (OSError, ValueError, AttributeError) as error:
        raise Failure(DATA_ERROR, f"{file}: {error}", "get the file anew") from None
    return fallback if value is None else value


def decompressed(file: Path) -> bytes:
    """The content of a .zst file, by the package `zstandard` or else the command `zstd`."""
    damaged = Failure(DATA_ERROR, f"{file} is cut short or no zstd file", "compress the text anew")
    try:
        import zstandard
    except ImportError:
        if not shutil.which("zstd"):
            mend = "pip install zstandard, or install zstd"
            raise Failure(UNAVAILABLE, f"nothing here reads {file}", mend) from None
        with file.open("rb") as source:
            result = subprocess.run(["zstd", "--decompress", "--stdout"], stdin=source, capture_output=True)
        if result.returncode:
            raise damaged from None
        return result.stdout
    content, frames = file.read_bytes(), []
    while content:
        # Frame by frame: the package's readers of whole streams let a truncated one pass.
        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            frames.append(frame.decompress(content))
        except zstandard.ZstdError:
            raise damaged from None
        if not frame.eof:
            raise damaged
        content = frame.unused_data
    return b"".join(frames)


def read_text(file: Path) -> str:
    """The whole text of the file. Line ends stay as they are."""
    kind = Path(file.name.removesuffix(".zst")).suffix
    if kind not in (".txt", ".jsonl"):
        raise Failure(DATA_ERROR, f"{file} is no .txt or .jsonl file, nor one of these as .zst", "rename it")
    try:
        content = decompressed(file) if file.suffix == ".zst" else file.read_bytes()
        # A byte order mark is no part of a text.
        text = content.decode("utf-8").removeprefix("\ufeff")
    except OSError as error:
        raise Failure(NO_INPUT, f"{file}: {error.strerror}", "name a file that can be read") from None
    except UnicodeDecodeError as error:
        raise Failure(DATA_ERROR, f"{file}: no UTF-8 at byte {error.start}", "convert it to UTF-8") from None
    return text if kind == ".txt" else "\n\n".join(documents(text, file))


def documents(lines: str, file: Path):
    """The field `text` of every line that is not empty."""
    # Not splitlines(): JSON strings may hold the other line separators of Unicode.
    for number, line in enumerate(lines.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, TypeError, KeyError):
            text = None
        if not isinstance(text, str):
            raise Failure(
                DATA_ERROR, f"{file}, line {number}: no JSON object with a string `text`", "rewrite that line"
            )
        # JSON can spell half a character, which no encoding has; tokenizers would not take it.
        yield text.encode("utf-8", "replace").decode("utf-8")


def write_ids(ids: list[int]) -> None:
    """Little-endian int32."""
    words = array.array("i", ids)
    if sys.byteorder == "big":
        words.byteswap()
    try:
        sys.stdout.buffer.write(words.tobytes())
        sys.stdout.buffer.flush()
    except OSError as error:
        raise Failure(CANNOT_CREATE, f"the token ids: {error.strerror}", "free some space") from None


def main() -> None:
    arguments = argparse.ArgumentParser(
        prog="tokenize.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("model", type=Path, metavar="MODEL_DIR")
    arguments.add_argument("text", type=Path, metavar="TEXT_FILE")
    options = arguments.parse_args()
    try:
        tokenize = load_tokenizer(options.model)
        write_ids(tokenize(read_text(options.text)))
    except Failure as failure:
        print(failure, file=sys.stderr)
        sys.exit(failure.status)


if __name__ == "__main__":
    main()
