import pytest
from pydantic import ValidationError

from fairlead.core.claims import ClaimedAnswer, ClaimSpan

TEXT = "Odo lives in Tarn. Odo keeps a hen."


def test_a_claim_knows_whether_it_is_unsupported():
    known = [
        ClaimSpan(start=0, end=3, text="Odo", label=label)
        for label in ("supported", "contradicted", "insufficient", None)
    ]
    assert [claim.unsupported for claim in known] == [False, True, True, None]


def test_claims_must_stand_where_they_say():
    good = ClaimSpan(start=19, end=35, text="Odo keeps a hen.")
    answer = ClaimedAnswer(
        id="a", messages=({"role": "user", "content": "Odo?"},), response=TEXT, claims=(good,)
    )
    assert answer.response[answer.claims[0].start : answer.claims[0].end] == "Odo keeps a hen."
    for changed, message in (({"start": 18}, "not what stands"), ({"end": 36}, "not within")):
        with pytest.raises(ValidationError, match=message):
            ClaimedAnswer(id="a", messages=(), response=TEXT, claims=(good.model_copy(update=changed),))
