"""A small server that speaks the OpenAI chat protocol, answering with a tiny random model: for the tests of `karma.models.api`."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from karma.models.ask import CachedModel
from karma.study.sections import ModelSpec
from tests.conftest import change_base

TINY = {"tiny": ModelSpec(random={"hidden_size": 32, "layers": 2, "heads": 2}, seed=1).model_dump()}
KEY = "sk-secret-4711"


class ChatServer(ThreadingHTTPServer):
    """Answers POST /v1/chat/completions; remembers what it was asked.

    Attributes:
        asked: bodies of answered requests, in order. troubles: HTTP codes to give first, one a request.
        pause_s: how long an answer takes. usage: whether token counts are told.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model = CachedModel(TINY, "tiny", change_base("compute", device="cpu", dtype="float32"), 1)
        self.asked, self.troubles, self.lock = [], [], threading.Lock()
        self.pause_s, self.usage, self.old_limit_refused = 0.0, True, False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            return self.reply(404, {"error": {"message": f"no route {self.path}"}})
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            message = f"Incorrect API key provided: {self.headers.get('Authorization')}"
            return self.reply(401, {"error": {"message": message}})
        if server.old_limit_refused and "max_tokens" in body:
            return self.reply(400, {"error": {"message": "Use 'max_completion_tokens' instead."}})
        with server.lock:
            trouble = server.troubles.pop(0) if server.troubles else None
        if trouble == "cut":
            return self.connection.close()
        if trouble:
            return self.reply(trouble, {"error": {"message": "busy"}}, {"Retry-After": "0"})
        time.sleep(server.pause_s)
        return self.reply(200, self.answer(body))

    def answer(self, body):
        model, n_tokens = self.server.model, body.get("max_tokens") or body["max_completion_tokens"]
        text = model.apply_chat_template(body["messages"])
        with self.server.lock:
            settings = {"until": [], "max_gen_toks": n_tokens, "do_sample": False}
            (content,) = model.backend.generate([text], settings, 0).answers
            self.server.asked.append(body)
        usage = {"usage": {"prompt_tokens": 7, "completion_tokens": 3}} if self.server.usage else {}
        return {"choices": [{"index": 0, "message": {"role": "assistant", "content": content}}], **usage}

    def reply(self, code, body, headers=None):
        content = json.dumps(body).encode()
        self.send_response(code)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": len(content),
            **(headers or {}),
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass
