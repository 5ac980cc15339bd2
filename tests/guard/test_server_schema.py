"""The server against its own OpenAPI schema (schemathesis): no 5xx, nothing that the schema does not promise, whatever is sent."""

from __future__ import annotations

import sys

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

helpers = sys.modules["guard_serving"]
KEY = "a-key"
# A request can fit the schema and be refused all the same: the chat template wants turns in order, a model of another name is not here.
LEFT_OUT = ("positive_data_acceptance",)


@pytest.mark.slow
def test_whatever_is_sent_is_answered_as_the_schema_promises(guard):
    seen = {mode: 0 for mode in GenerationMode}
    headers = {"Authorization": f"Bearer {KEY}"}
    with helpers.serving(guard, max_rows=16, max_tokens=8, keys=(KEY,)) as served:
        schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json", headers=headers)
        left_out = [check for check in CHECKS.get_all() if check.__name__ in LEFT_OUT]
        for operation in (result.ok() for result in schema.get_all_operations()):
            for mode in GenerationMode:
                if mode is GenerationMode.NEGATIVE and operation.method.lower() != "post":
                    continue  # there is no wrong way to ask for these

                def check(case):
                    seen[mode] += 1  # noqa: B023
                    case.call_and_validate(headers=headers, timeout=60, excluded_checks=left_out)

                ask = given(case=operation.as_strategy(generation_mode=mode))(check)
                settings(
                    max_examples=60,
                    deadline=None,
                    database=None,
                    derandomize=True,
                    suppress_health_check=list(HealthCheck),
                )(ask)()
        assert served.scheduler.stats.failed == 0
    assert all(num > 100 for num in seen.values()), seen
