"""Turns a text into token ids: tokenize.py [--task] MODEL TEXT_FILE > OUTPUT

MODEL is a directory that holds tokenizer.json, or else tokenizer.model (sentencepiece), or vocab.json and merges.txt; or a
GGUF file, which has its tokenizer in it; where that is of a kind that is not read, the same files beside it are.
TEXT_FILE is .txt, or .jsonl, either also compressed (.zst). Lines of a .jsonl file have a field `text`: these documents are
joined by an empty line. Or they have `messages`, a list of {"role", "content"}, or `conversations`, a list of {"from", "value"}:
each conversation then becomes a text by the model's chat template.

A text is tokenized whole, as one string, with the special tokens that the tokenizer itself adds; a conversation with those of
its template, and conversations follow one another. Standard output gets the ids as little-endian int32 and nothing else.

With --task TEXT_FILE is .jsonl whose lines are questions with answers to choose of, or texts whose last word is to be told.
Standard output then gets a line of JSON for every answer: see `answers`.

A failure is one line on standard error and an exit status of sysexits.h.
"""

from __future__ import annotations

import argparse
import array
import datetime
import importlib
import json
import mmap
import re
import shutil
import signal
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


# Turns a text into token ids, with the special tokens that the tokenizer adds by itself, or without.
Tokenize = Callable[[str, bool], list[int]]


def load_tokenizer(model: Path) -> Tokenize:
    """A checkpoint's, by the first file that says how."""
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
        mend = f"{python} -m pip install {name.split('.')[0]}"
        raise Failure(UNAVAILABLE, f"{python}: {error}", mend) from None


def load_fast_tokenizer(file: Path) -> Tokenize:
    """Neither truncates nor pads, whatever its file says."""
    tokenizers = package("tokenizers")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # The package raises nothing narrower.
        raise Failure(DATA_ERROR, f"{file}: {error}", "upgrade tokenizers, or get the file anew") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text, special: tokenizer.encode(text, add_special_tokens=special).ids


def load_sentencepiece(file: Path) -> Tokenize:
    """Models that publish the file of sentencepiece alone begin a text with its first token, unless they say otherwise."""
    sentencepiece = package("sentencepiece")
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
    except Exception as error:
        mend = "get the file anew, or write a tokenizer.json with transformers"
        raise Failure(DATA_ERROR, f"{file}: {error}", mend) from None
    begins = tokenizer_setting(file.parent, "add_bos_token", True) and processor.bos_id() >= 0
    ends = tokenizer_setting(file.parent, "add_eos_token", False) and processor.eos_id() >= 0
    return lambda text, special: processor.encode(text, add_bos=special and begins, add_eos=special and ends)


def load_byte_level_tokenizer(file: Path) -> Tokenize:
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
        token = special_token(file.parent, "bos_token")
        identifier = None if token is None else tokenizer.token_to_id(token)
        if identifier is None:
            config = file.parent / "tokenizer_config.json"
            raise Failure(DATA_ERROR, f"{config}: no bos_token that {file} has", "name the one that it has")
        first = [identifier]
    return lambda text, special: (first if special else []) + tokenizer.encode(text, add_special_tokens=False).ids


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


def load_gguf_tokenizer(file: Path) -> Tokenize:
    """A byte-level tokenizer, or sentencepiece's of pairs, from the keys of a GGUF file."""
    tokenizers = package("tokenizers")
    try:
        tokenize = tokenizer_of_keys(file, gguf_keys(file), tokenizers)
        # What is wrong with the first tokens and the last shows here.
        array.array("i", tokenize("a", True))
    except Failure:
        raise
    except Exception as error:  # The package raises nothing narrower.
        mend = "get the file anew, or give token ids (.safetensors)"
        raise Failure(DATA_ERROR, f"{file}: its tokenizer is damaged: {error}", mend) from None
    return tokenize


def tokenizer_of_keys(file: Path, keys: dict, tokenizers) -> Tokenize:
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
    def tokenize(text: str, special: bool) -> list[int]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        return first + ids + last if special else ids

    return tokenize


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


def tokenizer_setting(model: Path, key: str, fallback, name: str = "tokenizer_config.json"):
    """A setting of a file that need not be there."""
    file = model / name
    try:
        settings = json.loads(file.read_text("utf-8"))
        value = settings.get(key)
    except FileNotFoundError:
        return fallback
    except (OSError, ValueError, AttributeError) as error:
        raise Failure(DATA_ERROR, f"{file}: {error}", "get the file anew") from None
    return fallback if value is None else value


def special_token(model: Path, key: str, name: str = "tokenizer_config.json"):
    """As it is spelt, which may stand with more that is said of it."""
    token = tokenizer_setting(model, key, None, name)
    return token["content"] if isinstance(token, dict) else token


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


def kind_of(file: Path) -> str:
    return Path(file.name.removesuffix(".zst")).suffix


def read_text(file: Path) -> str:
    """The whole content of the file. Line ends stay as they are."""
    if kind_of(file) not in (".txt", ".jsonl"):
        raise Failure(DATA_ERROR, f"{file} is no .txt or .jsonl file, nor one of these as .zst", "rename it")
    try:
        content = decompressed(file) if file.suffix == ".zst" else file.read_bytes()
        # A byte order mark is no part of a text.
        return content.decode("utf-8").removeprefix("\ufeff")
    except OSError as error:
        raise Failure(NO_INPUT, f"{file}: {error.strerror}", "name a file that can be read") from None
    except UnicodeDecodeError as error:
        raise Failure(DATA_ERROR, f"{file}: no UTF-8 at byte {error.start}", "convert it to UTF-8") from None


def ids_of(file: Path, model: Path) -> list[int]:
    """The tokens of a text, or of conversations."""
    tokenize, text = load_tokenizer(model), read_text(file)
    if kind_of(file) == ".txt":
        return tokenize(text, True)
    lines = list(objects(text, file))
    if any(messages_of(line) is not None for _, line in lines):
        render = load_template(model)
        return [id for number, line in lines for id in tokenize(conversation(line, render, file, number), False)]
    return tokenize("\n\n".join(document(line, file, number) for number, line in lines), True)


def objects(lines: str, file: Path):
    """Every line that is not empty, with its number from 1."""
    # Not splitlines(): JSON strings may hold the other line separators of Unicode.
    for number, line in enumerate(lines.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            parsed = json.loads(line)
        except (ValueError, RecursionError):
            parsed = None
        yield number, parsed if isinstance(parsed, dict) else {}


def document(line: dict, file: Path, number: int) -> str:
    """The field `text`."""
    text = line.get("text")
    if not isinstance(text, str):
        raise Failure(
            DATA_ERROR, f"{file}, line {number}: no JSON object with a string `text`, nor with `messages`",
            "rewrite that line")
    return encodable(text)


def encodable(text: str) -> str:
    """JSON can spell half a character, which no encoding has; tokenizers would not take it."""
    return text.encode("utf-8", "replace").decode("utf-8")


# MARK: Conversations

TEMPLATE_SECONDS = 60
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant"}


def messages_of(line: dict) -> list[dict] | None:
    """The messages of a conversation; None where the line is none. ShareGPT's names are put into those that templates know."""
    if isinstance(line.get("text"), str):
        return None
    if isinstance(line.get("messages"), list):
        return line["messages"]
    turns = line.get("conversations")
    if not isinstance(turns, list):
        return None
    return [
        {"role": ROLES.get(turn["from"], turn["from"]), "content": turn.get("value")}
        if isinstance(turn, dict) and isinstance(turn.get("from"), str) else turn
        for turn in turns]


def conversation(line: dict, render: Callable[[list[dict], list | None], str], file: Path, number: int) -> str:
    """The text that a model is given for a conversation, answers and all."""
    messages = messages_of(line)
    if not messages or not all(isinstance(message, dict) and "role" in message for message in messages):
        raise Failure(
            DATA_ERROR, f"{file}, line {number}: no JSON object with `messages` of a role and a content",
            "rewrite that line; lines with `text` belong into a file of their own")
    tools = line.get("tools")
    try:
        # A stranger's template could go on for ever.
        signal.alarm(TEMPLATE_SECONDS)
        return encodable(render(messages, json.loads(tools) if isinstance(tools, str) else tools))
    except Exception as error:  # Templates raise what they like.
        raise Failure(
            DATA_ERROR, f"{file}, line {number}: the model's chat template refuses it: {error}",
            "rewrite or remove that conversation") from None
    finally:
        signal.alarm(0)


def load_template(model: Path) -> Callable[[list[dict], list | None], str]:
    """What makes a text of messages, as transformers and servers do it."""
    templates, tokens = templates_of(model)
    if not templates:
        raise Failure(
            DATA_ERROR, f"{model} has no chat template", "give conversations as texts, in lines with a field `text`")
    if model.is_dir() and not (model / "tokenizer.json").is_file():
        # The others do not know special tokens where they stand in a text.
        raise Failure(
            DATA_ERROR, f"conversations take a tokenizer.json, which {model} has not",
            "write it with transformers: AutoTokenizer.from_pretrained(MODEL).save_pretrained(MODEL)")
    sandbox, extension, nodes = (package(f"jinja2.{name}") for name in ("sandbox", "ext", "nodes"))

    class Answers(extension.Extension):
        """{% generation %} marks for training what the assistant says."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def refuse(message):
        raise ValueError(message)

    def late(_signal, _frame):
        raise TimeoutError(f"it takes more than {TEMPLATE_SECONDS} seconds")

    def dump(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    signal.signal(signal.SIGALRM, late)
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[extension.loopcontrols, Answers])
    environment.filters["tojson"] = dump
    # A fixed day: the same conversation comes to the same tokens tomorrow.
    day = datetime.datetime(2024, 7, 26)
    environment.globals |= {"raise_exception": refuse, "strftime_now": day.strftime}
    try:
        compiled = {name: environment.from_string(source) for name, source in templates.items()}
    except Exception as error:
        raise Failure(DATA_ERROR, f"{model}: its chat template cannot be read: {error}", "get it anew") from None

    def render(messages: list[dict], tools: list | None) -> str:
        name = "tool_use" if tools and "tool_use" in compiled else "default"
        template = compiled.get(name) or next(iter(compiled.values()))
        return template.render(
            messages=messages, tools=tools, documents=None, add_generation_prompt=False, **tokens)

    return render


def templates_of(model: Path) -> tuple[dict[str, str], dict[str, str]]:
    """A model's chat templates by their names, and the special tokens that they may name."""
    tokens = {}
    if model.suffix.lower() == ".gguf" and model.is_file():
        keys = gguf_keys(model)
        names, prefix = keys.get("tokenizer.ggml.tokens") or [], "tokenizer.ggml."
        for name, short in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
            number = keys.get(f"{prefix}{name}_token_id")
            if isinstance(number, int) and 0 <= number < len(names):
                tokens[f"{short}_token"] = names[number]
        template = keys.get("tokenizer.chat_template")
        return ({"default": template} if isinstance(template, str) else {}), tokens
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = special_token(model, name) or special_token(model, name, "special_tokens_map.json")
        if token is not None:
            tokens[name] = token
    file = model / "chat_template.jinja"
    if file.is_file():
        return {"default": file.read_text("utf-8")}, tokens
    found = tokenizer_setting(model, "chat_template", None)
    if found is None:
        found = tokenizer_setting(model, "chat_template", None, "chat_template.json")
    if isinstance(found, str):
        found = [{"name": "default", "template": found}]
    named = {
        entry.get("name"): entry.get("template") for entry in found or [] if isinstance(entry, dict)}
    return {name: text for name, text in named.items() if isinstance(text, str)}, tokens


# MARK: Tasks

# A question in the fields of the harnesses that people use: what stands before an answer, the answers, and which is right.
Question = tuple[list[str], list[str], int]


def answers(file: Path, model: Path):
    """For every answer to every question: `question` counts from 0, `ids` are the tokens of all, of which the first `context` are
    given, `characters` is the answer's length, and `right` is whether it is. A question with one answer asks for that."""
    tokenize, lines = load_tokenizer(model), objects(read_text(file), file)

    def encode(text: str) -> tuple[list[int], list[int]]:
        """What the tokenizer puts in front by itself, and the text's own tokens."""
        plain, full = tokenize(text, False), tokenize(text, True)
        places = range(len(full) - len(plain) + 1)
        return next((full[:place] for place in places if full[place:place + len(plain)] == plain), []), plain

    for index, (number, line) in enumerate(lines):
        contexts, choices, right = question(line, file, number)
        for choice, (context, answer) in enumerate(zip(contexts, choices)):
            # A space belongs to the word behind it.
            stem = context.rstrip()
            answer = context[len(stem):] + answer
            first, all = encode(encodable(stem + answer))
            given = len(first) + len(tokenize(encodable(stem), False))
            ids = first + all
            if not 0 < given < len(ids):
                raise Failure(
                    DATA_ERROR, f"{file}, line {number}: no token before the answer, or none of it", "rewrite that line")
            yield {
                "question": index, "ids": ids, "context": given, "characters": len(answer.strip()),
                "right": choice == right}


def question(line: dict, file: Path, number: int) -> Question:
    """What a line asks."""
    try:
        found = harness_question(line)
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, StopIteration):
        found = None
    if found is None or not 0 <= found[2] < len(found[1]):
        raise Failure(
            DATA_ERROR,
            f"{file}, line {number}: no question that is known, with the number of the answer that is right",
            "give `query`, `choices` (a list of texts) and `gold` (from 0), or a `text` whose last word is asked for")
    return found


def harness_question(line: dict) -> Question | None:
    """The fields of LAMBADA, HellaSwag, ARC, PIQA, WinoGrande, BoolQ, and of questions with a list of choices."""
    def common(query: str, choices: list[str], right: int) -> Question:
        return [query] * len(choices), [" " + choice for choice in choices], right

    if "activity_label" in line:
        context = f"{line['activity_label']}: {line['ctx_a']} {line['ctx_b'].capitalize()}"
        return common(cleaned(context), [cleaned(ending) for ending in line["endings"]], int(line["label"]))
    if "goal" in line:
        return common(f"Question: {line['goal']}\nAnswer:", [line["sol1"], line["sol2"]], int(line["label"]))
    if "option1" in line:
        before, after = line["sentence"].split("_", 1)
        options = [line["option1"], line["option2"]]
        return [before + option for option in options], [" " + after.strip()] * 2, int(line["answer"]) - 1
    if "passage" in line:
        return common(
            f"{line['passage']}\nQuestion: {line['question']}?\nAnswer:", ["no", "yes"], int(bool(line["answer"])))
    choices = next((line[name] for name in ("choices", "endings", "options") if name in line), None)
    if choices is None:
        context, word = line["text"].rstrip().rsplit(" ", 1)
        return [context], [" " + word], 0
    query = next(line[name] for name in ("query", "ctx", "context", "prompt", "question") if name in line)
    right = next(line[name] for name in ("gold", "label", "answer", "answerKey") if name in line)
    if isinstance(choices, dict):
        return common(f"Question: {query}\nAnswer:", choices["text"], choices["label"].index(right))
    if isinstance(right, str) and not right.isdigit():
        right = choices.index(right) if right in choices else "ABCDEFGHIJ".index(right)
    return common(query.rstrip(), choices, int(right))


def cleaned(text: str) -> str:
    """HellaSwag's texts without the marks of the page that they come from."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def write_answers(lines) -> None:
    try:
        for line in lines:
            sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
    except OSError as error:
        raise Failure(CANNOT_CREATE, f"the questions: {error.strerror}", "free some space") from None


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
    arguments.add_argument("--task", action="store_true", help="questions")
    arguments.add_argument("model", type=Path, metavar="MODEL")
    arguments.add_argument("text", type=Path, metavar="TEXT_FILE")
    options = arguments.parse_args()
    try:
        if options.task:
            write_answers(answers(options.text, options.model))
        else:
            write_ids(ids_of(options.text, options.model))
    except Failure as failure:
        print(failure, file=sys.stderr)
        sys.exit(failure.status)


if __name__ == "__main__":
    main()
