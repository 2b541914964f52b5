"""Texts to numbers of tokens, by a tokeniser's file, in the form that text encoders take."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calmoe_jax._checks import check_at_least
from calmoe_jax.data.errors import CorruptDataError, MissingDataError

_AT_ONCE = 4096  # texts whose encodings are held at once
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


@dataclasses.dataclass(frozen=True)
class TextTokenizer:
    """Texts to `{"ids": ..., "mask": ...}`, as `calmoe_jax.nn.TextEncoder` takes them.

    Attributes:
        vocab_size: number of tokens; ids are less.
        max_length: tokens of every text, with those put around it and with padding.
        pad_id: id of padding.
    """

    vocab_size: int
    max_length: int
    pad_id: int
    _tokenizer: Any = dataclasses.field(repr=False)

    def __call__(self, texts: Sequence[str] | np.ndarray) -> dict[str, np.ndarray]:
        """Numbers of the tokens of texts.

        Args:
            texts: strings, or an array of them; an empty one has only the tokens that are put
                around every text.

        Returns:
            `ids`, `[n, max_length]` int32, and `mask`, bool, false for padding. A longer text is
            cut at its end, before the token that closes it.

        Raises:
            TypeError: if something is not a string.
            ValueError: if a string is not valid Unicode (a half of a surrogate pair).
        """
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of strings, got one string.")
        ids = np.full((len(texts), self.max_length), self.pad_id, np.int32)
        mask = np.zeros(ids.shape, bool)
        for start in range(0, len(texts), _AT_ONCE):
            some = [_valid(n, texts[n]) for n in range(start, min(start + _AT_ONCE, len(texts)))]
            for row, encoding in enumerate(self._tokenizer.encode_batch(some), start):
                length = len(encoding.ids)
                ids[row, :length] = encoding.ids
                mask[row, :length] = True
        return {"ids": ids, "mask": mask}


def load_tokenizer(
    path: Path | str, *, max_length: int = 128, lowercase: bool = True
) -> TextTokenizer:
    """Reads a tokeniser.

    Args:
        path: a `tokenizer.json`, or a WordPiece vocabulary `vocab.txt` (a token a line) as BERT and
            DistilBERT have it: [CLS], the text's pieces, [SEP].
        max_length: tokens of every text, at least as many as are put around it and one more.
        lowercase: for a vocabulary, whether texts are put in lower case without accents, as for the
            published `uncased` models; a `tokenizer.json` says it itself.

    Returns:
        A `TextTokenizer`.

    Raises:
        MissingDataError: if the package tokenizers or the file is missing.
        CorruptDataError: if the file is no tokeniser, lacks a special token, or puts no token
            before an empty text.
        ValueError: if `max_length` is too small.

    Example:
        >>> tokenize = load_tokenizer("vocab.txt", max_length=6)  # doctest: +SKIP
        >>> tokenize(["hello there", ""])["ids"]  # doctest: +SKIP
        array([[ 101, 7592, 2045,  102,    0,    0],
               [ 101,  102,    0,    0,    0,    0]], dtype=int32)
    """
    try:
        import tokenizers
    except ImportError as error:
        raise MissingDataError(
            "the package tokenizers is needed for tokens: pip install 'calmoe_jax[text]'."
        ) from error
    path = Path(path)
    if not path.is_file():
        raise MissingDataError(f"the tokeniser's file {path} is missing.")
    made = (
        _of_json(path, tokenizers)
        if path.suffix == ".json"
        else _of_vocabulary(path, tokenizers, lowercase)
    )
    made.no_padding()
    around = len(made.encode("").ids)
    if not around:
        raise CorruptDataError(f"{path} must put a token before every text, as [CLS], got none.")
    check_at_least("max_length", max_length, around + 1)
    made.enable_truncation(max_length)
    pad_id = made.token_to_id("[PAD]")
    return TextTokenizer(made.get_vocab_size(), max_length, 0 if pad_id is None else pad_id, made)


def _of_json(path: Path, tokenizers: Any) -> Any:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises bare exceptions
        raise CorruptDataError(f"{path} cannot be read as a tokenizer.json: {error}.") from error


def _of_vocabulary(path: Path, tokenizers: Any, lowercase: bool) -> Any:
    """BERT's tokeniser of a vocabulary."""
    try:
        tokens = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptDataError(f"{path} cannot be read as a vocabulary: {error}.") from error
    vocabulary = {token.rstrip("\r"): n for n, token in enumerate(tokens)}
    absent = [token for token in _SPECIAL if token not in vocabulary]
    if absent or len(vocabulary) < len(tokens):
        raise CorruptDataError(
            f"{path} must hold a token a line, each once, {', '.join(_SPECIAL)} among them, got "
            f"{len(tokens)} lines, {len(vocabulary)} different ones"
            + (f", and no {', '.join(absent)}." if absent else ".")
        )
    return tokenizers.BertWordPieceTokenizer(vocab=vocabulary, lowercase=lowercase)


def _valid(number: int, text: Any) -> str:
    if not isinstance(text, str):
        raise TypeError(f"texts must be strings, got a {type(text).__name__} at {number}.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"texts must be valid Unicode, got texts[{number}]: {error}.") from error
    return str(text)
