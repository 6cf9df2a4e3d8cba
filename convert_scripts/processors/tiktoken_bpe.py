"""tiktoken's byte pair encodings as tokenizers of the tokenizers library (open_clip 4: `TikTokenTokenizer`).

A file of an encoding has a line for each token, its bytes in base64 and its rank. Pairs of tokens are merged in the
order of the ranks that they make together, and pieces that are a token are taken as they are.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ..common import ConversionError, argument


EOS_TOKEN, PAD_TOKEN, BOS_TOKEN = CONTROL_TOKENS = ("<|end|>", "<|padding|>", "<|start|>")
_ADDRESS = "https://openaipublic.blob.core.windows.net/encodings/{name}.tiktoken"


@dataclass(frozen=True)
class Encoding:
    """One of tiktoken's encodings.

    Args:
        tokens: number of the tokens that texts become.
        size: number of its ids, special tokens and gaps among them; open_clip's control tokens follow.
        pattern: the pieces that texts are cut into.
    """

    tokens: int
    size: int
    pattern: str


_GPT_2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++\z|\s+(?!\S)|\s"
_CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++\z|\s*[\r\n]|"
    r"\s+(?!\S)|\s"
)
ENCODINGS = {
    "gpt2": Encoding(50256, 50257, _GPT_2),
    "r50k_base": Encoding(50256, 50257, _GPT_2),
    "p50k_base": Encoding(50280, 50281, _GPT_2),
    "cl100k_base": Encoding(100256, 100277, _CL100K),
}


def read_ranks(path: Path) -> dict[bytes, int]:
    """The tokens of a `.tiktoken` file and their ranks. Raise `ConversionError` where it is none."""
    try:
        lines = [line.split() for line in path.read_bytes().splitlines() if line.strip()]
        return {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except (ValueError, binascii.Error) as error:
        raise ConversionError(
            f"{path} is not a file of tiktoken's, whose lines are a token in base64 and its rank: {error}"
        ) from error


def find_ranks(name: str, folder: Path | None) -> dict[bytes, int]:
    """The tokens of an encoding and their ranks: of a file in `folder`, else of the tiktoken that is installed.

    Raises:
        ConversionError: there is neither.
    """
    if folder is not None and (path := folder / f"{name}.tiktoken").is_file():
        return read_ranks(path)
    try:
        import tiktoken

        encoding = tiktoken.get_encoding(name)
        return {token: encoding.encode_single_token(token) for token in encoding.token_byte_values()}
    except Exception as error:  # requests' own, among others
        why = "is not installed" if isinstance(error, ImportError) else f"fails ({type(error).__name__})"
        cause = error
    raise ConversionError(
        f"The tokenizer {name} of tiktoken is needed, and tiktoken, which would download it, {why}. Put the file "
        f"{name}.tiktoken beside the weights "
        f"(where there is a network: {_ADDRESS.format(name=name)}), or convert with "
        f"{argument('with_processor', False)}."
    ) from cause


def build_tiktoken_bpe(name: str, ranks: Mapping[bytes, int], add_bos: bool = True, add_eos: bool = True) -> Tokenizer:
    """tiktoken's encoding `name` with open_clip's control tokens behind its ids: end, padding and start of texts.

    Args:
        name: one of `ENCODINGS`.
        ranks: its tokens, and their ranks, which are their ids.
        add_bos, add_eos: put the start and the end around texts.

    Raises:
        ConversionError: the tokens are not those of the encoding.
    """
    encoding = ENCODINGS[name]
    is_whole = len(ranks) == len(set(ranks.values())) == encoding.tokens and max(ranks.values()) < encoding.size
    if not is_whole or any(bytes([byte]) not in ranks for byte in range(256)):
        raise ConversionError(
            f"These are not the tokens of tiktoken's {name}: got {len(ranks)}, expected {encoding.tokens} with ids "
            f"below {encoding.size}, and one for each byte. The file may be cut off."
        )
    letters = bytes_to_unicode()
    spelt = {token: "".join(letters[byte] for byte in token) for token in ranks}
    vocab = {spelt[token]: rank for token, rank in ranks.items()}
    # Ids of special tokens, which texts never become.
    vocab |= {f"<|unused {i}|>": i for i in set(range(encoding.size)).difference(ranks.values())}
    vocab |= {token: encoding.size + i for i, token in enumerate(CONTROL_TOKENS)}
    merges = [
        (rank, ranks[token[:i]], ranks[token[i:]], spelt[token[:i]], spelt[token[i:]])
        for token, rank in ranks.items()
        for i in range(1, len(token))
        if token[:i] in ranks and token[i:] in ranks
    ]
    tokenizer = Tokenizer(BPE(vocab, [merge[3:] for merge in sorted(merges)], fuse_unk=False, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(encoding.pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in CONTROL_TOKENS])
    around = [*([BOS_TOKEN] if add_bos else []), "$A", *([EOS_TOKEN] if add_eos else [])]
    tokenizer.post_processor = TemplateProcessing(
        single=around, special_tokens=[(token, vocab[token]) for token in (BOS_TOKEN, EOS_TOKEN)]
    )
    return tokenizer


def write_ranks(path: Path, tokenizer: Tokenizer, name: str):
    """Write the tokens of an encoding as tiktoken's file of them."""
    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    vocab = sorted(tokenizer.get_vocab(with_added_tokens=False).items(), key=lambda item: item[1])
    tokens = {rank: token for token, rank in vocab if rank < ENCODINGS[name].size and " " not in token}
    lines = [
        b"%s %d" % (base64.b64encode(bytes(byte_of[letter] for letter in token)), rank)
        for rank, token in tokens.items()
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")
