"""Tokens as text: put together they are the text, whatever way the tokenizer marks spaces."""

from __future__ import annotations

import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from fairlead.data import token_text


def test_a_sentencepiece_token_keeps_the_space_before_it():
    space = "\u2581"
    words = {
        name: place for place, name in enumerate(["<unk>", f"{space}Once", f"{space}upon", f"{space}a", "."])
    }
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.Metaspace()]
    )
    backend.decoder = decoders.Metaspace()
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    ids = [1, 2, 3, 4]
    assert "".join(tokenizer.decode([token]) for token in ids) != " Once upon a.", "what this is there for"
    assert "".join(token_text(tokenizer, token) for token in ids) == " Once upon a."
