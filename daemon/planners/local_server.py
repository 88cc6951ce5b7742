"""Serves a GGUF model on loopback with an OpenAI-compatible endpoint: `python -m perdure.daemon.planners.local_server`.

llama.cpp's own server from the wheel of xllamacpp (`perdure[local]`). Prints `ready http://127.0.0.1:PORT` once it answers."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from importlib.resources import files
from pathlib import Path
from typing import Any

CONTEXT_TOKENS = 4096
GGUF_MAGIC = b"GGUF"


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT (or, if asked for, until standard input closes). Exit 2: the model cannot be served."""
    options = _options(arguments)
    problem = _problem(options.model)
    if problem is not None:
        sys.stderr.write(f"{problem}\n")
        return 2
    # llama.cpp writes its log to stderr; standard output is for the one line that says that it is ready
    quiet = os.open(os.devnull, os.O_WRONLY)
    loud = os.dup(2)
    if not options.verbose:
        os.dup2(quiet, 2)
    try:
        server = _serve(options)
    except Exception as error:  # noqa: BLE001  # whatever the library makes of the file is the reason
        os.dup2(loud, 2)
        sys.stderr.write(f"{options.model}: {error}\n")
        return 2
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())
    if options.until_stdin_closes:
        threading.Thread(target=_wait_for_end_of_input, args=(done,), daemon=True).start()
    sys.stdout.write(f"ready {server.listening_address}\n")
    sys.stdout.flush()
    done.wait()
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve a GGUF model on loopback, OpenAI-compatible.")
    parser.add_argument("--model", type=Path, required=True, help="the GGUF file")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--context", type=int, default=CONTEXT_TOKENS, help="tokens of one conversation")
    parser.add_argument("--answers", type=int, default=1, help="how many answers to one prompt at once (`n`)")
    # llama.cpp's threads wait for each other by spinning: one too many on a busy machine makes it ten times slower
    threads = max(1, (os.cpu_count() or 1) - 1)
    parser.add_argument("--threads", type=int, default=threads, help="threads; the default leaves one core to others")
    parser.add_argument("--until-stdin-closes", action="store_true", help="end when standard input is closed")
    parser.add_argument("--verbose", action="store_true", help="show llama.cpp's own log")
    return parser.parse_args(arguments)


def _problem(model: Path) -> str | None:
    try:
        with model.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        return f"{model}: {error.strerror}"
    if magic != GGUF_MAGIC:
        return f"{model}: no GGUF file (it begins with {magic!r})"
    try:
        import xllamacpp  # noqa: F401  # asked for here so that the reason is one line
    except ImportError:
        return "xllamacpp is not installed; install the extra perdure[local]"
    return None


def _serve(options: argparse.Namespace) -> Any:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(options.model)
    parameters.model_alias = {options.model.stem}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = options.port
    parameters.n_ctx = options.context
    parameters.n_parallel = options.answers
    parameters.kv_unified = True  # answers to one prompt share it
    parameters.cache_ram_mib = 0  # the default keeps up to 8 GiB of old prompts
    parameters.ui = False
    parameters.offline = True
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = options.threads
    if b"tools" not in _chat_template(options.model):
        template = files("perdure.daemon.planners").joinpath("chatml_tools.jinja").read_text()
        parameters.chat_template = template
    return xllamacpp.Server(parameters)


def _chat_template(model: Path) -> bytes:
    """The chat template that stands in the file's head, raw; empty where none is found in the first 16 MB."""
    with model.open("rb") as file:
        head = file.read(16_000_000)
    start = head.find(b"tokenizer.chat_template")
    if start < 0:
        return b""
    length_at = start + len(b"tokenizer.chat_template") + 4  # after the key: the value's type, then its length
    length = int.from_bytes(head[length_at : length_at + 8], "little")
    return head[length_at + 8 : length_at + 8 + length]


def _wait_for_end_of_input(done: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    done.set()


if __name__ == "__main__":
    sys.exit(main())
