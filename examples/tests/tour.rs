//! What the tour tells.

#[allow(dead_code, reason = "the test does without `main`")]
#[path = "../tour.rs"]
mod tour;

const TOLD: &str = "\
First run and replay
  A client pays.                                         201 20 EUR paid, receipt 1             handler ran 1x
  It retries: the same response, and no second payment.  201 20 EUR paid, receipt 1 (replay)    handler ran 1x
  Another key is another payment.                        201 20 EUR paid, receipt 2             handler ran 2x

Conflict while running
  A client pays, and the bank takes its time.            no response yet                        handler ran 1x
  It retries too early.                                  409 idempotency_key_locked             handler ran 1x
  The bank replies, and so does the first request.       201 20 EUR paid, receipt 1             handler ran 1x
  It retries again.                                      201 20 EUR paid, receipt 1 (replay)    handler ran 1x

Mismatch
  A client pays.                                         201 20 EUR paid, receipt 1             handler ran 1x
  It sends another amount with the same key.             422 idempotency_key_mismatch           handler ran 1x
  The record stays as it was.                            201 20 EUR paid, receipt 1 (replay)    handler ran 1x

Missing key
  A client pays without a key, which is `required`.      400 idempotency_key_missing            handler ran 0x

A client hangs up and retries
  A client pays, and hangs up while the handler runs.    no client there                        handler ran 1x
  It retries while the handler still runs.               409 idempotency_key_locked             handler ran 1x
  The handler still runs to its end.                     no client there                        handler ran 1x
  It retries again, and gets the response it missed.     201 20 EUR paid, receipt 1 (replay)    handler ran 1x

Expiry
  A client pays.                                         201 20 EUR paid, receipt 1             handler ran 1x
  It retries 24 hours later, but for a nanosecond.       201 20 EUR paid, receipt 1 (replay)    handler ran 1x
  A nanosecond later the key is free: a new payment.     201 20 EUR paid, receipt 2             handler ran 2x
";

#[tokio::test]
async fn the_tour_tells_the_truth() -> Result<(), axum::BoxError> {
    assert_eq!(tour::tour().await?, TOLD);
    Ok(())
}
