"""Turns a text into token ids: tokenize.py MODEL TEXT_FILE > OUTPUT

MODEL is a directory that holds tokenizer.json, or else tokenizer.model (sentencepiece), or vocab.json and merges.txt; or a
GGUF file, which has its tokenizer in it; where that is of a kind that is not read, the same files beside it are.
TEXT_FILE is .txt, or .jsonl with a field `text` in every line, whose documents are joined by an empty line;
either may be compressed (.zst). The text is tokenized whole, as one string, with the special tokens that the
tokenizer itself adds. Standard output gets the ids as little-endian int32 and nothing else.

A failure is one line on standard error and an exit status of sysexits.h.
"""

import argparse
import array
import importlib
import json
import mmap
import shutil
import struct
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
    if model.suffix.lower() == ".gguf" and model.is_file():
        try:
            return load_gguf_tokenizer(model)
        except Failure:
            model = model.parent
            if not any((model / name).is_file() for name in kinds):
                raise
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


# How the texts of byte-level tokenizers are cut before pairs are merged, by `tokenizer.ggml.pre`, the name that llama.cpp has
# for it.
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED, CONTRACTED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{ending}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{ending}"
    for ending in ("", CONTRACTIONS + "?"))
CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
BY_TRIPLETS = [rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{REST}"]
BY_DIGITS = [rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{REST}"]
SPLITS = {
    "gpt-2 phi-2 mpt olmo jais trillion default": [WORDS],
    "smollm starcoder refact command-r codeshell exaone exaone4 minerva-7b": [r"\p{N}", WORDS],
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral dbrx smaug-bpe glm4 glm5 chatglm-bpe": BY_TRIPLETS,
    "qwen2 deepseek-r1-qwen stablelm2 hunyuan megrez seed-coder grok-2": BY_DIGITS,
    "qwen35": [
        rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"],
    "tekken": [rf"{CASED}|\p{{N}}|{CASED_REST}"],
    "gpt-4o llama4": [rf"{CONTRACTED}|\p{{N}}{{1,3}}|{CASED_REST}"],
    "falcon": [r"[\p{P}\$\+<=>\^~\|`]+", WORDS, r"[0-9][0-9][0-9]"],
    "bloom poro-chat gpt3-finnish": [r" ?[^(\s|.,!?…。，、।۔،)]+"],
}
# Kinds of tokens that stand for themselves in a text: unknown, control, user-defined.
SPECIAL = (2, 3, 4)


def load_gguf_tokenizer(file: Path) -> Callable[[str], list[int]]:
    """A byte-level tokenizer, or sentencepiece's of pairs, from the keys of a GGUF file."""
    tokenizers = package("tokenizers")
    try:
        tokenize = tokenizer_of_keys(file, gguf_keys(file), tokenizers)
        # What is wrong with the first tokens and the last shows here.
        array.array("i", tokenize("a"))
    except Failure:
        raise
    except Exception as error:  # The package raises nothing narrower.
        mend = "get the file anew, or give token ids (.safetensors)"
        raise Failure(DATA_ERROR, f"{file}: its tokenizer is damaged: {error}", mend) from None
    return tokenize


def tokenizer_of_keys(file: Path, keys: dict, tokenizers) -> Callable[[str], list[int]]:
    """What the keys of a GGUF file say, whatever they may be."""
    kind, names = keys.get("tokenizer.ggml.model"), keys.get("tokenizer.ggml.tokens")
    mend = "put the model's tokenizer.json beside it, or give token ids (.safetensors)"
    if kind not in ("gpt2", "llama") or not isinstance(names, list):
        raise Failure(DATA_ERROR, f"{file}: a tokenizer of the kind {kind} is not read", mend)
    types = keys.get("tokenizer.ggml.token_type") or [1] * len(names)
    vocabulary = {name: number for number, name in enumerate(names)}
    if kind == "gpt2":
        pre = keys.get("tokenizer.ggml.pre", "default")
        splits = next((found for known, found in SPLITS.items() if pre in known.split()), None)
        if splits is None:
            raise Failure(DATA_ERROR, f"{file}: how its tokenizer cuts texts, {pre}, is not known", mend)
        merges = [tuple(pair.split(" ", 1)) for pair in keys.get("tokenizer.ggml.merges", [])]
        tokenizer = tokenizers.Tokenizer(
            tokenizers.models.BPE(vocabulary, merges, ignore_merges=splits is BY_TRIPLETS))
        pieces = tokenizers.pre_tokenizers
        tokenizer.pre_tokenizer = pieces.Sequence(
            [pieces.Split(tokenizers.Regex(split), behavior="isolated") for split in splits]
            + [pieces.ByteLevel(add_prefix_space=False, use_regex=False)])
    else:
        scores = keys.get("tokenizer.ggml.scores") or [0.0] * len(names)
        tokenizer = tokenizers.Tokenizer(
            tokenizers.models.BPE(
                vocabulary, merges_by_score(vocabulary, scores), fuse_unk=True, byte_fallback=True,
                unk_token=names[keys.get("tokenizer.ggml.unknown_token_id", 0)]))
        normalizers = tokenizers.normalizers
        space = [normalizers.Prepend("▁")] if keys.get("tokenizer.ggml.add_space_prefix", True) else []
        tokenizer.normalizer = normalizers.Sequence(space + [normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(name, special=True, normalized=False)
         for name, kind in zip(names, types) if kind in SPECIAL and name])
    # Sentencepiece's own numbers, where there are no others.
    begin, end = (keys.get(f"tokenizer.ggml.{name}_token_id", number) for name, number in (("bos", 1), ("eos", 2)))
    first = [begin] if keys.get("tokenizer.ggml.add_bos_token", kind == "llama") else []
    last = [end] if keys.get("tokenizer.ggml.add_eos_token", False) else []
    return lambda text: first + tokenizer.encode(text, add_special_tokens=False).ids + last


def merges_by_score(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """The pairs that sentencepiece merges, those of the greatest score first."""
    merges = []
    for name, number in vocabulary.items():
        pairs = [
            (name[:place], name[place:]) for place in range(1, len(name))
            if name[:place] in vocabulary and name[place:] in vocabulary]
        pairs.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        merges += [(scores[number], pair) for pair in pairs]
    merges.sort(key=lambda merge: merge[0], reverse=True)
    return [pair for _, pair in merges]


def gguf_keys(file: Path) -> dict:
    """What a GGUF file says of its tokenizer."""
    damaged = Failure(DATA_ERROR, f"{file}: its header is damaged", "get the file anew")
    try:
        with file.open("rb") as source, mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return dict(parsed_keys(content))
    except OSError as error:
        raise Failure(NO_INPUT, f"{file}: {error.strerror}", "name a file that can be read") from None
    except (struct.error, IndexError, KeyError, ValueError, UnicodeDecodeError, OverflowError, MemoryError):
        raise damaged from None


def parsed_keys(content):
    """The keys of a GGUF file that begin with `tokenizer.`, and their values."""
    formats = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    text, several = 8, 9
    place = 16

    def number(code: str):
        nonlocal place
        (value,) = struct.unpack_from("<" + code, content, place)
        place += struct.calcsize("<" + code)
        return value

    def string() -> bytes:
        nonlocal place
        length = number("Q")
        if length > len(content) - place:
            raise ValueError
        place += length
        return content[place - length:place]

    if content[:4] != b"GGUF":
        raise ValueError
    for _ in range(number("Q")):
        key = string().decode("utf-8")
        kind = number("I")
        if kind == several:
            kind, count = number("I"), number("Q")
            if count > len(content) - place:
                raise ValueError
            if kind == text:
                value = [string().decode("utf-8", "replace") for _ in range(count)]
            else:
                value = list(struct.unpack_from(f"<{count}{formats[kind]}", content, place))
                place += struct.calcsize(f"<{count}{formats[kind]}")
        else:
            value = string().decode("utf-8", "replace") if kind == text else number(formats[kind])
        if key.startswith("tokenizer."):
            yield key, value


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
    arguments.add_argument("model", type=Path, metavar="MODEL")
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
