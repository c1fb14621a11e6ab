"""What reads descriptions: validators of JSON Schema and OpenAPI, and `schemathesis`, which calls a service by its OpenAPI.

    described.py URL SCHEMA [--examples N] [--seed N]

URL is that of the service, SCHEMA the path of the policy document's JSON Schema. Prints one line of JSON: how many endpoints
are described, header values of which the published pattern and the service think differently, and what schemathesis says.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import requests
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

arguments = argparse.ArgumentParser()
arguments.add_argument("url")
arguments.add_argument("schema")
arguments.add_argument("--examples", type=int, default=25)
arguments.add_argument("--seed", type=int, default=1)
arguments = arguments.parse_args()

policies = requests.get(f"{arguments.url}/.well-known/idempotency", timeout=10).json()
schema = json.loads(pathlib.Path(arguments.schema).read_text())
Draft202012Validator.check_schema(schema)
Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(policies)

api = requests.get(f"{arguments.url}/openapi.json", timeout=10).json()
OpenAPIV31SpecValidator(api).validate()


def differs(endpoint, value):
    """Whether the pattern takes what the service refuses, or the other way round."""
    headers = {endpoint["key"]["header"]: value}
    response = requests.request(endpoint["method"], arguments.url + endpoint["path"], headers=headers, timeout=10)
    # Without a body it is still an error, but another one.
    code = response.json()["code"] if "problem" in response.headers.get("content-type", "") else None
    refused = code in ("idempotency_key_invalid", "idempotency_key_missing")
    return refused == bool(re.search(endpoint["key"]["pattern"], value))


values = ["a", "A-1_b.c~", "a b", "a,b", "a;b", "a;b=1", '"a"', '"a b"', '"a,b;c"', '"a', 'a"', '""', r'"\""', r'"\a"', '"a"b']
values += [length * "x" for length in (255, 256)] + [f'"{length * "x"}"' for length in (255, 256)] + [f'"{255 * chr(92)*2}"']
values += [chr(code) for code in range(0x21, 0x7F)]
disputed = [value for endpoint in policies["endpoints"] for value in values if differs(endpoint, value)]

with tempfile.TemporaryDirectory() as folder:
    # Where it finds no configuration and leaves nothing behind.
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{arguments.url}/openapi.json"),
        *("--checks", "all", "--max-examples", str(arguments.examples), "--seed", str(arguments.seed), "--no-color"),
        *("--continue-on-failure", "--generation-database", "none"),
    ]
    schemathesis = subprocess.run(command, cwd=folder, capture_output=True, text=True)

said = {} if schemathesis.returncode == 0 else {"said": schemathesis.stdout + schemathesis.stderr}
tested = re.search(r"(\d+) generated", schemathesis.stdout)
print(
    json.dumps(
        {
            "endpoints": len(policies["endpoints"]),
            "disputed": disputed,
            "passed": schemathesis.returncode == 0,
            "cases": int(tested.group(1)) if tested else 0,
            **said,
        }
    )
)
