import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.embedder.contexts import MAX_SILENCE_TOKENS, Context
from servox.errors import BadSetting


@pytest.mark.parametrize(
    "text", ["padded", "exact", "fixed:5", "fixed:2.5", "fixed:30", "silence:1", "silence:32", "cached:16"]
)
def test_a_policy_is_read_as_it_is_written(text: str) -> None:
    assert str(Context.parse(text)) == text


BAD = ["", "pad", "padded:3", "exact:1", "fixed", "fixed:", "fixed:x", "fixed:nan", "fixed:0", "fixed:31", "fixed:-1"]
BAD += ["silence", "silence:0", "silence:-3", "silence:2.5", "silence:x", "silence:٣", "cached", "cached:3", "cached:x"]


@pytest.mark.parametrize("text", [*BAD, f"silence:{MAX_SILENCE_TOKENS + 1}"])
def test_anything_else_is_refused_naming_flag_and_value(text: str) -> None:
    with pytest.raises(BadSetting, match="--context") as caught:
        Context.parse(text)
    assert repr(text) in str(caught.value)


@given(st.text(max_size=20))
def test_any_text_is_a_policy_or_a_bad_setting(text: str) -> None:
    try:
        context = Context.parse(text)
    except BadSetting:
        return
    assert Context.parse(str(context)) == context
