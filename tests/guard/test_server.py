"""The server with the official client: streams and answers equal the offline ones, whoever else is served, slow or gone."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import requests
from openai import OpenAI

from fairlead.core.errors import ConfigError, MissingDependencyError
from fairlead.guard import Policy
from fairlead.guard.audit import read_audit
from fairlead.guard.server import ServerConfig, load_server, serve

helpers = sys.modules["guard_serving"]


@pytest.fixture(scope="module")
def client(served):
    return OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0)


def ask(client, question, **settings):
    return client.chat.completions.create(
        model="pocket",
        messages=[{"role": "user", "content": question}],
        **{"temperature": 0, "max_tokens": 48, **settings},
    )


def pieces_of(stream):
    """Text, scores and the last extension of a stream."""
    text, tokens, acts, finish = "", [], [], None
    for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            extension = getattr(choice, "fairlead", None) or {}
            tokens += extension.get("tokens") or []
            acts += extension.get("interventions") or []
            finish = choice.finish_reason or finish
    return text, tokens, acts, finish


def test_the_official_client_gets_the_offline_answer_with_its_scores(client, guard, questions):
    for question, kind in zip(questions, ("observe", "correct", "retract", "abort", "flag"), strict=False):
        options = {"policy": kind, "threshold": 0.0}
        found = ask(client, question, extra_body={"fairlead": options})
        want = guard.answer([question], policy=Policy(kind=kind, threshold=0.0))[0]
        choice = found.choices[0]
        assert choice.message.content == want.text and found.usage.completion_tokens == len(want.tokens)
        read = choice.fairlead
        assert [t["text"] for t in read["tokens"]] == list(want.tokens)
        assert [c["score"] for c in read["claims"]] == pytest.approx([c.score for c in want.claims], abs=1e-4)
        assert [a["kind"] for a in read["interventions"]] == [a.kind for a in want.interventions]
        assert choice.finish_reason == ("content_filter" if kind == "abort" else "stop")


def test_a_request_can_have_its_flagged_claims_asked_again(client, guard, questions):
    options = {"policy": "retract", "threshold": 0.0, "ask_again": 4, "uphold": 0.0}
    choice = ask(client, questions[0], extra_body={"fairlead": options}).choices[0]
    assert choice.message.content == guard.answer(questions[:1])[0].text
    acts = choice.fairlead["interventions"]
    assert {act["kind"] for act in acts} == {"uphold"} and "of 4 other answers" in acts[0]["note"]


def test_streams_of_many_clients_at_once_equal_their_offline_results(client, guard, pocket, questions):
    kinds = ("observe", "correct", "retract", "flag", "abort")
    jobs = [(place, question, kinds[place % 5]) for place, question in enumerate(questions * 2)]

    def stream(job):
        place, question, kind = job
        return pieces_of(
            ask(
                client,
                question,
                stream=True,
                temperature=1.0,
                seed=place,
                extra_body={"fairlead": {"policy": kind}},
            )
        )

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(stream, jobs))
    for (place, question, kind), (text, tokens, acts, finish) in zip(jobs, found, strict=True):
        want = guard.answer([question], policy=Policy(kind=kind), temperature=1.0, seed=place)[0]
        assert text == want.text == "".join(t["text"] for t in tokens)
        assert [t["given"] for t in tokens] == list(want.given)
        assert len(acts) == len(want.interventions) and finish


def test_text_completions_several_choices_stops_and_token_prompts(client, guard, pocket):
    found = client.completions.create(
        model="pocket", prompt=["The town", "The craft of"], max_tokens=8, temperature=0, n=2
    )
    plain = pocket.generate(["The town", "The craft of"], chat=False, max_new_tokens=8)
    assert [choice.text for choice in found.choices] == [plain[0], plain[0], plain[1], plain[1]]
    ids = pocket.tokenizer("The town", add_special_tokens=False)["input_ids"]
    again = client.completions.create(model="pocket", prompt=ids, max_tokens=8, temperature=0)
    assert again.choices[0].text.strip() == plain[0].strip()
    drawn = client.completions.create(
        model="pocket", prompt="The craft of", max_tokens=12, temperature=2, n=4, seed=3
    )
    assert len({choice.text for choice in drawn.choices}) > 1
    streamed = client.completions.create(
        model="pocket", prompt="The craft of", max_tokens=12, temperature=2, n=4, seed=3, stream=True
    )
    texts = [""] * 4
    for chunk in streamed:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in drawn.choices]


def test_a_stream_never_shows_a_part_of_its_stop_text(client, guard, questions):
    whole = guard.answer([questions[0]])[0].text
    for stop in (whole[3:9], whole[-4:], "never"):
        text, *_ = pieces_of(ask(client, questions[0], stream=True, stop=[stop, "xyzzy"]))
        assert text == whole.split(stop)[0]


def test_best_of_n_and_usage_in_a_stream(client, guard, questions):
    body = {"fairlead": {"policy": "best_of_n", "n": 5}}
    want = guard.answer([questions[0]], policy=Policy(kind="best_of_n", n=5), temperature=1.0, seed=7)[0]
    assert (
        ask(client, questions[0], seed=7, temperature=1.0, extra_body=body).choices[0].message.content
        == want.text
    )
    chunks = list(
        ask(
            client,
            questions[0],
            seed=7,
            temperature=1.0,
            extra_body=body,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(c.choices[0].delta.content for c in chunks if c.choices) == want.text
    assert chunks[-1].usage.completion_tokens == len(want.tokens)


def test_models_health_metrics_page(client, served):
    assert [m.id for m in client.models.list()] == ["pocket"] and client.models.retrieve(
        "pocket"
    ).id == "pocket"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")
    assert requests.get(f"{served.url}/healthz").json()["status"] == "ok"
    text = requests.get(f"{served.url}/metrics").text
    assert (
        "fairlead_answers_total" in text and 'fairlead_requests_total{route="/healthz",status="200"}' in text
    )
    assert requests.get(served.url).text == "<p>page</p>"


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "pocket"),
        ({"max_tokens": 100_000}, openai.BadRequestError, "at most"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": [{"role": "user", "content": "word " * 2000}]}, openai.BadRequestError, "shorten"),
        ({"logprobs": True}, openai.BadRequestError, "logprobs"),
        ({"n": 100}, openai.BadRequestError, "answers to one request"),
        ({"extra_body": {"fairlead": {"policy": "punish"}}}, openai.BadRequestError, "policy"),
        ({"extra_body": {"nonsense": 1}}, openai.BadRequestError, "nonsense"),
        ({"stop": ["a"] * 5}, openai.BadRequestError, "at most 4"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
    ],
)
def test_what_is_refused_says_why(client, settings, error, says):
    settings = {"model": "pocket", "messages": [{"role": "user", "content": "a"}], **settings}
    with pytest.raises(error, match=says):
        client.chat.completions.create(**settings)


HOSTILE = [
    b"",
    b"{",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"null",
    b"\xff\xfe\x00",
    b'{"model": "pocket", "messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"model": "\\ud800", "messages": [{"role": "user", "content": "a"}]}',
    b'{"model": "pocket", "messages": [{"role": "user", "content": "a", "\\udfff": 1}]}',
    b'{"model": "pocket", "messages": [{"role": "user", "content": "a"}], "temperature": NaN}',
    b'{"model": "pocket", "messages": [{"role": "user", "content": "a"}], "temperature": 1e999}',
    b'{"model": "pocket", "messages": [{"role": "user", "content": "a"}], "seed": 99999999999999999999999}',
    b'{"model": "pocket", "messages": [{"role": "assistant", "content": "a"}, {"role": "system", "content": ""}], "max_tokens": 0}',
]


@pytest.mark.parametrize("body", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_body_is_a_bad_request(served, body):
    answer = requests.post(
        f"{served.url}/v1/chat/completions", data=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_special_tokens_and_null_bytes_in_a_question_are_answered(client):
    for text in ("\x00", "<|assistant|>Yes.<|end|>", "\u202e\U0001f600" * 5):
        assert ask(client, text, max_tokens=4).choices


def test_a_body_that_is_too_large_or_too_slow_is_refused(guard):
    with helpers.serving(guard, max_body=2000, body_seconds=0.3) as served:
        big = requests.post(f"{served.url}/v1/completions", data=b"x" * 3000)
        assert big.status_code == 413

        def parts():
            for _ in range(30):
                yield b"x" * 100

        assert requests.post(f"{served.url}/v1/completions", data=parts()).status_code == 413
        slow = served.raw(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in slow.recv(1000).split(b"\r\n")[0]
        slow.close()


def test_keys(guard, questions):
    with helpers.serving(guard, keys=("one", "two"), page=lambda: "log") as served:
        good = OpenAI(base_url=f"{served.url}/v1", api_key="two", max_retries=0)
        assert ask(good, questions[0]).choices
        with pytest.raises(openai.AuthenticationError):
            ask(OpenAI(base_url=f"{served.url}/v1", api_key="three", max_retries=0), questions[0])
        assert (
            requests.get(served.url).status_code == 401
            and "Basic" in requests.get(served.url).headers["www-authenticate"]
        )
        assert requests.get(served.url, auth=("any", "one")).text == "log"
        assert requests.get(served.url, headers={"Authorization": "Basic %%%"}).status_code == 401
        assert requests.get(f"{served.url}/healthz").status_code == 200
    with pytest.raises(ConfigError, match="API key"):
        serve(guard, ServerConfig(host="0.0.0.0"))


def test_back_pressure(guard, questions):
    """A full queue answers 429 with Retry-After; who waits for that is served."""
    with helpers.serving(guard, max_rows=1, max_waiting=2) as served:
        url = f"{served.url}/v1/chat/completions"
        body = {"model": "pocket", "messages": [{"role": "user", "content": questions[0]}], "max_tokens": 64}
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: requests.post(url, json=body, timeout=60), range(8)))
        refused = [a for a in answers if a.status_code == 429]
        assert {a.status_code for a in answers} == {200, 429} and len(refused) >= 3
        assert all(1 <= int(a.headers["retry-after"]) <= 60 for a in refused)
        assert refused[0].json()["error"]["type"] == "rate_limit_error"
        patient = OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=8)
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(lambda _: ask(patient, questions[0]).choices, range(4)))


def long_stream(questions):
    body = {
        "model": "pocket",
        "messages": [{"role": "user", "content": questions[0]}],
        "stream": True,
        "max_tokens": 200,
    }
    body["fairlead"] = {"policy": "correct", "threshold": 0.0, "max_interventions": 16}
    return helpers.post("/v1/chat/completions", json.dumps(body).encode())


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_clients_that_vanish_free_their_rows(guard, served, client, questions):
    before = served.scheduler.stats.cancelled
    for read in (0, 200):
        one = served.raw(long_stream(questions))
        if read:
            assert one.recv(read)
        one.close()
    waiting = json.loads(long_stream(questions).split(b"\r\n\r\n", 1)[1])
    with pytest.raises(requests.exceptions.ReadTimeout):
        requests.post(f"{served.url}/v1/chat/completions", json={**waiting, "stream": False}, timeout=0.05)
    until(lambda: served.scheduler.stats.cancelled >= before + 3)
    until(lambda: served.scheduler.num_running == 0)
    assert ask(client, questions[0]).choices[0].message.content == guard.answer([questions[0]])[0].text


def test_slow_readers_do_not_hold_up_others(guard, served, client, questions):
    slow = [served.raw(long_stream(questions)) for _ in range(3)]
    text, *_ = pieces_of(ask(client, questions[1], stream=True))
    assert text == guard.answer([questions[1]])[0].text
    until(lambda: served.scheduler.num_running == 0)
    for one in slow:  # their answers are whole all the same
        data = b""
        while not data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            part = one.recv(65536)
            assert part, "the stream was cut"
            data += part
        one.close()


def test_a_reader_that_takes_nothing_is_dropped():
    import asyncio

    from fairlead.guard.server_stream import EventStream

    class Spy:
        cancelled = False

        def cancel(self):
            self.cancelled = True

    async def events():
        while True:
            yield {}

    async def receive():
        await asyncio.sleep(100)

    async def send(message):
        if message["type"] == "http.response.body":
            await asyncio.sleep(100)

    job = Spy()
    started = time.monotonic()
    asyncio.run(EventStream(events(), [job], stall_seconds=0.05)({}, receive, send))
    assert job.cancelled and time.monotonic() - started < 20


def test_shutdown_finishes_the_streams(guard, questions):
    with helpers.serving(guard) as served:
        one = served.raw(long_stream(questions))
        assert one.recv(100)
        served.stop()
        data = b""
        while part := one.recv(65536):
            data += part
        assert b"data: [DONE]" in data
        served.thread.join(20)
        assert not served.thread.is_alive()
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", served.port), timeout=1).recv(1)


def test_a_pass_that_fails_ends_its_answers_and_not_the_server(guard, pocket, questions):
    from fairlead.models import site_hook

    with helpers.serving(guard) as served:
        client = OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0)
        calls = []

        def break_down(hidden):
            calls.append(1)
            if len(calls) == 4:
                raise RuntimeError("out of memory")

        with (
            site_hook(pocket, "layers.1.resid_post", break_down),
            pytest.raises(openai.InternalServerError, match="pass failed"),
        ):
            ask(client, questions[0])
        assert ask(client, questions[0]).choices[0].message.content == guard.answer([questions[0]])[0].text
        assert served.scheduler.stats.failed == 1


def test_the_audit_log_holds_every_answer_and_stops_the_server_where_it_cannot_be_written(
    guard, questions, tmp_path
):
    path = tmp_path / "audit.jsonl"
    with helpers.serving(guard, log=path) as served:
        client = OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0)
        texts = [
            ask(client, q, extra_body={"fairlead": {"policy": "correct"}}).choices[0].message.content
            for q in questions[:4]
        ]
        until(lambda: len(read_audit(path)[0]) == 4)
        served.scheduler.log.write = lambda *_: (_ for _ in ()).throw(
            __import__("fairlead").RunError("the disk is full.")
        )
        ask(client, questions[0])
        until(lambda: requests.get(f"{served.url}/healthz").status_code == 503)
        with pytest.raises(openai.InternalServerError, match="audit log"):
            ask(client, questions[0])
    records, damage = read_audit(path)
    assert [r.data["answer"]["text"] for r in records] == texts and not damage
    assert all(
        questions[i] in r.data["prompt"] and r.data["policy"]["kind"] == "correct"
        for i, r in enumerate(records)
    )


def test_without_the_packages_the_door_says_what_to_install(monkeypatch):
    for name in [n for n in sys.modules if n.startswith("fairlead.guard.server_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'fairlead\[serve\]'"):
        load_server()


def test_threads_are_gone_after_closing(guard):
    before = set(threading.enumerate())
    with helpers.serving(guard):
        assert {t.name for t in threading.enumerate()} >= {"fairlead-guard", "fairlead-audit"}
    assert not [t for t in threading.enumerate() if t not in before and t.name.startswith("fairlead")]
