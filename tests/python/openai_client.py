"""Drive a server with the unchanged `openai` package and check every answer.

usage: python openai_client.py BASE_URL API_KEY_OR_DASH

BASE_URL is the server's root, without /v1. One line `ok NAME` per check; the first failure ends the run with what was seen.
"""

import json
import math
import sys
import urllib.error
import urllib.request

import openai

CHECKS = []
PROMPT = "The capital of France is"
MESSAGES = [{"role": "user", "content": "Say hello."}]
FINISH = ("stop", "length")
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}


def check(function):
    CHECKS.append(function)
    return function


def equal(seen, wanted, what):
    assert seen == wanted, f"{what}: wanted {wanted!r}, saw {seen!r}"


def holds(condition, what, seen):
    assert condition, f"{what}, saw {seen!r}"


class Server:
    def __init__(self, base_url, api_key):
        self.root = base_url.rstrip("/")
        self.api_key = api_key
        self.client = openai.OpenAI(base_url=self.root + "/v1", api_key=api_key or "none", max_retries=0, timeout=300)
        self.model = self.client.models.list().data[0].id

    def complete(self, prompt=PROMPT, **options):
        options = {"max_tokens": 8, "temperature": 0, **options}
        return self.client.completions.create(model=self.model, prompt=prompt, **options)

    def chat(self, messages=MESSAGES, **options):
        options = {"max_tokens": 8, "temperature": 0, **options}
        return self.client.chat.completions.create(model=self.model, messages=messages, **options)

    def post(self, path, body):
        """Status and parsed body of a raw request."""
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        request = urllib.request.Request(self.root + path, data=body, headers=headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


def check_usage(usage):
    holds(usage is not None, "usage is missing", usage)
    equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens, "usage.total_tokens")
    cached = usage.prompt_tokens_details.cached_tokens
    holds(0 <= cached < usage.prompt_tokens, "cached_tokens", usage)


def check_completion(answer, choices=1):
    equal(answer.object, "text_completion", "object")
    holds(answer.id, "id is empty", answer.id)
    holds(answer.created > 1_500_000_000, "created is no time in seconds", answer.created)
    equal([choice.index for choice in answer.choices], list(range(choices)), "choice indices")
    for choice in answer.choices:
        holds(choice.finish_reason in FINISH, "unknown finish_reason", choice.finish_reason)
    check_usage(answer.usage)


def check_logprobs(logprobs, text, top):
    """The parallel lists of a legacy completion, which tell `text` piece by piece."""
    size = len(logprobs.tokens)
    equal("".join(logprobs.tokens), text, "joined logprobs.tokens")
    for name in ("token_logprobs", "top_logprobs", "text_offset"):
        equal(len(getattr(logprobs, name)), size, f"length of logprobs.{name}")
    offset = logprobs.text_offset[0]
    for position, (token, seen) in enumerate(zip(logprobs.tokens, logprobs.text_offset)):
        equal(seen, offset, f"text_offset[{position}]")
        offset += len(token)
    for position, (token, value, best) in enumerate(zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs)):
        if value is None:
            equal((position, best), (0, None), "a position without log-probability")
            continue
        holds(math.isfinite(value) and value <= 0, f"token_logprobs[{position}] is no log-probability", value)
        holds(1 <= len(best) <= top + 1, f"top_logprobs[{position}] has the wrong size", best)
        holds(max(best.values()) >= value, f"top_logprobs[{position}] is below the token's own", (best, value))
        if token in best:
            holds(best[token] >= value, f"top_logprobs[{position}] disagrees with token_logprobs", (best, value))


@check
def models_list(server):
    page = server.client.models.list()
    equal(page.object, "list", "object")
    holds(len(page.data) >= 1, "no model is listed", page.data)
    for model in page.data:
        equal(model.object, "model", "data[].object")
        holds(model.id, "data[].id is empty", model.id)
        holds(isinstance(model.created, int) and isinstance(model.owned_by, str), "created or owned_by is missing", model)


@check
def completion_of_text(server):
    answer = server.complete()
    check_completion(answer)
    equal(answer.model, server.model, "model")
    holds(answer.choices[0].text, "text is empty", answer)
    equal(answer.choices[0].logprobs, None, "logprobs that nobody asked for")
    holds(1 <= answer.usage.completion_tokens <= 8, "completion_tokens", answer.usage)


@check
def completion_is_repeatable_at_temperature_zero(server):
    equal(server.complete().choices[0].text, server.complete().choices[0].text, "second answer")


@check
def several_choices(server):
    options = {"temperature": 1.0, "seed": 3, "max_tokens": 8}
    answer = server.complete(n=3, **options)
    check_completion(answer, choices=3)
    texts = [choice.text for choice in answer.choices]
    equal(texts[0], server.complete(**options).choices[0].text, "the first choice")
    holds(len(set(texts)) > 1, "all choices are the same", texts)
    chat = server.chat(n=3, **options)
    equal([choice.index for choice in chat.choices], [0, 1, 2], "choice indices")
    check_usage(chat.usage)


@check
def completion_of_token_ids(server):
    ids = [5, 6, 7, 8, 9, 10]
    answer = server.complete(ids)
    check_completion(answer)
    equal(answer.usage.prompt_tokens, len(ids), "prompt_tokens of a token-id prompt")
    equal(server.complete([ids]).choices[0].text, answer.choices[0].text, "the same prompt in a list of one")


@check
def completion_of_two_prompts(server):
    prompts = [PROMPT, "Once upon a time,"]
    answer = server.complete(prompts)
    check_completion(answer, choices=2)
    for prompt, choice in zip(prompts, answer.choices):
        equal(choice.text, server.complete(prompt).choices[0].text, f"text of {prompt!r} in a list and alone")


@check
def completion_logprobs(server):
    choice = server.complete(logprobs=3).choices[0]
    check_logprobs(choice.logprobs, choice.text, 3)
    for position, best in enumerate(choice.logprobs.top_logprobs):
        holds(len(best) in (3, 4) or len(set(best)) < 3, f"top_logprobs[{position}]", best)
        equal(max(best.values()), choice.logprobs.token_logprobs[position], f"greedy token {position} is the best one")


@check
def completion_echo_scores_the_prompt(server):
    answer = server.complete(echo=True, max_tokens=0, logprobs=2)
    check_completion(answer)
    choice = answer.choices[0]
    equal(choice.text, PROMPT, "echoed text")
    equal(choice.finish_reason, "length", "finish_reason")
    equal(answer.usage.completion_tokens, 0, "completion_tokens")
    check_logprobs(choice.logprobs, PROMPT, 2)
    equal(len(choice.logprobs.tokens), answer.usage.prompt_tokens, "one entry for each prompt token")
    equal(choice.logprobs.token_logprobs[0], None, "the first token's log-probability")
    holds(None not in choice.logprobs.token_logprobs[1:], "a prompt token without log-probability", choice.logprobs)


@check
def completion_echo_with_generation(server):
    scored = server.complete(echo=True, max_tokens=0, logprobs=1).choices[0].logprobs
    answer = server.complete(echo=True, max_tokens=1, logprobs=1)
    choice = answer.choices[0]
    holds(choice.text.startswith(PROMPT), "text does not begin with the prompt", choice.text)
    check_logprobs(choice.logprobs, choice.text, 1)
    equal(len(choice.logprobs.tokens), answer.usage.prompt_tokens + 1, "entries: the prompt's and one more")
    equal(choice.logprobs.token_logprobs[:-1], scored.token_logprobs, "the prompt's log-probabilities")


@check
def completion_stop(server):
    whole = server.complete(max_tokens=16).choices[0].text
    holds(len(whole) >= 6, "too little text to cut", whole)
    stop = whole[3:6]
    answer = server.complete(max_tokens=16, stop=[stop, "\u0000never"])
    equal(answer.choices[0].text, whole[: whole.index(stop)], "text before the stop string")
    equal(answer.choices[0].finish_reason, "stop", "finish_reason")
    equal(server.complete(max_tokens=16, stop=stop).choices[0].text, answer.choices[0].text, "stop as a plain string")


@check
def completion_seed(server):
    options = {"temperature": 1.2, "top_p": 0.95, "max_tokens": 16}
    first = server.complete(seed=42, **options).choices[0].text
    equal(server.complete(seed=42, **options).choices[0].text, first, "the same seed again")
    others = [server.complete(seed=seed, **options).choices[0].text for seed in (1, 2, 3)]
    holds(any(text != first for text in others), "every seed gives the same text", others)


@check
def completion_stream(server):
    whole = server.complete(max_tokens=12)
    chunks = list(server.complete(max_tokens=12, stream=True, stream_options={"include_usage": True}))
    texts = [choice.text for chunk in chunks for choice in chunk.choices]
    equal("".join(texts), whole.choices[0].text, "streamed text")
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    equal(reasons, [whole.choices[0].finish_reason], "streamed finish reasons")
    equal({chunk.id for chunk in chunks}, {chunks[0].id}, "ids of the chunks")
    equal([chunk.usage for chunk in chunks[:-1]], [None] * (len(chunks) - 1), "usage before the last chunk")
    equal(chunks[-1].choices, [], "choices beside the usage")
    equal(chunks[-1].usage.model_dump(exclude_none=True)["completion_tokens"], whole.usage.completion_tokens, "streamed completion_tokens")


@check
def chat(server):
    answer = server.chat()
    equal(answer.object, "chat.completion", "object")
    equal([choice.index for choice in answer.choices], [0], "choice indices")
    choice = answer.choices[0]
    equal(choice.message.role, "assistant", "role")
    holds(isinstance(choice.message.content, str), "content is no text", choice.message)
    holds(not choice.message.tool_calls, "tool calls", choice.message)
    holds(choice.finish_reason in FINISH, "unknown finish_reason", choice.finish_reason)
    equal(choice.logprobs, None, "logprobs that nobody asked for")
    check_usage(answer.usage)


@check
def chat_content_parts(server):
    parts = [{"role": "user", "content": [{"type": "text", "text": MESSAGES[0]["content"]}]}]
    equal(server.chat(parts).choices[0].message.content, server.chat().choices[0].message.content, "content as parts and as text")


@check
def chat_max_completion_tokens(server):
    answer = server.client.chat.completions.create(model=server.model, messages=MESSAGES, temperature=0, max_completion_tokens=2)
    holds(answer.usage.completion_tokens <= 2, "completion_tokens", answer.usage)


@check
def chat_stream(server):
    whole = server.chat(max_tokens=12)
    chunks = list(server.chat(max_tokens=12, stream=True, stream_options={"include_usage": True}))
    equal({chunk.object for chunk in chunks}, {"chat.completion.chunk"}, "objects")
    equal({chunk.id for chunk in chunks}, {chunks[0].id}, "ids of the chunks")
    equal(chunks[0].choices[0].delta.role, "assistant", "role in the first chunk")
    deltas = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    equal("".join(deltas), whole.choices[0].message.content, "streamed content")
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    equal(reasons, [whole.choices[0].finish_reason], "streamed finish reasons")
    equal([chunk.usage for chunk in chunks[:-1]], [None] * (len(chunks) - 1), "usage before the last chunk")
    equal(chunks[-1].choices, [], "choices beside the usage")
    equal(chunks[-1].usage.completion_tokens, whole.usage.completion_tokens, "streamed completion_tokens")
    equal(chunks[-1].usage.prompt_tokens, whole.usage.prompt_tokens, "streamed prompt_tokens")


@check
def chat_stream_without_usage(server):
    chunks = list(server.chat(stream=True))
    equal([chunk.usage for chunk in chunks], [None] * len(chunks), "usage that nobody asked for")
    holds(all(chunk.choices for chunk in chunks), "a chunk without choices", chunks[-1])


@check
def chat_logprobs(server):
    choice = server.chat(logprobs=True, top_logprobs=2).choices[0]
    entries = choice.logprobs.content
    holds(entries, "logprobs.content is empty", choice.logprobs)
    for entry in entries:
        holds(math.isfinite(entry.logprob) and entry.logprob <= 0, "no log-probability", entry)
        equal(len(entry.top_logprobs), 2, "number of top_logprobs")
        equal(entry.top_logprobs[0].logprob, entry.logprob, "the greedy token is the best one")
        equal(entry.top_logprobs[0].token, entry.token, "the greedy token's text")
        holds(entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob, "top_logprobs are not sorted", entry)
    told = b"".join(bytes(entry.bytes) for entry in entries if entry.bytes is not None).decode("utf-8", "replace")
    holds(told.startswith(choice.message.content), "joined bytes are not the content", (told, choice.message.content))


@check
def chat_stop(server):
    whole = server.chat(max_tokens=16).choices[0].message.content
    holds(len(whole) >= 4, "too little text to cut", whole)
    stop = whole[2:4]
    choice = server.chat(max_tokens=16, stop=stop).choices[0]
    equal(choice.message.content, whole[: whole.index(stop)], "content before the stop string")
    equal(choice.finish_reason, "stop", "finish_reason")
    streamed = "".join(c.delta.content or "" for chunk in server.chat(max_tokens=16, stop=stop, stream=True) for c in chunk.choices)
    equal(streamed, choice.message.content, "streamed content before the stop string")


@check
def chat_length(server):
    answer = server.chat(max_tokens=1)
    equal(answer.usage.completion_tokens, 1, "completion_tokens")
    equal(answer.choices[0].finish_reason, "length", "finish_reason")


@check
def chat_with_a_call_and_its_answer(server):
    call = {"id": "a1b2c3d4e", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [*MESSAGES, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "tool_call_id": call["id"], "content": "2"}]
    message = server.chat(messages).choices[0].message
    equal((message.role, message.tool_calls), ("assistant", None), "an answer without tools")


@check
def chat_with_tools_that_the_template_does_not_know(server):
    """SmolLM2's template writes no tools: they are refused rather than forgotten."""
    error = refused(lambda: server.chat(tools=[TOOL]), openai.BadRequestError, "template has no tools")
    equal(error.body["param"], "tools", "error.param")
    equal(server.chat(tools=[TOOL], tool_choice="none").choices[0].message.tool_calls, None, "calls that nobody wanted")


@check
def chat_logit_bias(server):
    token = 42
    answer = server.chat(max_tokens=3, logit_bias={str(token): 100})
    forced = server.client.completions.create(
        model=server.model, prompt=[token] * 3, max_tokens=0, echo=True, temperature=0
    )
    equal(answer.usage.completion_tokens, 3, "completion_tokens")
    equal(answer.choices[0].message.content, forced.choices[0].text, "text of the forced token, three times")


@check
def chat_stop_at_the_first_token_of_a_stream_closed_early(server):
    stream = server.chat(max_tokens=64, stream=True)
    next(iter(stream))
    stream.close()
    check_usage(server.chat().usage)


def refused(call, error_type, *words):
    """The error that `call` raises; its message holds all of `words`."""
    try:
        answer = call()
    except error_type as error:
        body = error.body
        holds(isinstance(body, dict), "the body is no OpenAI error object", body)
        holds(isinstance(body.get("message"), str) and isinstance(body.get("type"), str), "error.message or error.type is missing", body)
        holds({"code", "param"} <= set(body), "error.code or error.param is missing", body)
        for word in words:
            holds(word in body["message"], f"the message does not name {word}", body)
        return error
    except openai.OpenAIError as error:
        raise AssertionError(f"wanted {error_type.__name__}, saw {error!r}") from error
    raise AssertionError(f"wanted {error_type.__name__}, saw an answer: {answer!r}")


@check
def unknown_model_is_not_found(server):
    name = "no-such-model"
    error = refused(lambda: server.client.completions.create(model=name, prompt="a", max_tokens=1), openai.NotFoundError, name)
    equal(error.body["code"], "model_not_found", "error.code")
    refused(lambda: server.client.chat.completions.create(model=name, messages=MESSAGES, max_tokens=1), openai.NotFoundError, name)


@check
def bad_values_are_refused(server):
    for options in ({"temperature": -1}, {"temperature": 3}, {"top_p": 1.5}, {"max_tokens": -1}, {"presence_penalty": 9}):
        name = next(iter(options))
        for call in (server.complete, server.chat):
            error = refused(lambda: call(**options), openai.BadRequestError, name)
            equal(error.body["param"], name, "error.param")
            equal(error.body["type"], "invalid_request_error", "error.type")
    for call, options in ((server.complete, {"logprobs": 99}), (server.chat, {"logprobs": True, "top_logprobs": 99})):
        name = list(options)[-1]
        equal(refused(lambda: call(**options), openai.BadRequestError, name).body["param"], name, "error.param")


@check
def unsupported_parameters_are_refused(server):
    for options in ({"tools": [TOOL], "tool_choice": "required"}, {"response_format": {"type": "json_object"}}):
        name = list(options)[-1]
        error = refused(lambda: server.chat(**options), openai.BadRequestError, name)
        equal(error.body["param"], name, "error.param")
    refused(lambda: server.complete(best_of=2), openai.BadRequestError, "best_of")
    refused(lambda: server.complete(suffix="end"), openai.BadRequestError, "suffix")
    refused(lambda: server.chat(extra_body={"no_such_parameter": 1}), openai.BadRequestError, "no_such_parameter")


@check
def too_long_prompt_is_refused(server):
    prompt = [7] * 300_000
    error = refused(lambda: server.complete(prompt), openai.BadRequestError, "300000")
    equal(error.body["code"], "context_length_exceeded", "error.code")
    error = refused(lambda: server.chat([{"role": "user", "content": "word " * 300_000}]), openai.BadRequestError)
    equal(error.body["code"], "context_length_exceeded", "error.code")


@check
def bad_token_ids_are_refused(server):
    refused(lambda: server.complete([2_000_000_000]), openai.BadRequestError, "2000000000")
    refused(lambda: server.complete([-1]), openai.BadRequestError)


@check
def broken_requests_get_the_error_shape(server):
    model = json.dumps(server.model).encode()
    bodies = [
        ("/v1/completions", b"{not json", 400),
        ("/v1/completions", b"[]", 400),
        ("/v1/completions", b'{"model": %s}' % model, 400),
        ("/v1/completions", b'{"model": %s, "prompt": {"a": 1}}' % model, 400),
        ("/v1/chat/completions", b'{"model": %s}' % model, 400),
        ("/v1/chat/completions", b'{"model": %s, "messages": []}' % model, 400),
        ("/v1/chat/completions", b'{"model": %s, "messages": [{"role": "user"}]}' % model, 400),
        ("/v1/no-such-endpoint", b"{}", 404),
    ]
    for path, body, wanted in bodies:
        status, answer = server.post(path, body)
        equal(status, wanted, f"status of {path} with {body!r}")
        error = answer.get("error")
        holds(isinstance(error, dict), f"no error object for {path} with {body!r}", answer)
        holds({"message", "type", "param", "code"} <= set(error), "a field of the error is missing", error)


@check
def wrong_key_is_refused(server):
    if server.api_key is None:
        return
    stranger = openai.OpenAI(base_url=server.root + "/v1", api_key="wrong", max_retries=0)
    error = refused(lambda: stranger.models.list(), openai.AuthenticationError)
    equal(error.body["code"], "invalid_api_key", "error.code")
    refused(lambda: stranger.completions.create(model=server.model, prompt="a", max_tokens=1), openai.AuthenticationError)


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: openai_client.py BASE_URL API_KEY_OR_DASH")
    server = Server(sys.argv[1], None if sys.argv[2] == "-" else sys.argv[2])
    for function in CHECKS:
        try:
            function(server)
        except Exception as error:
            sys.exit(f"FAILED {function.__name__}: {type(error).__name__}: {error}")
        print(f"ok {function.__name__}", flush=True)


if __name__ == "__main__":
    main()
