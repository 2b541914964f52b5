"""Tokens of texts: the published rules on a small vocabulary, and files that are none."""

import json
import sys

import numpy as np
import pytest

from calmoe_jax.data import CorruptDataError, MissingDataError, load_tokenizer, tokens

tokenizers = pytest.importorskip("tokenizers")

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] hello the ##re there cafe . \u2028".split(" ")
PAD, UNK, CLS, SEP, _, HELLO, THE, RE, THERE, CAFE, STOP, _ = range(12)


@pytest.fixture
def vocabulary(tmp_path):
    (tmp_path / "vocab.txt").write_bytes("\n".join([*WORDS, ""]).encode())
    return tmp_path / "vocab.txt"


def test_words_pieces_and_the_tokens_around_them(vocabulary):
    tokenize = load_tokenizer(vocabulary, max_length=7)
    found = tokenize(["Hello there.", "", "Café", "therere zebra", " \x00 "])
    want = [
        [CLS, HELLO, THERE, STOP, SEP],
        [CLS, SEP],
        [CLS, CAFE, SEP],
        [CLS, THERE, RE, UNK, SEP],
        [CLS, SEP],
    ]
    lengths = [len(row) for row in want]
    np.testing.assert_array_equal(found["mask"], np.arange(7) < np.array(lengths)[:, None])
    np.testing.assert_array_equal(found["ids"], [row + [PAD] * (7 - len(row)) for row in want])
    assert (found["ids"].dtype, found["mask"].dtype) == (np.int32, np.bool_)
    assert (tokenize.vocab_size, tokenize.max_length, tokenize.pad_id) == (12, 7, PAD)


def test_long_texts_are_cut_at_their_end(vocabulary):
    found = load_tokenizer(vocabulary, max_length=4)(["hello the the the the"])
    np.testing.assert_array_equal(found["ids"], [[CLS, HELLO, THE, SEP]])
    assert found["mask"].all()
    assert load_tokenizer(vocabulary)([]).keys() == {"ids", "mask"}
    assert load_tokenizer(vocabulary)([])["ids"].shape == (0, 128)


def test_cased_vocabularies(vocabulary):
    found = load_tokenizer(vocabulary, max_length=4, lowercase=False)(["Hello", "hello"])
    np.testing.assert_array_equal(found["ids"][:, 1], [UNK, HELLO])


def test_texts_may_come_in_many_parts(vocabulary, monkeypatch):
    texts = [" ".join(["hello", "the"][: i % 3]) for i in range(11)]
    tokenize = load_tokenizer(vocabulary, max_length=5)
    whole = tokenize(texts)
    monkeypatch.setattr(tokens, "_AT_ONCE", 4)
    for parts in (tokenize(texts), tokenize(np.array(texts, object)), tokenize(np.array(texts))):
        for name in whole:
            np.testing.assert_array_equal(parts[name], whole[name])


def test_a_json_file_says_it_all_but_the_length(vocabulary, tmp_path):
    own = tokenizers.BertWordPieceTokenizer(str(vocabulary), lowercase=True)
    own.enable_padding(length=50)
    own.enable_truncation(3)
    own.save(str(tmp_path / "tokenizer.json"))
    texts = ["Hello there.", "", "the the the the the the the"]
    found = load_tokenizer(tmp_path / "tokenizer.json", max_length=6)(texts)
    want = load_tokenizer(vocabulary, max_length=6)(texts)
    for name in want:
        np.testing.assert_array_equal(found[name], want[name])


def test_what_is_no_text(vocabulary, unchecked):
    tokenize = load_tokenizer(vocabulary, max_length=5)
    with pytest.raises(TypeError, match="texts must be strings, got a float at 1"):
        tokenize(["a", float("nan")])
    with pytest.raises(ValueError, match=r"valid Unicode, got texts\[1\]: .*surrogates"):
        tokenize(["a", "\ud800"])
    with pytest.raises(TypeError, match="texts must be a sequence of strings, got one string"):
        tokenize("hello")


def test_files_that_are_no_tokeniser(vocabulary, tmp_path, monkeypatch):
    with pytest.raises(MissingDataError, match=r"none\.txt is missing"):
        load_tokenizer(tmp_path / "none.txt")
    with pytest.raises(ValueError, match="max_length must be at least 3, got max_length=2"):
        load_tokenizer(vocabulary, max_length=2)
    bad = tmp_path / "bad.txt"
    for content, message in (
        (b"", r"1 lines, 1 different ones, and no \[PAD\], \[UNK\], \[CLS\], \[SEP\]\."),
        (b"[PAD]\n[UNK]\n[CLS]\nthe\n", r"4 lines, 4 different ones, and no \[SEP\]\."),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\nthe\n", r"6 lines, 5 different ones\."),
        (b"\xff\xfe", "cannot be read as a vocabulary"),
    ):
        bad.write_bytes(content)
        with pytest.raises(CorruptDataError, match=message):
            load_tokenizer(bad)
    bad = tmp_path / "bad.json"
    bare = {"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}}}
    bare["model"]["unk_token"] = "a"
    for content, message in (
        ("{", "cannot be read as a tokenizer.json"),
        (json.dumps(bare), r"must put a token before every text, as \[CLS\], got none"),
    ):
        bad.write_text(content)
        with pytest.raises(CorruptDataError, match=message):
            load_tokenizer(bad)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingDataError, match=r"pip install 'calmoe_jax\[text\]'"):
        load_tokenizer(vocabulary)
