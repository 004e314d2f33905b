"""The incremental detokeniser: what it prints is final, whole, and free of stop strings."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlhf.generation.streaming import TextStream, cut_at, find_stops
from rlhf.template import Template, install_template


class Bytes:
    """A tokenizer with one token per byte, the hardest case: id 256 is the end token."""

    def decode(self, ids, *, skip_special_tokens, clean_up_tokenization_spaces):
        assert skip_special_tokens
        assert not clean_up_tokenization_spaces
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")


def stream(ids, *, tokenizer=None, stop_strings=()):
    """The pieces printed for `ids`, and the stream."""
    text = TextStream(tokenizer or Bytes(), stop_strings=stop_strings)
    pieces = [text.push(i) for i in ids]
    return [*pieces, text.finish()], text


def test_a_character_is_printed_when_its_last_byte_is_there():
    """é is two bytes, 你 three, 🙂 four: nothing appears before the last of them."""
    pieces, _ = stream("é你🙂".encode())
    assert pieces == ["", "é", "", "", "你", "", "", "", "🙂", ""]


def test_a_character_that_never_ends_is_dropped():
    """The token limit may fall inside a character: its bytes are not shown as a replacement character."""
    pieces, text = stream("ab🙂".encode()[:-1])
    assert "".join(pieces) == text.text == "ab"


def test_bytes_that_are_no_text_become_replacement_characters_once_they_are_certain():
    pieces, _ = stream(b"a\xffb")
    assert "".join(pieces) == "a\ufffdb"


def test_nothing_of_a_stop_string_is_printed():
    """After a line break, Hum may become Human: or a word; it is held back until the next character tells."""
    pieces, text = stream(b"No.\nHumble\n\nHuman: and", stop_strings=["\nHuman:"])
    assert "".join(pieces) == "No.\nHumble"
    assert text.stopped
    assert pieces[:9] == ["N", "o", ".", "", "", "", "", "\nHumb", "l"]
    assert text.push(ord("x")) == ""


def test_a_held_beginning_of_a_stop_string_is_printed_at_the_end():
    pieces, text = stream(b"A\nHuma", stop_strings=["\nHuman:"])
    assert (pieces[-1], text.text, text.stopped) == ("\nHuma", "A\nHuma", False)


def test_an_answer_that_is_an_invented_turn_is_empty():
    """The stop string begins with a line break, which the answer's own beginning stands for."""
    pieces, text = stream(b"Human: hi", stop_strings=["\nHuman:"])
    assert "".join(pieces) == ""
    assert text.stopped


def test_white_space_at_both_ends_is_not_printed():
    pieces, _ = stream(b" \n a  b \n ")
    assert "".join(pieces) == "a  b"


@given(
    text=st.text(alphabet="ab\n é你🙂:", max_size=30),
    stops=st.lists(st.text(alphabet="ab\n你:", min_size=1, max_size=4), max_size=1),
)
def test_pieces_make_the_cut_and_stripped_text(text, stops):
    """Whatever the text: the pieces add up to it, cut at the stop string; none is a half character."""
    pieces, streamed = stream(text.encode(), stop_strings=stops)
    assert "".join(pieces) == streamed.text == cut_at(text, stops).strip()
    assert all("\ufffd" not in piece for piece in pieces)
    assert streamed.stopped == any(s in "\n" + text for s in stops)


def sentencepiece_like():
    """A tokenizer as Llama's: words carry their space in front, unknown characters fall back to bytes."""
    words = ["<unk>", "</s>", "▁Hello", "▁world", "!", *(f"<0x{i:02X}>" for i in range(256))]
    inner = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], byte_fallback=True, unk_token="<unk>"))
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")


def test_spaces_between_words_survive_a_decoder_that_strips_the_first_one():
    """Such a decoder drops the space before the first word it is given, so words cannot be decoded one by one."""
    tokenizer = sentencepiece_like()
    ids = tokenizer.convert_tokens_to_ids(["▁Hello", "▁world", "!", "▁Hello"])
    pieces, _ = stream(ids, tokenizer=tokenizer)
    assert pieces == ["Hello", " world", "!", " Hello", ""]


def test_byte_fallback_shows_two_characters_one_after_the_other():
    """Such a decoder turns a whole run of bytes into replacement characters while its last character is incomplete."""
    tokenizer = sentencepiece_like()
    ids = tokenizer.convert_tokens_to_ids([f"<0x{b:02X}>" for b in "你好".encode()])
    pieces, _ = stream(ids, tokenizer=tokenizer)
    assert pieces == ["", "", "你", "", "", "好", ""]


def make_tokenizer(template=None, special=()):
    """A byte-level tokenizer with the chat template of a family."""
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(alphabet, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", bos_token="<s>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = template
    install_template(tokenizer)
    return tokenizer


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VICUNA = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ASSISTANT:' }}"
    "{% else %}{{ ' ' + m['content'] + '</s>' }}{% endif %}{% endfor %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<s>[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' </s>' }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "special", "tokens", "strings"),
    [
        (None, (), ["</s>"], ("\nHuman:",)),
        (CHATML, ("<|im_start|>", "<|im_end|>"), ["<|im_end|>", "<|im_start|>"], ()),
        (CHATML, (), ["</s>"], ("<|im_end|>",)),
        (VICUNA, (), ["</s>"], ("USER:",)),
        (LLAMA2, (), ["</s>", "<s>"], ()),
    ],
    ids=["own template", "ChatML", "ChatML in plain text", "Vicuna", "Llama 2"],
)
def test_stops_are_read_off_the_template(template, special, tokens, strings):
    """The next turn's opening is a stop token where it is a special token, else its first line is a stop string."""
    tokenizer = make_tokenizer(template, special)
    stops = find_stops(Template(tokenizer))
    assert stops.token_ids == tuple(tokenizer.convert_tokens_to_ids(token) for token in tokens)
    assert len(stops.end_ids) == 1
    assert stops.strings == strings


def test_more_stop_tokens_are_kept():
    """generation_config.eos_token_id may list more than the template writes."""
    tokenizer = make_tokenizer()
    stops = find_stops(Template(tokenizer), more_end_ids=[7])
    assert stops.end_ids == (7, tokenizer.eos_token_id)


def test_a_template_that_keeps_the_last_turn_only_gives_no_stop_string():
    tokenizer = SimpleNamespace(all_special_tokens=[], all_special_ids=[], added_tokens_decoder={})
    template = SimpleNamespace(
        tokenizer=tokenizer, end_token_id=3, end_token="</s>", render=lambda messages: messages[-1]["content"]
    )
    assert find_stops(template).strings == ()  # pyright: ignore[reportArgumentType]
