"""Clusters of real processes for the benchmarks: started, measured with `brigade bench`, asked over HTTP, and ended."""

import http.client
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import tempfile
import threading
import time

import compare

CONTROL_PORT, HTTP_PORT = 7481, 7480
START_S, STOP_S, BENCH_S = 180, 5, 300
WARM_TOKENS = 200


class Programs:
    """Where `brigade` and `brigade-worker` are; built where no folder is given."""

    def __init__(self, folder, say):
        if folder is None:
            say("building brigade and brigade-worker...")
            compare.call(["cargo", "build", "--release", "--locked", "--workspace", "--bins"], cwd=compare.REPOSITORY)
            folder = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", compare.REPOSITORY / "target")) / "release"
        folder = folder.resolve()
        self.brigade, self.worker = folder / "brigade", folder / "brigade-worker"

    def free_port(self):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            return listener.getsockname()[1]

    def wait_for_port(self, endpoint):
        host, port = endpoint.split(":")
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection((host, int(port)), 1).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise SystemExit(f"error: nobody listens at {endpoint}") from None
                time.sleep(0.05)


class Cluster:
    """A coordinator on the first of `hosts` and a worker on each other, on `network`; without one all are on loopback.
    `least` workers get a stage at least; otherwise all do. `threads` and `stretch` are each worker's, or lists of them."""

    def __init__(self, programs, model, threads, network, hosts, settings, stretch=None, least=None):
        self.programs, self.network, self.hosts = programs, network, hosts
        self.home = tempfile.TemporaryDirectory()
        self.processes, self.warm = [], False
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(("BRIGADE_", "XDG_"))}
        # Workers measure their device anew, whatever those of clusters before found.
        self.environment["TMPDIR"] = self.home.name
        workers = hosts[1:]
        control, self.http_port = CONTROL_PORT, HTTP_PORT
        if network is None:
            control, self.http_port = programs.free_port(), programs.free_port()
        address = "127.0.0.1" if network is None else network.address(hosts[0])
        serve = [programs.brigade, "serve", model, "--min-workers", least or len(workers), "--http", f"127.0.0.1:{self.http_port}"]
        serve += ["--control", f"{address}:{control}", *settings]
        coordinator = self.start("coordinator", hosts[0], serve)
        words = self.line(coordinator, lambda words: "--token" in words)
        token = words[words.index("--token") + 1]
        of_each = lambda given: given if isinstance(given, list) else [given] * len(workers)  # noqa: E731
        for number, (host, count, factor) in enumerate(zip(workers, of_each(threads), of_each(stretch)), 1):
            join = [programs.worker, "join", f"{address}:{control}", "--name", f"w{number}", "--threads", count, "--memory", "4GiB"]
            join += ["--models", model.parent]
            environment = {"BRIGADE_TOKEN": token} | ({"BRIGADE_STRETCH": str(factor)} if factor else {})
            self.start(f"w{number}", host, join, environment)
        self.line(coordinator, lambda words: "serving" in words and any(word.startswith("http://") for word in words))
        self.model = self.status()["model"]["id"]
        self.wait_for_draft()

    def wait_for_draft(self):
        """Waits until the draft model is there, where there is to be one."""
        deadline = time.monotonic() + START_S
        while (draft := self.status()["draft"]) and draft["phase"] != "serving":
            if time.monotonic() > deadline:
                raise SystemExit(f"error: the draft model is not used: {draft}")
            time.sleep(0.1)

    def start(self, name, host, command, environment=None):
        home = pathlib.Path(self.home.name) / name
        home.mkdir()
        command = [str(part) for part in command]
        if self.network:
            command = self.network.command(host, command)
        log = open(home / "log.txt", "w+")
        environment = self.environment | {"HOME": str(home), "XDG_RUNTIME_DIR": self.home.name, "NO_COLOR": "1"} | (environment or {})
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=home)
        self.processes.append((name, process, log.name))
        return process, log.name

    def line(self, process, wanted):
        """The words of the first line in which `wanted` finds what it looks for."""
        process, log = process
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and process.poll() is None:
            for line in pathlib.Path(log).read_text().splitlines():
                if wanted(line.split()):
                    return line.split()
            time.sleep(0.05)
        said = "".join(pathlib.Path(log).read_text() for _, _, log in self.processes)
        self.stop()
        raise SystemExit(f"error: the cluster does not start; it said:\n{said}")

    def bench(self, *arguments):
        """What `brigade bench` measures, once."""
        command = [self.programs.brigade, "bench", "--url", f"http://127.0.0.1:{self.http_port}", "-r", 1, "--json", *arguments]
        command = [str(part) for part in command + (["--no-warmup"] if self.warm else [])]
        if not self.warm:
            # Workers that have just loaded still move their weights to huge pages, which costs the first seconds.
            self.warm = True
            self.bench("-p", 0, "-n", WARM_TOKENS, "--streams", 1)
        if self.network:
            command = self.network.command(self.hosts[0], command)
        document = json.loads(compare.call(command, env=self.environment, timeout=BENCH_S))
        disturbed = [test["test"] for test in document["tests"] if test["disturbed"] or test["cached_tokens"]]
        if disturbed or not document["tests"]:
            raise SystemExit(f"error: {', '.join(disturbed)} was disturbed, or nothing was measured: {document}")
        return document

    def status(self):
        command = [self.programs.brigade, "status", "--json", "--url", f"http://127.0.0.1:{self.http_port}"]
        command = [str(part) for part in command]
        return json.loads(compare.call(self.network.command(self.hosts[0], command) if self.network else command, env=self.environment))

    def asked(self, method, path, body=None):
        """What the coordinator answers; on loopback alone."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=30)
        connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        if answer.status != 200:
            raise SystemExit(f"error: {method} {path} was answered {answer.status}: {text}")
        return json.loads(text)

    def stream(self, prompt, tokens):
        """A request of random tokens that is still to be run; on loopback alone."""
        draw = random.Random()
        prompt = [draw.randrange(1000) for _ in range(prompt)]
        return Stream(self.http_port, {"model": self.model, "prompt": prompt, "max_tokens": tokens, "temperature": 1, "seed": 1})

    def complete(self, prompt, tokens, temperature):
        """An answer to a text, always the same: the seconds from its first token to its last, its text, and its usage; on loopback alone."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": tokens, "temperature": temperature, "seed": 1}
        stream = Stream(self.http_port, body).run()
        return (stream.at[-1] - stream.at[0]) / 1e3, stream.text, stream.usage

    def stop(self):
        for _, process, _ in self.processes:
            process.send_signal(signal.SIGTERM)
        for name, process, _ in self.processes:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise SystemExit(f"error: {name} did not end within {STOP_S} s") from None
        self.home.cleanup()


class Stream:
    """A completion of a prompt, with the time at which each token came."""

    def __init__(self, port, body):
        self.port, self.at, self.changed, self.ended = port, [], threading.Condition(), threading.Event()
        self.text, self.usage = "", None
        always = {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True, "return_token_ids": True}
        self.body = json.dumps(body | always)

    def run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        began = time.perf_counter()
        connection.request("POST", "/v1/completions", self.body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise SystemExit(f"error: a stream was answered {answer.status}: {answer.read()}")
        for line in answer:
            if self.ended.is_set():
                break
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise SystemExit(f"error: a stream broke off: {event['error']}")
            self.usage = event.get("usage") or self.usage
            self.text += event["choices"][0]["text"] if event["choices"] else ""
            if event["choices"] and event["choices"][0]["token_ids"]:
                with self.changed:
                    self.at.append((time.perf_counter() - began) * 1e3)
                    self.changed.notify_all()
        connection.close()
        return self

    @property
    def first_ms(self):
        return self.at[0]

    def count(self):
        return len(self.at)

    def wait_for(self, tokens):
        with self.changed:
            if not self.changed.wait_for(lambda: len(self.at) >= tokens, 300):
                raise SystemExit(f"error: a stream drew {len(self.at)} of {tokens} tokens in 300 s")

    def gaps_ms(self, first, last):
        """Times between two tokens, from the token of number `first` to that of `last`."""
        part = self.at[max(first - 1, 0) : last]
        return [later - earlier for earlier, later in zip(part, part[1:])]

    def cancel(self):
        self.ended.set()
