"""Stripe's official SDK, with its automatic retries.

    stripe_client.py URL [--first AMOUNT] [--calls N] [--threads N] [--timeout SECONDS] [--source TOKEN] [--keys PREFIX]

Makes one charge per amount, from AMOUNT on, and prints a line of JSON for each: what was asked, and what the caller sees.
The SDK makes the keys, unless a prefix is given; then the caller makes them, and so can do again what the SDK does not: it
repeats a call whose response broke off in the middle of its body.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor

import stripe

arguments = argparse.ArgumentParser()
arguments.add_argument("url")
arguments.add_argument("--first", type=int, default=1)
arguments.add_argument("--calls", type=int, default=1)
arguments.add_argument("--threads", type=int, default=1)
arguments.add_argument("--timeout", type=float, default=10)
arguments.add_argument("--source")
arguments.add_argument("--keys")
arguments = arguments.parse_args()

stripe.enable_telemetry = False
client = stripe.StripeClient(
    "sk_test_123",
    base_addresses={"api": arguments.url},
    http_client=stripe.RequestsClient(timeout=arguments.timeout),
    max_network_retries=8,
)


def charge(amount):
    params = {"amount": amount, "currency": "eur"}
    if arguments.source:
        params["source"] = arguments.source
    options = {"idempotency_key": f"{arguments.keys}-{amount}"} if arguments.keys else {}
    repeated = 0
    while True:
        seen = {"asked": amount, "repeated": repeated}
        try:
            made = client.v1.charges.create(params, options)
            return seen | {"id": made.id, "amount": made.amount}
        except stripe.APIConnectionError as problem:
            if not arguments.keys or repeated == 8:
                return seen | {"error": type(problem).__name__, "message": str(problem)}
            repeated += 1
        except stripe.StripeError as problem:
            return seen | {
                "error": type(problem).__name__,
                "status": problem.http_status,
                "message": problem.user_message,
            }


amounts = range(arguments.first, arguments.first + arguments.calls)
with ThreadPoolExecutor(arguments.threads) as pool:
    for seen in pool.map(charge, amounts):
        print(json.dumps(seen))
