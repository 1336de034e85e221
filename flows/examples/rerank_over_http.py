"""Reranks documents with a served release; needs nothing but the standard library.

relevance serve &
python flows/examples/rerank_over_http.py http://127.0.0.1:8080 "sort a list" "list.sort" "open a file"
"""

import json
import sys
import urllib.request
from typing import Any


def rerank(address: str, query: str, texts: list[str]) -> list[dict[str, Any]]:
    """Index and score of each text, best first.

    Raises:
        urllib.error.HTTPError: the service refused the request; its body says why.
    """
    body = json.dumps({"query": query, "texts": texts}).encode()
    request = urllib.request.Request(f"{address}/rerank", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        ranked: list[dict[str, Any]] = json.load(answer)
    return ranked


if __name__ == "__main__":
    address, query, *texts = sys.argv[1:]
    for result in rerank(address, query, texts):
        print(f"{result['score']:.3f}  {texts[result['index']]}")
