"""Texts to ids: what the library is asked for, on a tokenizer of six words."""

import numpy as np
import pytest

from diffjax.interop import tokenize

tokenizers = pytest.importorskip("tokenizers")
WORDS = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4, "cat": 5}


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_ids_and_mask(folder):
    ids, mask = tokenize(folder, ["a red cat", "", "a blue cat a red cat"], 5)
    np.testing.assert_array_equal(ids, [[3, 4, 5, 1, 0], [1, 0, 0, 0, 0], [3, 2, 5, 3, 1]])
    np.testing.assert_array_equal(mask, [[1, 1, 1, 1, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    assert ids.dtype == np.int32
    assert mask.dtype == bool
    again, _ = tokenize(folder / "tokenizer.json", ["a red cat"], 5)
    np.testing.assert_array_equal(again, ids[:1])
    assert tokenize(folder, [], 5)[0].shape == (0, 5)


def test_bad_input_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match="texts: a list of strings is needed, got 'a cat'"):
        tokenize(folder, "a cat", 5)
    with pytest.raises(ValueError, match="length: more than 1 is needed"):
        tokenize(folder, ["a cat"], 1)
    with pytest.raises(ValueError, match=r"no file .*tokenizer\.json"):
        tokenize(tmp_path, ["a cat"], 5)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer\.json"):
        tokenize(tmp_path, ["a cat"], 5)


def test_missing_library_is_named(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"pip install '\.\[text\]' in diffjax's folder"):
        tokenize(folder, ["a cat"], 5)
