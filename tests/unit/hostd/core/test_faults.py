from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hostd.core.faults import FAULT_TEXT, MAX_FAULT_TEXT, FaultCode, as_fault_code, fault_text


def test_every_code_has_its_words() -> None:
    assert FAULT_TEXT.keys() == set(FaultCode)
    assert len(set(FAULT_TEXT.values())) == len(FaultCode)


@given(st.sampled_from(FaultCode), st.text())
def test_a_text_is_what_a_conductor_accepts(code: FaultCode, detail: str) -> None:
    text = fault_text(code, detail)

    assert text.startswith(FAULT_TEXT[code])
    assert text.isprintable()
    assert len(text) <= MAX_FAULT_TEXT


@given(st.text())
def test_an_invented_code_is_not_passed_on(text: str) -> None:
    assert as_fault_code(text) in FaultCode
    assert as_fault_code(f"{text}?") is FaultCode.HOST_FAILED
    assert as_fault_code("DISK_FULL") is FaultCode.DISK_FULL
