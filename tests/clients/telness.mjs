// The documented client of Telness Connect:
//
//     node telness.mjs URL KEY BODY [BODY...]
//
// Sends an order for each body, all at once and all with this key, and prints what each caller sees.

const [url, key, ...bodies] = process.argv.slice(2);

async function createOrder(body) {
  const attempts = [];
  for (;;) {
    const response = await fetch(url, {
      method: "POST",
      headers: { "X-API-Key": "secret", "Content-Type": "application/json", "X-Idempotency-Key": key },
      body,
    });
    const json = await response.json();
    attempts.push(json.code ?? response.status);
    // Only the first of the two codes says that the identical request may be sent again. The caller's patience ends too.
    if (json.code !== "idempotency_key_locked" || attempts.length === 50) {
      return { status: response.status, body: json, attempts };
    }
    await new Promise((resolve) => setTimeout(resolve, 100 + 400 * Math.random()));
  }
}

console.log(JSON.stringify(await Promise.all(bodies.map(createOrder))));
