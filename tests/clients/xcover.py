"""XCover's documented client: one session of `requests`, with `urllib3`'s `Retry` mounted.

    xcover.py URL KEY [--methods POST,GET] [--timeout SECONDS]

Makes one booking, and prints what its caller sees, and the statuses and errors on which `Retry` tried again.
"""

import argparse
import json
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

arguments = argparse.ArgumentParser()
arguments.add_argument("url")
arguments.add_argument("key")
arguments.add_argument("--methods", default="GET,POST")
arguments.add_argument("--timeout", type=float, default=10)
arguments = arguments.parse_args()

retry = Retry(
    total=3,
    status_forcelist=[423, 429, 502, 503, 504],
    # POST is not among the methods that are retried by default.
    allowed_methods=arguments.methods.split(","),
    backoff_factor=0.05,
    # After the last retry a response is returned, and no exception is raised.
    raise_on_status=False,
)
session = requests.Session()
session.mount(f"{urlsplit(arguments.url).scheme}://", HTTPAdapter(max_retries=retry))

response = session.post(
    arguments.url,
    json={"policy_type": "parcel"},
    headers={"x-idempotency-key": arguments.key},
    timeout=arguments.timeout,
)
history = response.raw.retries.history
print(
    json.dumps(
        {
            "status": response.status_code,
            # A booking that was made before is one that was made.
            "success": response.ok or response.status_code == 409,
            "body": response.json(),
            "retried": [attempt.status or type(attempt.error).__name__ for attempt in history],
        }
    )
)
