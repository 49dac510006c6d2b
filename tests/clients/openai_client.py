"""The openai package against a running server: `openai_client.py BASE_URL MODEL [CHECK ...]`, all checks by default.

Prints one line per check.
"""

import asyncio
import sys
import time

import openai

base, model, *only = sys.argv[1:]
client = openai.OpenAI(base_url=base, api_key="none", max_retries=0)
ask = [{"role": "user", "content": "What is 23 + 45?"}]
checks = []


def check(f):
    checks.append(f)
    return f


@check
def models_are_listed():
    assert [m.id for m in client.models.list()] == [model]
    assert client.models.retrieve(model).id == model


@check
def chat_answers():
    r = client.chat.completions.create(model=model, messages=ask, temperature=0)
    assert r.object == "chat.completion" and r.id.startswith("chatcmpl-"), r
    assert r.choices[0].message.role == "assistant" and r.choices[0].message.content, r
    assert r.choices[0].finish_reason == "stop", r
    assert r.usage.total_tokens == r.usage.prompt_tokens + r.usage.completion_tokens, r


@check
def streaming_equals_not_streaming():
    whole = client.chat.completions.create(model=model, messages=ask, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model=model, messages=ask, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content, (text, whole)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage, chunks[-1]
    assert len({c.id for c in chunks}) == 1


@check
def n_choices_differ_and_are_reproducible():
    def go():
        # No question: what the model was never asked leaves it unsure.
        r = client.completions.create(model=model, prompt="the", temperature=2, n=4, seed=7, max_tokens=12)
        assert [c.index for c in r.choices] == [0, 1, 2, 3]
        return [c.text for c in r.choices]

    assert go() == go()
    assert len(set(go())) > 1


@check
def logprobs_have_openais_shape():
    r = client.chat.completions.create(model=model, messages=ask, temperature=0, logprobs=True, top_logprobs=3)
    content = r.choices[0].logprobs.content
    assert len(content) >= 1
    assert b"".join(bytes(t.bytes) for t in content if t.bytes).decode().startswith(r.choices[0].message.content)
    for t in content:
        assert t.logprob <= 0 and len(t.top_logprobs) == 3
        assert t.top_logprobs[0].token == t.token and t.top_logprobs[0].logprob == t.logprob
    c = client.completions.create(model=model, prompt="Hello", max_tokens=4, logprobs=2, temperature=0)
    lp = c.choices[0].logprobs
    assert len(lp.tokens) == len(lp.token_logprobs) == len(lp.top_logprobs) == len(lp.text_offset)


@check
def stop_strings_cut_the_answer():
    common = dict(model=model, messages=[{"role": "user", "content": "Who are you?"}], temperature=0)
    free = client.chat.completions.create(**common).choices[0].message.content
    assert len(free) >= 3, f"too short to cut: {free}"
    stop = free[len(free) // 2]
    r = client.chat.completions.create(**common, stop=[stop])
    assert r.choices[0].message.content == free.split(stop)[0], (r, free)
    assert r.choices[0].finish_reason == "stop"


@check
def max_tokens_end_with_length():
    r = client.completions.create(model=model, prompt="one two", max_tokens=3, temperature=0, extra_body={"ignore_eos": True})
    assert r.choices[0].finish_reason == "length" and r.usage.completion_tokens == 3
    r = client.completions.create(model=model, prompt="one two", temperature=0, extra_body={"ignore_eos": True})
    assert r.usage.completion_tokens == 16


@check
def prompts_may_be_lists():
    r = client.completions.create(model=model, prompt=["one", "two"], max_tokens=2, temperature=0)
    assert [c.index for c in r.choices] == [0, 1]
    r = client.completions.create(model=model, prompt=[5, 6, 7], max_tokens=2, temperature=0)
    assert r.usage.prompt_tokens == 3
    r = client.completions.create(model=model, prompt=[[5, 6], [7, 8]], max_tokens=2, temperature=0)
    assert len(r.choices) == 2 and r.usage.prompt_tokens == 4


@check
def errors_are_openais():
    for kwargs, kind, status in [
        (dict(model="no-such-model"), openai.NotFoundError, 404),
        (dict(temperature=-1), openai.BadRequestError, 400),
        (dict(max_tokens=10**6), openai.BadRequestError, 400),
        (dict(response_format={"type": "json_object"}), openai.BadRequestError, 400),
    ]:
        try:
            client.chat.completions.create(**{**dict(model=model, messages=ask), **kwargs})
        except kind as e:
            assert e.status_code == status and e.body["message"], e.body
        else:
            raise AssertionError(f"{kwargs} was accepted")
    # A request's error ends that request alone.
    chat_answers()


@check
def many_concurrent_streams():
    async def one(c, i):
        a, b = 10 + i, 90 - i
        text = ""
        stream = await c.chat.completions.create(
            model=model, messages=[{"role": "user", "content": f"What is {a} + {b}?"}], temperature=0, stream=True,
            max_tokens=48,
        )
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
        return text

    async def go():
        async with openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0) as c:
            return await asyncio.gather(*(one(c, i) for i in range(32)))

    together = asyncio.run(go())
    assert all(together), together
    for i in (0, 13, 31):
        r = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": f"What is {10 + i} + {90 - i}?"}], temperature=0,
            max_tokens=48,
        )
        assert r.choices[0].message.content == together[i], "an answer depends on its company"


@check
def a_client_that_leaves_frees_its_blocks():
    metric = base.removesuffix("/v1") + "/metrics"

    def value(name):
        text = client._client.get(metric).text
        return float(next(l for l in text.splitlines() if l.startswith(name)).rsplit(" ", 1)[1])

    stream = client.completions.create(
        # Seconds of work, so that it is under way when the metrics are read.
        model=model, prompt="1", n=32, max_tokens=2000, stream=True, temperature=1, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    assert value("vllm:kv_cache_usage_perc") > 0
    stream.close()
    for _ in range(500):
        if value("vllm:num_requests_running") == 0 and value("vllm:kv_cache_usage_perc") == 0:
            return
        time.sleep(0.02)
    raise AssertionError("blocks are held after the client left")


@check
def lm_eval_loglikelihood_requests():
    """The shape that lm-eval's local-completions sends for loglikelihood: ids, echo, one token, logprobs."""
    r = client.completions.create(
        model=model, prompt=[[5, 6, 7, 8, 9], [9, 8, 7]], echo=True, max_tokens=1, logprobs=1, temperature=0, seed=1234
    )
    for choice, n in zip(r.choices, (5, 3)):
        lp = choice.logprobs
        assert lp.token_logprobs[0] is None and len(lp.token_logprobs) == n + 1, lp
        assert all(x <= 0 for x in lp.token_logprobs[1:])
        greedy = [max(t, key=t.get) for t in lp.top_logprobs[1:]]
        assert len(greedy) == n


checks = [f for f in checks if not only or f.__name__ in only]
assert len(checks) == len(only) or not only, f"unknown among {only}"
for f in checks:
    f()
    print("ok", f.__name__, flush=True)
print(f"all {len(checks)} checks hold")
